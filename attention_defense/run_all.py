"""The whole experiment: every way of training under every attack, in one table."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from attention_defense.attack import attack
from attention_defense.pictures import PictureOptions
from attention_defense.train import MethodName, train
from common.cli import Count, Parts, script
from common.errors import UserError
from common.runs import Run, read_results, read_table

STANDARD = "standard"


@dataclass(kw_only=True)
class Options(PictureOptions):
    """Which ways of training; the settings of each script stand in its section of --config."""

    without: ClassVar[tuple[str, ...]] = ("n_train", "n_test")

    methods: tuple[MethodName, ...] = (STANDARD, "pgd", "aad")
    """Ways of training, as in train.py; standard comes first, and makes the pictures that are shown to the others."""
    few_methods: tuple[MethodName, ...] = ()
    """Further ways, on --n-few training pictures."""
    n_few: Count = 5000
    """Training pictures of --few-methods."""


@script(app="attention_defense", name="run_all")
def run_all(options: Options, run: Run) -> None:
    """Run what is not there yet and join the tables; with --force, run all of it anew."""
    from attention_defense import figures

    _check(options)
    part = Parts(options, run, shared=("image_size",))
    source: Path | None = None
    curves: dict[str, dict[float, float]] = {}
    for method in (*options.methods, *options.few_methods):
        fewer = {"n_train": options.n_few} if method in options.few_methods else {}
        trained = part(train, method, method=method, **fewer)
        attacked = part(attack, method, model=trained / "model.keras", source=source)
        source = source or trained / "model.keras"
        for folder in (trained, attacked):
            for row in read_table(folder):
                # Both have the clean accuracy; the one of all test pictures is the training's.
                if folder == trained or row["metric"] != "clean_accuracy":
                    run.row(**{**row, "model": method})
        measured = read_results(attacked)["metrics"]
        clean = read_results(trained)["metrics"]
        run.metrics(**{f"{method}_clean_accuracy": clean["clean_accuracy"]})
        run.metrics(**{f"{method}_{name}": value for name, value in measured.items() if name.startswith("accuracy_")})
        curves[method] = {0.0: clean["clean_accuracy"]} | {
            row["eps"]: row["value"] for row in read_table(attacked) if row["split"] == "curve"
        }
    run.data(part.results[0]["dataset"], part.results[0]["data_sha256"])
    run.metrics(minutes=part.minutes)
    figures.budget_curves(curves, run.folder / "curves.png", title="accuracy under PGD-20")
    run.artifact("curves", run.folder / "curves.png")


def _check(options: Options) -> None:
    given = (*options.methods, *options.few_methods)
    if len(set(given)) < len(given):
        raise UserError("--methods, --few-methods: one of them is named twice")


if __name__ == "__main__":
    run_all.main()
