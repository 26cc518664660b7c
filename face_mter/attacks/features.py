"""Attacks on embeddings: a picture of one person, changed within a budget, is taken for somebody else."""

import math
from collections.abc import Callable
from functools import partial

import keras
import numpy as np

from common.attacks import bim, feature_pgd, fftgsm, iftgsm, random_sign_noise
from common.errors import UserError
from common.evaluation.predictions import outputs
from common.evaluation.robustness import Entry, Evaluation, Examples
from face_mter.evaluation.verification import cosines
from face_mter.models.networks import embedder

ATTACKS = ("fftgsm", "iftgsm", "itgsm", "pgd", "noise")
DODGE = "dodge"
"""IFTGSM, away from the person's own embedding."""


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
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.model = model
        # Refuses at once what has no embedding.
        embedder(model)
        self.seed, self.pgd_steps, self.restarts = seed, pgd_steps, restarts
        self.shown = {"batch_size": batch_size, "progress": progress, "log": log}

    @property
    def embed(self) -> keras.Model:
        """The part of the model, as it now is, that answers with embeddings."""
        return embedder(self.model)

    def embeddings(self, images: np.ndarray) -> np.ndarray:
        """Embeddings float32 (n, D) of `images` (n, H, W, C)."""
        return outputs(self.embed, images, progress=self.shown["progress"])

    def evaluation(
        self,
        sources: np.ndarray,
        targets: np.ndarray,
        *,
        aims: np.ndarray | None = None,
        identity: np.ndarray | None = None,
    ) -> Evaluation:
        """The evaluation of pictures `sources` (n, H, W, C), scored by the cosine of their embeddings to `targets`
        (n, D), before and after they are quantised. Attacks are given `aims`, by default those targets: for itgsm the
        victims' classes int (n,) in the model's own classifier, to dodge the embedding of oneself, negated."""
        aims = targets if aims is None else aims
        return Evaluation(
            Examples(_as_float(sources), aims, identity),
            lambda x, rows: cosines(self.embeddings(x), targets[rows]),
            as_found=True,
            **self.shown,
        )

    def entry(self, name: str, eps: float) -> Entry:
        """The attack `name` for an evaluation.

        fftgsm: one step. iftgsm, itgsm: `steps_of(eps)` steps of 1/255. pgd: `restarts` random starts with `pgd_steps`
        steps of eps / 8 each, the nearest point kept. noise: eps up or down at random, in every pixel, the same for all
        models.

        Errors: `UserError` for an unknown attack, and for itgsm on a model without a classifier.
        """
        embed, kurakin = self.embed, {"eps": eps, "alpha": 1 / 255, "steps": steps_of(eps)}
        more = {"steps": self.pgd_steps, "restarts": self.restarts, "seed": self.seed}
        attacks = {
            "fftgsm": partial(fftgsm, embed, eps=eps),
            "iftgsm": partial(iftgsm, embed, **kurakin),
            "itgsm": partial(bim, self.model, **kurakin, targeted=True),
            "pgd": partial(feature_pgd, embed, eps=eps, alpha=eps / 8, **more),
            "noise": partial(random_sign_noise, embed, eps=eps, seed=self.seed),
            DODGE: partial(iftgsm, embed, **kurakin),
        }
        if name not in attacks:
            raise UserError(f"--attacks: {name!r} is none of {', '.join(ATTACKS)}")
        if name == "itgsm" and embed is self.model:
            raise UserError("itgsm: needs a model with a classifier, and victims that it knows")
        return Entry(name=name, attack=attacks[name], eps=eps, control=name == "noise")


def steps_of(eps: float) -> int:
    """Kurakin's number of steps of 1/255: min(eps + 4, 1.25 eps) in 1/255, rounded down."""
    grey = eps * 255
    return max(math.floor(min(grey + 4, 1.25 * grey) + 1e-6), 1)


def _as_float(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else np.asarray(images, np.float32)
