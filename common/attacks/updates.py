"""Update rules in ask-and-tell form: told (x, value, success, gradient), they answer with the next x."""

from collections.abc import Callable
from math import pi
from typing import Any, NamedTuple

import tensorflow as tf

from common.attacks.tensors import broadcast_like, normalize, one_each, per_example
from common.attacks.threat_models import ThreatModel

Tensor = tf.Tensor
# The square of a larger gradient overflows, and Adam would never again move what has one.
_LARGEST = 1e18
State = Any
"""A nest of tensors whose shapes and dtypes never change."""


class UpdateRule(NamedTuple):
    """An ask-and-tell optimiser as two pure functions.

    `init`: x -> state, a nest of tensors with one row per example. `step`: state, x, value, success, gradient ->
    proposal, state; the proposal is projected by the loop. `needs_gradient`: whether the loop takes one, or a function
    state -> bool () of whether the next step needs one; where not, `step` receives zeros.
    """

    init: Callable[[Tensor], State]
    step: Callable[[State, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, State]]
    needs_gradient: bool | Callable[[State], Tensor] = True


def ascent(
    direction: Callable[[Tensor], Tensor],
    alpha: float | Tensor,
    momentum: float | Tensor | None = None,
    tangent: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> UpdateRule:
    """x + alpha * direction(gradient), as in PGD (Madry et al. 2018) or, with `momentum`, MI-FGSM (Dong et al. 2018).

    `alpha` is a scalar, (B,) or of the input's rank, in the input's units. Momentum accumulates gradients over their
    mean absolute value, not their signs. `tangent`: x, gradient -> what of the gradient counts there.
    """

    def step(velocity: State, x: Tensor, value: Tensor, success: Tensor, gradient: Tensor) -> tuple[Tensor, State]:
        if tangent is not None:
            gradient = tangent(x, gradient)
        if momentum is not None:
            velocity = gradient = momentum * velocity + scaled_l1(gradient)
        return x + broadcast_like(alpha, x) * direction(gradient), velocity

    return UpdateRule(lambda x: () if momentum is None else tf.zeros_like(x), step)


def adam(alpha: float | Tensor, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8) -> UpdateRule:
    """Ascent by Adam with bias correction, coordinate by coordinate (Kingma & Ba 2015, algorithm 1).

    `alpha` is a scalar, (B,) or of the input's rank, in the input's units: about the length of each coordinate's step.
    """

    def step(moments: State, x: Tensor, value: Tensor, success: Tensor, gradient: Tensor) -> tuple[Tensor, State]:
        climb, moments = _adapt(moments, gradient, beta1, beta2, epsilon)
        return x + broadcast_like(alpha, x) * climb, moments

    return UpdateRule(_moments, step)


def ddn(
    x0: Tensor,
    steps: int | Tensor,
    *,
    gamma: float | Tensor = 0.05,
    initial_eps: float | Tensor = 1.0,
    largest_eps: float | Tensor = 1e18,
    tangent: Callable[[Tensor, Tensor], Tensor] = lambda x, gradient: gradient,
) -> UpdateRule:
    """The direction and the L2 norm of x - x0, each on its own (Rony et al. 2019, algorithm 1).

    A step of length 1, annealed to 0.01 over `steps`, along the unit gradient turns x - x0; then it gets the length
    eps, which shrinks by the factor 1 - gamma where x has reached its goal and grows by 1 + gamma, up to `largest_eps`,
    where not. `initial_eps` and `largest_eps`: scalar or (B,).
    """

    def init(x: Tensor) -> State:
        return one_each(x), one_each(x) + broadcast_like(initial_eps, x)

    def step(state: State, x: Tensor, value: Tensor, success: Tensor, gradient: Tensor) -> tuple[Tensor, State]:
        count, eps = state
        eps = tf.minimum(
            eps * broadcast_like(tf.where(success, 1.0 - gamma, 1.0 + gamma), x), broadcast_like(largest_eps, x)
        )
        shift = x - x0 + annealed(1.0, 0.01, count, steps) * unit_l2(tangent(x, gradient))
        return x0 + eps * unit_l2(shift), (count + 1.0, eps)

    return UpdateRule(init, step)


def sigma_zero(
    x0: Tensor,
    threat_model: ThreatModel,
    steps: int | Tensor,
    *,
    alpha: float | Tensor = 1.0,
    threshold: float | Tensor = 0.3,
    threshold_rate: float | Tensor = 0.01,
) -> UpdateRule:
    """Adam along the gradient over its L-inf norm, small changes undone (Cina et al. 2025, algorithm 1).

    `alpha` decays to a tenth over `steps`, along half a cosine. The threshold, in the units of the input, rises by
    `threshold_rate` times it where x has reached its goal, decreases by as much where not, and holds for the point that
    projection has brought back.
    """

    def init(x: Tensor) -> State:
        return _moments(x), one_each(x) + broadcast_like(threshold, x)

    def step(state: State, x: Tensor, value: Tensor, success: Tensor, gradient: Tensor) -> tuple[Tensor, State]:
        moments, least = state
        rate = annealed(1.0, 0.1, moments[-1], steps) * broadcast_like(alpha, x)
        climb, moments = _adapt(moments, _unit_linf(threat_model.tangent(x, gradient)), 0.9, 0.999, 1e-8)
        moved = threat_model.project(x + rate * climb)
        least = tf.maximum(least + threshold_rate * rate * broadcast_like(tf.where(success, 1.0, -1.0), x), 0.0)
        return tf.where(tf.abs(moved - x0) < least, x0, moved), (moments, least)

    return UpdateRule(init, step)


def unit_l2(gradient: Tensor) -> Tensor:
    """Steepest ascent in L2: the gradient over its norm, per example; zero stays zero."""
    return normalize(gradient, 2)


def top_l1(share: float | Tensor) -> Callable[[Tensor], Tensor]:
    """Sparse ascent in L1: per example the largest `share` (0..1) of the coordinates of the gradient, at L1 norm 1.

    The kept coordinates keep their proportions: with equal steps the exact projection would take the same from each
    and never let the best of them win.
    """

    def direction(gradient: Tensor) -> Tensor:
        size = tf.reshape(tf.abs(gradient), [tf.shape(gradient)[0], -1])
        count = tf.maximum(tf.cast(tf.cast(tf.shape(size)[1], tf.float32) * share, tf.int32), 1)
        least = tf.reduce_min(tf.math.top_k(size, count).values, axis=1)
        return normalize(
            tf.where(tf.abs(gradient) >= broadcast_like(least, gradient), gradient, tf.zeros_like(gradient)), 1
        )

    return direction


def scaled_l1(gradient: Tensor) -> Tensor:
    """The gradient over its mean absolute value per example: MI-FGSM's L1 normalisation up to the constant size."""
    size = tf.abs(gradient)
    mean = tf.reduce_mean(size, axis=per_example(gradient), keepdims=True)
    # The sum of entries that are finite may not be.
    scale = tf.where(tf.math.is_finite(mean), mean, tf.reduce_max(size, axis=per_example(gradient), keepdims=True))
    return tf.math.divide_no_nan(gradient, scale)


def _unit_linf(gradient: Tensor) -> Tensor:
    return tf.math.divide_no_nan(gradient, tf.reduce_max(tf.abs(gradient), axis=per_example(gradient), keepdims=True))


def _moments(x: Tensor) -> State:
    return tf.zeros_like(x), tf.zeros_like(x), one_each(x)


def _adapt(moments: State, gradient: Tensor, beta1: float, beta2: float, epsilon: float) -> tuple[Tensor, State]:
    """Adam's next step at learning rate 1, and the moments after it."""
    first, second, count = moments
    count += 1.0
    gradient = tf.clip_by_value(gradient, -_LARGEST, _LARGEST)
    first += (1.0 - beta1) * (gradient - first)
    second += (1.0 - beta2) * (tf.square(gradient) - second)
    climb = first / (1.0 - tf.pow(beta1, count)) / (tf.sqrt(second / (1.0 - tf.pow(beta2, count))) + epsilon)
    return climb, (first, second, count)


def annealed(first: float, last: float, count: Tensor, steps: int | Tensor) -> Tensor:
    """From `first` to `last` over `steps`, along half a cosine."""
    share = count / tf.maximum(tf.cast(steps, count.dtype), 1.0)
    return last + (first - last) * (1.0 + tf.cos(pi * share)) / 2.0
