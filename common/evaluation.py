"""What a model answers, how large a perturbation is, and how a changed picture compares with its original."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from common.attacks import logits_of
from common.training import as_float

_forward: "weakref.WeakKeyDictionary[Any, Callable]" = weakref.WeakKeyDictionary()


def predict(model: keras.Model, x: np.ndarray, *, batch_size: int = 500) -> np.ndarray:
    """The class `model` answers with for each of `x` (N, ...), int32 (N,), in inference mode.

    8-bit images are read as [0, 1]. Memory beyond `x` does not grow with N.
    """
    answer = _compiled(model, x)
    out = np.empty(len(x), np.int32)
    for rows in _blocks(len(x), batch_size):
        out[rows] = answer(x[rows])
    return out


def accuracy(model: keras.Model, x: np.ndarray, y: np.ndarray, *, batch_size: int = 500) -> float:
    """Share of `x` (N, ...) answered with `y` (N,), in [0, 1]."""
    return float(np.mean(predict(model, x, batch_size=batch_size) == y))


def perturbation_sizes(x: np.ndarray, changed: np.ndarray) -> dict[str, np.ndarray]:
    """Per example (N,): `linf`, `l2`, `l1` in the units of `x` and `l0`, the number of changed coordinates."""
    shift = (np.asarray(changed, np.float64) - np.asarray(x, np.float64)).reshape(len(x), -1)
    size = np.abs(shift)
    return {
        "linf": size.max(axis=1, initial=0.0),
        "l2": np.sqrt((size**2).sum(axis=1)),
        "l1": size.sum(axis=1),
        "l0": (size > 0).sum(axis=1),
    }


def psnr(x: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB per 8-bit picture, (N,); infinite where nothing changed."""
    return tf.image.psnr(x, changed, 255).numpy()


def ssim(x: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """Structural similarity per 8-bit picture (N, H, W, C), (N,), 11 x 11 Gaussian window (Wang et al. 2004)."""
    window = min(11, x.shape[1], x.shape[2])
    return tf.image.ssim(tf.constant(x), tf.constant(changed), 255, filter_size=window).numpy()


def _compiled(model: keras.Model, x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    key = (x.shape[1:], x.dtype.str)
    functions = _forward.setdefault(model, {})
    if key not in functions:
        reference = weakref.ref(model)

        def answer(batch: tf.Tensor) -> tf.Tensor:
            return tf.argmax(logits_of(reference())(as_float(batch)), axis=1, output_type=tf.int32)

        signature = [tf.TensorSpec([None, *x.shape[1:]], x.dtype)]
        functions[key] = tf.function(answer, input_signature=signature, autograph=False)
    return functions[key]


def _blocks(count: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, count)) for first in range(0, count, size))
