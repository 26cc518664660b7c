"""Threat models: the set of allowed adversarial examples, and the exact projection onto it.

A threat model is built from tensors at call time: the clean input `x0` (B, ...), a budget, a box and a mask. A budget
is a scalar, one number per example (B,), or, for L-inf, any tensor of the rank of `x0` that broadcasts to it. Where the
mask is 0 nothing moves. The box is widened where `x0` itself lies outside it, so that `x0` is always a point of it.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from common.attacks import tensors
from common.attacks.tensors import broadcast_like, normalize, per_example, sum_features

Tensor = tf.Tensor

# The root searches below stop at this relative error, a few float32 roundings, after a handful of rounds.
_TOLERANCE = 1e-6
# Only guards the searches: whatever they find is scaled into the ball.
_ROUNDS = 64


class ThreatModel(NamedTuple):
    """The set of allowed adversarial examples.

    `project`: point (B, ...) -> the nearest point of it. `random_point`: seeds (B, 2) -> a random point of it.
    `tangent`: point, gradient -> the part of the gradient along which the point may move.
    """

    project: Callable[[Tensor], Tensor]
    random_point: Callable[[Tensor], Tensor]
    tangent: Callable[[Tensor, Tensor], Tensor]


def linf(x0: Tensor, eps: float | Tensor, low=0.0, high=1.0, mask: Tensor | None = None) -> ThreatModel:
    """|x - x0| <= eps in every coordinate, inside the box; `eps` may differ per example and per coordinate."""
    radius = broadcast_like(eps, x0)
    low, high = _box(x0, low, high, mask)
    lower, upper = tf.maximum(x0 - radius, low), tf.minimum(x0 + radius, high)

    def project(x: Tensor) -> Tensor:
        return tf.clip_by_value(x, lower, upper)

    def random_point(seeds: Tensor) -> Tensor:
        return project(x0 + radius * tensors.uniform(seeds, tf.shape(x0)[1:], -1.0, 1.0))

    return ThreatModel(project, random_point, _unmasked(mask))


def l2(x0: Tensor, eps: float | Tensor, low=0.0, high=1.0, mask: Tensor | None = None) -> ThreatModel:
    """||x - x0||_2 <= eps per example, inside the box; `eps` is a scalar or (B,)."""
    eps = _radius(eps, x0)
    low, high = _box(x0, low, high, mask)
    lower, upper = low - x0, high - x0

    def project(x: Tensor) -> Tensor:
        # The last clip takes back what rounding in the sum may add.
        return tf.clip_by_value(x0 + _nearest_l2(x - x0, lower, upper, eps), low, high)

    def random_point(seeds: Tensor) -> Tensor:
        direction = normalize(_unmasked(mask)(x0, tensors.normal(seeds, tf.shape(x0)[1:])), 2)
        return project(x0 + eps * _depth(seeds, x0, mask) * direction)

    return ThreatModel(project, random_point, _unmasked(mask))


def l1(x0: Tensor, eps: float | Tensor, low=0.0, high=1.0, mask: Tensor | None = None) -> ThreatModel:
    """||x - x0||_1 <= eps per example, inside the box; `eps` is a scalar or (B,)."""
    eps = _radius(eps, x0)
    low, high = _box(x0, low, high, mask)
    lower, upper = low - x0, high - x0

    def project(x: Tensor) -> Tensor:
        return tf.clip_by_value(x0 + _nearest_l1(x - x0, lower, upper, eps), low, high)

    def random_point(seeds: Tensor) -> Tensor:
        # Signed exponentials over their sum are uniform on the L1 sphere.
        draws = tensors.uniform(seeds, tf.shape(x0)[1:], -1.0, 1.0)
        laplace = -tf.sign(draws) * tf.math.log1p(-tf.abs(draws))
        return project(x0 + eps * _depth(seeds, x0, mask) * normalize(_unmasked(mask)(x0, laplace), 1))

    def tangent(x: Tensor, gradient: Tensor) -> Tensor:
        # A sparse step spent on a coordinate at its bound, or masked, would change nothing; nor from a rounding before.
        blocked = ((high - x <= _TOLERANCE * eps) & (gradient > 0)) | ((x - low <= _TOLERANCE * eps) & (gradient < 0))
        return tf.where(blocked, tf.zeros_like(gradient), gradient)

    return ThreatModel(project, random_point, tangent)


def box(x0: Tensor, low=0.0, high=1.0, mask: Tensor | None = None) -> ThreatModel:
    """The box alone, without a budget: for attacks that look for the smallest change."""
    low, high = _box(x0, low, high, mask)

    def project(x: Tensor) -> Tensor:
        return tf.clip_by_value(x, low, high)

    def random_point(seeds: Tensor) -> Tensor:
        return project(low + (high - low) * tensors.uniform(seeds, tf.shape(x0)[1:]))

    return ThreatModel(project, random_point, _unmasked(mask))


def _box(x0: Tensor, low, high, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The ends between which each coordinate may move, of the shape of `x0`: a masked one has no room at all."""
    low, high = tf.minimum(broadcast_like(low, x0), x0), tf.maximum(broadcast_like(high, x0), x0)
    if mask is not None:
        free = broadcast_like(mask, x0) != 0
        low, high = tf.where(free, low, x0), tf.where(free, high, x0)
    # Bounds and masks of unknown shape hide it, and a loop's variables must keep theirs.
    return tf.ensure_shape(low, x0.shape), tf.ensure_shape(high, x0.shape)


def _radius(eps: float | Tensor, x0: Tensor) -> Tensor:
    return tf.ensure_shape(broadcast_like(eps, x0), [None] + [1] * (x0.shape.rank - 1))


def _unmasked(mask: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
    if mask is None:
        return lambda x, gradient: gradient
    # A mask of unknown shape hides that of the gradient.
    return lambda x, gradient: tf.ensure_shape(tf.where(broadcast_like(mask, x) != 0, gradient, 0.0), gradient.shape)


def _nearest_l2(shift: Tensor, lower: Tensor, upper: Tensor, eps: Tensor) -> Tensor:
    """Nearest point u to `shift` with lower <= u <= upper (around 0) and ||u||_2 <= eps.

    By the KKT conditions u = clip(t shift, lower, upper) with one t in [0, 1] per example: t = 1 if that fits, else the
    t at which the norm is eps. ||u||^2 is concave in t^2, so secants through two points left of the root meet eps^2
    left of it again: the search comes from inside the ball.
    """
    limit = tf.square(eps)

    def secant(u: Tensor, square: Tensor, size: Tensor, past: Tensor, past_size: Tensor, growing: Tensor):
        u = tf.clip_by_value(tf.sqrt(square) * shift, lower, upper)
        size = sum_features(tf.square(u))
        step = tf.math.divide_no_nan((limit - size) * (square - past), size - past_size)
        # A row that is there stays there: between two equal points the secant is all rounding.
        ahead = tf.where(size < (1 - _TOLERANCE) * limit, tf.minimum(square + step, 1.0), square)
        return u, ahead, size, square, size, tf.reduce_any(ahead > square)

    norm = sum_features(tf.square(shift))
    first = tf.minimum(tf.math.divide_no_nan(limit, norm), 1.0)
    zero = tf.zeros_like(norm)
    u, _, size, _, _, _ = tf.while_loop(
        lambda *state: state[-1],
        secant,
        (shift, first, norm, zero, zero, tf.constant(True)),
        maximum_iterations=_ROUNDS,
    )
    return u * tf.minimum(1.0, tf.math.divide_no_nan(eps, tf.sqrt(size)))


def _nearest_l1(shift: Tensor, lower: Tensor, upper: Tensor, eps: Tensor) -> Tensor:
    """Nearest point u to `shift` with lower <= u <= upper (around 0) and ||u||_1 <= eps.

    |u| = clip(|shift| - level, 0, room) with one level >= 0 per example. The norm decreases with the level in straight
    pieces: Newton's step is exact on the right piece, and halving the bracket covers the steps that leave it.
    """
    size = tf.abs(shift)
    room = tf.where(shift > 0, upper, -lower)

    def newton(u: Tensor, level: Tensor, low: Tensor, high: Tensor, norm: Tensor, moving: Tensor):
        u = tf.clip_by_value(size - level, 0.0, room)
        norm = sum_features(u)
        low, high = tf.where(norm > eps, level, low), tf.where(norm > eps, high, level)
        sloped = sum_features(tf.cast((u > 0) & (u < room), size.dtype))
        ahead = level + tf.math.divide_no_nan(norm - eps, sloped)
        ahead = tf.where((ahead > low) & (ahead < high), ahead, (low + high) / 2)
        ahead = tf.where(tf.abs(norm - eps) > error, ahead, level)
        return u, ahead, low, high, norm, tf.reduce_any((ahead != level) & (low < high))

    most = tf.reduce_max(size, axis=per_example(size), keepdims=True)
    # A shift far larger than the budget has no more digits than its own rounding leaves.
    error = tf.maximum(_TOLERANCE * eps, 2.0**-23 * most)
    zero = tf.zeros_like(most)
    u, _, _, _, norm, _ = tf.while_loop(
        lambda *state: state[-1],
        newton,
        (size, zero, zero, most, zero, tf.constant(True)),
        maximum_iterations=_ROUNDS,
    )
    return tf.sign(shift) * u * tf.minimum(1.0, tf.math.divide_no_nan(eps, norm))


def _depth(seeds: Tensor, x0: Tensor, mask: Tensor | None) -> Tensor:
    """r^(1/n): with a uniform direction it makes a point uniform in the ball of n free coordinates."""
    # The other word order makes a seed of its own, so the depth is independent of the direction.
    draw = tensors.uniform(tf.reverse(seeds, axis=[1]), [1] * (x0.shape.rank - 1))
    free = sum_features(_unmasked(mask)(x0, tf.ones_like(x0)))
    return tf.pow(draw, 1.0 / tf.maximum(free, 1.0))
