"""Backbones and the registry: the shape of the contract, exact parameter counts, seeds and files."""

import functools
import itertools
import math
import random
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf

from common.errors import UserError
from common.models import NETWORKS, build, cifar_resnet, imagenet_resnet, small_cnn

MEAN, STD = (0.49, 0.48, 0.45), (0.20, 0.21, 0.22)
# One cheap member of each family: depth only repeats the same blocks.
LIGHT = {
    "small_cnn": small_cnn,
    "resnet8": partial(cifar_resnet, 8),
    "resnet18": partial(imagenet_resnet, 18),
}
EACH = pytest.mark.parametrize("builder", LIGHT.values(), ids=LIGHT)
# A network takes longer to build than to use.
built = functools.cache(build)


@functools.cache
def normalised(name: str) -> keras.Model:
    return LIGHT[name]((16, 16, 3), 10, mean=MEAN, std=STD, seed=4)


@pytest.fixture(params=LIGHT)
def light(request):
    """A member of each family with its normalisation inside; what a test does to its averages is undone."""
    model = normalised(request.param)
    before = model.get_weights()
    yield model
    model.set_weights(before)


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).random(shape, dtype=np.float32)


def trainable(model: keras.Model) -> int:
    return sum(math.prod(v.shape) for v in model.trainable_variables)


def convolution(size: int, inputs: int, outputs: int) -> int:
    """Weights of a convolution without bias and of the batch normalisation behind it."""
    return size * size * inputs * outputs + 2 * outputs


def cifar_resnet_count(depth: int, channels: int = 3, classes: int = 10) -> int:
    n = (depth - 2) // 6
    total = convolution(3, channels, 16) + 2 * n * convolution(3, 16, 16)
    for f in (32, 64):
        total += convolution(3, f // 2, f) + convolution(1, f // 2, f) + (2 * n - 1) * convolution(3, f, f)
    return total + 64 * classes + classes


def resnet18_count(classes: int = 10) -> int:
    total = convolution(3, 3, 64) + 4 * convolution(3, 64, 64)
    for f in (128, 256, 512):
        total += convolution(3, f // 2, f) + convolution(1, f // 2, f) + 3 * convolution(3, f, f)
    return total + 512 * classes + classes


def resnet50_count(classes: int = 10) -> int:
    total, inputs = convolution(3, 3, 64), 64
    for f, blocks in zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True):
        total += convolution(1, inputs, 4 * f)
        for block in range(blocks):
            total += convolution(1, 4 * f if block else inputs, f) + convolution(3, f, f) + convolution(1, f, 4 * f)
        inputs = 4 * f
    return total + 2048 * classes + classes


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_thin_resnets_have_the_parameters_of_he_et_al_table_6(depth):
    published = {20: 0.27e6, 32: 0.46e6, 44: 0.66e6, 56: 0.85e6, 110: 1.7e6}
    count = trainable(built(f"resnet{depth}", (32, 32, 3), 10))
    assert count == cifar_resnet_count(depth)
    assert count == pytest.approx(published[depth], rel=0.03)


@pytest.mark.parametrize(
    ("name", "expected", "known"),
    [("resnet18", resnet18_count(), 11_173_962), ("resnet50", resnet50_count(), 23_520_842)],
)
def test_wide_resnets_have_their_known_parameters(name, expected, known):
    assert trainable(built(name, (32, 32, 3), 10)) == expected == known


def test_stages_halve_the_image_and_double_the_channels():
    model = built("resnet20", (32, 32, 3), 10)
    shapes = [model.get_layer(f"stage{s}_block3_relu").output.shape[1:] for s in (1, 2, 3)]
    assert shapes == [(32, 32, 16), (16, 16, 32), (8, 8, 64)]
    model = built("resnet50", (32, 32, 3), 10)
    shapes = [model.get_layer(f"stage{s}_block3_relu").output.shape[1:] for s in (1, 2, 3, 4)]
    assert shapes == [(32, 32, 256), (16, 16, 512), (8, 8, 1024), (4, 4, 2048)]


@EACH
@pytest.mark.parametrize("shape", [(8, 8, 1), (12, 17, 3)])
def test_logits_are_float32_and_no_softmax(builder, shape):
    model = builder(shape, 7)
    logits = model(images(2, *shape), training=False).numpy()
    assert logits.shape == (2, 7) and logits.dtype == np.float32
    assert np.isfinite(logits).all() and logits.min() < 0
    assert model.layers[-1].activation is keras.activations.linear


@EACH
def test_normalisation_is_inside_the_model(builder, request):
    x = images(3, 16, 16, 3)
    inside = normalised(request.node.callspec.id)
    outside = builder((16, 16, 3), 10, seed=4)
    given = ((x - np.float32(MEAN)) / np.float32(STD)).astype(np.float32)
    np.testing.assert_allclose(inside(x, training=False), outside(given, training=False), rtol=1e-4, atol=1e-5)
    assert trainable(inside) == trainable(outside)


def test_a_saved_model_answers_the_same_bits(light, tmp_path):
    x = images(2, 16, 16, 3)
    light(x, training=True)
    light.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(light(x, training=False), loaded(x, training=False))


@pytest.mark.parametrize("builder", [small_cnn, partial(cifar_resnet, 8)], ids=["small_cnn", "resnet8"])
def test_the_seed_decides_every_weight(builder):
    first, same, other = (builder((8, 8, 3), 5, seed=s) for s in (7, 7, 8))
    for a, b, c in zip(first.weights, same.weights, other.weights, strict=True):
        np.testing.assert_array_equal(a, b)
        if "kernel" in a.path:
            assert not np.array_equal(a, c), a.path
    assert [layer.name for layer in first.layers] == [layer.name for layer in same.layers]


def test_layers_of_one_shape_start_differently():
    model = built("resnet20", (32, 32, 3), 10)
    kernels = [model.get_layer(f"stage1_block{b}_conv{c}").kernel.numpy() for b in (1, 2, 3) for c in (1, 2)]
    correlations = np.corrcoef([k.ravel() for k in kernels]) - np.eye(6)
    assert np.abs(correlations).max() < 0.1


def test_convolutions_are_kaiming_normal_by_fan_out():
    kernel = built("resnet18", (32, 32, 3), 10).get_layer("stage3_block1_conv1").kernel.numpy()
    assert kernel.shape == (3, 3, 128, 256)
    assert kernel.std() == pytest.approx(math.sqrt(2 / (9 * 256)), rel=0.02)
    assert abs(kernel).max() > 3 * kernel.std()


def test_building_leaves_the_global_random_state_alone():
    def draws():
        return random.random(), np.random.random(), float(keras.random.normal(())), float(tf.random.normal(()))

    keras.utils.set_random_seed(11)
    expected = draws()
    keras.utils.set_random_seed(11)
    build("small_cnn", (8, 8, 3), 10, seed=1)
    assert draws() == expected


def test_inference_does_not_depend_on_the_batch(light):
    x = images(4, 16, 16, 3)
    light(x, training=True)
    together = light(x, training=False)
    alone = np.concatenate([light(x[i : i + 1], training=False) for i in range(4)])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert not np.allclose(together, light(x, training=True), atol=1e-3)


def test_every_image_gets_a_gradient(light):
    x = tf.constant(images(3, 16, 16, 3))
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = keras.losses.sparse_categorical_crossentropy(
            tf.constant([1, 2, 3]), light(x, training=False), from_logits=True
        )
    gradient = tape.gradient(loss, x).numpy()
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient).max(axis=(1, 2, 3)) > 1e-6).all()


def test_under_mixed_precision_normalisation_and_logits_stay_float32():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build("small_cnn", (16, 16, 3), 10, mean=MEAN, std=STD)
    finally:
        keras.config.set_dtype_policy(policy)
    assert model(images(2, 16, 16, 3), training=False).dtype == tf.float32
    assert model.get_layer("normalisation").output.dtype == "float32"
    assert model.get_layer("features").output.dtype == "bfloat16"


def test_small_cnn_grows_with_width_and_blocks():
    for w in (8, 16):
        widths = (3, w, w, 2 * w, 2 * w)
        count = sum(convolution(3, a, b) for a, b in itertools.pairwise(widths)) + 2 * w * 10 + 10
        assert trainable(small_cnn((16, 16, 3), 10, width=w, blocks=2)) == count


def test_an_app_adds_networks_without_touching_the_registry():
    own = {**NETWORKS, "tiny": lambda shape, classes, **options: small_cnn(shape, classes, width=4, **options)}
    assert trainable(build("tiny", (8, 8, 1), 3, networks=own)) < 10_000
    assert "tiny" not in NETWORKS


@pytest.mark.parametrize(
    ("name", "shape", "classes", "options", "message"),
    [
        ("resnet21", (32, 32, 3), 10, {}, r"network 'resnet21': unknown.*small_cnn.*resnet110"),
        ("small_cnn", (7, 32, 3), 10, {}, r"input_shape: small_cnn needs .* 8 x 8 .* received 7 x 32"),
        ("resnet20", (4, 4, 3), 10, {}, r"input_shape: resnet20 needs"),
        ("resnet20", (32, 32), 10, {}, r"input_shape: expected \(height, width, channels\)"),
        ("resnet20", (32, 32, 3), 1, {}, r"classes: expected at least 2, received 1"),
        ("small_cnn", (32, 32, 3), 10, {"mean": MEAN}, r"mean, std: give both"),
        ("small_cnn", (32, 32, 1), 10, {"mean": MEAN, "std": STD}, r"mean: expected 1 finite"),
        ("small_cnn", (32, 32, 3), 10, {"mean": MEAN, "std": (0.2, 0.0, 0.2)}, r"std: expected positive"),
        ("small_cnn", (32, 32, 3), 10, {"mean": MEAN, "std": (0.2, math.nan, 0.2)}, r"std: expected 3 finite"),
        ("small_cnn", (32, 32, 3), 10, {"seed": -1}, r"seed: expected"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(name, shape, classes, options, message):
    with pytest.raises(UserError, match=message) as caught:
        build(name, shape, classes, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("family", "depth"), [(cifar_resnet, 21), (cifar_resnet, 2), (imagenet_resnet, 20)])
def test_a_depth_outside_the_family_is_refused(family, depth):
    with pytest.raises(UserError, match=rf"depth: expected .*, received {depth}"):
        family(depth, (32, 32, 3), 10)


def test_small_cnn_refuses_more_blocks_than_the_image_can_halve():
    with pytest.raises(UserError, match="at least 32 x 32"):
        small_cnn((16, 16, 3), 10, blocks=5)
