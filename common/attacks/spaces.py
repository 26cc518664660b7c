"""Threat models: where an adversarial example may stand, and the exact way back there.

A space is built from tensors at call time: the clean input `x0` (B, ...), a budget, a box and a mask. A budget is a
scalar, one number per example (B,), or, for L-inf, any tensor of the rank of `x0` that broadcasts to it. The box is
widened where `x0` itself lies outside it, so that coordinates under a zero mask never move.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from common.attacks import randomness
from common.attacks.geometry import align, per_example, total, unit

Tensor = tf.Tensor

# The active-set iterations below end by themselves after a handful of rounds; the bound only guards the loop.
_ROUNDS = 64


class Space(NamedTuple):
    """A threat model.

    `project`: point (B, ...) -> the nearest point of the space. `start`: seeds (B, 2) -> a random point of the space.
    `tangent`: point, gradient -> the part of the gradient along which the point may move.
    """

    project: Callable[[Tensor], Tensor]
    start: Callable[[Tensor], Tensor]
    tangent: Callable[[Tensor, Tensor], Tensor]


def linf(x0: Tensor, eps: float | Tensor, low=0.0, high=1.0, mask: Tensor | None = None) -> Space:
    """|x - x0| <= eps in every coordinate, inside the box; `eps` may differ per example and per coordinate."""
    radius = align(eps, x0) * _ones_or(mask, x0)
    low, high = _box(x0, low, high)
    lower, upper = tf.maximum(x0 - radius, low), tf.minimum(x0 + radius, high)

    def project(x: Tensor) -> Tensor:
        return tf.clip_by_value(x, lower, upper)

    def start(seeds: Tensor) -> Tensor:
        return project(x0 + radius * randomness.uniform(seeds, tf.shape(x0)[1:], -1.0, 1.0))

    return Space(project, start, _masked(mask))


def l2(x0: Tensor, eps: float | Tensor, low=0.0, high=1.0, mask: Tensor | None = None) -> Space:
    """||x - x0||_2 <= eps per example, inside the box; `eps` is a scalar or (B,)."""
    eps = _radius(eps, x0)
    box_low, box_high = _box(x0, low, high)

    def project(x: Tensor) -> Tensor:
        shift, cap = _within_reach(x, x0, box_low, box_high, mask)
        return x0 + _shrink_l2(shift, cap, eps)

    def start(seeds: Tensor) -> Tensor:
        shape = tf.shape(x0)[1:]
        direction = unit(randomness.normal(seeds, shape) * _ones_or(mask, x0), 2)
        return project(x0 + eps * _depth(seeds, x0, mask) * direction)

    return Space(project, start, _masked(mask))


def l1(x0: Tensor, eps: float | Tensor, low=0.0, high=1.0, mask: Tensor | None = None) -> Space:
    """||x - x0||_1 <= eps per example, inside the box; `eps` is a scalar or (B,)."""
    eps = _radius(eps, x0)
    box_low, box_high = _box(x0, low, high)

    def project(x: Tensor) -> Tensor:
        shift, cap = _within_reach(x, x0, box_low, box_high, mask)
        return x0 + _shrink_l1(shift, cap, eps)

    def start(seeds: Tensor) -> Tensor:
        # Signed exponentials over their sum are uniform on the L1 sphere.
        draws = randomness.uniform(seeds, tf.shape(x0)[1:], -1.0, 1.0)
        laplace = -tf.sign(draws) * tf.math.log1p(-tf.abs(draws)) * _ones_or(mask, x0)
        return project(x0 + eps * _depth(seeds, x0, mask) * unit(laplace, 1))

    def tangent(x: Tensor, gradient: Tensor) -> Tensor:
        # A sparse step spent on a coordinate that already stands at its box end would move nothing at all.
        blocked = ((x >= box_high) & (gradient > 0)) | ((x <= box_low) & (gradient < 0))
        return tf.where(blocked, tf.zeros_like(gradient), _masked(mask)(x, gradient))

    return Space(project, start, tangent)


def _box(x0: Tensor, low, high) -> tuple[Tensor, Tensor]:
    return tf.minimum(align(low, x0), x0), tf.maximum(align(high, x0), x0)


def _radius(eps: float | Tensor, x0: Tensor) -> Tensor:
    return tf.ensure_shape(align(eps, x0), [None] + [1] * (x0.shape.rank - 1))


def _ones_or(mask: Tensor | None, x0: Tensor) -> Tensor:
    return tf.ones((), x0.dtype) if mask is None else align(mask, x0)


def _masked(mask: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
    if mask is None:
        return lambda x, gradient: gradient
    return lambda x, gradient: gradient * align(mask, gradient)


def _within_reach(x: Tensor, x0: Tensor, low: Tensor, high: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The shift from `x0`, and how far each coordinate may go in that shift's direction."""
    shift = tf.ensure_shape((x - x0) * _ones_or(mask, x0), x0.shape)
    return shift, tf.ensure_shape(tf.where(shift > 0, high - x0, x0 - low), x0.shape)


def _shrink_l2(shift: Tensor, cap: Tensor, eps: Tensor) -> Tensor:
    """Nearest point to `shift` with |u| <= cap per coordinate and ||u||_2 <= eps.

    By the KKT conditions |u| = min(t |shift|, cap) with one t in [0, 1] per example: t = 1 if that fits, else the t at
    which the norm is eps. Holding the capped coordinates fixed gives t in closed form; it can only grow from round to
    round, each round caps more coordinates, and the first round that caps none is the answer.
    """
    size = tf.abs(shift)
    square = tf.square(size)

    def fit(capped: Tensor) -> Tensor:
        zero = tf.zeros_like(size)
        fixed = total(tf.where(capped, tf.square(cap), zero))
        free = total(tf.where(capped, zero, square))
        rest = tf.sqrt(tf.maximum(tf.square(eps) - fixed, 0.0))
        return tf.minimum(tf.where(free > 0, tf.math.divide_no_nan(rest, tf.sqrt(free)), 1.0), 1.0)

    def grow(t: Tensor, capped: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t = fit(capped)
        wider = t * size > cap
        return t, capped | wider, tf.reduce_any(wider & ~capped)

    t, _, _ = tf.while_loop(
        lambda t, capped, growing: growing,
        grow,
        (tf.ones_like(total(size)), tf.zeros_like(size, tf.bool), tf.constant(True)),
        maximum_iterations=_ROUNDS,
    )
    return tf.sign(shift) * tf.minimum(t * size, cap)


def _shrink_l1(shift: Tensor, cap: Tensor, eps: Tensor) -> Tensor:
    """Nearest point to `shift` with |u| <= cap per coordinate and ||u||_1 <= eps.

    |u| = clip(|shift| - level, 0, cap) with one level >= 0 per example. The norm falls with the level in straight
    pieces: bisection finds the piece, and on it the level has a closed form.
    """
    size = tf.abs(shift)

    def bisect(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        middle = (low + high) / 2
        over = total(tf.clip_by_value(size - middle, 0.0, cap)) > eps
        return tf.where(over, middle, low), tf.where(over, high, middle)

    start = tf.zeros_like(total(size))
    low, high = tf.while_loop(
        lambda low, high: True,
        bisect,
        (start, tf.reduce_max(size, axis=per_example(size), keepdims=True)),
        maximum_iterations=32,
    )
    middle = (low + high) / 2
    sloped = (size > middle) & (size - middle < cap)
    count = total(tf.cast(sloped, size.dtype))
    fixed = total(tf.where(size - middle >= cap, cap, tf.zeros_like(size)))
    exact = tf.math.divide_no_nan(total(tf.where(sloped, size, tf.zeros_like(size))) + fixed - eps, count)
    level = tf.where(count > 0, tf.clip_by_value(exact, low, high), high)
    fits = total(tf.minimum(size, cap)) <= eps
    u = tf.clip_by_value(size - tf.where(fits, 0.0, level), 0.0, cap)
    return tf.sign(shift) * u * tf.minimum(1.0, tf.math.divide_no_nan(eps, tf.maximum(total(u), eps)))


def _depth(seeds: Tensor, x0: Tensor, mask: Tensor | None) -> Tensor:
    """u^(1/n): with a uniform direction it makes a point uniform in the ball of n free coordinates."""
    # The other word order makes a seed of its own, so the depth is independent of the direction.
    draw = randomness.uniform(tf.reverse(seeds, axis=[1]), [1] * (x0.shape.rank - 1))
    free = tf.ones_like(x0) if mask is None else tf.broadcast_to(tf.cast(align(mask, x0) != 0, x0.dtype), tf.shape(x0))
    return tf.pow(draw, 1.0 / tf.maximum(total(free), 1.0))
