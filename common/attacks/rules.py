"""How an attack moves: rules that are told (x, score, done, gradient) and answer with the next x."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from common.attacks.geometry import align, per_example, unit

Tensor = tf.Tensor
State = Any
"""A nest of tensors whose shapes and dtypes never change."""


class Rule(NamedTuple):
    """An ask-and-tell optimiser as two pure functions.

    `init`: x -> state. `step`: state, x, score, done, gradient -> proposal, state; the proposal is projected by the
    loop. With `needs_grad` false the loop takes no gradient and `step` receives zeros.
    """

    init: Callable[[Tensor], State]
    step: Callable[[State, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, State]]
    needs_grad: bool = True


def ascent(
    direction: Callable[[Tensor], Tensor], alpha: float | Tensor, momentum: float | Tensor | None = None
) -> Rule:
    """x + alpha * direction(gradient), as in PGD (Madry et al. 2018) or, with `momentum`, MI-FGSM (Dong et al. 2018).

    `alpha` is a scalar, (B,) or of the input's rank, in the input's units. Momentum accumulates gradients over their
    mean absolute value, not their signs.
    """

    def step(velocity: State, x: Tensor, score: Tensor, done: Tensor, gradient: Tensor) -> tuple[Tensor, State]:
        if momentum is not None:
            velocity = gradient = momentum * velocity + scaled_l1(gradient)
        return x + align(alpha, x) * direction(gradient), velocity

    return Rule(lambda x: () if momentum is None else tf.zeros_like(x), step)


def unit_l2(gradient: Tensor) -> Tensor:
    """Steepest ascent in L2: the gradient over its norm, per example; zero stays zero."""
    return unit(gradient, 2)


def top_l1(share: float | Tensor) -> Callable[[Tensor], Tensor]:
    """Sparse ascent in L1: per example the largest `share` (0..1) of the coordinates of the gradient, at L1 norm 1.

    The kept coordinates keep their proportions: with equal steps the exact projection would take the same from each
    and never let the best of them win.
    """

    def direction(gradient: Tensor) -> Tensor:
        size = tf.reshape(tf.abs(gradient), [tf.shape(gradient)[0], -1])
        count = tf.maximum(tf.cast(tf.cast(tf.shape(size)[1], tf.float32) * share, tf.int32), 1)
        least = tf.reduce_min(tf.math.top_k(size, count).values, axis=1)
        return unit(tf.where(tf.abs(gradient) >= align(least, gradient), gradient, tf.zeros_like(gradient)), 1)

    return direction


def scaled_l1(gradient: Tensor) -> Tensor:
    """The gradient over its mean absolute value per example: MI-FGSM's L1 normalisation up to the constant size."""
    mean = tf.reduce_mean(tf.abs(gradient), axis=per_example(gradient), keepdims=True)
    return tf.math.divide_no_nan(gradient, mean)
