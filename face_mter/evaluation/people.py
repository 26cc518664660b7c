"""Whose pictures a script works on, and how well a network tells people apart whom it never saw."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from common import progress
from common.errors import UserError
from common.evaluation.statistics import Measured, auc, rate
from common.runs.model_input import InputOptions, check_input, is_run, look_at, reading
from common.runs.options import Budget, CommonOptions, Count
from common.runs.record import Run, read_config
from face_mter.data.faces import LFW_PAIRS, Faces, People, check_split, hold_all_back, load_faces, split_people
from face_mter.evaluation import verification
from face_mter.evaluation.verification import FoldedPairs, Rates, Roc, Scores, TenFold

if TYPE_CHECKING:
    import keras

    from common.evaluation.input_range import Reading

# People, and pictures of each, that show in which range a network takes them.
_TRIED, _EACH = 40, 4
# An area under the ROC curve that leaves little to gain.
_TOLD_APART = 0.95


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
class NetworkOptions(InputOptions):
    """How a network that this suite did not train is read."""

    embedding: str | None = None
    """Layer of such a network whose answer is the embedding; by default the one called embedding, or what a head of
    logits or probabilities reads, or else the answer."""


@dataclass(kw_only=True)
class JudgeOptions(NetworkOptions, PeopleOptions):
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


def check_people(options: PeopleOptions) -> None:
    """Refuse what can be refused before a picture is read. Errors: as `load_cast`."""
    check_split(min_images=options.min_images, n_train=options.n_train, evaluation_share=options.evaluation_share)


def check_judged(options: JudgeOptions) -> None:
    """The same for scripts that judge, with the list of pairs. Errors: as `load_cast` and `folded_pairs`."""
    check_people(options)
    if options.pairs not in (None, "lfw") and not Path(options.pairs).is_file():
        raise UserError(f"--pairs: {options.pairs}: no such file; give a list in the format of LFW's pairs.txt, or lfw")


def check_networks(options: NetworkOptions, models: Iterable[Path | None]) -> None:
    """Refuse what the files of `models` tell, before anything is read or trained; None for those that are made.

    Errors: `UserError`, as `load_checked`.
    """
    models = list(models)
    check_input(options, models)
    if options.embedding is not None and all(model is None or is_run(model) for model in models):
        raise UserError("--embedding: is for a network that this suite did not train; leave it out")
    for model in models:
        if model is not None:
            look_at(model, partial(open_network, model, options))


def needed(given: Path | None, options: PeopleOptions) -> tuple[Path | None, PeopleOptions, Sequence[str]]:
    """Arguments of `produce` for a network that was named or is to be made. One that was named may have learnt other
    people, as long as they are none of those who are held out (`check_strangers`)."""
    return given, options, PEOPLE_FIELDS if given is None else ()


def load_cast(options: PeopleOptions, run: Run, *, all_held_back: bool = False) -> Cast:
    """The faces that `options` name, split, or with nobody who trains if `all_held_back`; recorded in `run`."""
    where = {"data_dir": options.data_dir, "image_size": options.image_size}
    faces = load_faces(options.dataset, seed=options.seed, **where, progress=True)
    run.data(options.dataset, faces.sha256)
    people = (
        hold_all_back(faces, seed=options.seed)
        if all_held_back
        else split_people(
            faces,
            seed=options.seed,
            min_images=options.min_images,
            n_train=options.n_train,
            evaluation_share=options.evaluation_share,
        )
    )
    cast = Cast(faces, people)
    counts = [f"{len(of)} ({len(cast.rows(of))} pictures)" for of in people]
    run.say(f"people to train on: {counts[0]}; held back to calibrate: {counts[1]}; to attack: {counts[2]}")
    return cast


def folded_pairs(options: JudgeOptions, cast: Cast) -> FoldedPairs:
    """The verification pairs that `options` name, among the people held back, as rows of `cast.faces`."""
    if options.pairs is None:
        return verification.make_folds(cast.faces, cast.held_back, options.n_folded, seed=options.seed)
    from common.datasets.downloads import fetch

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
    from common.evaluation.predictions import outputs
    from face_mter.models.networks import embedder

    return outputs(embedder(model), images, progress=True)


def watch(model: "keras.Model", cast: Cast) -> dict[str, float]:
    """How well the people of the calibration half are told apart: the area under the ROC curve of all their pairs."""
    rows = cast.rows(cast.people.calibration)
    scores = verification.all_scores(embed_all(model, cast.faces.images[rows]), cast.faces.person[rows])
    same = np.repeat([1, 0], [len(scores.positives), len(scores.negatives)])
    return {"calibration_auc": auc(np.concatenate([scores.positives, scores.negatives]), same)}


def network_name(path: Path) -> str:
    """What tables call the network in `path`: a run by its folder, a file of others by its own name."""
    if not is_run(path):
        return path.stem
    return path.name if path.is_dir() else path.parent.name


def open_network(path: Path, options: NetworkOptions) -> "tuple[keras.Model, Reading]":
    """The network in `path`, a file or a run, for pictures in [0, 1], up to `--embedding` where that is given; and the
    reading in which the network in the file gets them.

    Errors: `UserError` naming it, as `common.evaluation.classifiers.load_network`, and where it answers with no vector.
    """
    from common.evaluation import classifiers
    from face_mter.models import networks

    file, how = classifiers.model_file(path), reading(options, path)
    how.pop("check_range", None)
    model, taken = classifiers.load_network(path, **how)
    classifiers.check_graph(file, model)
    try:
        if options.embedding is not None and not is_run(path):
            model = networks.embedder_at(model, options.embedding)
        networks.embedder(model)
    except UserError as error:
        text = str(error)
        raise UserError(f"{file}: {text if text.startswith('--') else f'is {text}'}") from error
    if len(model.input_shape) != 4:
        raise UserError(f"{file}: takes {model.input_shape}; expected a network for pictures")
    return model, taken


def load_checked(
    path: Path,
    cast: Cast,
    options: NetworkOptions,
    *,
    attacked: bool = True,
    say: Callable[[str], None] = progress.say,
) -> "keras.Model":
    """The network in `path`, as `open_network` has it, for the pictures of `cast`; `attacked`: it is to be followed by
    its gradient too. What is to be known of a network that this suite did not train goes to `say`.

    Errors: `UserError` naming it as `open_network`, and where it takes other pictures than those of `cast` or in
    another range, fails on them, or has learnt people who are held out here.
    """
    from common.evaluation import classifiers
    from common.evaluation.predictions import outputs
    from common.training.checkpoints import check_pictures
    from face_mter.models.networks import embedder

    model, taken = open_network(path, options)
    file = classifiers.model_file(path)
    check_pictures(model, file, cast.faces.images.shape[1:])
    check_strangers(path, cast, options)
    if attacked:
        classifiers.check_answer(file, embedder(model), cast.faces.images[:2])
    elif not np.isfinite(outputs(embedder(model), cast.faces.images[:2])).all():
        raise UserError(f"{file}: answers with values that are not finite; train it again, or give another model")
    if not is_run(path):
        part = embedder(model)
        layer = part.outputs[0]._keras_history.operation.name
        say(f"{file}: embeddings of {part.output_shape[1]} numbers, the answer of its layer {layer}")
        _check_range(file, model, taken, cast, say)
    return model


def check_strangers(path: Path, cast: Cast, options: PeopleOptions) -> None:
    """Errors: `UserError` for a run of this suite that has learnt, itself or by what it began with, people of this data
    set who are held out here."""
    for folder, config in lineage(path):
        known = np.intersect1d(_learnt(config, cast, options), cast.held_back)
        if len(known):
            raise UserError(
                f"{folder}: has learnt {len(known)} of the {len(cast.held_back)} people who are held out here; give"
                " --seed, --n-train, --min-images and --evaluation-share as in its training and no --evaluate-only, or"
                " other data"
            )


def _learnt(config: dict[str, Any], cast: Cast, options: PeopleOptions) -> np.ndarray:
    """The people of `cast` who trained in a run with `config`; none if it was on other data."""
    # Portraits of another seed are those of other people.
    drawn_anew = options.dataset == "portraits" and config.get("seed") != options.seed
    if config.get("dataset") != options.dataset or drawn_anew:
        return np.empty(0, np.int32)
    names = ("seed", "min_images", "n_train", "evaluation_share")
    return split_people(cast.faces, **{name: config[name] for name in names}).train


def lineage(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The runs that a network comes from and their configs: its own, and those of what it was fine-tuned from, as far
    as that was named."""
    found: list[tuple[Path, dict[str, Any]]] = []
    while path is not None and is_run(path) and len(found) < 100:
        folder = path if path.is_dir() else path.parent
        config = read_config(folder)
        if "evaluation_share" in config:
            found.append((folder, config))
        path = None if config.get("pretrained") is None else Path(config["pretrained"])
    return found


def knows_the_trained(path: Path, model: "keras.Model", cast: Cast, options: PeopleOptions) -> bool:
    """Whether `model`, from `path`, has logits that tell apart the very people of `cast` who train: the run that it is
    of says so, or, of a file that says nothing, it is right about them more often than chance would bring once in a
    thousand times."""
    import math

    from common.evaluation.predictions import predict
    from face_mter.models.networks import head_of

    people = cast.people.train
    if not len(people) or head_of(model) is None or model.output_shape[-1] != len(people):
        return False
    for _, config in lineage(path)[:1]:
        return np.array_equal(_learnt(config, cast, options), people)
    rows = cast.rows(people)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), 256)).astype(int))]
    right = predict(model, cast.faces.images[rows]) == np.searchsorted(people, cast.faces.person[rows])
    n, chance = len(rows), 1 / len(people)
    tail = (math.comb(n, k) * chance**k * (1 - chance) ** (n - k) for k in range(int(right.sum()), n + 1))
    return sum(tail) < 1e-3


def _check_range(file: Path, model: "keras.Model", given: "Reading", cast: Cast, say: Callable[[str], None]) -> None:
    """Whether a network tells strangers apart far better in another range of pictures than in the one it is given.

    Errors: `UserError` with the remedy where that leaves no doubt; a lesser gain goes to `say`.
    """
    from common.evaluation.input_range import BYTES, READINGS, takes_bytes
    from common.evaluation.predictions import outputs
    from face_mter.models.networks import embedder

    counts = cast.faces.counts[cast.held_back]
    people = cast.held_back[counts >= 2][:_TRIED]
    rows = np.concatenate([cast.rows([person])[:_EACH] for person in people])
    pictures = cast.faces.images[rows].astype(np.float32) / np.float32(255)

    def area(taken: "Reading") -> float:
        # The network multiplies and adds by itself what it is given to.
        shown = (pictures * taken.scale + (taken.offset - given.offset)) / given.scale
        scores = verification.all_scores(outputs(embedder(model), shown.astype(np.float32)), cast.faces.person[rows])
        same = np.repeat([1, 0], [len(scores.positives), len(scores.negatives)])
        return auc(np.concatenate([scores.positives, scores.negatives]), same)

    own = area(given)
    if own >= _TOLD_APART:
        return
    best, other = max((area(taken), taken) for taken in READINGS if taken != given)
    text = f"{file}: tells people apart with an AUC of {own:.2f} on pictures in {given}, and of {best:.2f} in {other}"
    known = other == BYTES and takes_bytes(model) and best - own >= 0.05
    if known or (best >= 0.8 and best - own >= 0.2):
        raise UserError(f"{text}, so that is what it takes: give {other.options}")
    if best - own >= 0.03:
        say(f"{text}; if that is what it takes, give {other.options}")


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
