"""L0 attacks by pruning: an attack on all units, then on ever fewer."""

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

from common.attacks.loop import Inputs, Memory, Model, Result, Rounds, choose
from common.attacks.tensors import per_example

Tensor = tf.Tensor


@dataclass(frozen=True)
class Pruning:
    """Few changed units, by attacks on ever fewer of them (Carlini & Wagner 2017, section VI-B).

    `units`: inputs -> a mask whose entries are the units, of the rank of `x`, to broadcast to it: (B, H, W, 1) for the
    pixels of images, (B, R, T, 1) for the points of trips; 0 where nothing may change. `saliency`: model, inputs,
    result -> how much each unit matters to a success, 0 or more, of the shape of that mask. A round's attack sees its
    own `mask`, and `previous`, the clean input with what the last success changed in the units that are left.

    In each of up to `prune_rounds` rounds an example that succeeds, with no more changed units than before, keeps that
    result; it loses all units without saliency and, of those left, the share `drop` (at least one) of least saliency.
    One that fails keeps its last success and is finished; one that never succeeds is returned as `x`, no success. With
    `inner`, a round of pruning is all rounds of that.
    """

    units: Callable[[Inputs], Tensor]
    saliency: Callable[[Model, Inputs, Result], Tensor]
    wants_gradient: bool = True
    inner: Rounds | None = None
    shared_parts = False

    def init(self, inputs: Inputs) -> Memory:
        x, mask = inputs["x"], self.units(inputs)
        free = tf.broadcast_to(mask != 0, tf.concat([tf.shape(x)[:1], tf.shape(mask)[1:]], axis=0))
        free.set_shape([None, *mask.shape[1:]])
        none = tf.fill(tf.shape(x)[:1], float("-inf"))
        memory = {"free": free, "fewest": -none, "round": tf.zeros_like(none, tf.int32)}
        if self.inner is not None:
            memory["inner"] = self.inner.init(inputs)
            memory["inner_best"] = Result(x, none, tf.zeros_like(none, tf.bool))
        return memory

    def inputs(self, inputs: Inputs, memory: Memory, best: Result) -> Inputs:
        free = tf.cast(memory["free"], inputs["x"].dtype)
        mask = free if "mask" not in inputs else inputs["mask"] * free
        now = {**inputs, "mask": mask, "previous": tf.where(free != 0, best.x, inputs["x"])}
        return now if self.inner is None else self.inner.inputs(now, memory["inner"], memory["inner_best"])

    def next(self, model: Model, inputs: Inputs, memory: Memory, found: Result, best: Result):
        if self.inner is None:
            return self._prune(model, inputs, memory, found, best)
        inner, of_inner, again = self.inner.next(model, inputs, memory["inner"], found, memory["inner_best"])
        memory = {**memory, "inner": inner, "inner_best": of_inner}
        found = of_inner._replace(gradient=found.gradient)
        pruned, best_now, going = self._prune(model, inputs, memory, found, best)
        fresh = self.init(inputs)
        pruned |= {name: fresh[name] for name in ("inner", "inner_best")}
        return choose(again, memory, pruned), choose(again, best, best_now), again | going

    def _prune(self, model: Model, inputs: Inputs, memory: Memory, found: Result, best: Result):
        x, free, count = inputs["x"], memory["free"], memory["round"] + 1
        changed = tf.reduce_sum(tf.cast(_changed(found.x, x, free), tf.float32), axis=per_example(x))
        better = found.success & (changed <= memory["fewest"])
        left = free & salient(tf.where(free, self.saliency(model, inputs, found), 0.0), inputs["drop"])
        left = choose(better, left, free)
        left.set_shape(free.shape)
        # Without a unit to change, the next attack could only fail.
        going = better & tf.reduce_any(left, axis=per_example(left)) & (count < inputs["prune_rounds"])
        fewest = tf.where(better, changed, memory["fewest"])
        return {**memory, "free": left, "fewest": fewest, "round": count}, choose(better, found, best), going


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
