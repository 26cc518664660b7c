"""Whose pictures a script works on, and how well a network tells people apart whom it never saw."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from common.cli import Budget, CommonOptions, Count
from common.errors import UserError
from common.intervals import Measured, auc, rate
from common.runs import Run
from face_mter import verification
from face_mter.faces import LFW_PAIRS, Faces, People, load_faces, split_people
from face_mter.verification import FoldedPairs, Rates, Roc, Scores, TenFold

if TYPE_CHECKING:
    import keras


@dataclass(kw_only=True)
class PeopleOptions(CommonOptions):
    """Whose pictures, and who of them trains."""

    dataset: str = "portraits"
    """Faces: portraits (drawn), lfw (downloaded), a folder <root>/<person>/<picture> or a tar of one."""
    image_size: Count | None = None
    """Pixels a side to which pictures are brought; by default 48 for portraits, and as they are for others."""
    min_images: Count = 5
    """People with fewer pictures are held back for evaluation."""
    evaluation_share: Budget = 0.3
    """Share of the people that are held back, at least."""
    n_train: Count | None = None
    """Number of people to train on; null takes all that are not held back."""


PEOPLE_FIELDS = ("dataset", "seed", "image_size", "min_images", "evaluation_share", "n_train")
"""What must be the same in a training and in an evaluation of its model."""


@dataclass(kw_only=True)
class JudgeOptions(PeopleOptions):
    """How thresholds and pairs are chosen."""

    far: Budget = 1e-3
    """False accept rate at which the threshold is fixed, on all pairs of different people of the calibration half."""
    pairs: str | None = None
    """Verification pairs: a file in the format of LFW's pairs.txt, or lfw for that file itself; by default drawn from
    the people held back."""
    n_folded: Count = 60
    """Pairs of each kind in each of ten folds, where they are drawn."""


class Cast(NamedTuple):
    """All `faces`, and who of them serves for what."""

    faces: Faces
    people: People

    def rows(self, people: Sequence[int] | np.ndarray) -> np.ndarray:
        """The pictures of `people`, int64."""
        return np.flatnonzero(np.isin(self.faces.person, people))

    @property
    def held_back(self) -> np.ndarray:
        """Everyone who did not train."""
        return np.sort(np.concatenate([self.people.calibration, self.people.attack]))


def load_cast(options: PeopleOptions, run: Run) -> Cast:
    """The faces that `options` name, split; recorded in `run`."""
    where = {"data_dir": options.data_dir, "image_size": options.image_size}
    faces = load_faces(options.dataset, seed=options.seed, **where, progress=True)
    run.data(options.dataset, faces.sha256)
    people = split_people(
        faces,
        seed=options.seed,
        min_images=options.min_images,
        n_train=options.n_train,
        evaluation_share=options.evaluation_share,
    )
    cast = Cast(faces, people)
    counts = [f"{len(of)} ({len(cast.rows(of))} pictures)" for of in people]
    run.say(f"people to train on: {counts[0]}; held back to calibrate: {counts[1]}; to attack: {counts[2]}")
    return cast


def folded_pairs(options: JudgeOptions, cast: Cast) -> FoldedPairs:
    """The verification pairs that `options` name, among the people held back, as rows of `cast.faces`."""
    if options.pairs is None:
        return verification.make_folds(cast.faces, cast.held_back, options.n_folded, seed=options.seed)
    from common.datasets.named import fetch

    path = fetch(LFW_PAIRS, options.data_dir) if options.pairs == "lfw" else Path(options.pairs)
    strangers = cast.rows(cast.held_back)
    found = verification.read_pairs(path, cast.faces.of(cast.held_back))
    return found._replace(pairs=strangers[found.pairs].astype(np.int32))


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
    tars: dict[str, Measured]
    ten_fold: TenFold
    accuracy: Measured
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


def embed_all(model: "keras.Model", images: np.ndarray) -> np.ndarray:
    """Embeddings float32 (N, D) of `images` (N, H, W, C), 8-bit or float in [0, 1]."""
    from common.evaluation import outputs
    from face_mter.networks import embedder

    return outputs(embedder(model), images, progress=True)


def watch(model: "keras.Model", cast: Cast) -> dict[str, float]:
    """How well the people of the calibration half are told apart: the area under the ROC curve of all their pairs."""
    rows = cast.rows(cast.people.calibration)
    scores = verification.all_scores(embed_all(model, cast.faces.images[rows]), cast.faces.person[rows])
    same = np.repeat([1, 0], [len(scores.positives), len(scores.negatives)])
    return {"calibration_auc": auc(np.concatenate([scores.positives, scores.negatives]), same)}


def load_checked(path: Path, cast: Cast) -> "keras.Model":
    """The model in the file `path`.

    Errors: `UserError` naming it when it cannot be read, takes other pictures than those of `cast`, or answers with
    something else than a vector for each.
    """
    from common.checkpoints import check_pictures, load_model
    from face_mter.networks import embedder

    model = load_model(path)
    check_pictures(model, path, cast.faces.images.shape[1:])
    try:
        embedder(model)
    except UserError as error:
        raise UserError(f"{path}: is {error}") from error
    return model


def grey(eps: float) -> str:
    """A budget in [0, 1] counted in 1/255, as metric keys have it: 10/255 -> "10"."""
    return f"{eps * 255:.6g}"


def _power_of_ten(rate: float) -> str:
    """0.001 -> "1e-3", as metric keys have it."""
    digits, _, power = f"{rate:e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def write_verified(run: Run, verified: Verified, name: str) -> None:
    """Rows of `table.csv` for one model."""
    found: Iterable[tuple[str, Measured]] = (
        ("verification_accuracy", verified.accuracy),
        *((f"tar_at_far_{at}", tar) for at, tar in verified.tars.items()),
        ("tar_at_threshold", verified.rates.tar),
        ("far_at_threshold", verified.rates.far),
    )
    for metric, measured in found:
        run.row(model=name, split="attack half" if "at_" in metric else "folds", metric=metric, **measured._asdict())
    run.row(model=name, split="calibration half", metric="threshold", value=verified.threshold)
    run.row(model=name, split="held back", metric="mean_cosine", value=verified.mean_cosine)
