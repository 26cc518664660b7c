"""What a model answers, how large a perturbation is, and how a changed picture compares with its original."""

import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from common.attacks import attack_dataset, inference, logits_of, untargeted_ce
from common.attacks.calls import compiled
from common.errors import UserError
from common.progress import blocks
from common.training import as_float

_forward: "weakref.WeakKeyDictionary[Any, Callable]" = weakref.WeakKeyDictionary()


def predict(model: keras.Model, x: np.ndarray, *, batch_size: int = 500, progress: bool = False) -> np.ndarray:
    """The class `model` answers with for each of `x` (N, ...), int32 (N,), in inference mode.

    8-bit images are read as [0, 1]. Memory beyond `x` does not grow with N. `progress` is shown if it takes long, here
    and below.
    """
    answer = _compiled(model, x)
    out = np.empty(len(x), np.int32)
    for rows in blocks(len(x), batch_size, "predictions", units="examples", shown=progress):
        out[rows] = answer(x[rows])
    return out


def outputs(model: keras.Model, x: np.ndarray, *, batch_size: int = 256, progress: bool = False) -> np.ndarray:
    """What `model` answers to `x` (N, ...) in inference mode, logits or embeddings: float32 (N, outputs).

    8-bit images are read as [0, 1].
    """
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
    """Share of `x` (N, ...) answered with `y` (N,), in [0, 1].

    Errors: `UserError` when `x` is empty: no examples have no rate.
    """
    if not len(x):
        raise UserError("x: holds no examples to measure an accuracy on; expected one or more")
    return float(np.mean(predict(model, x, batch_size=batch_size, progress=progress) == y))


class Robustness(NamedTuple):
    """What an attack left of a model, example by example, (N,) each.

    `clean` and `robust`: answered rightly before and after, bool. `linf`, `l2`: size of the perturbation as judged.
    `zero_gradient`: the loss has no gradient at all at the clean input, bool; many such rows mean that gradient attacks
    are blind here and `robust` proves nothing (Athalye et al. 2018).
    """

    clean: np.ndarray
    robust: np.ndarray
    linf: np.ndarray
    l2: np.ndarray
    zero_gradient: np.ndarray


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
    """`attack(x, y, index=...)` on `x` (N, ...) float in [0, 1] with labels `y` (N,), judged by what `model` answers.

    Images are judged as a file would hold them: rounded to 8 bits, unless `eight_bit` is False. Only what was right
    before can be robust: `robust` implies `clean`.
    """
    x = np.asarray(x, np.float32)
    changed = attacked(attack, x, y, batch_size=batch_size, eight_bit=eight_bit, progress=progress)
    sizes = {name: np.empty(len(x)) for name in ("linf", "l2")}
    # Block by block: temporary arrays of the size of the data set would take several times its memory.
    for rows in _blocks(len(x), batch_size):
        block = perturbation_sizes(x[rows], changed[rows])
        for name, size in sizes.items():
            size[rows] = block[name]
    clean = predict(model, x, progress=progress) == y
    return Robustness(
        clean,
        clean & (predict(model, changed, progress=progress) == y),
        sizes["linf"],
        sizes["l2"],
        zero_gradient_rows(model, x, y, batch_size=batch_size, progress=progress),
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
    """What `attack(x, y, index=...)` makes of `x` (N, ...) float in [0, 1], as a file would hold it: float32."""
    changed = attack_dataset(attack, x, y, batch_size=batch_size, progress=progress).x
    for rows in _blocks(len(x), batch_size) if eight_bit else ():
        changed[rows] = rounded(changed[rows])
    return changed


def rounded(images: np.ndarray) -> np.ndarray:
    """Images float in [0, 1] as a file of 8 bits holds them, float32."""
    return (np.rint(images * 255) / np.float32(255)).astype(np.float32)


def zero_gradient_rows(
    model: keras.Model, x: np.ndarray, y: np.ndarray, *, batch_size: int = 256, progress: bool = False
) -> np.ndarray:
    """Where the cross-entropy of `y` (N,) has not a single gradient entry at `x` (N, ...), bool (N,)."""
    out = np.empty(len(x), bool)

    @tf.function(input_signature=[tf.TensorSpec([None, *x.shape[1:]], tf.float32), tf.TensorSpec([None], tf.int32)])
    def blank(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(images)
            score, _ = untargeted_ce(model, labels)(images)
        gradient = tape.gradient(score, images)
        return tf.reduce_all(tf.reshape(gradient == 0, [tf.shape(images)[0], -1]), axis=1)

    for rows in blocks(len(x), batch_size, "gradients", units="examples", shown=progress):
        out[rows] = blank(x[rows], np.asarray(y[rows], np.int32))
    return out


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
