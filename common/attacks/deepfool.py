"""DeepFool (Moosavi-Dezfooli et al. 2016), and what it takes: a look at the boundary to each class before each step.

Shapes, units, compilation and errors are those of `budget`; what is returned is as in `minimal`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import tensorflow as tf

from common.attacks.apgd import NearClasses
from common.attacks.attack import Bound, named
from common.attacks.budget import DUAL, Norm
from common.attacks.compile import Array
from common.attacks.loop import Attack, Inputs, Model, Objective, at_success, choose
from common.attacks.minimal import MinimumNorm, NotNegative, box, minimum_bound
from common.attacks.objectives import towards
from common.attacks.tensors import broadcast_like, norm_of, one_each, sum_features
from common.attacks.threat_models import ThreatModel
from common.attacks.updates import UpdateRule

Tensor = tf.Tensor


@dataclass(frozen=True)
class InTurn:
    """`objective`, of a `target`, for each of the `candidates` (B, classes) in turn: evaluation i has the one at i
    modulo `classes`. Of an attack that is `numbered`."""

    objective: Callable[[Model, Inputs], Objective]

    def __call__(self, model: Model, inputs: Inputs) -> Objective:
        candidates = inputs["candidates"]
        place = tf.broadcast_to(inputs.get("evaluation", 0), tf.shape(candidates)[:1]) % candidates.shape[1]
        return self.objective(model, {**inputs, "target": tf.gather(candidates, place, batch_dims=1)})


@dataclass(frozen=True)
class NearestInTurn:
    """Update rule of an objective `InTurn`: stays until each class was looked at, then moves by `update`, told of the
    one whose linearised boundary, |value| over the gradient's dual norm away, is nearest."""

    update: Callable[[Inputs, ThreatModel], UpdateRule]
    norm: Norm

    def __call__(self, inputs: Inputs, threat_model: ThreatModel) -> UpdateRule:
        rule, classes = self.update(inputs, threat_model), inputs["candidates"].shape[1]

        def init(x: Tensor) -> tuple:
            return rule.init(x), tf.zeros(tf.shape(x)[:1], tf.int32), one_each(x), one_each(x), tf.zeros_like(x)

        def step(state: tuple, x: Tensor, value: Tensor, success: Tensor, gradient: Tensor) -> tuple[Tensor, tuple]:
            inner, seen, near, best, slope = state
            steep = norm_of(threat_model.tangent(x, gradient), DUAL[self.norm])
            value = broadcast_like(value, x)
            away = tf.where(steep > 0, tf.abs(value) / steep, float("inf"))
            first = broadcast_like(tf.cast(seen == 0, tf.float32), x) > 0
            closer = first | (away < near)
            near, best = (tf.where(closer, new, old) for new, old in ((away, near), (value, best)))
            slope = tf.where(closer, gradient, slope)
            seen = (seen + 1) % classes

            def moved() -> tuple[Tensor, Any]:
                return choose(seen == 0, rule.step(inner, x, tf.reshape(best, [-1]), success, slope), (x, inner))

            # Most evaluations are looks, after which nothing moves.
            x, inner = tf.cond(tf.reduce_any(seen == 0), moved, lambda: (x, inner))
            return x, (inner, seen, near, best, slope)

        return UpdateRule(init, step)


@dataclass(frozen=True)
class InTurnOf:
    """Inputs of an objective `InTurn`: the `candidates`, the nearest `count` classes beside `y`, and an evaluation for
    each of them in each of the `steps`."""

    count: int

    def __call__(self, model: Model, inputs: Inputs) -> dict[str, Tensor]:
        found = NearClasses(self.count)(model, inputs)
        steps = tf.broadcast_to(inputs["steps"], tf.shape(inputs["x"])[:1])
        return {**found, "steps": steps * found["candidates"].shape[1]}


@dataclass(frozen=True)
class OntoBoundary:
    """Update rule of `x` and `overshoot`: the sum of the steps to the nearest linearised boundaries, and that share of
    it beyond (algorithm 2)."""

    norm: Literal["linf", "l2"]

    def __call__(self, inputs: Inputs, threat_model: ThreatModel) -> UpdateRule:
        x0, beyond = inputs["x"], 1.0 + inputs["overshoot"]

        def step(total: Tensor, x: Tensor, value: Tensor, success: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
            slope = threat_model.tangent(x, slope)
            # Small slopes would vanish in their squares.
            scale = tf.math.reciprocal_no_nan(norm_of(slope, "linf"))
            slope, lacking = slope * scale, tf.abs(broadcast_like(value, x)) * scale
            way = tf.sign(slope) if self.norm == "linf" else slope
            total += way * tf.math.divide_no_nan(lacking, sum_features(way * slope))
            return x0 + broadcast_like(beyond, x) * total, total

        return UpdateRule(tf.zeros_like, step)


@named
def deepfool(
    model: Model,
    x: Array,
    y: Array,
    *,
    norm: Literal["linf", "l2"] = "l2",
    steps: int = 50,
    targets: int = 9,
    overshoot=0.02,
    index: Array | None = None,
    mask=None,
    low=0.0,
    high=1.0,
) -> Bound:
    """The sum of the shortest steps to the boundaries, linearised anew in each, up to the first success
    (Moosavi-Dezfooli et al. 2016, algorithm 2). Each of the `steps` takes a gradient for each of the nearest `targets`
    classes. `overshoot`: scalar or (B,)."""
    if norm not in ("linf", "l2"):
        raise ValueError(f"norm must be linf or l2; received {norm!r}")
    if targets < 1:
        raise ValueError(f"targets must be at least 1; received {targets}")
    attack = Attack(
        objective=InTurn(towards),
        threat_model=box,
        update=NearestInTurn(OntoBoundary(norm), norm),
        selection=MinimumNorm(norm),
        stop=at_success,
        prepare=InTurnOf(targets),
        check=NotNegative(("overshoot",)),
        numbered=True,
    )
    return minimum_bound(attack, model, x, y, steps, False, index, mask, low, high, overshoot=overshoot)
