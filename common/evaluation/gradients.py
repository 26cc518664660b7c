"""Examples whose gradient is of no use to an attack."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from common.arrays import to_array, to_labels
from common.attacks import untargeted_ce, value_and_gradient
from common.attacks.compile import compiled
from common.attacks.tensors import finite
from common.evaluation.predictions import _count_classes, _unit_interval
from common.progress import blocks


class GradientRows(NamedTuple):
    """Where gradients are of little use, bool (N,) each: `zero`, not a single entry that says where to go; `infinite`,
    entries that are not finite. With many such rows gradient attacks are blind, or see badly, and what they leave
    proves nothing (Athalye et al. 2018)."""

    zero: np.ndarray
    infinite: np.ndarray


def gradient_rows(
    model: keras.Model, x: np.ndarray, y: np.ndarray, *, batch_size: int = 256, progress: bool = False
) -> GradientRows:
    """What the gradient of the cross-entropy of `y` (N,) is like at `x` (N, ...) float."""
    x = _unit_interval(to_array(x))
    y = to_labels(y, len(x), _count_classes(model, x, order_only=False))
    found = GradientRows(np.empty(len(x), bool), np.empty(len(x), bool))
    signature = [tf.TensorSpec([None, *x.shape[1:]], tf.float32), tf.TensorSpec([None], tf.int32)]
    look = compiled(model, ("gradients", x.shape[1:]), _gradients, signature)
    for rows in blocks(len(x), batch_size, "gradients", units="examples", shown=progress):
        for out, block in zip(found, look(x[rows], y[rows]), strict=True):
            out[rows] = block
    return found


def _gradients(model: keras.Model, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    _, _, gradient = value_and_gradient(untargeted_ce(model, {"y": labels}), images)
    gradient = tf.reshape(gradient, [tf.shape(images)[0], -1])
    return tf.reduce_all(finite(gradient) == 0, axis=1), tf.reduce_any(~tf.math.is_finite(gradient), axis=1)
