"""Adversarial training side by side: every method of adversarial_training.py with the same recipe, one table."""

from dataclasses import dataclass
from typing import ClassVar, get_args

from benchmarks.adversarial_training import MethodName, adversarial_training
from common.runs.options import CommonOptions
from common.runs.record import Run, read_curves, read_table
from common.runs.script import Parts, part_options, script

ATTACKS = ("clean", "fgsm", "pgd20", "strong")


@dataclass(kw_only=True)
class Options(CommonOptions):
    """The recipe stands in the section adversarial_training of --config."""

    without: ClassVar[tuple[str, ...]] = ("seeds",)

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

    part = Parts(options, run)
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
    if run.chief:
        bars = {attack: [result["metrics"][attack] for result in results.values()] for attack in ATTACKS}
        figure = run.folder / "methods.png"
        plots.grouped_bars(list(results), bars, figure, title="test accuracy after training by each method")
        run.artifact("methods", figure)
        figure = run.folder / "under_attack.png"
        plots.accuracy_curves(curves, figure, title="test accuracy under PGD-10, by epoch")
        run.artifact("under_attack", figure)


if __name__ == "__main__":
    compare_training.main()
