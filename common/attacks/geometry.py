"""Per-example arithmetic shared by threat models and rules."""

import numpy as np
import tensorflow as tf

Tensor = tf.Tensor


def align(value: float | Tensor, x: Tensor) -> Tensor:
    """`value` at the rank of `x` (B, ...), to broadcast against it: from a scalar, (B,) per example, or that rank.

    Errors: `ValueError` for any other rank.
    """
    if isinstance(value, int | float):
        # Through NumPy: three times as fast as a reshape, and five of these stand before every attack.
        return tf.constant(np.full([1] * x.shape.rank, value, x.dtype.as_numpy_dtype))
    value = tf.cast(value, x.dtype)
    if value.shape.rank == x.shape.rank:
        return value
    if value.shape.rank > 1:
        raise ValueError(
            f"a budget, step, bound or mask must be a scalar, of shape (batch,), or of the input's rank {x.shape.rank};"
            f" received shape {tuple(value.shape)}"
        )
    return tf.reshape(value, [-1] + [1] * (x.shape.rank - 1))


def per_example(x: Tensor) -> list[int]:
    """The axes of one example of `x` (B, ...)."""
    return list(range(1, x.shape.rank))


def total(x: Tensor) -> Tensor:
    """Sum over each example, kept at the rank of `x`."""
    return tf.reduce_sum(x, axis=per_example(x), keepdims=True)


def unit(x: Tensor, order: int) -> Tensor:
    """`x` over its L1 or L2 norm per example; zero where `x` is zero, without under- or overflow on the way."""
    x = x * _inverse(tf.reduce_max(tf.abs(x), axis=per_example(x), keepdims=True))
    return x * _inverse(total(tf.abs(x)) if order == 1 else tf.sqrt(total(tf.square(x))))


def finite(gradient: Tensor) -> Tensor:
    """`gradient` (B, ...) in numbers that a step can be made of, per example: what is infinite counts as its largest
    finite entry, or 1 if it has none, and what is not a number as 0. The slope of x ** 0.45 is infinite at 0.

    Where all is finite no bit changes.
    """

    def mended() -> Tensor:
        usable = tf.math.is_finite(gradient)
        largest = tf.reduce_max(tf.where(usable, tf.abs(gradient), 0.0), axis=per_example(gradient), keepdims=True)
        steepest = tf.sign(gradient) * tf.where(largest > 0, largest, 1.0)
        return tf.where(usable, gradient, tf.where(tf.math.is_nan(gradient), 0.0, steepest))

    # One pass; where the sum of finite entries overflows, mending them changes nothing.
    return tf.cond(tf.math.is_finite(tf.reduce_sum(gradient)), lambda: gradient, mended)


def _inverse(size: Tensor) -> Tensor:
    # The inverse of a denormal number overflows: such sizes count as zero.
    return tf.where(size > 1e-37, 1.0 / size, tf.zeros_like(size))
