"""A classifier of digits without training, and defences on top of it."""

import functools

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from sklearn.datasets import load_digits


@functools.cache
def digits():
    """Images (N, 8, 8, 1) of whole grey levels in [0, 1], labels: 1,000 to fit to, and 200 others."""
    x, y = load_digits(return_X_y=True)
    x = (np.rint(x / 16 * 255) / 255).astype(np.float32).reshape(-1, 8, 8, 1)
    return x[:1000], y[:1000].astype(np.int32), x[1000:1200], y[1000:1200].astype(np.int32)


@functools.cache
def _weights(features):
    """Random features, and the ridge regression of the classes on them."""
    rng, (x, y, _, _) = np.random.default_rng(0), digits()
    first = (rng.normal(size=(64, features)) / 4).astype(np.float32)
    bias = rng.normal(size=features).astype(np.float32) / 4
    hidden = np.maximum(x.reshape(len(x), -1) @ first + bias, 0)
    wanted = 10 * (np.eye(10, dtype=np.float32)[y] - 0.1)
    last = np.linalg.solve(hidden.T @ hidden + 3.0 * np.eye(features), hidden.T @ wanted)
    return first, bias, last.astype(np.float32)


def classifier(*before, after=(), features=128):
    """The classifier, with layers before it and after it."""
    first, bias, last = _weights(features)
    images = keras.Input((8, 8, 1))
    x = images
    for layer in before:
        x = layer(x)
    x = keras.layers.Flatten()(x)
    dense = keras.layers.Dense(features, activation="relu", name="lifted")
    read_out = keras.layers.Dense(10, name="read_out")
    x = read_out(dense(x))
    for layer in after:
        x = layer(x)
    dense.set_weights([first, bias])
    read_out.set_weights([last, np.zeros(10, np.float32)])
    return keras.Model(images, x)


class Rounded(keras.Layer):
    """Eight levels, without a slope."""

    def call(self, x):
        return ops.stop_gradient(ops.round(7 * x) / 7)


class Levels(keras.Layer):
    """Above which of four levels a pixel is: their number."""

    def call(self, x):
        above = ops.cast(ops.expand_dims(x, -1) > np.float32([0.2, 0.4, 0.6, 0.8]), "float32")
        return ops.reshape(above, (-1, 8, 8, 4))


class Mean(keras.Layer):
    """Over the last axis."""

    def call(self, x):
        return ops.mean(x, axis=-1, keepdims=True)


class Noisy(keras.Layer):
    """Noise, in use too."""

    def __init__(self, **options):
        super().__init__(**options)
        self.draws = keras.random.SeedGenerator(0)

    def call(self, x):
        return x + 0.1 * keras.random.normal(ops.shape(x), seed=self.draws)


class Hidden(keras.Layer):
    """A softmax that no look at the layers tells."""

    def call(self, x):
        return ops.softmax(20.0 * x)


class Answer(keras.Layer):
    """The answer alone."""

    def call(self, x):
        return ops.one_hot(ops.argmax(x, axis=-1), 10)


class Three(keras.Layer):
    """What three see of it, in other weights, side by side."""

    def call(self, x):
        seen = [x * (1 + 0.1 * np.cos(seed + np.arange(10.0, dtype=np.float32))) for seed in range(3)]
        return ops.concatenate(seen, axis=-1)


class Votes(keras.Layer):
    """How many of three choose each class."""

    def call(self, x):
        return ops.sum(ops.one_hot(ops.argmax(ops.reshape(x, (-1, 3, 10)), axis=-1), 10), axis=1)


def right_ones(model, count):
    """Some test images that `model` answers rightly, and their labels."""
    _, _, x, y = digits()
    answers = np.argmax(np.asarray(model(tf.constant(x), training=False)), axis=1)
    rows = np.flatnonzero(answers == y)[:count]
    assert len(rows) == count
    return x[rows], y[rows]
