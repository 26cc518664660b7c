"""Adversarial training side by side: every method of adversarial_training.py with the same recipe, one table."""

from dataclasses import dataclass
from typing import get_args

from benchmarks.adversarial_training import MethodName, adversarial_training
from common.evaluation.statistics import Estimate, independent
from common.runs.options import DataOptions, DeviceOptions, ExampleOptions, RunOptions
from common.runs.record import Run, read_curves, read_table
from common.runs.script import script
from common.runs.sub_runs import SubRuns, part_options

ATTACKS = ("clean", "fgsm", "pgd20", "strong")


@dataclass(kw_only=True)
class Options(DeviceOptions, ExampleOptions, DataOptions, RunOptions):
    """The recipe is in the section adversarial_training of --config."""

    methods: tuple[MethodName, ...] = get_args(MethodName)
    """Methods to train with."""


def refusals(options: Options) -> None:
    """What is refused before anything is trained."""
    for method in options.methods:
        adversarial_training.check(part_options(options, adversarial_training, method, method=method), alone=True)


@script(app="benchmarks", name="compare_training", refusals=refusals)
def compare_training(options: Options, run: Run) -> None:
    """Train what is not there yet and join the tables."""
    from common.evaluation import plots

    part = SubRuns(options, run)
    results, curves = {}, {}
    for method in options.methods:
        folder = part(adversarial_training, method, method=method)
        results[method] = part.results[-1]
        for row in read_table(folder):
            run.row(**row)
        curves[method] = [epoch["test_accuracy_pgd10"] for epoch in read_curves(folder)]
    first = results[options.methods[0]]
    run.data(first["dataset"], first["data_sha256"])
    for method, result in results.items():
        for attack in ATTACKS:
            figures = {"": result["metrics"][attack], "_n": result["metrics"][f"{attack}_n"]}
            run.metrics(**{f"{method}_{attack}{end}": value for end, value in figures.items()})
    bars = {attack: [_estimate(result["metrics"], attack) for result in results.values()] for attack in ATTACKS}
    watched = dict.fromkeys(curves, min(first["config"]["n_watch"], first["metrics"]["clean_n"]))
    run.figure("methods", plots.grouped_bars, list(results), bars, title="test accuracy after training by each method")
    run.figure("under_attack", plots.accuracy_curves, curves, title="test accuracy under PGD-10, by epoch", n=watched)


def _estimate(metrics: dict, key: str) -> Estimate:
    value, n = metrics[key], metrics[f"{key}_n"]
    return independent(value, n)


if __name__ == "__main__":
    compare_training.main()
