"""Attacks on product images: towards a class, towards a higher mean score, and their controls."""

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from common.arrays import as_float
from common.attacks import (
    Bound,
    Inputs,
    Objective,
    attack_dataset,
    best_loss,
    cw_l2,
    fgsm,
    in_ball,
    named,
    pgd,
    random_sign_noise,
)
from multimedia_recsys.models.cnn import features_at

Tensor = tf.Tensor
Kind = Literal["fgsm", "pgd", "cw", "insa", "noise", "swap"]


class Listed(NamedTuple):
    """What tells an attack from others: whether it has an L-inf budget, whether it aims at a class, and whether it is a
    control, that looks at no network: noise of the same budget, and real images of the target class."""

    budgeted: bool = True
    aimed: bool = True
    control: bool = False


ATTACKS: dict[Kind, Listed] = {
    "fgsm": Listed(),
    "pgd": Listed(),
    "cw": Listed(budgeted=False),
    "insa": Listed(aimed=False),
    "noise": Listed(aimed=False, control=True),
    "swap": Listed(budgeted=False, control=True),
}

# Standard deviations of ImageNet's channels (red, green, blue), by which the original divides before it attacks.
IMAGENET_STD = (0.229, 0.224, 0.225)
_BATCH = 64


class ImageAttack:
    """How images are changed by one network's gradients.

    `eps`: L-inf, in [0, 1], scalar or one for each channel. `steps` of eps / 6 for PGD and INSA, as in the original;
    `direction` float32 (D,): the gradient of the mean user's score by an item's features, for INSA.
    """

    def __init__(
        self,
        kind: Kind,
        model: keras.Model,
        *,
        eps: float | Sequence[float] = 0.0,
        steps: int = 10,
        confidence: float = 0.0,
        cw_steps: int = 200,
        cw_rounds: int = 5,
        cw_learning_rate: float = 5e-3,
        cw_weight: float = 1e-2,
        direction: np.ndarray | None = None,
        seed: int = 0,
    ) -> None:
        self.kind, self.model, self.steps, self.seed = kind, model, steps, seed
        self.eps = tf.reshape(tf.constant(eps, tf.float32), [1, 1, 1, -1])
        self.direction = None if direction is None else tf.constant(direction, tf.float32)
        self.cw = {
            "confidence": confidence,
            "steps": cw_steps,
            "search_steps": cw_rounds,
            "learning_rate": cw_learning_rate,
            "constant": cw_weight,
        }

    def __call__(self, images: np.ndarray, target: int, index: np.ndarray) -> np.ndarray:
        """`images` uint8 (n, H, W, C) of the items `index` (n,), changed towards the class `target`: uint8, as a file
        holds them. The result for an item does not depend on the others in the batch."""
        budget = {"eps": self.eps, "alpha": self.eps / 6, "steps": self.steps}
        attack = {
            "fgsm": partial(fgsm, self.model, eps=self.eps, targeted=True),
            "pgd": partial(pgd, self.model, **budget, targeted=True, seed=self.seed, index=index),
            "cw": partial(cw_l2, self.model, **self.cw, targeted=True),
            "insa": partial(insa, self.model, direction=self.direction, eps=self.eps, steps=self.steps),
            "noise": partial(random_sign_noise, self.model, eps=self.eps, seed=self.seed, index=index),
        }[self.kind]
        x, wanted = as_float(tf.constant(images)).numpy(), np.full(len(images), target, np.int32)
        return np.rint(attack_dataset(attack, x, wanted, batch_size=_BATCH).x * 255).astype(np.uint8)


@named
def insa(model: keras.Model, x: Tensor, *, direction: Tensor, eps: Tensor, steps: int) -> Bound:
    """Images `x` (B, H, W, C) in [0, 1] whose features lie as far as possible along `direction` (D,), by `steps` of
    eps / 6 within `eps` (L-inf): they raise the mean user's score itself, not a class (AIP, Liu & Larson 2021, insider
    attack). Of all steps the best is kept."""
    inputs = {"x": x, "direction": direction[None], "eps": eps, "alpha": eps / 6, "steps": steps}
    return Bound(in_ball(_along, classes=False, selection=best_loss), model, inputs)


def _along(model: keras.Model, inputs: Inputs) -> Objective:
    features = features_at(model)

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        score = tf.linalg.matvec(features(x), inputs["direction"][0])
        return score, tf.zeros_like(score, tf.bool)

    return objective


def swap_control(candidates: np.ndarray, index: np.ndarray, seed: int) -> np.ndarray:
    """For each item of `index` (n,) one of the items `candidates` (m,), whose real image is to take its place:
    what an attack may be measured by, and can surpass. The replacement of an item does not depend on the others."""
    return np.random.default_rng([seed, 0xCE11]).permutation(candidates)[np.asarray(index) % len(candidates)]
