"""One row per example: shapes, norms, and draws that depend on the example alone."""

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

Tensor = tf.Tensor


def broadcast_like(value: float | Tensor, x: Tensor) -> Tensor:
    """`value` at the rank of `x` (B, ...), to broadcast against it: from a scalar, (B,) per example, or that rank.

    Errors: `ValueError` for any other rank.
    """
    if isinstance(value, int | float):
        # Through NumPy: three times as fast as a reshape, and every attack begins with five of these.
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


def one_each(x: Tensor, value: float = 0.0) -> Tensor:
    """`value` for each example of `x` (B, ...), at its rank: (B, 1, ...)."""
    return tf.zeros_like(x[(slice(None), *[slice(1)] * (x.shape.rank - 1))]) + value


def sum_features(x: Tensor) -> Tensor:
    """Sum over each example, kept at the rank of `x`."""
    return tf.reduce_sum(x, axis=per_example(x), keepdims=True)


def normalize(x: Tensor, order: int) -> Tensor:
    """`x` over its L1 or L2 norm per example; zero where `x` is zero, without under- or overflow on the way."""
    x = x * _inverse(tf.reduce_max(tf.abs(x), axis=per_example(x), keepdims=True))
    return x * _inverse(sum_features(tf.abs(x)) if order == 1 else tf.sqrt(sum_features(tf.square(x))))


def norm_of(x: Tensor, norm: str) -> Tensor:
    """The `linf`, `l2` or `l1` norm of each example of `x` (B, ...), kept at its rank."""
    size, axes = tf.abs(x), per_example(x)
    if norm == "linf":
        return tf.reduce_max(size, axis=axes, keepdims=True)
    if norm == "l1":
        return sum_features(size)
    # Squares of entries below 1e-19 or above 1e19 are none.
    largest = tf.reduce_max(size, axis=axes, keepdims=True)
    return largest * tf.sqrt(sum_features(tf.square(x * _inverse(largest))))


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


def seed_pair(seed: int | Tensor) -> Tensor:
    """A seed as the int32 pair (2,) of TensorFlow's stateless operations; a pair passes through."""
    seed = tf.convert_to_tensor(seed)
    return tf.bitcast(tf.cast(seed, tf.int64), tf.int32) if seed.shape.rank == 0 else tf.cast(seed, tf.int32)


def example_seeds(seed: Tensor, index: Tensor) -> Tensor:
    """One seed pair per example: `seed` (2,) folded with `index` (B,), the examples' places in the data set."""
    return _seeds_at(tf.broadcast_to(_spread(seed), [tf.size(index), 2]), index)


def restart_seeds(seed: Tensor, index: Tensor, restart: Tensor, restarts: Tensor) -> Tensor:
    """One seed pair per example: that of `example_seeds` for `seed` folded with the example's own `restart` (B,), a
    number below `restarts`."""
    spread = tf.map_fn(
        lambda number: _spread(tf.random.fold_in(seed, number)),
        tf.range(restarts),
        fn_output_signature=tf.TensorSpec([2], tf.int32),
    )
    return _seeds_at(tf.gather(spread, tf.minimum(restart, restarts - 1)), index)


def folded(seeds: Tensor, number: Tensor) -> Tensor:
    """`seeds` (B, 2) for the draw with the `number` (B,) of each example: pairs that share no words with others'."""
    words, number = tf.bitcast(seeds, tf.uint32), tf.cast(number, tf.uint32)
    first = _mix(words[:, 0] + _mix(number + tf.constant(0x9E3779B9, tf.uint32)))
    return tf.bitcast(tf.stack([first, words[:, 1]], axis=1), tf.int32)


def _spread(seed: Tensor) -> Tensor:
    # Folding once with a constant spreads the seed's bits, so that neighbouring seeds share no (seed, index) pair.
    return tf.random.fold_in(seed, 0x5EED)


def _seeds_at(spread: Tensor, index: Tensor) -> Tensor:
    return tf.stack([spread[:, 0], tf.bitwise.bitwise_xor(spread[:, 1], tf.cast(index, tf.int32))], axis=1)


def uniform(seeds: Tensor, shape: Sequence[int] | Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform draws (B, *shape) between `low` and `high`, neither of them ever drawn; row i from `seeds[i]`."""
    bits = tf.bitwise.right_shift(_words(seeds, shape), tf.constant(9, tf.uint32))
    # The centres of 2^23 equal cells: all of them are float32 numbers, and a logarithm of any is finite.
    return low + (high - low) * (tf.cast(bits, tf.float32) + 0.5) * 2.0**-23


def normal(seeds: Tensor, shape: Sequence[int] | Tensor) -> Tensor:
    """Standard normal draws (B, *shape), row i from `seeds[i]`."""
    return math.sqrt(2) * tf.math.erfinv(uniform(seeds, shape, -1.0, 1.0))


def direction(seeds: Tensor, x: Tensor, norm: str) -> Tensor:
    """A random direction for each example of `x` (B, ...), of length 1 in a norm: uniform draws in L-inf, else normal
    ones."""
    if norm == "linf":
        draw = uniform(seeds, tf.shape(x)[1:], -1.0, 1.0)
        return draw / norm_of(draw, "linf")
    return normalize(normal(seeds, tf.shape(x)[1:]), int(norm[1]))


def _words(seeds: Tensor, shape: Sequence[int] | Tensor) -> Tensor:
    """Random 32-bit words (B, *shape) by hashing each coordinate's number with its example's two seed words.

    TensorFlow's own generators take one seed for a whole tensor: a loop over the examples costs a GPU a launch each.
    """
    shape = tf.convert_to_tensor(shape, tf.int32)
    words = tf.bitcast(seeds, tf.uint32)
    place = tf.cast(tf.range(tf.cast(tf.reduce_prod(shape), tf.int64)), tf.uint32)
    hashed = _mix(_mix(place + words[:, :1]) + words[:, 1:])
    return tf.reshape(hashed, tf.concat([tf.shape(seeds)[:1], shape], axis=0))


def _mix(word: Tensor) -> Tensor:
    """A bijection of 32-bit words in which each input bit flips each output bit half the time (Wellons, lowbias32)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        word = _fold(word, shift) * tf.constant(factor, tf.uint32)
    return _fold(word, 16)


def _fold(word: Tensor, shift: int) -> Tensor:
    return tf.bitwise.bitwise_xor(word, tf.bitwise.right_shift(word, tf.constant(shift, tf.uint32)))
