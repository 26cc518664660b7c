"""Classifiers with a detector: an attack has succeeded once the answer is wrong and accepted."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from common.attacks import Attack, inference, logits_of
from common.attacks.apgd import auto_pgd
from common.attacks.attack import Bound, named
from common.attacks.loop import Inputs, Objective
from common.attacks.objectives import towards, untargeted_margin

Model = Callable[[tf.Tensor], tf.Tensor]


class Guarded:
    """A classifier with its detector, for attacks that have to pass both. Called, it answers with logits."""

    def __init__(self, model: Model, detector: Model) -> None:
        self.model, self.detector = model, detector

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return logits_of(self.model)(x)

    def suspicion(self, x: tf.Tensor) -> tf.Tensor:
        """(B,), above 0 where x is rejected."""
        return tf.reshape(tf.cast(inference(self.detector)(x), tf.float32), [-1])


@dataclasses.dataclass(frozen=True)
class Accepted:
    """An `objective` together with a detector's acceptance, of a `Guarded` model: what is short of its end is raised,
    one at a time (Bryniarski et al. 2022, selective PGD); success: both."""

    objective: Callable[[Model, Inputs], Objective]

    def __call__(self, model: Guarded, inputs: Inputs) -> Objective:
        inner = self.objective(model, inputs)

        def objective(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            value, success = inner(x)
            suspicion = model.suspicion(x)
            return tf.minimum(value, -suspicion), success & (suspicion <= 0)

        return objective


def _accepted(attack: Attack, objective: Callable) -> Attack:
    return dataclasses.replace(attack, objective=Accepted(objective))


@named
def past_detector(
    model: Guarded, x, y, *, eps, norm="linf", steps=200, restarts=3, targets=0, seed=0, index=None, low=0.0, high=1.0
) -> Bound:
    """APGD for a wrong answer that the detector accepts."""
    plain = auto_pgd(norm, "margin", targets=targets, shrinking=norm == "l1")
    attack = _accepted(plain, towards if targets else untargeted_margin)
    inputs = {"x": x, "y": y, "eps": eps, "steps": steps, "restarts": restarts, "seed": seed, "index": index}
    return Bound(attack, model, {**inputs, "low": low, "high": high})
