"""Attacks on embeddings: an image of one person, perturbed within a budget, is accepted as another person."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import keras
import numpy as np

from common.attacks import bim, feature_pgd, fftgsm, iftgsm, random_sign_noise
from common.errors import UserError
from common.evaluation.predictions import outputs
from common.evaluation.robustness import Entry, Evaluation, Examples
from face_mter.evaluation.verification import cosines
from face_mter.models.networks import embedder


class Attacker:
    """Attacks on one model. Budgets are L-inf in [0, 1]; images are 8-bit or float in [0, 1]."""

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
        """The evaluation of images `sources` (n, H, W, C), scored by the cosine of their embeddings to `targets`
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
        models. dodge: iftgsm, away from oneself.

        Errors: `UserError` for an unknown attack, and for itgsm on a model without a classifier.
        """
        if name not in ATTACKS:
            raise UserError(f"attack {name!r}: is none of {', '.join(ATTACKS)}")
        listed = ATTACKS[name]
        if listed.at_labels and self.embed is self.model:
            raise UserError(f"{name}: needs a model with a classifier, and victims that it knows")
        return Entry(name=name, attack=listed.make(self, eps), eps=eps, control=listed.control)


class Listed(NamedTuple):
    """An attack by its name: `make`, of an attacker and a radius. `at_labels`: it is given classes of the model, not
    embeddings; `away`: it is given the person's own embedding, negated; `control`: it looks at no model."""

    make: Callable[[Attacker, float], partial]
    at_labels: bool = False
    away: bool = False
    control: bool = False


def _iftgsm(of: Attacker, eps: float) -> partial:
    return partial(iftgsm, of.embed, **_kurakin(eps))


def _pgd(of: Attacker, eps: float) -> partial:
    more = {"steps": of.pgd_steps, "restarts": of.restarts, "seed": of.seed}
    return partial(feature_pgd, of.embed, eps=eps, alpha=eps / 8, **more)


ATTACKS = {
    "fftgsm": Listed(lambda of, eps: partial(fftgsm, of.embed, eps=eps)),
    "iftgsm": Listed(_iftgsm),
    "itgsm": Listed(lambda of, eps: partial(bim, of.model, **_kurakin(eps), targeted=True), at_labels=True),
    "pgd": Listed(_pgd),
    "noise": Listed(lambda of, eps: partial(random_sign_noise, of.embed, eps=eps, seed=of.seed), control=True),
    "dodge": Listed(_iftgsm, away=True),
}


def _kurakin(eps: float) -> dict[str, float]:
    return {"eps": eps, "alpha": 1 / 255, "steps": steps_of(eps)}


def steps_of(eps: float) -> int:
    """Kurakin's number of steps of 1/255: min(eps + 4, 1.25 eps) in 1/255, rounded down."""
    grey = eps * 255
    return max(math.floor(min(grey + 4, 1.25 * grey) + 1e-6), 1)


def _as_float(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else np.asarray(images, np.float32)
