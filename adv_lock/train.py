"""Train on locked images, as an unauthorised trainer would, and measure accuracy on clean test images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adv_lock.lock import expected, required
from adv_lock.train_base import FOLDER_SIZE, FittingOptions
from common.errors import UserError
from common.runs.options import CommonOptions, option_fields
from common.runs.record import Run, read_results
from common.runs.script import script

if TYPE_CHECKING:
    from adv_lock.data.locked import LockedData


@dataclass(kw_only=True)
class Options(FittingOptions):
    """The unauthorised trainer's network and recipe; and the owner's key, for the measurement."""

    lock_data: Path | None = None
    """Run folder of lock.py, with `locked/` and `key.npz`; by default the one of the same name, made if need be."""
    train_on: Literal["locked", "original"] = "locked"
    """What the model is trained on; the originals, restored with the key, give the reference."""
    reference: Path | None = None
    """Run folder of this script with --train-on original, to compare with; by default made inside this run,
    which doubles its time."""


def refusals(options: Options) -> None:
    """What is refused before anything is read, locked or trained."""
    from adv_lock.models.networks import NETWORKS
    from common.training import fit

    fit.check(options.recipe, NETWORKS)
    if options.train_on == "locked" and options.reference is not None:
        _check_recipe(options, read_results(options.reference)["config"])


def needs(options: Options) -> None:
    """What lock.py would refuse, where it is to be run."""
    expected(options.lock_data, options)


@script(app="adv_lock", name="train", refusals=refusals, needs=needs)
def train(options: Options, run: Run) -> None:
    """Train a fresh network on locked (or original) images with their true labels."""
    from adv_lock.data.locked import read_locked
    from adv_lock.models.networks import NETWORKS
    from adv_lock.training import trainers
    from common.evaluation import plots, predictions, statistics
    from common.training import fit

    source = required(options.lock_data, options, run)
    data = read_locked(source, options.image_size or FOLDER_SIZE)
    run.data(data.name, data.sha256)
    on_locked = options.train_on == "locked"
    reference = _reference(options, run, source, data.sha256) if on_locked else None

    def evaluate(model) -> dict[str, float]:
        return {
            "original_accuracy": predictions.accuracy(model, data.original_test, data.y_test, progress=True),
            "locked_accuracy": predictions.accuracy(model, data.locked_test, data.y_test, progress=True),
        }

    images = data.locked_train if on_locked else data.original_train()
    title = f"training on {options.train_on} images"
    model, history = fit.fit(
        options.recipe,
        run,
        images,
        data.y_train,
        len(data.class_names),
        evaluate,
        title=title,
        seed=trainers.SEED + options.seed,
        networks=NETWORKS,
    )
    run.save_model(model)
    curves = {
        f"{kind} test images": [epoch[f"{kind}_accuracy"] for epoch in history] for kind in ("original", "locked")
    }
    metrics = _metrics(options, model, history, data)
    if reference is not None:
        folder, metrics["reference_accuracy"] = reference
        # Only the chief is sure to see the files of the reference.
        if run.chief:
            _share_of_reference(run, model, folder, data)
    for metric, value in metrics.items():
        columns = {"model": options.arch, "attack": data.method, "norm": "l2", "eps": data.eps, "split": "test"}
        run.headline(metric, value, len(data.y_test), **columns)
    levels, tested = {}, len(data.y_test)
    if reference is not None:
        levels["reference trained on originals"] = statistics.independent(metrics["reference_accuracy"], tested)
    title = f"{options.arch} {title} ({data.method})"
    n = dict.fromkeys(curves, tested)
    run.figure("crossing", plots.accuracy_curves, curves, title=title, n=n, levels=levels)


def _metrics(options: Options, model, history: list[dict[str, float]], data: "LockedData") -> dict[str, float]:
    import numpy as np

    from adv_lock.attacks.class_maps import inverse
    from common.evaluation import predictions

    seen = predictions.predict(model, data.original_test, progress=True)
    last = history[-1]
    metrics = {
        # Without clean images a trainer has the last epoch; the peak is what an oracle would pick.
        "original_accuracy": last["original_accuracy"],
        "original_accuracy_peak": max(epoch["original_accuracy"] for epoch in history),
        "locked_accuracy": last["locked_accuracy"],
        "inverse_map_rate": float(np.mean(seen == inverse(data.class_maps[0])[data.y_test])),
        # What an answer that is always the same has: the least that anybody gets.
        "constant_accuracy": float(np.bincount(data.y_test).max() / len(data.y_test)),
    }
    if options.train_on == "original" and data.written_test is not None:
        # Does a network that never met the lock see the class that it wrote?
        answers = predictions.predict(model, data.locked_test, progress=True)
        metrics["transfer_success"] = float(np.mean(answers == data.written_test))
    return metrics


def _share_of_reference(run: Run, model, reference: Path, data: "LockedData") -> None:
    """How much of what the reference gets right of the clean test images the model on locked ones gets right: 1 where
    the lock protects nothing."""
    import numpy as np

    from common.evaluation import predictions, statistics
    from common.training import checkpoints

    try:
        other = checkpoints.load_model(reference / "model.keras")
    except UserError as error:
        raise UserError(f"--reference: {error}") from error
    right = [predictions.predict(of, data.original_test, progress=True) == data.y_test for of in (model, other)]
    if right[1].any():
        share = statistics.relative(*right, np.arange(len(data.y_test)))
        run.row(
            metric="share_of_reference", split="test", attack=data.method, norm="l2", eps=data.eps, **share._asdict()
        )
        run.intervals({"share_of_reference": share})


def _reference(options: Options, run: Run, source: Path, sha256: str) -> tuple[Path, float]:
    """The run of the same recipe on the originals, and its last-epoch accuracy: what there was to learn."""
    folder = options.reference
    if folder is None:
        folder = run.folder / "reference"
        run.log("reference: the same network and recipe on the original images")
        wanted = replace(options, train_on="original", lock_data=source, out=folder, seeds=None)
        results = train(replace(wanted, resume=not options.force))
    else:
        results = read_results(folder)
    _check_recipe(options, results["config"])
    if results["data_sha256"] != sha256:
        raise UserError(f"--reference: {options.reference} was trained on other data than {source} holds")
    return folder, results["metrics"]["original_accuracy"]


def _check_recipe(options: Options, config: Mapping[str, Any]) -> None:
    """Errors: `UserError` for the `config` of a reference of another recipe than `options`."""
    if config.get("train_on") != "original":
        raise UserError(f"--reference: {options.reference} is not a run of train.py with --train-on original")
    for name in option_fields(FittingOptions).keys() - option_fields(CommonOptions).keys():
        ours = getattr(options, name)
        if config.get(name) != (list(ours) if isinstance(ours, tuple) else ours):
            raise UserError(f"--reference: {options.reference} has {name} {config.get(name)}, this run {ours}")


if __name__ == "__main__":
    train.main()
