"""The training loop: the same weights as by hand, adversarial, in several steps to a call.

It is what is tested here, so most tests need a second step, epoch or checkpoint: a handful on a few tiny images.
"""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import attacks
from common.errors import UserError
from common.training import augmentation, devices, loop
from common.training.batches import batches as array_batches
from tests.helpers.training_toys import data, fit, network, same, sgd, weights


def test_the_loop_is_plain_gradient_descent():
    model, reference = network(), network()
    fit(model, weight_decay=0.01, optimizer=keras.optimizers.SGD(0.05))
    x, y = data()
    for epoch in range(2):
        for images, labels in array_batches(x, y, batch_size=16, seed=1)(epoch):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(
                    tf.nn.sparse_softmax_cross_entropy_with_logits(labels, reference(images, training=True))
                )
            gradients = tape.gradient(loss, reference.trainable_variables)
            for variable, gradient in zip(reference.trainable_variables, gradients, strict=True):
                variable.assign_sub(0.05 * (gradient + 0.01 * variable))
    for ours, theirs in zip(weights(model), weights(reference), strict=False):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("known", [True, False])
def test_several_steps_to_a_call_do_what_they_do_one_by_one(known):
    """With a last call and a last batch that are smaller, and where nobody knows how many batches there are."""
    x, y = data()

    def epochs(epoch):
        ordered = tf.data.Dataset.from_tensor_slices((x.astype("float32") / 255, y)).batch(11)
        return ordered if known else ordered.filter(lambda images, labels: True)

    histories, models = [], []
    for steps in (1, 4):
        models.append(network())
        histories.append(
            loop.train(
                models[-1],
                epochs,
                loop.cross_entropy,
                sgd(),
                epochs=2,
                steps_per_call=steps,
                verbose=False,
            )
        )
    for one, several in zip(*map(weights, models), strict=True):
        np.testing.assert_allclose(one, several, atol=1e-6)
    for one, several in zip(*histories, strict=True):
        assert one == pytest.approx(several, rel=1e-4)


def test_terms_are_logged_by_name_and_their_sum_is_minimised():
    def loss(model, batch):
        terms, watched = loop.cross_entropy(model, batch)
        return {**terms, "shrink": 0.5 * tf.reduce_sum(model.layers[-1].kernel ** 2)}, {
            **watched,
            "half": tf.constant(0.5),
        }

    x, y = data()
    model = network()
    history = loop.train(model, array_batches(x, y, batch_size=16, seed=1), loss, sgd(0.02), epochs=6, verbose=False)
    assert set(history[0]) == {"loss", "cross_entropy", "shrink", "accuracy", "half", "learning_rate"}
    for logs in history:
        assert logs["loss"] == pytest.approx(logs["cross_entropy"] + logs["shrink"], rel=1e-5)
    assert history[-1]["shrink"] < history[0]["shrink"] and history[-1]["half"] == 0.5


@functools.cache
def trained(seed, run):
    """Weights after two epochs with dropout, augmentation and a random-start attack inside the step."""

    def adversary(model, batch, step_seed):
        x, y = batch
        return attacks.pgd(model, x, y, eps=0.05, alpha=0.03, steps=2, seed=step_seed), y

    model = network(dropout=0.3)
    batches = array_batches(*data(), batch_size=16, seed=seed, augment=augmentation.crop_and_flip(2))
    loop.train(model, batches, loop.cross_entropy, sgd(), epochs=2, adversary=adversary, seed=seed, verbose=False)
    return weights(model)


def test_c1_the_same_seed_twice_gives_the_same_bits():
    assert same(trained(0, run=1), trained(0, run=2))


def test_c2_another_seed_gives_other_weights():
    assert not same(trained(0, run=1), trained(1, run=1))


def test_c8_epochs_differ_in_order_and_augmentation_and_repeat_by_seed():
    x, y = data()
    epochs = array_batches(x, y, batch_size=16, seed=4, augment=augmentation.crop_and_flip(2))
    first, second, again = (np.concatenate([b[0] for b in epochs(e)]) for e in (0, 1, 0))
    assert (first == again).all() and (first != second).any()
    plain = array_batches(x, y, batch_size=16, seed=4)
    labels = np.sort(np.concatenate([b[1] for b in plain(0)]))
    assert (labels == np.sort(y)).all()
    images = np.concatenate([b[0] for b in plain(0)])
    assert (
        images.dtype == np.float32
        and images.max() <= 1.0
        and sorted(images.sum((1, 2, 3))) == pytest.approx(sorted((x / 255).sum((1, 2, 3))))
    )


def test_the_adversary_sees_each_batch_and_no_gradient_flows_through_it():
    scale = tf.Variable(0.5)
    calls = []

    def adversary(model, batch, seed):
        calls.append(seed)
        x, y = batch
        # Depends on the weights: a tape that recorded it would change the update.
        return x * scale + 0.0 * tf.reduce_mean(model(x, training=False)), y

    x, y = data()
    ours = network()
    loop.train(
        ours,
        array_batches(x, y, batch_size=16, seed=1),
        loop.cross_entropy,
        sgd(),
        epochs=1,
        adversary=adversary,
        verbose=False,
    )

    def halved(epoch):
        return array_batches(x, y, batch_size=16, seed=1)(epoch).map(lambda images, labels: (images * 0.5, labels))

    theirs = network()
    loop.train(theirs, halved, loop.cross_entropy, sgd(), epochs=1, verbose=False)
    for a, b in zip(weights(ours), weights(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert len(calls) == 1  # traced once, run at every step


def test_schedules():
    step = loop.learning_rate("step", 0.1, epochs=10, steps_per_epoch=5, milestones=(2, 4))
    assert [float(step(i)) for i in (0, 10, 11, 20, 21)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])
    cosine = loop.learning_rate("cosine", 0.2, epochs=4, steps_per_epoch=10, warmup_epochs=1)
    assert (
        float(cosine(0)) == 0.0 and float(cosine(5)) == pytest.approx(0.1) and float(cosine(10)) == pytest.approx(0.2)
    )
    assert float(cosine(25)) == pytest.approx(0.1, abs=1e-6) and float(cosine(40)) == pytest.approx(0.0, abs=1e-8)
    assert loop.learning_rate("constant", 0.3, epochs=1, steps_per_epoch=1) == 0.3


def test_a_loss_that_is_not_finite_ends_in_one_line():
    with pytest.raises(UserError, match="lower the learning rate"):
        fit(network(), optimizer=keras.optimizers.SGD(1e30), epochs=3)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match="larger than the 48"):
        array_batches(*data(), batch_size=64, seed=0)


def test_keras_callbacks_work():
    seen = []

    class Listen(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((epoch, sorted(logs)))
            self.model.stop_training = epoch == 1

    history = fit(network(), epochs=5, callbacks=[Listen()], evaluate=lambda: {"extra": 1})
    assert [epoch for epoch, _ in seen] == [0, 1] and len(history) == 2
    assert "extra" in seen[0][1] and "accuracy" in seen[0][1]
    stop = keras.callbacks.EarlyStopping("extra", patience=1, mode="min")
    assert len(fit(network(), epochs=5, callbacks=[stop], evaluate=lambda: {"extra": 1})) == 2


def test_crop_and_flip_shows_windows_of_the_padded_image():
    x, _ = data()
    out = augmentation.crop_and_flip(2)(tf.constant(x), tf.constant([3, 4])).numpy()
    padded = np.pad(x, [(0, 0), (2, 2), (2, 2), (0, 0)])
    offsets = set()
    for image, source in zip(out, padded, strict=True):
        found = [
            (top, left, flip)
            for top in range(5)
            for left in range(5)
            for flip in (1, -1)
            if (source[top : top + 8, left : left + 8][:, ::flip] == image).all()
        ]
        assert found
        offsets.add(found[0])
    assert len(offsets) > 15 and {flip for _, _, flip in offsets} == {1, -1}


def test_jitter_is_gentle_and_differs_between_images():
    images = np.broadcast_to(np.arange(64, 192, 2, np.uint8).reshape(8, 8, 1), (12, 8, 8, 3)).copy()
    out = augmentation.jitter_and_rotate()(tf.constant(images), tf.constant([1, 2])).numpy()
    assert out.dtype == np.uint8 and out.shape == images.shape
    centre = out[:, 2:6, 2:6].astype(float).mean(axis=(1, 2, 3)) / images[0, 2:6, 2:6].mean()
    assert centre.min() > 0.7 and centre.max() < 1.3 and np.std(centre) > 0.03


def test_mixed_precision_trains_and_keeps_float32_weights():
    before = keras.config.dtype_policy()
    try:
        devices.prepare("none", "mixed_bfloat16")
        model = network()
        history = fit(model, epochs=3)
        assert {str(v.dtype) for v in model.trainable_variables} == {"float32"}
        assert model.layers[0].compute_dtype == "bfloat16" and history[-1]["loss"] < history[0]["loss"]
    finally:
        keras.config.set_dtype_policy(before)
