"""Draws that depend on the caller's seed and the example alone, never on the batch around it."""

from collections.abc import Callable, Sequence

import tensorflow as tf


def seed_pair(seed: int | tf.Tensor) -> tf.Tensor:
    """A seed as the int32 pair (2,) of TensorFlow's stateless operations; a pair passes through."""
    seed = tf.convert_to_tensor(seed)
    if seed.shape.rank == 0:
        low = tf.bitwise.bitwise_and(tf.cast(seed, tf.int64), 0x7FFFFFFF)
        return tf.cast(tf.stack([tf.zeros((), tf.int64), low]), tf.int32)
    return tf.cast(seed, tf.int32)


def example_seeds(seed: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """One seed pair per example: `seed` (2,) folded with `index` (B,), the examples' places in the data set."""
    # Folding once with a constant spreads the seed's bits, so that neighbouring seeds share no (seed, index) pair.
    spread = tf.random.fold_in(seed, 0x5EED)
    index = tf.cast(index, tf.int32)
    return tf.stack([tf.fill(tf.shape(index), spread[0]), tf.bitwise.bitwise_xor(spread[1], index)], axis=1)


def uniform(seeds: tf.Tensor, shape: Sequence[int] | tf.Tensor, low: float = 0.0, high: float = 1.0) -> tf.Tensor:
    """Uniform draws (B, *shape) in [low, high), row i from `seeds[i]`."""
    return _draw(lambda seed: tf.random.stateless_uniform(shape, seed, low, high), seeds)


def normal(seeds: tf.Tensor, shape: Sequence[int] | tf.Tensor) -> tf.Tensor:
    """Standard normal draws (B, *shape), row i from `seeds[i]`."""
    return _draw(lambda seed: tf.random.stateless_normal(shape, seed), seeds)


def _draw(sample: Callable[[tf.Tensor], tf.Tensor], seeds: tf.Tensor) -> tf.Tensor:
    return tf.map_fn(sample, seeds, fn_output_signature=tf.float32)
