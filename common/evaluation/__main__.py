"""A verdict on any Keras classifier: what attacks leave of it, and whether to believe that."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from common.errors import UserError
from common.runs.model_input import InputOptions, check_input, look_at, reading
from common.runs.options import Budget, Count, DataOptions, Natural, ScriptOptions, option
from common.runs.record import Run
from common.runs.script import script

if TYPE_CHECKING:
    import keras
    import numpy as np

    from common.evaluation.verdict import Verdict


@dataclass(kw_only=True)
class Options(InputOptions, DataOptions, ScriptOptions):
    """Which classifier, on what, against whom."""

    model: Path | None = None
    """Classifier: a .keras file, or the run of a training; what it answers with are logits, or a softmax that can be
    cut off."""
    norm: Literal["linf", "l2", "l1"] = "linf"
    """Norm of the ball in which attacks may move an image."""
    eps: Budget = 8 / 255
    """Its radius, for images in [0, 1]: 8/255 in L-inf, 0.5 in L2."""
    version: Literal["fast", "standard", "plus"] = "fast"
    """AutoAttack in full, or for a fifth of its gradients."""
    detector: Path | None = None
    """A .keras model that answers with one number, above 0 for an image that it rejects."""
    source: Path | None = None
    """Another classifier of the same images, whose adversarial examples are tried on --model."""
    n_test: Count | None = 500
    """Number of test images; null takes all."""
    n_planted: Natural = option(128)
    """Images on which points are planted for the attack to find; 0 leaves that check out."""
    n_sample: Natural = 0
    """Of the images that the verdict leaves so many, drawn at random, are attacked by AutoAttack in full too, which
    tells what it would leave of all, within an exact interval; 0 leaves it out."""
    batch_size: Count = 256
    """Images per batch."""
    strategy: Literal["none", "multiworker"] = "none"
    """Workers that share the attacks, by TF_CONFIG; each has the model and the images."""
    image_size: Count | None = None
    """Side, in pixels, to which the images of a folder are scaled, and at which scenes are drawn."""


def refusals(options: Options) -> None:
    """What is refused before anything is read."""
    from common.evaluation.classifiers import load_classifier

    if options.norm == "linf" and options.eps > 1:
        raise UserError(f"--eps: {options.eps:g} is above 1; did you mean {options.eps:g}/255?")
    if options.eps == 0:
        raise UserError("--eps: must be above 0")
    if options.norm == "linf" and 255 * options.eps < 1 - 1e-6:
        raise UserError(
            f"--eps: {255 * options.eps:.3g}/255 is less than one grey level, and changes no image of 8 bits"
        )
    if options.n_sample and options.detector is not None:
        raise UserError("--n-sample: AutoAttack knows no --detector; leave one of them out")
    check_input(options, [options.model, options.detector, options.source])
    for path in (options.source, options.model):
        if path is not None:
            look_at(path, partial(load_classifier, path, **reading(options, path)))
    if options.model is None:
        raise UserError("--model: give a classifier, a .keras file or the run of a training; `make demo` makes some")


def ending(folder: Path, results: Mapping[str, Any], table: Sequence[Mapping[str, Any]]) -> str:
    """The sentence, the checks that failed, and where the card is."""
    from common.evaluation import facts

    found = json.loads((folder / results["artifacts"]["card"]).read_text(encoding="utf-8"))
    failed = [
        f"{check['name']} failed: {check['asks']} {check['value']}, wanted {check['wanted']}; {check['note']}"
        for check in found["checks"]
        if check["passed"] is False
    ]
    lines = [facts.sentence_of(found), *failed]
    lines += [f"{name}  {folder / path}" for name, path in results["artifacts"].items()]
    again = f"python -m common.evaluation.verify {folder / results['artifacts']['card']} --model {found['file']}"
    return "\n".join([*lines, f"to check it anew: {again}"])


@script(app="common", name="evaluation", columns=("check",), ending=ending, refusals=refusals)
def evaluation(options: Options, run: Run) -> None:
    """Attacks, checks and the card of one classifier."""
    import numpy as np

    from common import datasets
    from common.evaluation import card, plots, statistics
    from common.evaluation.classifiers import class_count
    from common.evaluation.shards import Shards
    from common.evaluation.verdict import judge
    from common.training import devices

    shards = Shards.of(devices.prepare(options.strategy))
    data = datasets.load(
        options.dataset,
        data_dir=options.data_dir,
        seed=options.seed,
        n_train=1,
        n_test=options.n_test,
        image_size=options.image_size,
        progress=True,
    )
    run.data(data.name, data.sha256)
    x = data.x_test
    model = _classifier(options, options.model, x, np.asarray(data.y_test), run)
    if (told := class_count(model)) < data.classes:
        raise UserError(f"--model: has {told} classes, the images have {data.classes}; give a model that knows all")
    data = data.for_outputs(told)
    y = np.asarray(data.y_test)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    source = None if options.source is None else _classifier(options, options.source, x, y, run)
    found = judge(
        model,
        x,
        y,
        eps=options.eps,
        norm=options.norm,
        version=options.version,
        detector=None if options.detector is None else _detector(options.detector, x),
        source=source,
        planted=options.n_planted,
        seed=options.seed,
        batch_size=options.batch_size,
        state=run.checkpoints / "autoattack.npz",
        shards=shards,
        progress=True,
        log=run.log,
    )
    _rows(run, found)
    told = {"data": f"{data.name}, {len(y)} test images", "data_sha256": data.sha256, "seed": int(options.seed)}
    told |= {"file": str(options.model), "command": run.command, "input": _input(options)}
    if run.chief:
        card.write(found, model, run.folder, **told)
    run.artifact("card", run.folder / "card.json")
    run.artifact("examples", run.folder / "examples.npz")
    run.artifact("verdict", run.folder / "card.md")
    if options.n_sample:
        _sample(options, run, model, found, shards.own(run.checkpoints / "sample.npz"))
    if found.curve:
        first = next(iter(found.curve.values())).n
        curve = {options.model.stem: {0.0: statistics.independent(1.0, first), **found.curve}}
        settings = {"norm": found.norm, "without": max(found.curve), "whole_levels": x.dtype == np.uint8}
        title = "accuracy by radius: APGD, 20 steps, on images that are answered rightly"
        run.figure("curve", plots.budget_curves, curve, title=title, **settings)


def _sample(options: Options, run: Run, model: "keras.Model", found: "Verdict", state: Path) -> None:
    """What AutoAttack in full would leave of all images, from a sample; each worker attacks all of it for itself."""
    import numpy as np

    from common.evaluation.quality import whole_levels
    from common.evaluation.whole_set import from_sample

    if found.draws > 1:
        run.log("--n-sample: left out, AutoAttack in full is for models that do not draw")
        return
    x, eight_bit = found.x, found.x.dtype == np.uint8
    part = from_sample(
        model,
        x / np.float32(255) if eight_bit else x,
        found.y,
        found.share >= 0.5,
        eps=whole_levels(options.eps) if eight_bit and options.norm == "linf" else options.eps,
        norm=options.norm,
        sample=options.n_sample,
        seed=options.seed,
        batch_size=options.batch_size,
        state=state,
        progress=True,
        log=run.log,
    )
    columns = {"attack": "AutoAttack (standard), of a sample", "norm": found.norm, "eps": found.eps}
    run.row(metric="whole_set_accuracy", **part.accuracy._asdict(), **columns)
    run.row(metric="sampled", value=len(part.sampled), **columns)
    run.row(metric="newly_broken", value=int((~part.attacked.robust).sum()), n=len(part.sampled), **columns)
    run.metrics(whole_set_accuracy=part.accuracy.value, whole_set_accuracy_n=part.accuracy.n)
    value, _, low, high = (100 * number for number in part.accuracy)
    run.log(
        f"of all {len(x)} images AutoAttack in full would leave {value:.2f} % ({low:.2f} to {high:.2f}), by a sample of"
        f" {len(part.sampled)}"
    )


def _input(options: Options) -> list[float] | None:
    """How `verify` has to read the model's images."""
    if options.input_scale is None and not options.input_offset:
        return None
    return [float(options.input_scale or 1.0), float(options.input_offset or 0.0)]


def _classifier(options: Options, path: Path, x: "np.ndarray", y: "np.ndarray", run: Run) -> "keras.Model":
    from common.evaluation.classifiers import load_classifier

    return load_classifier(path, images=x, labels=y, **reading(options, path), log=run.log)


def _detector(path: Path, x: "np.ndarray") -> "keras.Model":
    from common.evaluation.classifiers import load_network

    model, _ = load_network(path)
    if model.output_shape[1:] not in ((), (1,)) or model.input_shape[1:] != x.shape[1:]:
        raise UserError(
            f"--detector: {path}: maps {model.input_shape} to {model.output_shape}; expected one number for each image"
            f" of {x.shape[1:]}"
        )
    return model


def _rows(run: Run, found: "Verdict") -> None:
    run.headline("clean_accuracy", found.clean.value, found.clean.n, attack="none")
    run.headline("robust_accuracy", found.robust.value, found.robust.n, attack="all", norm=found.norm, eps=found.eps)
    run.metrics(inconclusive=float(found.inconclusive))
    budget = {"norm": found.norm, "eps": found.eps}
    run.row(metric="first_bound", **found.first._asdict(), attack="a first short attack", **budget)
    if found.false_positives is not None:
        run.row(metric="false_positives", **found.false_positives._asdict())
    for step in found.tried:
        if step.accuracy is not None:
            run.row(metric="accuracy", **step.accuracy._asdict(), attack=step.name, **budget)
        run.row(metric="newly_broken", value=step.new, attack=step.name, **budget)
        run.row(metric="seconds", value=step.seconds, attack=step.name, **budget)
    for check in found.checks:
        if check.passed is not None:
            run.row(metric="passed", value=float(check.passed), check=check.name)
        if check.value is not None:
            run.row(metric="check", value=check.value, check=check.name)
    for radius, accuracy in found.curve.items():
        run.row(
            metric="accuracy_of_right_ones", **accuracy._asdict(), attack="APGD, 20 steps", norm=found.norm, eps=radius
        )


if __name__ == "__main__":
    evaluation.main()
