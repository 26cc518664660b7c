"""Changed pictures of items: towards a class, towards everybody's taste, and the controls beside them."""

from collections.abc import Sequence
from typing import Literal

import keras
import numpy as np
import tensorflow as tf

from common.arrays import as_float
from common.attacks import ascent, corner_noise, cw_l2, fgsm, highest, linf, pgd, search
from common.attacks.calls import compiled
from multimedia_recsys.models.cnn import features_at

Tensor = tf.Tensor
Kind = Literal["fgsm", "pgd", "cw", "insa", "noise", "swap"]
"""Attacks, and two that are none: noise of the same budget, and real pictures of the target class, for reference."""
BUDGETED: tuple[Kind, ...] = ("fgsm", "pgd", "insa", "noise")
"""Those that have an L-inf budget."""

# Standard deviations of ImageNet's channels (red, green, blue), by which the original divides before it attacks.
IMAGENET_STD = (0.229, 0.224, 0.225)
_BATCH = 64


class PictureAttack:
    """How pictures are changed by one network's gradients.

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

    def __call__(self, pictures: np.ndarray, target: int, index: np.ndarray) -> np.ndarray:
        """`pictures` uint8 (n, H, W, C) of the items `index` (n,), changed towards the class `target`: uint8, as a file
        holds them. What an item's picture becomes does not depend on those beside it."""
        blocks = [
            self._changed(
                as_float(tf.constant(pictures[first : first + _BATCH])), target, index[first : first + _BATCH]
            )
            for first in range(0, len(pictures), _BATCH)
        ]
        return np.rint(np.concatenate(blocks) * 255).astype(np.uint8)

    def _changed(self, x: Tensor, target: int, index: np.ndarray) -> np.ndarray:
        wanted = tf.fill([len(x)], target)
        if self.kind == "fgsm":
            moved = fgsm(self.model, x, wanted, eps=self.eps, targeted=True)
        elif self.kind == "pgd":
            moved = pgd(
                self.model,
                x,
                wanted,
                eps=self.eps,
                alpha=self.eps / 6,
                steps=self.steps,
                targeted=True,
                seed=self.seed,
                index=index,
            )
        elif self.kind == "cw":
            moved = cw_l2(self.model, x, wanted, targeted=True, **self.cw)
        elif self.kind == "insa":
            moved = insa(self.model, x, self.direction, eps=self.eps, steps=self.steps)
        else:
            moved = corner_noise(x, eps=self.eps, seed=self.seed, index=index)
        return moved.numpy()


def insa(model: keras.Model, x: Tensor, direction: Tensor, *, eps: Tensor, steps: int) -> Tensor:
    """Pictures `x` (B, H, W, C) in [0, 1] whose features lie as far as possible along `direction` (D,), by `steps` of
    eps / 6 within `eps` (L-inf): they raise the mean user's score itself, not a class (AIP, Liu & Larson 2021, insider
    attack). Of all steps the best is kept."""
    signature = [
        tf.TensorSpec([None, *x.shape[1:]]),
        tf.TensorSpec([None]),
        tf.TensorSpec([1, 1, 1, None]),
        tf.TensorSpec([], tf.int32),
    ]
    return compiled(model, ("insa", *x.shape[1:]), _insa, signature)(x, direction, eps, steps)


def _insa(model: keras.Model, x: Tensor, direction: Tensor, eps: Tensor, steps: Tensor) -> Tensor:
    features = features_at(model)

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        score = tf.linalg.matvec(features(x), direction)
        return score, tf.zeros_like(score, tf.bool)

    space = linf(x, eps)
    return search(objective, ascent(tf.sign, eps / 6), space, x, steps, rank=highest).x


def stand_ins(candidates: np.ndarray, index: np.ndarray, seed: int) -> np.ndarray:
    """For each item of `index` (n,) one of the items `candidates` (m,), whose real picture is to take its place:
    what an attack may be measured by, and can surpass. Who stands in for an item does not depend on the others."""
    return np.random.default_rng([seed, 0xCE11]).permutation(candidates)[np.asarray(index) % len(candidates)]
