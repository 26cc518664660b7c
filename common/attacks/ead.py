"""The elastic-net attack (Chen et al. 2018, EAD): small in L1 and L2 together, by shrinkage.

Shapes, units, compilation and errors are those of `budget`; what is returned is as in `minimal`.
"""

from dataclasses import dataclass
from typing import Literal

import tensorflow as tf

from common.attacks.attack import Bound, named
from common.attacks.compile import Array
from common.attacks.loop import Attack, Inputs, Model
from common.attacks.minimal import (
    ConstantSearch,
    DistanceAndHinge,
    NotNegative,
    box,
    distance,
    minimum_bound,
    misclassified_already,
)
from common.attacks.tensors import broadcast_like, one_each
from common.attacks.threat_models import ThreatModel
from common.attacks.updates import UpdateRule

Tensor = tf.Tensor
Decision = Literal["elastic net", "l1"]


@dataclass(frozen=True)
class LeastElastic:
    """Of successes the one of the smallest ||d||^2 + `beta` ||d||_1, or of the smallest ||d||_1."""

    decision: Decision

    def __call__(self, inputs: Inputs, x: Tensor, value: Tensor, success: Tensor) -> Tensor:
        size = distance(inputs, x, "l1")
        if self.decision == "elastic net":
            size = tf.square(distance(inputs, x, "l2")) + inputs["beta"] * size
        return tf.where(success, -size, float("-inf"))


def _shrinking(inputs: Inputs, threat_model: ThreatModel) -> UpdateRule:
    """FISTA. Every second evaluation is at the point that momentum leads to, and its gradient is taken; those between,
    at what shrinkage makes of it, are for success alone. The loop brings both into the box."""
    x0, beta, first = inputs["x"], inputs["beta"], inputs["learning_rate"]
    steps = broadcast_like(tf.cast(inputs["steps"] // 2, tf.float32), x0)

    def init(x: Tensor) -> tuple[Tensor, Tensor]:
        return one_each(x), x

    def step(state: tuple, x: Tensor, value: Tensor, success: Tensor, gradient: Tensor) -> tuple[Tensor, tuple]:
        count, before = state
        done, scoring = tf.floor(count / 2.0), count % 2.0 == 1.0
        rate = broadcast_like(first, x) * tf.sqrt(tf.maximum(1.0 - done / tf.maximum(steps, 1.0), 0.0))
        ahead = x + rate * gradient
        least = broadcast_like(beta, x)
        shrunk = tf.where(ahead - x0 > least, ahead - least, tf.where(ahead - x0 < -least, ahead + least, x0))
        led = x + done / (done + 3.0) * (x - before)
        return tf.where(scoring, led, shrunk), (count + 1.0, tf.where(scoring, x, before))

    return UpdateRule(init, step, lambda state: tf.reduce_any(state[0] % 2.0 == 0.0))


def _two_looks(model: Model, inputs: Inputs) -> dict[str, Tensor]:
    """Two evaluations in each of the `steps`."""
    return {"steps": 2 * tf.broadcast_to(inputs["steps"], tf.shape(inputs["x"])[:1])}


@named
def ead(
    model: Model,
    x: Array,
    y: Array,
    *,
    steps: int = 1000,
    search_steps: int = 9,
    constant: float = 1e-3,
    beta: float = 1e-3,
    learning_rate: float = 0.01,
    confidence: float = 0.0,
    decision: Decision = "elastic net",
    targeted: bool = False,
    index: Array | None = None,
    mask=None,
    low=0.0,
    high=1.0,
) -> Bound:
    """Smallest ||d||^2 + `beta` ||d||_1, or ||d||_1 alone by `decision`, by FISTA on that plus c max(-margin,
    -`confidence`), with a search for each example's own c from `constant` up (Chen et al. 2018, algorithm 1). Where
    momentum leads out of the box, the gradient is that at its edge, and points that momentum leads to count too. A step
    takes a gradient and a forward pass."""
    if decision not in ("elastic net", "l1"):
        raise ValueError(f"decision must be 'elastic net' or 'l1'; received {decision!r}")
    least = LeastElastic(decision)
    settings = {"constant": constant, "beta": beta, "learning_rate": learning_rate, "confidence": confidence}
    attack = Attack(
        objective=DistanceAndHinge(targeted),
        threat_model=box,
        update=_shrinking,
        selection=least,
        stop=misclassified_already,
        rounds=ConstantSearch(least, misclassified_already),
        prepare=_two_looks,
        check=NotNegative((*settings, "search_steps")),
    )
    return minimum_bound(
        attack, model, x, y, steps, targeted, index, mask, low, high, search_steps=search_steps, **settings
    )
