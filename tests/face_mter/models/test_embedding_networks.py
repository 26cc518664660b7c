"""Embedding networks: sizes of the paper, ArcFace against NumPy, files that open again."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from common.errors import UserError
from common.training import checkpoints
from face_mter.models import networks
from face_mter.models.networks import CosineLogits, arcface_logits, build, embedder, unit


def tiny(name="small", shape=(12, 12, 1), classes=4, loss_type="arcface", **options):
    return build(name, shape, classes, **{"emb_size": 8, "loss_type": loss_type, "scale": 16.0} | options)


@pytest.mark.parametrize("name, shape", [("o18", (28, 28, 1)), ("r50", (112, 112, 3))])
def test_the_sizes_of_the_paper(name, shape):
    """Fact sheet, section 3: where the strides fall, and 512 numbers an image."""
    model = build(name, shape, 10, emb_size=512, loss_type="softmax", scale=1.0)
    assert embedder(model).output_shape == (None, 512)
    units = {"o18": (2, 2, 2, 2), "r50": (3, 4, 14, 3)}[name]
    sides = {"o18": (28, 14, 7, 4), "r50": (56, 28, 14, 7)}[name]
    last = {"o18": "stage{}_block{}_add", "r50": "stage{}_unit{}_add"}[name]
    for stage, (count, side) in enumerate(zip(units, sides, strict=True), start=1):
        added = model.get_layer(last.format(stage, count)).output.shape
        assert added == (None, side, side, 64 * 2 ** (stage - 1))
        with pytest.raises(ValueError, match="No such layer"):
            model.get_layer(last.format(stage, count + 1))
    if name == "o18":
        # The classifier reads the embedding itself, with a bias.
        assert model.get_layer("logits").get_weights()[0].shape == (512, 10)
        assert len(model.get_layer("logits").get_weights()) == 2
    else:
        # InsightFace's r50 with output block E.
        assert round(embedder(model).count_params() / 1e6, 1) == 43.6


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (48, 48, 3), (64, 64, 3)])
def test_small_leaves_few_pixels(shape):
    model = tiny(shape=shape)
    assert model.get_layer("output_bn").output.shape[1] in (3, 4, 5, 6)
    assert model.output_shape == (None, 4) and embedder(model).output_shape == (None, 8)


def test_arcface_against_numpy():
    """Both branches: the angle grown by the margin, and the line beyond pi - margin (fact sheet 1.5)."""
    rng, scale, margin = np.random.default_rng(0), 64.0, 0.5
    y = rng.integers(0, 6, 400)
    cosine = rng.uniform(-0.999, 0.999, (400, 6)).astype(np.float32)
    found = np.asarray(arcface_logits(scale * cosine, y, scale=scale, margin=margin))
    wanted = scale * cosine.astype(np.float64)
    beyond = 0
    for row, true in enumerate(y):
        theta = np.arccos(cosine[row, true])
        if theta < np.pi - margin:
            wanted[row, true] = scale * np.cos(theta + margin)
        else:
            wanted[row, true] = scale * (np.cos(theta) - margin * np.sin(np.pi - margin))
            beyond += 1
    assert 20 < beyond < 380
    np.testing.assert_allclose(found, wanted, atol=2e-2)


def test_arcface_falls_with_the_angle_and_has_finite_slopes():
    for cosine in (-1.0, 1.0, 0.0):
        z = tf.Variable([[16.0 * cosine, 3.0]])
        with tf.GradientTape() as tape:
            raised = arcface_logits(z, np.array([0]), scale=16.0, margin=0.5)[0, 0]
        assert np.isfinite(tape.gradient(raised, z)).all()
    angles = np.linspace(0.01, np.pi - 0.01, 500, dtype=np.float32)
    z = 16.0 * np.stack([np.cos(angles), 0 * angles], axis=1)
    raised = np.asarray(arcface_logits(z, np.zeros(500, int), scale=16.0, margin=0.5))
    # Under pi - margin it falls; where the branches meet the published line steps up a little.
    assert (np.diff(raised[angles < np.pi - 0.5, 0]) < 0).all() and (np.diff(raised[angles > np.pi - 0.5, 0]) < 0).all()
    assert (raised[:, 0] < z[:, 0]).all() and (raised[:, 1] == z[:, 1]).all()


def test_cosine_logits_are_cosines():
    layer = CosineLogits(5, 30.0, 0)
    embedding = np.random.default_rng(0).normal(size=(7, 8)).astype(np.float32)
    z = np.asarray(layer(embedding))
    w = np.asarray(layer.directions)
    cosine = embedding @ w / np.linalg.norm(embedding, axis=1)[:, None] / np.linalg.norm(w, axis=0)
    np.testing.assert_allclose(z, 30 * cosine, atol=1e-4)
    assert np.asarray(layer(1000 * embedding)) == pytest.approx(z, abs=1e-4)


def test_unit_has_length_one_and_a_slope_at_zero():
    """F1: embeddings are of length 1 to 1e-6."""
    vectors = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    assert np.linalg.norm(np.asarray(unit(vectors)), axis=1) == pytest.approx(1, abs=1e-6)
    zero = tf.Variable([[0.0, 0.0]])
    with tf.GradientTape() as tape:
        length = unit(zero)
    assert np.isfinite(tape.gradient(length, zero)).all() and (np.asarray(length) == 0).all()


# Every network, every head; what is stored of one does not depend on the other.
@pytest.mark.parametrize(
    "name, loss_type", [("small", "softmax"), ("small", "arcface"), ("o18", "softmax"), ("r50", "arcface")]
)
def test_d5_round_trips_are_bit_equal(name, loss_type, tmp_path):
    model = tiny(name, (16, 16, 3), loss_type=loss_type, mean=(0.4,) * 3, std=(0.2,) * 3)
    checkpoints.save_model(model, tmp_path / "model.keras")
    again = checkpoints.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(0).uniform(size=(4, 16, 16, 3)).astype(np.float32)
    assert model.layers[-2].name == again.layers[-2].name == networks.EMBEDDING
    whole = [keras.Model(one.inputs[0], [embedder(one).output, one.output]) for one in (model, again)]
    for ours, stored in zip(*(one(x) for one in whole), strict=True):
        assert (np.asarray(ours) == np.asarray(stored)).all()


def test_same_seed_same_weights():
    a, b, c = (tiny(seed=seed) for seed in (3, 3, 4))
    assert all((u == v).all() for u, v in zip(a.get_weights(), b.get_weights(), strict=True))
    assert any((u != v).any() for u, v in zip(a.get_weights(), c.get_weights(), strict=True))


def test_a_model_without_that_layer_is_an_embedding():
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(inputs)))
    assert embedder(model) is model
    with pytest.raises(UserError, match="one vector an image"):
        embedder(keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs)))


def test_unknown_networks_and_small_images_are_refused():
    with pytest.raises(UserError, match="--network: 'r18' is unknown; choose one of small, o18, r50"):
        tiny("r18")
    with pytest.raises(UserError, match="at least 16 x 16"):
        tiny("r50", (8, 8, 3))
