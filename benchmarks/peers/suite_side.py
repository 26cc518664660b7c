"""The suite's own side of a comparison: its attack over a data set, and the bare gradients that any attack needs."""

import functools
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.peers.libraries import Timed
from common import attacks


def timed_attack(model: keras.Model, attack: str, x: np.ndarray, y: np.ndarray, batch_size: int, **settings) -> Timed:
    """An attack of `common.attacks`, by its name, on all of `x` (N, ...)."""
    chosen = functools.partial(getattr(attacks, attack), model, **settings)
    started = time.perf_counter()
    done = attacks.attack_dataset(chosen, x, y, batch_size=batch_size)
    seconds = time.perf_counter() - started
    notes = {"gradients": done.gradients, "utilisation": done.utilisation}
    return Timed(seconds, done.x, {name: value for name, value in notes.items() if value is not None})


def timed_gradients(model: keras.Model, x: np.ndarray, y: np.ndarray, steps: int, batch_size: int) -> Timed:
    """`steps` compiled input gradients of each batch, one after the other, driven from Python; returns the last ones.

    What any attack of so many gradients must cost at least, unless it takes fewer.
    """
    gradient = compiled_gradient(model)
    out = np.empty_like(x)
    started = time.perf_counter()
    for first in range(0, len(x), batch_size):
        rows = slice(first, first + batch_size)
        images, labels = tf.constant(x[rows]), tf.constant(y[rows])
        for _ in range(steps):
            last = gradient(images, labels)
        out[rows] = last.numpy()
    return Timed(time.perf_counter() - started, out)


def counted(model: keras.Model) -> tuple[Callable[[tf.Tensor], tf.Tensor], Callable[[], tuple[int, int]]]:
    """`model` as a function to logits, in inference mode, and how many rows went forwards and backwards through it,
    whoever called it."""
    forwards, backwards = tf.Variable(0, dtype=tf.int64), tf.Variable(0, dtype=tf.int64)

    @tf.custom_gradient
    def passing(z: tf.Tensor):
        def gradient(slope: tf.Tensor) -> tf.Tensor:
            backwards.assign_add(tf.shape(slope, tf.int64)[0])
            return slope

        return z, gradient

    def logits(x: tf.Tensor) -> tf.Tensor:
        forwards.assign_add(tf.shape(x, tf.int64)[0])
        return passing(attacks.logits_of(model)(x))

    return logits, lambda: (int(forwards.numpy()), int(backwards.numpy()))


@functools.cache
def compiled_gradient(model: keras.Model) -> Callable[[Any, Any], tf.Tensor]:
    """x (B, H, W, C), y (B,) int32 -> the gradient of the cross-entropy with respect to x, in inference mode."""

    @tf.function(
        input_signature=[tf.TensorSpec([None, *model.input_shape[1:]], tf.float32), tf.TensorSpec([None], tf.int32)]
    )
    def gradient(images, labels):
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = tf.cast(model(images, training=False), tf.float32)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        return tape.gradient(loss, images)

    return gradient
