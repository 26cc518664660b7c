"""Verify: how well does a network tell people apart whom it never saw?"""

from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import UserError
from common.runs.options import alias
from common.runs.record import Run
from common.runs.script import script
from face_mter.ad_face import ad_face
from face_mter.evaluation.people import (
    JudgeOptions,
    check_judged,
    check_networks,
    embed_all,
    folded_pairs,
    load_cast,
    load_checked,
    needed,
    network_name,
    verify,
    write_verified,
)


@dataclass(kw_only=True)
class Options(JudgeOptions):
    """Which model, which pairs."""

    model: Path | None = alias("model_path", default=None)
    """Model to verify, a .keras file; by default that of ad_face.py, trained if need be."""
    evaluate_only: bool = False
    """Nobody trains: everyone is held out and every pair that is there is judged, for a --model that was trained on
    other people. --n-train, --min-images and --evaluation-share are not used then."""
    clips: Path | None = None
    """Folder <root>/<person>/<clip>/<frame>, as YouTube Faces has them: clips are compared too, each by the mean
    embedding of its frames."""


def refusals(options: Options) -> None:
    """What is refused before a picture is read or a model trained."""
    from face_mter.data.faces import people_in

    check_judged(options)
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

    cast = load_cast(options, run, all_held_back=options.evaluate_only)
    # Before a model that is not there yet is trained for minutes.
    pairs = folded_pairs(options, cast)
    path = model_file(ad_face.produce(*needed(options.model, options), say=run.say))
    model = load_checked(path, cast, options, attacked=False, say=run.say)
    run.say(f"{path}: {len(pairs.same)} verification pairs, {pairs.left_out} left out")
    found = verify(embed_all(model, cast.faces.images), cast, pairs, options.far)
    write_verified(run, found, network_name(path))
    run.intervals({"verification_accuracy": found.accuracy} | {f"tar_at_far_{k}": tar for k, tar in found.tars.items()})
    run.intervals({"tar_at_threshold": found.rates.tar, "far_at_threshold": found.rates.far})
    run.metrics(threshold=found.threshold, mean_cosine=found.mean_cosine)
    curves = {"pictures": found.roc}
    if options.clips is not None:
        curves["clips"] = _clips(options, run, model, found.threshold)
    if run.chief:
        figures.roc_curves(curves, options.far, run.folder / "roc.png")
        run.artifact("roc", run.folder / "roc.png")


def _clips(options: Options, run: Run, model, threshold: float):
    """Clips by the mean embeddings of their frames: ten-fold accuracy, and their ROC curve."""
    import numpy as np

    from common.evaluation.statistics import rate
    from face_mter.data.faces import load_clips
    from face_mter.evaluation import verification

    clips = load_clips(options.clips, image_size=options.image_size or model.input_shape[1], progress=True)
    _, first = np.unique(clips.clip, return_index=True)
    means = verification.templates(embed_all(model, clips.faces.images), clips.clip)
    person = clips.faces.person[first]
    run.say(f"{options.clips}: {len(first)} clips of {len(clips.faces.names)} people")
    scores = verification.all_scores(means, person)
    rates = verification.accept_rates(scores, threshold)
    # A clip stands where a picture does: as its first frame.
    files = tuple(clips.faces.files[row] for row in first)
    ones = replace(clips.faces, images=clips.faces.images[first], person=person, files=files)
    folded = verification.make_folds(ones, np.arange(len(ones.names)), options.n_folded, seed=options.seed)
    found = verification.ten_fold(verification.pair_scores(means, folded.pairs), folded.same, folded.fold)
    accuracy = rate(found.right, person[folded.pairs])._replace(value=found.accuracy)
    run.intervals({"clip_accuracy": accuracy, "clip_tar": rates.tar, "clip_far": rates.far})
    return verification.roc(scores.positives, scores.negatives)


if __name__ == "__main__":
    verify_model.main()
