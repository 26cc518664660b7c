"""What a model answers, how large a perturbation is, and how a changed picture compares with its original."""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from common import input_range
from common.arrays import to_array, to_labels
from common.attacks import attack_dataset, check_logits, inference, logits_of, untargeted_ce
from common.attacks.calls import compiled
from common.attacks.geometry import finite
from common.errors import UserError
from common.progress import blocks
from common.training import as_float


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


def rounded(images: np.ndarray) -> np.ndarray:
    """Images float in [0, 1] as a file of 8 bits holds them, float32."""
    return (np.rint(images * 255) / np.float32(255)).astype(np.float32)


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


def perturbation_sizes(x: np.ndarray, changed: np.ndarray) -> dict[str, np.ndarray]:
    """Per example (N,): `linf`, `l2`, `l1` in the units of `x` and `l0`, the number of changed coordinates."""
    shift = np.asarray(changed, np.float64) - np.asarray(x, np.float64)
    shift = shift.reshape(len(shift), math.prod(shift.shape[1:]))
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


def _unit_interval(x: np.ndarray) -> np.ndarray:
    return np.asarray(x) / np.float32(255) if x.dtype == np.uint8 else np.asarray(x, np.float32)


def _blocks(count: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, count)) for first in range(0, count, size))
