"""Open-set face verification on held-out identities."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError
from common.runs.options import Budget, Count, DeviceOptions, ScriptOptions, option
from common.runs.record import Run
from common.runs.script import script
from face_mter.ad_face import NetworkOptions, ad_face, check_networks, load_checked, network_name
from face_mter.train import PeopleOptions, check_people, load_splits, needed

if TYPE_CHECKING:
    from face_mter.data.faces import FaceSplits
    from face_mter.evaluation.lfw import FoldedPairs
    from face_mter.evaluation.people import Verified


@dataclass(kw_only=True)
class VerificationOptions(NetworkOptions, PeopleOptions, DeviceOptions, ScriptOptions):
    """How thresholds and pairs are chosen."""

    far: Budget = 1e-3
    """False accept rate at which the threshold is fixed, on all pairs of different people of the calibration half."""
    pairs: str | None = None
    """Verification pairs: a file in the format of LFW's pairs.txt, or lfw for that file itself; by default drawn from
    the held-out people."""
    n_folded: Count = 60
    """Pairs of each kind in each of ten folds, where they are drawn."""


@dataclass(kw_only=True)
class Options(VerificationOptions):
    """Which model, which pairs."""

    model: Path | None = option(None, "model_path")
    """Model to verify, a .keras file; by default that of ad_face.py, trained if need be."""
    evaluate_only: bool = False
    """No training: all identities are held out and every available pair is verified, for a --model trained on other
    people. --n-train, --min-images and --evaluation-share are not used then."""
    clips: Path | None = None
    """Folder <root>/<person>/<clip>/<frame>, as YouTube Faces has them: clips are compared too, each by the mean
    embedding of its frames."""


def check_verification(options: VerificationOptions) -> None:
    """As `check_people`, with the threshold and the list of pairs. Errors: as `load_splits` and `folded_pairs`."""
    from face_mter.evaluation.verification import check_far

    check_people(options)
    check_far(options.far)
    if options.pairs not in (None, "lfw") and not Path(options.pairs).is_file():
        raise UserError(f"--pairs: {options.pairs}: no such file; give a list in the format of LFW's pairs.txt, or lfw")


def folded_pairs(options: VerificationOptions, splits: "FaceSplits") -> "FoldedPairs":
    """The verification pairs that `options` name, among the held-out identities, as rows of `splits.faces`."""
    import numpy as np

    from face_mter.data.faces import LFW_PAIRS
    from face_mter.evaluation import lfw

    if options.pairs is None:
        return lfw.make_folds(splits.faces, splits.held_out, options.n_folded, seed=options.seed)
    from common.datasets.downloads import fetch

    path = fetch(LFW_PAIRS, options.data_dir) if options.pairs == "lfw" else Path(options.pairs)
    unseen = splits.rows(splits.held_out)
    found = lfw.read_pairs(path, splits.faces.of(splits.held_out))
    return found._replace(pairs=unseen[found.pairs].astype(np.int32))


def write_verified(run: Run, verified: "Verified", name: str) -> None:
    """Rows of `table.csv` for one model."""
    found = (
        ("verification_accuracy", verified.accuracy),
        *((f"tar_at_far_{at}", tar) for at, tar in verified.tars.items()),
        ("tar_at_threshold", verified.rates.tar),
        ("far_at_threshold", verified.rates.far),
    )
    for metric, measured in found:
        run.row(model=name, split="attack half" if "at_" in metric else "folds", metric=metric, **measured._asdict())
    run.row(model=name, split="calibration half", metric="threshold", value=verified.threshold)
    run.row(model=name, split="held back", metric="mean_cosine", value=verified.mean_cosine)


def refusals(options: Options) -> None:
    """What is refused before an image is read or a model trained."""
    from face_mter.data.faces import people_in

    check_verification(options)
    if options.evaluate_only and options.model is None:
        raise UserError("--evaluate-only: is for a network that was trained on other people; name it by --model")
    check_networks(options, [options.model])
    if options.clips is not None:
        people_in(options.clips)


def needs(options: Options) -> None:
    """What the scripts before this one would refuse, where they are to be run."""
    ad_face.expect(*needed(options.model, options))


@script(app="face_mter", name="verify", refusals=refusals, needs=needs)
def verify_model(options: Options, run: Run) -> None:
    """Ten-fold accuracy on pairs; threshold from the calibration half; TAR, FAR and ROC on the attack half."""
    from common.evaluation.classifiers import model_file
    from face_mter.evaluation import figures
    from face_mter.evaluation.people import embed_all, verify

    splits = load_splits(options, run, all_held_out=options.evaluate_only)
    # Before a model that is not there yet is trained for minutes.
    pairs = folded_pairs(options, splits)
    path = model_file(run.require(ad_face, *needed(options.model, options)))
    model = load_checked(path, splits, options, attacked=False, log=run.log)
    run.log(f"{path}: {len(pairs.same)} verification pairs, {pairs.left_out} left out")
    found = verify(embed_all(model, splits.faces.images), splits, pairs, options.far)
    write_verified(run, found, network_name(path))
    run.intervals({"verification_accuracy": found.accuracy} | {f"tar_at_far_{k}": tar for k, tar in found.tars.items()})
    run.intervals({"tar_at_threshold": found.rates.tar, "far_at_threshold": found.rates.far})
    run.metrics(threshold=found.threshold, mean_cosine=found.mean_cosine)
    curves = {"images": found.roc}
    if options.clips is not None:
        curves["clips"] = _clips(options, run, model, found.threshold)
    tars = {"images": {float(at): tar for at, tar in found.tars.items()}}
    run.figure("roc", figures.roc_curves, curves, options.far, tars=tars)


def _clips(options: Options, run: Run, model, threshold: float):
    """Clips by the mean embeddings of their frames: ten-fold accuracy, and their ROC curve."""
    import numpy as np

    from common.evaluation.statistics import rate
    from face_mter.data.faces import load_clips
    from face_mter.evaluation import lfw, verification
    from face_mter.evaluation.people import embed_all

    clips = load_clips(options.clips, image_size=options.image_size or model.input_shape[1], progress=True)
    _, first = np.unique(clips.clip, return_index=True)
    means = verification.templates(embed_all(model, clips.faces.images), clips.clip)
    person = clips.faces.person[first]
    run.log(f"{options.clips}: {len(first)} clips of {len(clips.faces.names)} people")
    scores = verification.all_scores(means, person)
    rates = verification.accept_rates(scores, threshold)
    # A clip is represented by its first frame.
    files = tuple(clips.faces.files[row] for row in first)
    ones = replace(clips.faces, images=clips.faces.images[first], person=person, files=files)
    folded = lfw.make_folds(ones, np.arange(len(ones.names)), options.n_folded, seed=options.seed)
    found = lfw.ten_fold(verification.pair_scores(means, folded.pairs), folded.same, folded.fold)
    accuracy = rate(found.right, person[folded.pairs])._replace(value=found.accuracy)
    run.intervals({"clip_accuracy": accuracy, "clip_tar": rates.tar, "clip_far": rates.far})
    return verification.roc(scores.genuine, scores.impostor)


if __name__ == "__main__":
    verify_model.main()
