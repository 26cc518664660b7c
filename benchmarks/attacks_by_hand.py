"""Attacks for one defence each, by somebody who has read it: on what it would be without what hides its slopes."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import tensorflow as tf

from benchmarks.planted import Model, Planted
from common.attacks import RandomModel, apgd, attack_dataset, worst_case
from common.attacks.attack import Bound, named
from common.attacks.budget import in_ball, random_point
from common.attacks.loop import Inputs, Objective, Restarts
from common.attacks.objectives import untargeted_margin


def craft(defence: Planted, x: np.ndarray, y: np.ndarray, eps: float, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Adversarial candidates for `x` float32 (n, ...) with labels `y` (n,), by name."""
    if defence.penalty is not None:
        substitute = WithPenalty(defence.substitute, defence.penalty)
        for weight in (0.3, 3.0, 30.0):
            yield (
                f"penalty {weight:g}",
                attack_dataset(partial(penalised, substitute, eps=eps, weight=weight, seed=seed), x, y).x,
            )
        return
    random = isinstance(defence.substitute, RandomModel)
    climb = partial(apgd, defence.substitute, eps=eps, loss="margin", stop=False, seed=seed)
    climb = partial(climb, draws=20, steps=50) if random else partial(climb, steps=100, restarts=5)
    yield "margin", attack_dataset(climb, x, y).x
    if not random:
        yield "targeted", attack_dataset(partial(climb, targets=3, restarts=1), x, y).x


class WithPenalty:
    """A model together with what is to stay below 0."""

    def __init__(self, model: Model, penalty: Model) -> None:
        self.model, self.penalty = model, penalty

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return self.model(x)


@dataclass(frozen=True)
class Penalised:
    """The margin of logits, less a penalty for what is above 0."""

    def __call__(self, model: WithPenalty, inputs: Inputs) -> Objective:
        margin = untargeted_margin(model, inputs)

        def objective(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            value, success = margin(x)
            over = model.penalty(x)
            # A margin of 1 is enough.
            return tf.minimum(value, 1.0) - inputs["weight"] * tf.nn.relu(over + 0.01), success & (over <= 0)

        return objective


PENALISED = in_ball(Penalised(), start=random_point, selection=worst_case, rounds=Restarts())


@named
def penalised(model: WithPenalty, x, y, *, eps, weight, steps=200, restarts=3, seed=0, index=None) -> Bound:
    """PGD on the margin with a penalty."""
    inputs = {"x": x, "y": y, "eps": eps, "alpha": eps / 10, "steps": steps, "restarts": restarts, "weight": weight}
    return Bound(PENALISED, model, {**inputs, "seed": seed, "index": index})
