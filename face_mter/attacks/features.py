"""Attacks on embeddings: a picture of one person, changed within a budget, is taken for somebody else."""

import functools
import math
from typing import NamedTuple

import keras
import numpy as np

from common.attacks import attack_dataset, bim, feature_pgd, fftgsm, iftgsm
from common.errors import UserError
from common.evaluation.predictions import outputs
from common.evaluation.quality import rounded
from face_mter.evaluation.verification import cosines
from face_mter.models.networks import embedder

ATTACKS = ("fftgsm", "iftgsm", "itgsm", "pgd", "noise")


class Outcome(NamedTuple):
    """Changed pictures `x` float32 (n, H, W, C), and the cosine of each to what it was aimed at, float32 (n,): of the
    picture as it was found, and `rounded` to the 8 bits of a file."""

    x: np.ndarray
    cosine: np.ndarray
    rounded: np.ndarray


class Attacker:
    """Attacks on one model. Budgets are L-inf in [0, 1]; pictures are 8-bit or float in [0, 1]."""

    def __init__(
        self,
        model: keras.Model,
        *,
        seed: int = 0,
        pgd_steps: int = 40,
        restarts: int = 3,
        batch_size: int = 128,
        progress: bool = False,
    ) -> None:
        self.model = model
        # Refuses at once what has no embedding.
        embedder(model)
        self.seed, self.pgd_steps, self.restarts = seed, pgd_steps, restarts
        self.progress = progress
        self.run = functools.partial(attack_dataset, batch_size=batch_size, progress=progress)

    @property
    def embed(self) -> keras.Model:
        """The part of the model, as it now is, that answers with embeddings."""
        return embedder(self.model)

    def embeddings(self, images: np.ndarray) -> np.ndarray:
        """Embeddings float32 (n, D) of `images` (n, H, W, C)."""
        return outputs(self.embed, images, progress=self.progress)

    def impersonate(
        self, name: str, sources: np.ndarray, targets: np.ndarray, eps: float, classes: np.ndarray | None = None
    ) -> Outcome:
        """`sources` (n, H, W, C) moved towards the embeddings `targets` (n, D) or, by itgsm, towards the victims'
        `classes` int (n,) in the model's own classifier.

        fftgsm: one step. iftgsm, itgsm: `steps_of(eps)` steps of 1/255. pgd: `restarts` random starts with `pgd_steps`
        steps of eps / 8 each, the nearest point kept. noise: eps up or down at random, in every pixel.

        Errors: `UserError` for an unknown attack, and for itgsm on a model without a classifier.
        """
        if name not in ATTACKS:
            raise UserError(f"--attacks: {name!r} is none of {', '.join(ATTACKS)}")
        x = _as_float(sources)
        if name == "noise":
            # Two models meet the same noise.
            signs = np.random.default_rng([self.seed, 7]).integers(0, 2, x.shape, np.int8)
            moved = np.clip(x + np.float32(eps) * (2 * signs - 1), 0, 1)
        elif name == "itgsm":
            if self.embed is self.model or classes is None:
                raise UserError("itgsm: needs a model with a classifier, and victims that it knows")
            aim = functools.partial(bim, self.model, eps=eps, alpha=1 / 255, steps=steps_of(eps), targeted=True)
            moved = self.run(aim, x, np.asarray(classes, np.int32)).x
        else:
            moved = self.run(self._towards(name, eps), x, targets).x
        return self.judge(moved, targets)

    def dodge(self, sources: np.ndarray, own: np.ndarray, eps: float) -> Outcome:
        """`sources` moved away from embeddings `own` (n, D) of another picture of the same people, as iftgsm does; the
        cosine is that to `own`, the lower the better."""
        return self.judge(self.run(self._towards("iftgsm", eps), _as_float(sources), -own).x, own)

    def judge(self, moved: np.ndarray, targets: np.ndarray) -> Outcome:
        """The outcome of pictures float (n, H, W, C) that were changed for this model or for another."""
        found = [cosines(self.embeddings(images.astype(np.float32)), targets) for images in (moved, rounded(moved))]
        return Outcome(moved, *found)

    def _towards(self, name: str, eps: float) -> functools.partial:
        if name == "fftgsm":
            return functools.partial(fftgsm, self.embed, eps=eps)
        if name == "iftgsm":
            return functools.partial(iftgsm, self.embed, eps=eps, alpha=1 / 255, steps=steps_of(eps))
        return functools.partial(
            feature_pgd,
            self.embed,
            eps=eps,
            alpha=eps / 8,
            steps=self.pgd_steps,
            restarts=self.restarts,
            seed=self.seed,
        )


def steps_of(eps: float) -> int:
    """Kurakin's number of steps of 1/255: min(eps + 4, 1.25 eps) in 1/255, rounded down."""
    grey = eps * 255
    return max(math.floor(min(grey + 4, 1.25 * grey) + 1e-6), 1)


def _as_float(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else np.asarray(images, np.float32)
