"""The training loop: the same weights as by hand, resumed, adversarial, on several replicas."""

import math
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import attacks, augmentation, checkpoints, devices, training
from common.errors import UserError

CLASSES = 3


def data(n=48, seed=0):
    random = np.random.default_rng(seed)
    y = random.integers(0, CLASSES, n).astype(np.int32)
    x = random.integers(0, 120, (n, 8, 8, 3), np.uint8)
    x[..., 0] += (60 * y[:, None, None]).astype(np.uint8)
    return x, y


def network(seed=0, dropout=0.0, norm=False):
    layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, kernel_initializer=keras.initializers.HeNormal(seed))]
    layers += [keras.layers.BatchNormalization()] if norm else []
    layers += [keras.layers.ReLU(), keras.layers.Flatten(), keras.layers.Dropout(dropout, seed=5)]
    return keras.Sequential(
        [*layers, keras.layers.Dense(CLASSES, kernel_initializer=keras.initializers.HeNormal(seed))]
    )


def sgd(rate=0.05):
    return keras.optimizers.SGD(rate, momentum=0.9)


def fit(model, *, epochs=2, **settings):
    x, y = data()
    augment = settings.pop("augment", None)
    batches = training.batches(x, y, batch_size=16, seed=1, augment=augment)
    settings = {"verbose": False, "optimizer": sgd()} | settings
    optimizer = settings.pop("optimizer")
    return training.train(model, batches, training.cross_entropy, optimizer, epochs=epochs, **settings)


def weights(model):
    return [np.asarray(v) for v in model.variables]


def same(a, b):
    return all((x == y).all() for x, y in zip(a, b, strict=True))


def test_the_loop_is_plain_gradient_descent():
    model, reference = network(), network()
    fit(model, weight_decay=0.01, optimizer=keras.optimizers.SGD(0.05))
    x, y = data()
    for epoch in range(2):
        for images, labels in training.batches(x, y, batch_size=16, seed=1)(epoch):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(
                    tf.nn.sparse_softmax_cross_entropy_with_logits(labels, reference(images, training=True))
                )
            gradients = tape.gradient(loss, reference.trainable_variables)
            for variable, gradient in zip(reference.trainable_variables, gradients, strict=True):
                variable.assign_sub(0.05 * (gradient + 0.01 * variable))
    for ours, theirs in zip(weights(model), weights(reference), strict=False):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_terms_are_logged_by_name_and_their_sum_is_minimised():
    def loss(model, batch):
        terms, watched = training.cross_entropy(model, batch)
        return {**terms, "shrink": 0.5 * tf.reduce_sum(model.layers[-1].kernel ** 2)}, {
            **watched,
            "half": tf.constant(0.5),
        }

    x, y = data()
    model = network()
    history = training.train(
        model, training.batches(x, y, batch_size=16, seed=1), loss, sgd(0.02), epochs=6, verbose=False
    )
    assert set(history[0]) == {"loss", "cross_entropy", "shrink", "accuracy", "half", "learning_rate"}
    for logs in history:
        assert logs["loss"] == pytest.approx(logs["cross_entropy"] + logs["shrink"], rel=1e-5)
    assert history[-1]["shrink"] < history[0]["shrink"] and history[-1]["half"] == 0.5


def test_same_seed_same_weights_and_other_seed_others():
    """C1, C2: with dropout, augmentation and a random-start attack inside the step."""

    def run(seed):
        model = network(dropout=0.3)
        x, y = data()

        def adversary(model, batch, step_seed):
            x, y = batch
            return attacks.pgd(model, x, y, eps=0.05, alpha=0.03, steps=2, seed=step_seed), y

        batches = training.batches(x, y, batch_size=16, seed=seed, augment=augmentation.crop_and_flip(2))
        training.train(
            model, batches, training.cross_entropy, sgd(), epochs=2, adversary=adversary, seed=seed, verbose=False
        )
        return weights(model)

    assert same(run(0), run(0))
    assert not same(run(0), run(1))


def test_epochs_differ_in_order_and_augmentation_and_repeat_by_seed():
    """C8."""
    x, y = data()
    epochs = training.batches(x, y, batch_size=16, seed=4, augment=augmentation.crop_and_flip(2))
    first, second, again = (np.concatenate([b[0] for b in epochs(e)]) for e in (0, 1, 0))
    assert (first == again).all() and (first != second).any()
    plain = training.batches(x, y, batch_size=16, seed=4)
    labels = np.sort(np.concatenate([b[1] for b in plain(0)]))
    assert (labels == np.sort(y)).all()
    images = np.concatenate([b[0] for b in plain(0)])
    assert (
        images.dtype == np.float32
        and images.max() <= 1.0
        and sorted(images.sum((1, 2, 3))) == pytest.approx(sorted((x / 255).sum((1, 2, 3))))
    )


@pytest.mark.parametrize("damaged", [False, True])
def test_resumed_training_reaches_the_weights_of_an_undisturbed_one(tmp_path, damaged):
    """C3: stopped after epoch 2 of 4, dropout and augmentation on; a damaged newest checkpoint falls back."""
    augment = augmentation.crop_and_flip(2)
    whole = network(dropout=0.4)
    history = fit(whole, epochs=4, augment=augment)

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(network(dropout=0.4), epochs=4, augment=augment, checkpoint_folder=tmp_path, callbacks=[Stop()])
    if damaged:
        newest = tmp_path / "checkpoint.npz"
        newest.write_bytes(newest.read_bytes()[:500])
    resumed = network(seed=9, dropout=0.4)
    again = fit(resumed, epochs=4, augment=augment, checkpoint_folder=tmp_path, resume=True)
    assert same(weights(whole), weights(resumed))
    assert again == history


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    fit(network(), epochs=1, checkpoint_folder=tmp_path)
    with pytest.raises(UserError, match="belongs to another model"):
        fit(network(norm=True), epochs=2, checkpoint_folder=tmp_path, resume=True)


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
    training.train(
        ours,
        training.batches(x, y, batch_size=16, seed=1),
        training.cross_entropy,
        sgd(),
        epochs=1,
        adversary=adversary,
        verbose=False,
    )

    def halved(epoch):
        return training.batches(x, y, batch_size=16, seed=1)(epoch).map(lambda images, labels: (images * 0.5, labels))

    theirs = network()
    training.train(theirs, halved, training.cross_entropy, sgd(), epochs=1, verbose=False)
    for a, b in zip(weights(ours), weights(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert len(calls) == 1  # traced once, run at every step


def test_crafting_leaves_batch_norm_averages_alone():
    """A16 inside a training step: averages move as they would on the adversarial batch alone."""

    def far(model, batch, seed):
        x, y = batch
        attacks.pgd(model, x * 0.0 + 1.0, y, eps=0.3, alpha=0.1, steps=3, random_start=False)
        return x, y

    plain, attacked = network(norm=True), network(norm=True)
    fit(plain, epochs=1)
    fit(attacked, epochs=1, adversary=far)
    assert same(weights(plain), weights(attacked))


def test_adversarial_training_makes_the_model_harder_to_attack():
    def adversary(model, batch, seed):
        x, y = batch
        return attacks.pgd(model, x, y, eps=0.08, alpha=0.03, steps=4, seed=seed), y

    # A hundred faint coordinates tell the class for certain and drown in the budget; a loud one tells it mostly.
    random = np.random.default_rng(7)
    y = random.integers(0, 2, 512).astype(np.int32)
    side = 2.0 * y - 1
    faint = 0.5 + 0.04 * side[:, None] + 0.08 * random.normal(size=(512, 100))
    loud = 0.5 + 0.3 * side * np.where(random.uniform(size=512) < 0.9, 1, -1)
    x = np.clip(np.concatenate([faint, loud[:, None]], axis=1), 0, 1).astype(np.float32)

    def robust(adversary):
        model = keras.Sequential([keras.Input((101,)), keras.layers.Dense(2, kernel_initializer="zeros")])
        epochs = training.batches(x, y, batch_size=64, seed=1)
        training.train(model, epochs, training.cross_entropy, sgd(0.2), epochs=20, adversary=adversary, verbose=False)
        z = attacks.pgd(model, x, y, eps=0.08, alpha=0.02, steps=10, seed=3)
        return float(np.mean(model(z).numpy().argmax(1) == y))

    assert robust(adversary) > robust(None) + 0.5


def test_schedules():
    step = training.learning_rate("step", 0.1, epochs=10, steps_per_epoch=5, milestones=(2, 4))
    assert [float(step(i)) for i in (0, 10, 11, 20, 21)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])
    cosine = training.learning_rate("cosine", 0.2, epochs=4, steps_per_epoch=10, warmup_epochs=1)
    assert (
        float(cosine(0)) == 0.0 and float(cosine(5)) == pytest.approx(0.1) and float(cosine(10)) == pytest.approx(0.2)
    )
    assert float(cosine(25)) == pytest.approx(0.1, abs=1e-6) and float(cosine(40)) == pytest.approx(0.0, abs=1e-8)
    assert training.learning_rate("constant", 0.3, epochs=1, steps_per_epoch=1) == 0.3


def test_a_loss_that_is_not_finite_ends_in_one_line():
    with pytest.raises(UserError, match="lower the learning rate"):
        fit(network(), optimizer=keras.optimizers.SGD(1e30), epochs=3)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match="larger than the 48"):
        training.batches(*data(), batch_size=64, seed=0)


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


def test_checkpoints_round_trip(tmp_path):
    """D5: bit-equal weights, logits and optimiser state."""
    model = network(norm=True)
    history = fit(model, epochs=1, checkpoint_folder=tmp_path)
    other, optimizer = network(seed=3, norm=True), sgd()
    optimizer.build(other.trainable_variables)
    restored = checkpoints.restore(tmp_path, other, optimizer)
    assert restored.epoch == 1 and restored.history == history and same(weights(model), weights(other))
    assert int(optimizer.iterations) == 3
    checkpoints.save_model(model, tmp_path / "m.keras")
    x = data()[0] / np.float32(255)
    assert (model(x).numpy() == checkpoints.load_model(tmp_path / "m.keras")(x).numpy()).all()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"no model"])
def test_damaged_model_files_are_named(tmp_path, content):
    """D4: never 'not found' for a file that is there."""
    path = tmp_path / "m.keras"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"m\.keras: not a model that can be loaded safely"):
        checkpoints.load_model(path)
    with pytest.raises(UserError, match="no such model file"):
        checkpoints.load_model(tmp_path / "none.keras")
    path.rename(tmp_path / "m.h5")
    with pytest.raises(UserError, match=r"expected a \.keras"):
        checkpoints.load_model(tmp_path / "m.h5")


def test_a_model_with_code_in_it_is_refused(tmp_path):
    """E2: a Lambda layer carries Python bytecode."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x + 1)])
    model.save(tmp_path / "m.keras")
    with pytest.raises(UserError, match="not a model that can be loaded safely"):
        checkpoints.load_model(tmp_path / "m.keras")


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


def test_multiworker_without_a_cluster_is_refused(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(UserError, match="TF_CONFIG"):
        devices.prepare("multiworker")


REPLICAS = """
    import sys
    import keras, numpy as np, tensorflow as tf
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
    sys.path.insert(0, sys.argv[1])
    import test_training as t
    from common import attacks, training
    def adversary(model, batch, seed):
        x, y = batch
        return attacks.pgd(model, x, y, eps=0.05, alpha=0.02, steps=2, random_start=False), y
    x, y = t.data()
    def run(strategy):
        with strategy.scope():
            model = t.network()
            optimizer = t.sgd()
        epochs = training.batches(x, y, batch_size=16, seed=1)
        history = training.train(
            model, epochs, training.cross_entropy, optimizer, epochs=4, adversary=adversary, weight_decay=1e-3,
            strategy=strategy, verbose=False)
        return t.weights(model), history
    one, h1 = run(tf.distribute.get_strategy())
    two, h2 = run(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
    worst = max(abs(a - b).max() for a, b in zip(one, two))
    print("worst", worst, abs(h1[-1]["loss"] - h2[-1]["loss"]))
    assert worst < 1e-5 and abs(h1[-1]["loss"] - h2[-1]["loss"]) < 1e-4
"""


def test_two_replicas_train_like_one_device():
    """C5: MirroredStrategy on two logical CPUs, same global batch, attack in the step; 12 steps."""
    from pathlib import Path

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(REPLICAS), str(Path(__file__).parent)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert math.isfinite(float(done.stdout.split()[-1]))
