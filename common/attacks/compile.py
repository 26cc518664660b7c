"""Functions compiled once per model, and the checks of input that attacks share."""

import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from common.arrays import label_column, require, to_array, to_labels
from common.attacks.logits import check_logits
from common.per_model import PerModel

Tensor = tf.Tensor
Array = np.ndarray | tf.Tensor
Model = Callable[[Tensor], Tensor]

_compiled = PerModel()


def compiled(
    model: Model, key: Hashable, function: Callable, signature: Sequence[tf.TensorSpec] | Callable[[], Sequence]
) -> Callable:
    """`function(model, ...)` compiled once per key and model, as long as the model has the same layers, variables and
    properties; forgotten with the model. A function that makes the `signature` is called when it is needed."""

    def trace() -> Callable:
        # A strong reference from the cached function back to the model would keep both alive for ever.
        reference = weakref.ref(model)
        specs = signature() if callable(signature) else signature
        return tf.function(
            lambda *tensors: function(reference(), *tensors), input_signature=specs, autograph=False
        ).get_concrete_function()

    return _compiled.get(model, key, trace)


def as_float32(x: Any) -> Tensor:
    """`x` (B, ...) as float32; arrays, tensors, lists and tables are welcome. Errors: `ValueError` for 8-bit images and
    for what is no array of numbers."""
    x = tf.convert_to_tensor(x if tf.is_tensor(x) else to_array(x))
    if not x.dtype.is_floating:
        raise ValueError(
            f"x must be floating point in [low, high]; received {x.dtype.name}. Divide 8-bit images by 255"
        )
    return tf.cast(x, tf.float32)


def as_labels(y: Any) -> Tensor:
    """Labels or target classes `y` (B,) or (B, 1), in whatever they come, as int32 (B,).

    Errors: `ValueError` for text, fractions and other shapes.
    """
    return label_column(y) if tf.is_tensor(y) and tf.inside_function() else tf.constant(to_labels(y))


def as_targets(values: Any) -> Tensor:
    """Target embeddings (B, D) as float32, in whatever they come. Errors: `ValueError` for what is no array of
    numbers."""
    return tf.cast(values if tf.is_tensor(values) else to_array(values, "target"), tf.float32)


def check_finite(x: Tensor) -> None:
    if not bool(tf.reduce_all(tf.math.is_finite(x))):
        raise ValueError("x holds values that are not finite")


def check_box(x: Tensor, low: Tensor, high: Tensor) -> None:
    """Errors: `ValueError` for values outside [low, high], or not finite; inside a graph what `require` raises."""
    if tf.inside_function():
        # Images that were augmented may lie a rounding outside.
        slack = 1e-3 * tf.abs(high - low)
        inside = tf.reduce_all((x >= low - slack) & (x <= high + slack))
        message = "x must lie between low and high, by default 0 and 1 (divide 8-bit images by 255)"
        require(inside, message, tf.reduce_min(x), tf.reduce_max(x))
        return
    # What is not a number is not inside either, so one look is enough between finite ends.
    ended = np.isfinite(low.numpy()).all() and np.isfinite(high.numpy()).all()
    if bool(tf.reduce_all((x >= low) & (x <= high))) and (ended or bool(tf.reduce_all(tf.math.is_finite(x)))):
        return
    check_finite(x)
    raise ValueError(
        # As text float32 has the digits that tell it from its neighbours, so what is just outside does not read as 1.
        f"x must lie in [low, high]; received values from {x.numpy().min()!s} to {x.numpy().max()!s}. Divide 8-bit"
        " images by 255, clip rounding errors, or pass the box as low and high"
    )


def marked(answer: Tensor, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`answer` (B, ...) to `x`, all NaN for the examples that do not lie in the box: XLA leaves out what `check_box`
    asserts in a graph."""
    slack = 1e-3 * tf.abs(high - low)
    inside = tf.math.is_finite(x) & (x >= low - slack) & (x <= high + slack)
    inside = tf.reduce_all(inside, axis=list(range(1, x.shape.rank)), keepdims=True)
    return tf.where(inside, answer, tf.constant(float("nan"), answer.dtype))


def check_labels(model: Model, x: Tensor, y: Tensor) -> None:
    """Errors: `ValueError` for a model that answers with probabilities, and for labels that are none of its classes."""
    to_labels(y, classes=check_logits(model, x))


def check_broadcast(x: Tensor, **tensors: Tensor) -> None:
    for name, value in tensors.items():
        if any(size not in (1, wanted) for size, wanted in zip(value.shape, x.shape, strict=True)):
            raise ValueError(
                f"{name} must broadcast to x of shape {tuple(x.shape)}; received shape {tuple(value.shape)}"
            )
