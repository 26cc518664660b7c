"""A classifier under attack: accuracy, adversarial examples judged in 8 bits, rows whose gradient is of no use."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from common.arrays import to_array, to_labels
from common.attacks import attack_dataset, untargeted_ce
from common.attacks.calls import compiled
from common.attacks.tensors import finite
from common.errors import UserError
from common.evaluation import input_range
from common.evaluation.predictions import _blocks, _count_classes, _unit_interval, predict
from common.evaluation.quality import perturbation_sizes, rounded
from common.progress import blocks


class Robustness(NamedTuple):
    """What an attack left of a model, example by example, (N,) each.

    `clean` and `robust`: answered rightly before and after, bool. `linf`, `l2`: size of the perturbation as judged.
    `zero_gradient`, `infinite_gradient`: at the clean input the loss has no gradient at all, or one with entries that
    are not finite, bool; many such rows mean that gradient attacks are blind here, or see badly, and `robust` proves
    nothing (Athalye et al. 2018).
    """

    clean: np.ndarray
    robust: np.ndarray
    linf: np.ndarray
    l2: np.ndarray
    zero_gradient: np.ndarray
    infinite_gradient: np.ndarray


def robustness(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    attack: Callable[..., tf.Tensor],
    *,
    batch_size: int = 256,
    eight_bit: bool = True,
    progress: bool = False,
) -> Robustness:
    """`attack(x, y, index=...)` on `x` (N, ...) in [0, 1], 8-bit or float, with labels `y` (N,), judged by what `model`
    answers.

    Images are judged as a file would hold them: rounded to 8 bits, unless `eight_bit` is False. Only what was right
    before can be robust: `robust` implies `clean`.

    Errors: `UserError` for a model that brings its images down from 0..255 and is right on those alone; `ValueError` as
    `accuracy`, for a model that answers with probabilities and cannot be cut before its last activation, and for an
    attack that answers with values that are not finite.
    """
    x = _unit_interval(to_array(x))
    y = to_labels(y, len(x), _count_classes(model, x, order_only=False))
    if input_range.takes_bytes(model):
        better = input_range.better_reading(model, x, y)
        if better is not None and better.sure:
            raise UserError(f"{model.name}: {better}, so that is what it takes; {better.remedy}")
    changed = attacked(attack, x, y, batch_size=batch_size, eight_bit=eight_bit, progress=progress)
    sizes = {name: np.empty(len(x)) for name in ("linf", "l2")}
    # Block by block: temporary arrays of the size of the data set would take several times its memory.
    for rows in _blocks(len(x), batch_size):
        block = perturbation_sizes(x[rows], changed[rows])
        for name, size in sizes.items():
            size[rows] = block[name]
    clean = predict(model, x, progress=progress) == y
    slopes = gradient_rows(model, x, y, batch_size=batch_size, progress=progress)
    return Robustness(
        clean,
        clean & (predict(model, changed, progress=progress) == y),
        sizes["linf"],
        sizes["l2"],
        slopes.zero,
        slopes.infinite,
    )


def attacked(
    attack: Callable[..., tf.Tensor],
    x: np.ndarray,
    y: np.ndarray,
    *,
    batch_size: int = 256,
    eight_bit: bool = True,
    progress: bool = False,
) -> np.ndarray:
    """What `attack(x, y, index=...)` makes of `x` (N, ...) float in [0, 1], as a file would hold it: float32.

    Errors: `ValueError` for an attack that answers with values that are not finite.
    """
    changed = attack_dataset(attack, x, y, batch_size=batch_size, progress=progress).x
    for rows in _blocks(len(changed), batch_size):
        if not np.isfinite(changed[rows]).all():
            raise ValueError(f"the attack answers with values that are not finite, in examples {rows.start} and on")
        if eight_bit:
            changed[rows] = rounded(changed[rows])
    return changed


class GradientRows(NamedTuple):
    """Where gradients are of little use, bool (N,) each: `zero`, not a single entry that says where to go; `infinite`,
    entries that are not finite."""

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
    with tf.GradientTape() as tape:
        tape.watch(images)
        score, _ = untargeted_ce(model, labels)(images)
    gradient = tf.reshape(tape.gradient(score, images), [tf.shape(images)[0], -1])
    return tf.reduce_all(finite(gradient) == 0, axis=1), tf.reduce_any(~tf.math.is_finite(gradient), axis=1)
