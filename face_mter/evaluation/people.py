"""How well a network tells people apart whom it never saw."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from common.errors import UserError
from common.evaluation.input_range import BYTES, READINGS, Reading, takes_bytes
from common.evaluation.predictions import outputs
from common.evaluation.statistics import Estimate, auc, rate
from face_mter.data.faces import Cast
from face_mter.evaluation import verification
from face_mter.evaluation.verification import FoldedPairs, Rates, Roc, Scores, TenFold
from face_mter.models.networks import embedder

# People, and images of each, that show in which range a network takes them.
_TRIED, _EACH = 40, 4
# An area under the ROC curve that leaves little to gain.
_TOLD_APART = 0.95


class Verified(NamedTuple):
    """What an embedding is worth among people it never saw.

    `threshold`: the cosine at the asked-for FAR on the calibration half, `calibration` its scores, `rates` what comes
    of it on the attack half. `tars`: TAR at that FAR and at 1e-2 on the attack half, thresholds found there.
    `ten_fold`: on the verification pairs, `accuracy` with its interval. `mean_cosine` of different people: near 1, all
    is one.
    """

    threshold: float
    calibration: Scores
    rates: Rates
    tars: dict[str, Estimate]
    ten_fold: TenFold
    accuracy: Estimate
    mean_cosine: float
    roc: Roc


def verify(embeddings: np.ndarray, cast: Cast, pairs: FoldedPairs, far: float) -> Verified:
    """Judge `embeddings` float32 (N, D) of all of `cast.faces` (those of the people who trained are not looked at)."""
    halves = []
    for people in (cast.people.calibration, cast.people.attack):
        rows = cast.rows(people)
        halves.append(verification.all_scores(embeddings[rows], cast.faces.person[rows]))
    calibration, attack = halves
    threshold = verification.far_threshold(calibration.negatives, far)
    folded = verification.ten_fold(verification.pair_scores(embeddings, pairs.pairs), pairs.same, pairs.fold)
    strangers = cast.rows(cast.held_back)
    return Verified(
        threshold,
        calibration,
        verification.accept_rates(attack, threshold),
        {_power_of_ten(rate): verification.tar_at_far(attack, rate) for rate in sorted({1e-2, far}, reverse=True)},
        folded,
        rate(folded.right, cast.faces.person[pairs.pairs])._replace(value=folded.accuracy),
        verification.mean_cosine(embeddings[strangers], cast.faces.person[strangers]),
        verification.roc(attack.positives, attack.negatives),
    )


def embed_all(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Embeddings float32 (N, D) of `images` (N, H, W, C), 8-bit or float in [0, 1]."""
    return outputs(embedder(model), images, progress=True)


def watch(model: keras.Model, cast: Cast) -> dict[str, float]:
    """How well the people of the calibration half are told apart: the area under the ROC curve of all their pairs."""
    rows = cast.rows(cast.people.calibration)
    scores = verification.all_scores(embed_all(model, cast.faces.images[rows]), cast.faces.person[rows])
    same = np.repeat([1, 0], [len(scores.positives), len(scores.negatives)])
    return {"calibration_auc": auc(np.concatenate([scores.positives, scores.negatives]), same)}


def check_range(file: Path, model: keras.Model, given: Reading, cast: Cast, log: Callable[[str], None]) -> None:
    """Whether a network tells strangers apart far better in another range of images than in the one it is given.

    Errors: `UserError` with the remedy where that leaves no doubt; a lesser gain goes to `log`.
    """
    counts = cast.faces.counts[cast.held_back]
    people = cast.held_back[counts >= 2][:_TRIED]
    rows = np.concatenate([cast.rows([person])[:_EACH] for person in people])
    images = cast.faces.images[rows].astype(np.float32) / np.float32(255)

    def area(taken: Reading) -> float:
        # The network multiplies and adds by itself what it is given to.
        shown = (images * taken.scale + (taken.offset - given.offset)) / given.scale
        scores = verification.all_scores(outputs(embedder(model), shown.astype(np.float32)), cast.faces.person[rows])
        same = np.repeat([1, 0], [len(scores.positives), len(scores.negatives)])
        return auc(np.concatenate([scores.positives, scores.negatives]), same)

    own = area(given)
    if own >= _TOLD_APART:
        return
    best, other = max((area(taken), taken) for taken in READINGS if taken != given)
    text = f"{file}: tells people apart with an AUC of {own:.2f} on images in {given}, and of {best:.2f} in {other}"
    known = other == BYTES and takes_bytes(model) and best - own >= 0.05
    if known or (best >= 0.8 and best - own >= 0.2):
        raise UserError(f"{text}, so that is what it takes: give {other.options}")
    if best - own >= 0.03:
        log(f"{text}; if that is what it takes, give {other.options}")


def _power_of_ten(rate: float) -> str:
    """0.001 -> "1e-3", as metric keys have it."""
    digits, _, power = f"{rate:e}".partition("e")
    return f"{float(digits):g}e{int(power)}"
