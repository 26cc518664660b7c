"""Fast minimum-norm attack (Pintor et al. 2021, FMN): steps in a ball whose radius closes in on the boundary.

Shapes, units, compilation and errors are those of `budget`; what is returned is as in `minimal`.
"""

from dataclasses import dataclass

import tensorflow as tf

from common.attacks.attack import Bound, named
from common.attacks.budget import BALLS, DUAL, Norm
from common.attacks.compile import Array
from common.attacks.loop import Attack, Inputs, Model
from common.attacks.minimal import MinimumNorm, NotNegative, box, minimum_bound, misclassified_already
from common.attacks.objectives import targeted_margin, untargeted_margin
from common.attacks.tensors import broadcast_like, norm_of, normalize, one_each
from common.attacks.threat_models import ThreatModel
from common.attacks.updates import UpdateRule, annealed

Tensor = tf.Tensor

# To what the step and the change of the radius decay.
_LAST_STEP, _LAST_CHANGE = 0.01, 0.001


@dataclass(frozen=True)
class ClosingIn:
    """Update rule of `x`, `steps`, `alpha` and `gamma`: algorithm 1, with the exact projection onto ball and box."""

    norm: Norm

    def __call__(self, inputs: Inputs, threat_model: ThreatModel) -> UpdateRule:
        x0, steps = inputs["x"], inputs["steps"]
        first, change = (broadcast_like(inputs[name], x0) for name in ("alpha", "gamma"))

        def init(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            never = one_each(x, float("inf"))
            return one_each(x), never, never

        def step(state: tuple, x: Tensor, value: Tensor, success: Tensor, gradient: Tensor) -> tuple[Tensor, tuple]:
            count, eps, best = state
            gradient, size = threat_model.tangent(x, gradient), norm_of(x - x0, self.norm)
            reached = broadcast_like(tf.cast(success, tf.float32), x) > 0
            best = tf.where(reached, tf.minimum(best, size), best)
            gamma = annealed(change, tf.minimum(_LAST_CHANGE, change), count, steps)
            # Before the first success: as far as the boundary seems to be.
            away = tf.abs(broadcast_like(value, x)) * tf.math.reciprocal_no_nan(norm_of(gradient, DUAL[self.norm]))
            larger = tf.where(tf.math.is_inf(best), size + away, eps * (1.0 + gamma))
            eps = tf.where(reached, tf.minimum(eps * (1.0 - gamma), best), larger)
            moved = x + annealed(first, _LAST_STEP * first, count, steps) * normalize(gradient, 2)
            ball = BALLS[self.norm](x0, eps, inputs["low"], inputs["high"], inputs.get("mask"))
            return ball.project(moved), (count + 1.0, eps, best)

        return UpdateRule(init, step)


@named
def fmn(
    model: Model,
    x: Array,
    y: Array,
    *,
    norm: Norm = "l2",
    steps: int = 1000,
    alpha=1.0,
    gamma=0.05,
    targeted: bool = False,
    index: Array | None = None,
    mask=None,
    low=0.0,
    high=1.0,
) -> Bound:
    """Smallest perturbation in a norm: steps of `alpha`, annealed to a hundredth, in a ball that shrinks by `gamma` at
    a success and grows by it at a failure (Pintor et al. 2021, algorithm 1). Both: scalar or (B,)."""
    attack = Attack(
        objective=targeted_margin if targeted else untargeted_margin,
        threat_model=box,
        update=ClosingIn(norm),
        selection=MinimumNorm(norm),
        stop=misclassified_already,
        check=NotNegative(("gamma",)),
    )
    return minimum_bound(attack, model, x, y, steps, targeted, index, mask, low, high, alpha=alpha, gamma=gamma)
