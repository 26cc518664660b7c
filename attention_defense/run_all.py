"""The whole experiment: every training method under every attack, in one table."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attention_defense.attack import attack
from attention_defense.train import ImageOptions, MethodName, train
from common.errors import UserError
from common.evaluation.statistics import Estimate, of_row
from common.runs.options import Count, DeviceOptions, LinfBudget, ScriptOptions
from common.runs.record import Run, read_results, read_table
from common.runs.script import script
from common.runs.sub_runs import SubRuns, part_options

STANDARD, PGD = "standard", "pgd"
SHARED = ("image_size",)
"""What all parts have in common with the whole."""


@dataclass(kw_only=True)
class Options(ImageOptions, DeviceOptions, ScriptOptions):
    """Which training methods; the settings of each script are in its section of --config."""

    methods: tuple[MethodName, ...] = (STANDARD, PGD, "aad", "step_ll")
    """Training methods, as in train.py; the PGD examples of the standard model are transferred to all others."""
    few_methods: tuple[MethodName, ...] = ()
    """Training methods, the same or others, on --n-few training images."""
    n_few: Count = 5000
    """Training images of --few-methods."""
    pgd_eps: tuple[LinfBudget, ...] = ()
    """Further radii of PGD training, where that is among the methods: for comparison at equal clean accuracy."""


@dataclass(frozen=True, eq=False)
class Variant:
    """One training: its runs' `place`, and the `settings` in which it differs."""

    place: tuple[str, ...]
    settings: dict[str, Any]

    @property
    def columns(self) -> dict[str, str]:
        """Its columns in the table: the method and, where they are not the usual ones, radius and number of images."""
        columns = {"model": self.settings["method"]}
        if "eps" in self.settings:
            columns["train_eps"] = f"{255 * self.settings['eps']:.5g}/255"
        if "n_train" in self.settings:
            columns["n_train"] = str(self.settings["n_train"])
        return columns

    @property
    def label(self) -> str:
        """Its name in a figure."""
        of = self.columns
        radius = f" at {of['train_eps']}" if "train_eps" in of else ""
        return of["model"] + radius + (f", {of['n_train']} images" if "n_train" in of else "")

    @property
    def known(self) -> bool:
        """Whether others are compared with it: plain or PGD training."""
        return self.settings["method"] in (STANDARD, PGD)


def refusals(options: Options) -> None:
    """What is refused before anything is trained."""
    if options.pgd_eps and PGD not in (*options.methods, *options.few_methods):
        raise UserError(f"--pgd-eps: belongs to {PGD}, which is not among --methods")
    for variant in (variant for group in _groups(options) for variant in group):
        for producer, settings in ((train, variant.settings), (attack, {})):
            producer.check(part_options(options, producer, *variant.place, shared=SHARED, **settings), alone=True)


@script(app="attention_defense", name="run_all", columns=("train_eps", "n_train"), refusals=refusals)
def run_all(options: Options, run: Run) -> None:
    """Run what is missing and join the tables; with --force, run all of it again."""
    from common.evaluation import plots

    part = SubRuns(options, run, shared=SHARED)
    source: Path | None = None
    curves: dict[str, dict[float, Estimate]] = {}
    for group in _groups(options):
        tables = {}
        for variant in group:
            trained = part(train, *variant.place, **variant.settings)
            attacked = part(attack, *variant.place, model=trained / "model.keras", source=source)
            source = trained / "model.keras" if variant.place == (STANDARD,) else source
            tables[variant] = [
                {**row, **variant.columns} for folder in (trained, attacked) for row in read_table(folder)
            ]
            for row in tables[variant]:
                run.row(**row)
            run.row(metric="minutes", value=read_results(trained)["seconds"] / 60, **variant.columns)
            run.metrics(**_headline(variant, read_results(attacked)["metrics"]))
            curves[variant.label] = {row["eps"]: of_row(row) for row in tables[variant] if row["split"] == "curve"}
        for row in _compared(tables):
            run.row(**row)
    run.data(part.results[0]["dataset"], part.results[0]["data_sha256"])
    run.metrics(minutes=part.minutes)
    run.figure("curves", plots.budget_curves, curves, title="accuracy under PGD-20")


def at_equal_accuracy(known: Iterable[tuple[float, float]], clean: float) -> float | None:
    """Robust accuracy at the clean accuracy `clean`, on straight lines between `known` pairs (clean, robust); None
    where they do not reach."""
    import numpy as np

    pairs = sorted(known)
    if not pairs or not pairs[0][0] <= clean <= pairs[-1][0]:
        return None
    return float(np.interp(clean, *zip(*pairs, strict=True)))


def _groups(options: Options) -> Iterator[list[Variant]]:
    """The trainings by number of images, the standard one first: the others are shown what fools it."""
    few = {"n_train": options.n_few}
    for place, methods, fewer in (((), options.methods, {}), (("few",), options.few_methods, few)):
        group = [Variant((*place, method), {"method": method, **fewer}) for method in dict.fromkeys(methods)]
        for eps in dict.fromkeys(options.pgd_eps) if PGD in methods else ():
            group.append(Variant((*place, f"{PGD}_{255 * eps:.5g}"), {"method": PGD, "eps": eps, **fewer}))
        yield sorted(group, key=lambda variant: variant.settings["method"] != STANDARD)


def _headline(variant: Variant, attacked: Mapping[str, float]) -> dict[str, float]:
    """Headline metrics, of trainings on all images only."""
    method = variant.settings["method"]
    return {f"{method}_{key}": value for key, value in attacked.items()} if variant.place == (method,) else {}


def _compared(tables: Mapping[Variant, Sequence[Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    """What plain and PGD training leave at the clean accuracy of each other way, under all attacks together.

    Plain and PGD training alone, without a further radius between, say too little to read anything off.
    """
    clean, left = {}, {}
    for variant, rows in tables.items():
        # On the very images that met all attacks.
        clean[variant] = next(row["value"] for row in rows if row["split"] == "curve" and row["eps"] == 0)
        left[variant] = {row["eps"]: row for row in rows if row["attack"] == "all" and row["metric"] == "accuracy"}
    known = [variant for variant in tables if variant.known]
    for variant in tables if len(known) > 2 else ():
        for eps, row in left[variant].items():
            found = at_equal_accuracy([(clean[other], left[other][eps]["value"]) for other in known], clean[variant])
            if found is not None and not variant.known:
                yield {**row, "metric": "pgd_at_equal_clean", "value": found, "n": None, "low": None, "high": None}


if __name__ == "__main__":
    run_all.main()
