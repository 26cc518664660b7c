"""The whole experiment: every way of training under every attack, in one table."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from attention_defense.attack import attack
from attention_defense.pictures import PictureOptions
from attention_defense.train import MethodName, train
from common.cli import Count, Parts, script
from common.runs import Run, read_results, read_table

STANDARD = "standard"


@dataclass(kw_only=True)
class Options(PictureOptions):
    """Which ways of training; the settings of each script stand in its section of --config."""

    without: ClassVar[tuple[str, ...]] = ("n_train", "n_test")

    methods: tuple[MethodName, ...] = (STANDARD, "pgd", "step_ll", "aad")
    """Ways of training, as in train.py; the pictures that PGD makes for the standard one are shown to all others."""
    few_methods: tuple[MethodName, ...] = ()
    """Ways, the same or others, on --n-few training pictures."""
    n_few: Count = 5000
    """Training pictures of --few-methods."""


@script(app="attention_defense", name="run_all")
def run_all(options: Options, run: Run) -> None:
    """Run what is not there yet and join the tables; with --force, run all of it anew."""
    from attention_defense import figures

    part = Parts(options, run, shared=("image_size",))
    ways = {method: (method, {}) for method in options.methods}
    ways |= {
        f"{method}, {options.n_few} pictures": (method, {"n_train": options.n_few}) for method in options.few_methods
    }
    source: Path | None = None
    curves: dict[str, dict[float, float]] = {}
    for name, (method, fewer) in sorted(ways.items(), key=lambda way: way[0] != STANDARD):
        place = ("few", method) if fewer else (method,)
        trained = part(train, *place, method=method, **fewer)
        attacked = part(attack, *place, model=trained / "model.keras", source=source)
        source = trained / "model.keras" if name == STANDARD else source
        for folder in (trained, attacked):
            for row in read_table(folder):
                run.row(**{**row, "model": name})
        measured = read_results(attacked)["metrics"]
        if not fewer:
            run.metrics(**{f"{method}_clean_accuracy": read_results(trained)["metrics"]["clean_accuracy"]})
            found = {f"{method}_{key}": value for key, value in measured.items() if key.startswith("accuracy_")}
            run.metrics(**{key: value for key, value in found.items() if not key.endswith("_n")})
        curves[name] = {row["eps"]: row["value"] for row in read_table(attacked) if row["split"] == "curve"}
    run.data(part.results[0]["dataset"], part.results[0]["data_sha256"])
    run.metrics(minutes=part.minutes)
    figures.budget_curves(curves, run.folder / "curves.png", title="accuracy under PGD-20")
    run.artifact("curves", run.folder / "curves.png")


if __name__ == "__main__":
    run_all.main()
