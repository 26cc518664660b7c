"""The losses against NumPy, the terms' gradients, and the ways of training."""

from typing import get_args

import keras
import numpy as np
import pytest
import tensorflow as tf

from attention_defense import train as train_script
from attention_defense.attacks.attention import attention_attack
from attention_defense.models import losses
from attention_defense.models.grad_cam import Attention, above_mean, overlap, resized, softmax_map
from attention_defense.models.networks import NETWORKS
from attention_defense.training import defence
from common.training import loop
from common.training.batches import batches, minibatch_replay
from common.training.loop import compiled_step, train

EPS = 8 / 255


@pytest.fixture()
def model():
    return NETWORKS["cifarnet"]((16, 16, 3), 4, width=8, seed=1)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = rng.integers(4, size=64).astype(np.int32)
    x = rng.integers(80, size=(64, 16, 16, 3), dtype=np.uint8)
    for image, label in zip(x, y, strict=True):
        image[4 * label : 4 * label + 4] += 150
    return x, y


@pytest.fixture(scope="module")
def batch(data):
    x, y = data
    return tf.constant(x[:16], tf.float32) / 255, tf.constant(y[:16])


def test_each_loss_equals_numpy():
    rng = np.random.default_rng(1)
    p, q = (rng.dirichlet(np.ones(5), size=3).astype(np.float32) for _ in range(2))
    assert np.isclose(losses.rectification(p, q), -((p - q) ** 2).mean(), rtol=1e-5)
    a, b = rng.random((2, 3, 4, 4)).astype(np.float32)
    assert np.isclose(losses.preservation(a, b), ((a - b) ** 2).mean(), rtol=1e-5)
    mask = losses.soft_mask(tf.constant(2 * a), 10.0).numpy()
    assert np.allclose(mask, 1 / (1 + np.exp(-10 * (2 * a - 1))), atol=1e-5)
    x = rng.random((3, 4, 4, 2)).astype(np.float32)
    assert np.allclose(losses.occlude(x, mask), x * (1 - mask[..., None]) + 0.5 * mask[..., None], atol=1e-6)


def test_the_originals_sum_is_twelve_and_a_half_times_our_mean():
    """50 images of 32 x 32, maps of sum 1 on 8 x 8 cells, each cell 16 pixels."""
    rng = np.random.default_rng(1)
    a, b = rng.dirichlet(np.ones(64), size=(2, 50)).reshape(2, 50, 8, 8).astype(np.float32)
    large_a, large_b = (np.kron(of, np.ones((1, 4, 4), np.float32)) for of in (a, b))
    original = ((large_a - large_b) ** 2).sum()
    assert np.isclose(original / float(losses.preservation(64 * large_a, 64 * large_b)), 12.5, rtol=1e-4)


def test_with_batch_normalisation_answers_in_both_modes_are_classified(batch):
    """The terms of attention are in inference mode: left to them, that network goes where the other cannot see."""
    model = NETWORKS["cifarnet_bn"]((16, 16, 3), 4, width=8, seed=1)
    x, y = batch
    images, labels = tf.concat([x, 0.9 * x], 0), tf.concat([y, y], 0)

    def entropy(training):
        logits = model(images, training=training)
        return float(tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)))

    wanted = [entropy(False), entropy(True)]
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(tf.zeros_like(layer.moving_mean))
            layer.moving_variance.assign(tf.ones_like(layer.moving_variance))
    terms, _ = defence.method("aad", eps=EPS).loss(model, (x, y, 0.9 * x))
    assert not np.isclose(*wanted, rtol=1e-3)
    assert np.isclose(terms["classification"], np.mean(wanted), rtol=1e-4)
    plain, _ = defence.method("step_ll", eps=EPS).loss(model, (x, y, 0.9 * x))
    assert np.isclose(plain["classification"], wanted[1], rtol=1e-4)


def test_the_loss_is_the_weighted_sum_of_its_parts(model, batch):
    x, y = batch
    moved = tf.clip_by_value(x + EPS * tf.sign(tf.random.stateless_normal(x.shape, (1, 2))), 0, 1)
    terms, _ = defence.aad_loss(losses.Weights(8.0, 4.0, 1.0), None, 10.0)(model, (x, y, moved))
    expected = {"classification": 0.0, "rectification": 0.0}
    maps = []
    for images in (x, moved):
        logits, cam = Attention(model)(images, y)
        expected["classification"] += 8 * keras.ops.mean(
            keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
        )
        attention = resized(softmax_map(cam), (16, 16))
        blank = losses.occlude(images, losses.soft_mask(attention, 10.0))
        change = losses.rectification(tf.nn.softmax(logits), tf.nn.softmax(model(blank)))
        expected["rectification"] += 4 * change
        maps.append(attention)
    expected["preservation"] = losses.preservation(*maps)
    assert set(terms) == set(expected)
    for name, value in expected.items():
        assert np.isclose(terms[name], value / 16, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("name", defence.ATTENTIVE)
def test_every_method_that_claims_the_terms_has_gradients_of_them(model, batch, name):
    """Two of the original's three trainings switch them off without a word."""
    variant = defence.method(name, eps=EPS)
    turn = (tf.fill([16], 2),) if variant.replays > 1 else ()
    before = [np.asarray(v) for v in model.variables]
    norms = loop.gradient_norms(model, variant.loss, variant.adversary(model, (*batch, *turn), tf.zeros([2], tf.int32)))
    assert set(norms) == {f"gradient_norm_{term}" for term in ("classification", "rectification", "preservation")}
    assert min(norms.values()) > 0
    assert all(np.array_equal(a, b) for a, b in zip(before, model.variables, strict=True))


@pytest.mark.parametrize("arch", ["cifarnet", "cifarnet_bn", "small_cnn"])
def test_nothing_hidden_changes_nothing(batch, monkeypatch, arch):
    """Two passes in different modes would differ without any mask, and the term would have a gradient of that."""
    model = NETWORKS[arch]((16, 16, 3), 4)
    monkeypatch.setattr(losses, "soft_mask", lambda attention, sharpness: tf.zeros_like(attention))
    x, y = batch
    terms, _ = defence.aad_loss(losses.Weights(), None, 10.0)(model, (x, y, x))
    assert float(terms["rectification"]) == pytest.approx(0, abs=1e-9)
    # Of two equal images in one batch not every processor computes the same last bit.
    assert float(terms["preservation"]) == pytest.approx(0, abs=1e-12)


def test_what_the_terms_see_of_a_image_does_not_depend_on_its_neighbours(batch):
    """In a training step too, and with batch normalisation."""
    model = NETWORKS["small_cnn"]((16, 16, 3), 4)
    x, y = batch
    moved = tf.clip_by_value(x + EPS * tf.sign(tf.random.stateless_normal(x.shape, (1, 2))), 0, 1)
    loss = defence.aad_loss(losses.Weights(), None, 10.0)
    alone = [loss(model, (x[row : row + 1], y[row : row + 1], moved[row : row + 1]))[0] for row in range(1)]
    model = NETWORKS["small_cnn"]((16, 16, 3), 4)
    pair = loss(model, (x[:2], y[:2], moved[:2]))[0]
    model = NETWORKS["small_cnn"]((16, 16, 3), 4)
    second = loss(model, (x[1:2], y[1:2], moved[1:2]))[0]
    for term in ("rectification", "preservation"):
        assert float(pair[term]) == pytest.approx((float(alone[0][term]) + float(second[term])) / 2, rel=1e-3)


def test_the_adaptive_attack_raises_this_very_loss(model, batch):
    """Its score at the attacked image, with what the clean one adds, is AAD's loss of one image."""
    weights = losses.Weights(8.0, 4.0, 3.0)
    x, y = batch[0][:1], batch[1][:1]
    moved = tf.clip_by_value(x + EPS * tf.sign(tf.random.stateless_normal(x.shape, (1, 2))), 0, 1)
    bound = attention_attack.bind(model, x, y, kind="adaptive", eps=EPS, alpha=EPS, steps=1, weights=weights)
    inputs = {**bound.inputs, **bound.attack.prepare(model, bound.inputs)}
    objective = bound.attack.objective(model, inputs)
    terms, _ = defence.aad_loss(weights, None, 10.0)(model, (x, y, moved))
    total = 2 * weights.classification * sum(map(float, terms.values()))
    assert float(objective(moved)[0][0] + objective(x)[0][0]) == pytest.approx(total, rel=1e-4)


def test_measuring_gradients_leaves_running_averages(batch):
    model = NETWORKS["cifarnet_bn"]((16, 16, 3), 4, width=8)
    variant = defence.method("aad", eps=EPS)
    before = [np.asarray(v) for v in model.variables]
    loop.gradient_norms(model, variant.loss, variant.adversary(model, batch, tf.zeros([2], tf.int32)))
    assert all(np.array_equal(a, b) for a, b in zip(before, model.variables, strict=True))


def test_step_ll_is_aad_without_attention(model, batch):
    variant = defence.method("step_ll", eps=EPS)
    terms, _ = variant.loss(model, variant.adversary(model, batch, tf.zeros([2], tf.int32)))
    assert set(terms) == {"classification"}


def test_all_adversaries_stay_in_the_ball_and_the_box(model, batch):
    for name in ("step_ll", *defence.ATTENTIVE):
        variant = defence.method(name, eps=EPS)
        turn = (tf.fill([16], 2),) if variant.replays > 1 else ()
        x, _y, moved = variant.adversary(model, (*batch, *turn), tf.zeros([2], tf.int32))
        assert float(tf.reduce_max(tf.abs(moved - x))) <= EPS + 1e-6, name
        assert float(tf.reduce_min(moved)) >= 0 and float(tf.reduce_max(moved)) <= 1
        assert float(tf.reduce_max(tf.abs(moved - x))) > EPS / 2


def test_the_second_turn_is_one_step_further(model, batch):
    variant = defence.method("aad_two_step", eps=EPS)
    moved = [variant.adversary(model, (*batch, tf.fill([16], turn)), tf.zeros([2], tf.int32))[2] for turn in (1, 2)]
    one_step = defence.method("aad", eps=EPS).adversary(model, batch, tf.zeros([2], tf.int32))[2]
    assert np.allclose(moved[0], one_step, atol=1e-6)
    assert not np.allclose(moved[1], one_step, atol=1e-3)


def test_the_gate_stops_where_attention_has_moved(model, batch):
    """C: no image moves on once its areas overlap by no more than the key; one that never does takes all steps."""
    x, y = batch
    always = defence.method("aad_iou", eps=EPS, iou_key=1.0).adversary(model, batch, tf.zeros([2], tf.int32))[2]
    assert np.array_equal(always, x)
    before = above_mean(Attention(model)(x, y).cam)
    key = 0.7
    gated = defence.method("aad_iou", eps=EPS, iou_key=key, iou_steps=4)
    moved = gated.adversary(model, batch, tf.zeros([2], tf.int32))[2]
    steps = {k: defence.method("aad_iou", eps=EPS, iou_key=-1.0, iou_steps=k) for k in range(1, 5)}
    paths = [x, *(variant.adversary(model, batch, tf.zeros([2], tf.int32))[2] for variant in steps.values())]
    overlaps = [overlap(before, above_mean(Attention(model)(of, y).cam)).numpy() for of in paths]
    for row in range(16):
        first = next((k for k in range(5) if overlaps[k][row] <= key), 4)
        assert np.allclose(moved[row], paths[first][row], atol=1e-6)


def test_a_repeated_batch_comes_as_often_as_it_should(data):
    once = batches(*data, batch_size=16, seed=0)
    twice = list(minibatch_replay(once, 2)(3))
    assert len(twice) == 8 == int(minibatch_replay(once, 2)(3).cardinality())
    for place, (x, y) in enumerate(once(3)):
        for turn in (1, 2):
            again = twice[2 * place + turn - 1]
            assert np.array_equal(again[0], x) and np.array_equal(again[1], y)
            assert np.array_equal(again[2], np.full(16, turn))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["aad", "aad_two_step"])
def test_training_learns(model, data, name):
    variant = defence.method(name, eps=EPS)
    epochs = batches(*data, batch_size=16, seed=0)
    history = train(
        model,
        minibatch_replay(epochs, variant.replays) if variant.replays > 1 else epochs,
        variant.loss,
        keras.optimizers.Adam(2e-3),
        epochs=16,
        adversary=variant.adversary,
        verbose=False,
    )
    assert history[-1]["attacked_accuracy"] > 0.9 > history[0]["attacked_accuracy"]


@pytest.mark.parametrize("name", get_args(train_script.MethodName))
def test_one_step_of_every_method_changes_every_weight(model, batch, name):
    """Each as train.py makes it of its name, with the terms that it watches."""
    variant = train_script._method(train_script.Options(method=name))
    before = [np.asarray(w) for w in model.trainable_variables]
    turn = (tf.fill([16], 2),) if variant.replays > 1 else ()
    step = compiled_step(model, variant.loss, keras.optimizers.SGD(0.1), adversary=variant.adversary)
    logs = step((*batch, *turn))
    changed = [not np.array_equal(a, b) for a, b in zip(before, model.trainable_variables, strict=True)]
    assert all(changed) and np.isfinite(logs["loss"])
    assert variant.replays == (2 if name == "aad_two_step" else 1)
    if name in defence.ATTENTIVE:
        x, y = (np.asarray(of) for of in batch)
        norms = train_script._gradient_norms(model, variant, x, y)
        assert min(norms[f"gradient_norm_{term}"] for term in ("rectification", "preservation")) > 0
