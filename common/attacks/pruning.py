"""L0 attacks by elimination: an attack on all units, then on ever fewer."""

from collections.abc import Callable

import tensorflow as tf

from common.attacks.loop import Result, choose
from common.attacks.tensors import align, per_example

Tensor = tf.Tensor


def eliminate(
    attack: Callable[[Tensor, Tensor], Result],
    saliency: Callable[[Tensor], Tensor],
    x: Tensor,
    mask: Tensor,
    *,
    rounds: int | Tensor,
    drop: float | Tensor,
) -> Result:
    """Few changed units of `x` (B, ...), by attacks on ever fewer of them (Carlini & Wagner 2017, section VI-B).

    A unit is one entry of `mask`, which has the rank of `x` and broadcasts to it: (B, H, W, 1) for the pixels of
    images, (B, R, T, 1) for the points of trips. `attack(mask, start)` may change the units where `mask` is 1; `start`
    is `x` with what the last success changed in those, for attacks that go on from there. `saliency(x_adv)`: how much
    each unit matters to the success at `x_adv`, 0 or more, of the shape of `mask`.

    In each of up to `rounds` rounds an example that succeeds, with no more changed units than before, keeps that
    result; it loses all units without saliency and, of those left, the share `drop` (at least one) of least saliency.
    One that fails keeps its last success and is finished; one that never succeeds is returned as `x`, not done.
    """
    units = tf.concat([tf.shape(x)[:1], tf.shape(mask)[1:]], axis=0)
    free = tf.broadcast_to(mask != 0, units)
    free.set_shape([None, *mask.shape[1:]])
    none = tf.fill(tf.shape(x)[:1], float("-inf"))

    def one_round(k: Tensor, best: Result, fewest: Tensor, free: Tensor, going: Tensor):
        allowed = tf.cast(free, x.dtype)
        found = attack(allowed, tf.where(allowed != 0, best.x, x))
        count = tf.reduce_sum(tf.cast(_changed(found.x, x, mask), tf.float32), axis=per_example(x))
        better = going & found.done & (count <= fewest)
        left = free & salient(tf.where(free, saliency(found.x), 0.0), drop)
        left = tf.where(align(tf.cast(better, x.dtype), x) != 0, left, free)
        left.set_shape(free.shape)
        # Without a unit to change, the next attack could only fail.
        going = better & tf.reduce_any(left, axis=per_example(left))
        return k + 1, choose(better, found, best), tf.where(better, count, fewest), left, going

    _, best, _, _, _ = tf.while_loop(
        lambda k, best, fewest, free, going: (k < rounds) & tf.reduce_any(going),
        one_round,
        (
            tf.constant(0),
            Result(x, none, tf.zeros_like(none, tf.bool)),
            -none,
            free,
            tf.ones_like(none, tf.bool),
        ),
        parallel_iterations=1,
    )
    return best


def _changed(moved: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """Which units, at the shape of `mask`, differ between `moved` and `x`."""
    shared = [axis for axis in per_example(x) if mask.shape[axis] == 1]
    return tf.reduce_any(moved != x, axis=shared, keepdims=True)


def salient(saliency: Tensor, drop: float | Tensor) -> Tensor:
    """The units to keep, bool of the shape of `saliency` (B, ...): none without any and, of those left, not the share
    `drop`, at least one, of least saliency."""
    flat = tf.reshape(saliency, [tf.shape(saliency)[0], -1])
    count = tf.reduce_sum(tf.cast(flat > 0, tf.float32), axis=1, keepdims=True)
    lost = tf.maximum(tf.floor(drop * count), 1.0)
    # Places in ascending order of saliency, those without any behind all others.
    order = tf.argsort(tf.where(flat > 0, flat, float("inf")), axis=1, stable=True)
    place = tf.cast(tf.argsort(order, axis=1), tf.float32)
    return tf.reshape((flat > 0) & (place >= lost), tf.shape(saliency))
