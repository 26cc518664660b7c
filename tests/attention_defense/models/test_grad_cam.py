"""F8: maps that are what Grad-CAM says, each image's its own, and differentiable."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from attention_defense.models.grad_cam import Attention, above_mean, overlap, relu_max_map, resized, softmax_map
from attention_defense.models.networks import NETWORKS
from common.errors import UserError


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((6, 16, 16, 3), np.float32)


def test_grad_cam_of_two_layers_by_hand():
    """A convolution of 1 x 1 and a dense layer: d logit / d A is the dense weight, so all follows by hand."""
    rng = np.random.default_rng(3)
    images = keras.Input((4, 5, 2))
    features = keras.layers.Conv2D(3, 1, name="features")(images)
    logits = keras.layers.Dense(2, name="logits")(keras.layers.Flatten()(features))
    model = keras.Model(images, logits)
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape))
    x, y = rng.random((3, 4, 5, 2)).astype(np.float32), np.array([0, 1, 1], np.int32)
    kernel, bias = (np.asarray(w) for w in model.get_layer("features").weights)
    dense, _ = (np.asarray(w) for w in model.get_layer("logits").weights)
    activation = x @ kernel[0, 0] + bias
    for row in range(3):
        slope = dense[:, y[row]].reshape(4, 5, 3)
        weight = (slope / np.sqrt((slope**2).mean())).mean(axis=(0, 1))
        expected = activation[row] @ weight
        found = Attention(model, "features")(x, y).cam.numpy()[row]
        assert np.allclose(found, expected, atol=1e-4)


def test_the_answer_is_the_models_own(model, images):
    assert np.allclose(Attention(model)(images).logits, model(images), atol=1e-5)


def test_no_class_means_the_one_that_is_answered(model, images):
    attention = Attention(model)
    answered = tf.argmax(model(images), axis=1, output_type=tf.int32)
    assert np.array_equal(attention(images).cam, attention(images, answered).cam)
    assert not np.allclose(attention(images).cam, attention(images, (answered + 1) % 4).cam)


@pytest.mark.parametrize("arch", ["cifarnet", "cifarnet_bn", "small_cnn"])
def test_a_map_does_not_depend_on_its_neighbours(images, arch):
    """The original normalised over the whole batch, so that results changed with the batch size."""
    model = NETWORKS[arch]((16, 16, 3), 4, seed=2)
    y = np.arange(6, dtype=np.int32) % 4
    together = softmax_map(Attention(model)(images, y).cam).numpy()
    for row in range(6):
        alone = softmax_map(Attention(model)(images[row : row + 1], y[row : row + 1]).cam).numpy()[0]
        assert np.allclose(alone, together[row], atol=1e-3)


def smooth_network():
    """No kinks: where rectified units switch, Grad-CAM itself jumps, and differences say nothing of its slope."""
    images = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(6, 3, activation="tanh", kernel_initializer=keras.initializers.GlorotUniform(1))(images)
    x = keras.layers.AveragePooling2D(2, name="map")(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(12, activation="tanh", kernel_initializer=keras.initializers.GlorotUniform(2))(x)
    return keras.Model(images, keras.layers.Dense(4, kernel_initializer=keras.initializers.GlorotUniform(3))(x))


def test_f8_second_order_gradients_agree_with_finite_differences(images):
    """F8: the slope of a function of the map, by the tape and by differences, along random directions."""
    y = np.arange(6, dtype=np.int32) % 4
    attention = Attention(smooth_network(), "map")
    pattern = tf.constant(np.random.default_rng(5).normal(size=(6, 16, 16)), tf.float32)

    def value(x):
        return tf.reduce_sum(pattern * resized(softmax_map(attention(x, y).cam), (16, 16)), axis=(1, 2))

    x = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(value(x))
    gradient = tape.gradient(total, x).numpy()
    by_tape, by_difference = [], []
    rng = np.random.default_rng(9)
    for _ in range(20):
        direction = rng.normal(size=images.shape).astype(np.float32)
        step = 2e-3
        ahead, behind = value(images + step * direction), value(images - step * direction)
        by_difference.extend(((ahead - behind) / (2 * step)).numpy())
        by_tape.extend((gradient * direction).sum(axis=(1, 2, 3)))
    assert np.corrcoef(by_tape, by_difference)[0, 1] >= 0.95
    assert np.abs(by_tape).max() > 1e-2


def test_weights_of_layers_below_the_map_get_gradients_through_it(model, images):
    y = np.zeros(6, np.int32)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(softmax_map(Attention(model)(images, y).cam) ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    by_name = {weight.path: g for weight, g in zip(model.trainable_variables, gradients, strict=True)}
    assert float(tf.reduce_max(tf.abs(by_name["conv1/kernel"]))) > 0
    assert float(tf.reduce_max(tf.abs(by_name["dense1/kernel"]))) > 0


def test_readings_of_a_map():
    cam = tf.constant([[[1.0, 2.0], [3.0, 6.0]], [[-1.0, -1.0], [-1.0, -1.0]]])
    values = cam.numpy()[0].ravel()
    z = (values - values.mean()) / values.std()
    expected = 4 * np.exp(z) / np.exp(z).sum()
    assert np.allclose(softmax_map(cam).numpy()[0].ravel(), expected, atol=1e-3)
    # A flat map is attended evenly, and has no slope that is not a number.
    assert np.allclose(softmax_map(cam).numpy()[1], 1.0)
    assert np.array_equal(above_mean(cam).numpy()[0], [[False, False], [False, True]])
    assert np.allclose(relu_max_map(cam).numpy(), [[[1 / 6, 1 / 3], [0.5, 1.0]], [[0, 0], [0, 0]]])


def test_overlap_equals_counting():
    rng = np.random.default_rng(2)
    a, b = rng.random((2, 50, 8, 8)) < rng.random((2, 50, 1, 1))
    a[0] = b[0] = False
    expected = [1.0 if not (p | q).any() else (p & q).sum() / (p | q).sum() for p, q in zip(a, b, strict=True)]
    assert np.allclose(overlap(tf.constant(a), tf.constant(b)), expected)


def test_a_model_that_ends_in_softmax_is_looked_at_before_it(model, images):
    ended = keras.Model(model.input, keras.layers.Softmax()(model.output))
    assert np.allclose(Attention(ended)(images).cam, Attention(model)(images).cam, atol=1e-5)


def test_a_sequential_model_is_looked_at(images):
    layers = [
        keras.layers.Conv2D(4, 3, activation="relu"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(3),
    ]
    model = keras.Sequential([keras.Input((16, 16, 3)), *layers])
    logits, cam = Attention(model)(images)
    assert np.allclose(logits, model(images), atol=1e-5)
    assert cam.shape == (6, 14, 14)


def test_layers_without_a_map_of_their_own_are_passed_over():
    """A nested model's answer belongs to another graph, attention with its scores has two answers."""
    images = keras.Input((16, 16, 3))
    backbone = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Conv2D(4, 3)], name="backbone")
    mapped = keras.layers.Conv2D(5, 3, name="own")(backbone(images))
    rows = keras.layers.Reshape((144, 5))(mapped)
    mixed, _ = keras.layers.MultiHeadAttention(1, 2)(rows, rows, return_attention_scores=True)
    model = keras.Model(images, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling1D()(mixed)))
    assert Attention(model).layer == "own"
    with pytest.raises(UserError, match="--layer: backbone: no such layer"):
        Attention(model, "backbone")
    loose = keras.Input((None, None, 3))
    features = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(loose))
    with pytest.raises(UserError, match="no layer with a map of fixed size"):
        Attention(keras.Model(loose, keras.layers.Dense(2)(features)))


def test_layers_are_found_and_refused(model):
    assert Attention(NETWORKS["cifarnet"]((32, 32, 3), 4)).layer == "pool2"
    assert Attention(model, "conv1")(tf.zeros([1, 16, 16, 3])).cam.shape == (1, 16, 16)
    with pytest.raises(UserError, match=r"--layer: none_such: no such layer with a map; there are .*pool2"):
        Attention(model, "none_such")
    images = keras.Input((8,))
    with pytest.raises(UserError, match="no layer with a map"):
        Attention(keras.Model(images, keras.layers.Dense(2)(images)))
    images = keras.Input((8, 8, 1))
    around = keras.layers.Conv2D(1, 1, name="inner")(images)
    passed = keras.layers.Add()([images, around])
    model = keras.Model(images, keras.layers.Dense(2)(keras.layers.Flatten()(passed)))
    with pytest.raises(UserError, match="something passes it by"):
        Attention(model, "inner")
    # Nobody chose a layer: the last that can be cut is taken.
    assert Attention(model).layer == passed._keras_history.operation.name
    around = keras.layers.Conv2D(1, 3, name="last")(passed)
    both = [keras.layers.Flatten()(each) for each in (passed, around)]
    model = keras.Model(images, keras.layers.Dense(2)(keras.layers.Concatenate()(both)))
    assert Attention(model).layer == passed._keras_history.operation.name
