"""Face verification of a network on held-out identities."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from common.errors import UserError
from common.evaluation.input_range import BYTES, READINGS, Reading, takes_bytes
from common.evaluation.predictions import outputs
from common.evaluation.statistics import Estimate, auc, rate
from face_mter.data.faces import FaceSplits
from face_mter.evaluation import lfw, verification
from face_mter.evaluation.lfw import FoldedPairs, TenFold
from face_mter.evaluation.verification import Rates, Roc, Scores
from face_mter.models.networks import embedder

# People, and images of each, that show in which range a network takes them.
_TRIED, _EACH = 40, 4
# An area under the ROC curve that leaves little to gain.
_TOLD_APART = 0.95


class Verified(NamedTuple):
    """Verification results of an embedding on held-out identities.

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


def verify(embeddings: np.ndarray, splits: FaceSplits, pairs: FoldedPairs, far: float) -> Verified:
    """Verification results of `embeddings` float32 (N, D) of all of `splits.faces`, on held-out identities only."""
    halves = []
    for people in (splits.people.calibration, splits.people.attack):
        rows = splits.rows(people)
        halves.append(verification.all_scores(embeddings[rows], splits.faces.person[rows]))
    calibration, attack = halves
    threshold = verification.far_threshold(calibration.impostor, far)
    folded = lfw.ten_fold(verification.pair_scores(embeddings, pairs.pairs), pairs.same, pairs.fold)
    unseen = splits.rows(splits.held_out)
    return Verified(
        threshold,
        calibration,
        verification.accept_rates(attack, threshold),
        {_power_of_ten(rate): verification.tar_at_far(attack, rate) for rate in sorted({1e-2, far}, reverse=True)},
        folded,
        rate(folded.right, splits.faces.person[pairs.pairs])._replace(value=folded.accuracy),
        verification.mean_cosine(embeddings[unseen], splits.faces.person[unseen]),
        verification.roc(attack.genuine, attack.impostor),
    )


def embed_all(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Embeddings float32 (N, D) of `images` (N, H, W, C), 8-bit or float in [0, 1]."""
    return outputs(embedder(model), images, progress=True)


def watch(model: keras.Model, splits: FaceSplits) -> dict[str, float]:
    """Area under the ROC curve of all pairs of the calibration half."""
    rows = splits.rows(splits.people.calibration)
    scores = verification.all_scores(embed_all(model, splits.faces.images[rows]), splits.faces.person[rows])
    same = np.repeat([1, 0], [len(scores.genuine), len(scores.impostor)])
    return {"calibration_auc": auc(np.concatenate([scores.genuine, scores.impostor]), same)}


def check_range(file: Path, model: keras.Model, given: Reading, splits: FaceSplits, log: Callable[[str], None]) -> None:
    """Whether a network verifies held-out identities far better in another range of images than in the one it is given.

    Errors: `UserError` with the remedy where that leaves no doubt; a lesser gain goes to `log`.
    """
    counts = splits.faces.counts[splits.held_out]
    people = splits.held_out[counts >= 2][:_TRIED]
    rows = np.concatenate([splits.rows([person])[:_EACH] for person in people])
    images = splits.faces.images[rows].astype(np.float32) / np.float32(255)

    def area(taken: Reading) -> float:
        # The network multiplies and adds by itself what it is given to.
        shown = (images * taken.scale + (taken.offset - given.offset)) / given.scale
        scores = verification.all_scores(outputs(embedder(model), shown.astype(np.float32)), splits.faces.person[rows])
        same = np.repeat([1, 0], [len(scores.genuine), len(scores.impostor)])
        return auc(np.concatenate([scores.genuine, scores.impostor]), same)

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
