"""What an attack is compared with: a change of the same budget, without a purpose."""

import tensorflow as tf

from common.attacks import randomness
from common.attacks.calls import Array, as_float32
from common.attacks.spaces import linf

Tensor = tf.Tensor


def corner_noise(x: Array, *, eps: float | Tensor, seed: int | Tensor = 0, index: Tensor | None = None) -> Tensor:
    """`x` (B, ...) in [0, 1] with every value up or down by `eps` (L-inf), at random: the largest change of the budget.

    `index`: the examples' places in the data set (B,), to which the draws are tied.
    """
    x = as_float32(x)
    places = tf.range(tf.shape(x)[0]) if index is None else tf.cast(index, tf.int32)
    seeds = randomness.example_seeds(randomness.seed_pair(seed), places)
    signs = tf.sign(randomness.uniform(seeds, tf.shape(x)[1:], -1.0, 1.0))
    return linf(x, eps).project(x + eps * signs)
