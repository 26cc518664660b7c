"""What a model answers on whole data sets: outputs, classes, accuracy."""

import warnings
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from common.arrays import as_float, to_array, to_labels
from common.attacks import check_logits, inference, logits_of
from common.attacks.compile import compiled
from common.errors import UserError
from common.evaluation import input_range
from common.progress import blocks


def predict(model: keras.Model, x: np.ndarray, *, batch_size: int = 500, progress: bool = False) -> np.ndarray:
    """The class `model` answers with for each of `x` (N, ...), int32 (N,), in inference mode; -1 where its logits are
    not numbers.

    8-bit images are read as [0, 1]; `x` may be an array, a tensor, a list or a table. Memory beyond `x` does not grow
    with N. `progress` is shown if it takes long, here and below.

    Errors: `ValueError` for what is no array of numbers, and for a model whose answers tell no class.
    """
    x = to_array(x)
    _count_classes(model, x)
    signature = [tf.TensorSpec([None, *x.shape[1:]], x.dtype)]
    answer = compiled(model, ("classes", x.shape[1:], x.dtype.str), _classes, signature)
    out = np.empty(len(x), np.int32)
    for rows in blocks(len(x), batch_size, "predictions", units="examples", shown=progress):
        out[rows] = answer(x[rows])
        if (out[rows] < 0).any() and not np.isfinite(np.asarray(x[rows], np.float32)).all():
            raise ValueError("x holds values that are not finite")
    return out


def _count_classes(model: keras.Model, x: np.ndarray, *, order_only: bool = True) -> int:
    # Not every network takes a batch of none, such as the examples that an attack has left.
    some = x[:8] if len(x) else np.zeros((1, *x.shape[1:]), x.dtype)
    return check_logits(model, as_float(tf.convert_to_tensor(some)), order_only=order_only)


def _classes(model: keras.Model, batch: tf.Tensor) -> tf.Tensor:
    z = logits_of(model)(as_float(batch))
    # The first of several numbers would be the largest if one of them is none.
    found = tf.reduce_any(tf.math.is_nan(z), axis=1)
    return tf.where(found, -1, tf.argmax(z, axis=1, output_type=tf.int32))


def outputs(model: keras.Model, x: np.ndarray, *, batch_size: int = 256, progress: bool = False) -> np.ndarray:
    """What `model` answers to `x` (N, ...) in inference mode, logits or embeddings: float32 (N, outputs).

    8-bit images are read as [0, 1].
    """
    x = to_array(x)
    signature = [tf.TensorSpec([None, *x.shape[1:]], x.dtype)]
    answer = compiled(model, ("outputs", x.shape[1:], x.dtype.str), _outputs, signature)
    if not len(x):
        return answer(x).numpy()
    rows_of = blocks(len(x), batch_size, "outputs", units="examples", shown=progress)
    return np.concatenate([answer(x[rows]).numpy() for rows in rows_of])


def _outputs(model: keras.Model, x: tf.Tensor) -> tf.Tensor:
    return tf.cast(inference(model)(as_float(x)), tf.float32)


def accuracy(
    model: keras.Model, x: np.ndarray, y: np.ndarray, *, batch_size: int = 500, progress: bool = False
) -> float:
    """Share of `x` (N, ...) answered with `y` (N,) or (N, 1), in [0, 1].

    A model whose first layer brings 8-bit images down itself is given them in 0..255 where it is clearly right on those
    and not on [0, 1], with a warning that says how to wrap it for attacks.

    Errors: `UserError` when `x` is empty: no examples have no rate; `ValueError` as `predict`, and for labels that are
    none of the model's classes.
    """
    x = to_array(x)
    if not len(x):
        raise UserError("x: holds no examples to measure an accuracy on; expected one or more")
    y = to_labels(y, len(x), _count_classes(model, x))
    if x.dtype == np.uint8 and input_range.takes_bytes(model):
        better = input_range.better_reading(model, x, y)
        if better is not None and better.sure:
            warnings.warn(
                f"{model.name}: {better}, which is counted here; before an attack {better.remedy}", stacklevel=2
            )
            model = input_range.rescaled(model, *better.reading)
    return float(np.mean(predict(model, x, batch_size=batch_size, progress=progress) == y))


def _unit_interval(x: np.ndarray) -> np.ndarray:
    return np.asarray(x) / np.float32(255) if x.dtype == np.uint8 else np.asarray(x, np.float32)


def _blocks(count: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, count)) for first in range(0, count, size))
