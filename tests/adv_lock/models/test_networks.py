"""Adversarial Lock's networks: exact parameter counts, structure, and the contract of `common.models`."""

import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from adv_lock.models.networks import NETWORKS, alexnet, densenet_bc, preresnet, vgg
from common.errors import UserError
from common.models import build

# One cheap member of each family: depth only repeats the same blocks.
MEMBERS = {
    "preresnet8": (lambda *a, **k: preresnet(8, *a, **k), (16, 16, 3)),
    "densenet10bc": (lambda *a, **k: densenet_bc(10, 4, *a, **k), (16, 16, 3)),
    "vgg11": (lambda *a, **k: vgg(11, *a, **k), (32, 32, 3)),
    "alexnet": (alexnet, (32, 32, 3)),
}
EACH = pytest.mark.parametrize(("builder", "shape"), MEMBERS.values(), ids=MEMBERS)


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).random(shape, dtype=np.float32)


def trainable(model: keras.Model) -> int:
    return sum(math.prod(v.shape) for v in model.trainable_variables)


def preresnet_count(depth: int) -> int:
    n, total = (depth - 2) // 6, 27 * 16
    for f, inputs in ((16, 16), (32, 16), (64, 32)):
        first = 2 * inputs + 9 * inputs * f + 2 * f + 9 * f * f
        shortcut = inputs * f if inputs != f else 0
        total += first + shortcut + (n - 1) * (4 * f + 18 * f * f)
    return total + 2 * 64 + 64 * 10 + 10


def densenet_count(depth: int, growth: int) -> int:
    n, channels = (depth - 4) // 6, 2 * growth
    total = 27 * channels
    for block in range(3):
        for _ in range(n):
            total += 2 * channels + 4 * growth * channels + 8 * growth + 36 * growth * growth
            channels += growth
        if block < 2:
            total += 2 * channels + channels * (channels // 2)
            channels //= 2
    return total + 2 * channels + 10 * channels + 10


def vgg_count(row: str) -> int:
    """`row` is a column of the VGG paper's table 1, a digit per convolution: channels / 64."""
    widths = [3] + [64 * int(digit) for digit in row]
    return sum(9 * a * b + 2 * b for a, b in itertools.pairwise(widths)) + 512 * 10 + 10


@pytest.mark.parametrize(
    ("name", "count", "published"),
    [
        ("preresnet20", preresnet_count(20), 0.27e6),
        ("preresnet32", preresnet_count(32), 0.46e6),
        ("preresnet44", preresnet_count(44), 0.66e6),
        ("preresnet56", preresnet_count(56), 0.86e6),
        ("preresnet110", preresnet_count(110), 1.7e6),
        ("densenet100bc", densenet_count(100, 12), 0.77e6),
        ("vgg11", vgg_count("12448888"), 9.23e6),
        ("vgg13", vgg_count("1122448888"), 9.42e6),
        ("vgg16", vgg_count("1122444888888"), 14.73e6),
        ("vgg19", vgg_count("1122444488888888"), 20.04e6),
        ("alexnet", 363 * 64 + 1600 * 192 + 1728 * 384 + 3456 * 256 + 2304 * 256 + 1152 + 2570, 2.47e6),
    ],
)
def test_parameters_are_those_of_the_published_networks(name, count, published):
    assert trainable(build(name, (32, 32, 3), 10, networks=NETWORKS)) == count
    assert count == pytest.approx(published, rel=0.025)


def test_densenet190bc_has_the_parameters_of_huang_et_al_table_2():
    assert densenet_count(190, 40) == pytest.approx(25.6e6, rel=0.01)
    assert NETWORKS["densenet190bc"].func is densenet_bc and NETWORKS["densenet190bc"].args == (190, 40)


@pytest.mark.slow
def test_densenet190bc_built_has_as_many_as_counted():
    """Nearly six hundred layers, which take seconds to make."""
    assert trainable(build("densenet190bc", (8, 8, 3), 10, networks=NETWORKS)) == densenet_count(190, 40)


def test_the_shortcut_of_a_preactivation_block_reads_the_raw_input():
    model = preresnet(20, (32, 32, 3), 10)
    raw = model.get_layer("stage1_block3_add").output
    assert model.get_layer("stage2_block1_shortcut_conv").input is raw
    assert model.get_layer("stage2_block1_1_bn").input is raw
    assert model.get_layer("stage2_block2_add").input[0] is model.get_layer("stage2_block1_add").output
    names = [layer.name for layer in model.layers]
    assert "stage1_block1_shortcut_conv" not in names and "stage2_block1_shortcut_bn" not in names
    assert model.get_layer("stage3_block3_add").output.shape == (None, 8, 8, 64)


def test_a_dense_layer_sees_all_before_it_and_a_transition_keeps_half():
    model = densenet_bc(10, 4, (16, 16, 3), 10)
    assert model.get_layer("block1_layer1_concat").output.shape == (None, 16, 16, 12)
    assert model.get_layer("transition1_pool").output.shape == (None, 8, 8, 6)
    assert model.get_layer("transition2_pool").output.shape == (None, 4, 4, 5)


def test_vgg_and_alexnet_end_in_one_position():
    assert vgg(19, (32, 32, 3), 10).get_layer("stage5_pool").output.shape == (None, 1, 1, 512)
    assert alexnet((32, 32, 3), 10).get_layer("pool5").output.shape == (None, 1, 1, 256)
    assert alexnet((29, 29, 1), 10).get_layer("pool5").output.shape == (None, 1, 1, 256)


@pytest.mark.parametrize("name", ["vgg11", "alexnet"])
def test_the_dense_layer_starts_small(name):
    layer = build(name, (32, 32, 3), 10, networks=NETWORKS).get_layer("logits")
    assert layer.kernel.numpy().std() == pytest.approx(0.01, rel=0.05)
    assert not layer.bias.numpy().any()


@EACH
def test_logits_normalisation_and_gradient(builder, shape):
    x = tf.constant(images(2, *shape))
    mean, std = (0.49, 0.48, 0.45), (0.20, 0.21, 0.22)
    model, bare = builder(shape, 6, mean=mean, std=std), builder(shape, 6)
    with tf.GradientTape() as tape:
        tape.watch(x)
        logits = model(x, training=False)
        loss = keras.losses.sparse_categorical_crossentropy(tf.constant([1, 2]), logits, from_logits=True)
    assert logits.shape == (2, 6) and logits.dtype == tf.float32
    np.testing.assert_allclose(logits, bare((x - mean) / std, training=False), rtol=1e-4, atol=1e-5)
    gradient = tape.gradient(loss, x).numpy()
    assert np.isfinite(gradient).all() and (np.abs(gradient).max(axis=(1, 2, 3)) > 1e-7).all()


@EACH
def test_a_saved_model_answers_the_same_bits(builder, shape, tmp_path):
    x = images(2, *shape)
    model = builder(shape, 10, mean=(0.5,) * 3, std=(0.2,) * 3)
    model(x, training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(model(x, training=False), loaded(x, training=False))


@EACH
def test_the_seed_decides_every_weight_and_names_repeat(builder, shape):
    first, same, other = (builder(shape, 4, seed=s) for s in (1, 1, 2))
    for a, b, c in zip(first.weights, same.weights, other.weights, strict=True):
        np.testing.assert_array_equal(a, b)
        assert "kernel" not in a.path or not np.array_equal(a, c), a.path
    assert [layer.name for layer in first.layers] == [layer.name for layer in same.layers]


def test_grey_images_of_another_size_work():
    for builder, shape in ((MEMBERS["preresnet8"][0], (8, 10, 1)), (MEMBERS["densenet10bc"][0], (9, 8, 1))):
        assert builder(shape, 3)(images(2, *shape), training=False).shape == (2, 3)


@pytest.mark.parametrize(("name", "side"), [("vgg19", 28), ("vgg11", 31), ("alexnet", 28), ("densenet100bc", 7)])
def test_too_small_images_are_refused_in_one_line(name, side):
    with pytest.raises(UserError, match=rf"input_shape: {name} needs .* received {side} x {side}") as caught:
        build(name, (side, side, 3), 10, networks=NETWORKS)
    assert "\n" not in str(caught.value)


def test_unknown_names_and_depths_are_refused():
    with pytest.raises(UserError, match=r"'vgg12': unknown; choose one of small_cnn, .*alexnet"):
        build("vgg12", (32, 32, 3), 10, networks=NETWORKS)
    for family, depth in ((preresnet, 18), (vgg, 12)):
        with pytest.raises(UserError, match=f"depth: expected .* received {depth}"):
            family(depth, (32, 32, 3), 10)
    with pytest.raises(UserError, match=r"depth: expected 6n \+ 4"):
        densenet_bc(99, 12, (32, 32, 3), 10)
