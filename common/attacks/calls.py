"""What the attacks called by name share: input that is checked, and functions compiled once per model."""

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from common.attacks.logits import check_logits

Tensor = tf.Tensor
Array = np.ndarray | tf.Tensor
Model = Callable[[Tensor], Tensor]

_compiled: "weakref.WeakKeyDictionary[Any, dict]" = weakref.WeakKeyDictionary()


def compiled(model: Model, key, function: Callable, signature: list[tf.TensorSpec]) -> Callable:
    """`function(model, ...)` compiled once per model and key, and forgotten with the model."""
    functions = _compiled.setdefault(model, {})
    if key not in functions:
        # A strong reference from the cached function back to the model would keep both alive for ever.
        reference = weakref.ref(model)
        functions[key] = tf.function(
            lambda *tensors: function(reference(), *tensors), input_signature=signature, autograph=False
        ).get_concrete_function()
    return functions[key]


def as_float32(x: Array) -> Tensor:
    """`x` (B, ...) as float32. Errors: `ValueError` for 8-bit images."""
    x = tf.convert_to_tensor(x)
    if not x.dtype.is_floating:
        raise ValueError(
            f"x must be floating point in [low, high]; received {x.dtype.name}. Divide 8-bit images by 255"
        )
    return tf.cast(x, tf.float32)


def check_finite(x: Tensor) -> None:
    if not bool(tf.reduce_all(tf.math.is_finite(x))):
        raise ValueError("x holds values that are not finite")


def check_box(x: Tensor, low: Tensor, high: Tensor) -> None:
    """Errors: `ValueError` for values outside [low, high], or not finite."""
    # What is not a number is not inside either, so one look is enough between finite ends.
    ended = np.isfinite(low.numpy()).all() and np.isfinite(high.numpy()).all()
    if bool(tf.reduce_all((x >= low) & (x <= high))) and (ended or bool(tf.reduce_all(tf.math.is_finite(x)))):
        return
    check_finite(x)
    raise ValueError(
        # As text float32 has the digits that tell it from its neighbours, so what is just outside does not read as 1.
        f"x must lie in [low, high]; received values from {x.numpy().min()!s} to {x.numpy().max()!s}. Divide 8-bit"
        " images by 255, clip what rounding put outside, or pass the box they live in"
    )


def check_labels(model: Model, x: Tensor, y: Tensor) -> None:
    """Errors: `ValueError` for a model that answers with probabilities, and for labels that are none of its classes."""
    classes, labels = check_logits(model, x), y.numpy()
    if ((labels < 0) | (labels >= classes)).any():
        raise ValueError(f"labels must be 0 to {classes - 1}; received {labels.min()} to {labels.max()}")


def check_broadcast(x: Tensor, **tensors: Tensor) -> None:
    for name, value in tensors.items():
        if any(size not in (1, wanted) for size, wanted in zip(value.shape, x.shape, strict=True)):
            raise ValueError(
                f"{name} must broadcast to x of shape {tuple(x.shape)}; received shape {tuple(value.shape)}"
            )
