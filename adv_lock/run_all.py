"""The whole experiment: base classifier, locks, models trained on locked images, clean reference, one table."""

from dataclasses import dataclass
from pathlib import Path

from adv_lock.attacks.class_maps import METHODS, Method
from adv_lock.lock import lock
from adv_lock.train import train
from adv_lock.train_base import train_base
from common.errors import UserError
from common.evaluation.statistics import independent
from common.runs.options import DataOptions, DeviceOptions, ExampleOptions, Natural, RunOptions
from common.runs.record import Run, read_table
from common.runs.script import script
from common.runs.sub_runs import SubRuns, part_options

MEASURED = ("original_accuracy", "original_accuracy_peak", "locked_accuracy", "inverse_map_rate")


@dataclass(kw_only=True)
class Options(DeviceOptions, ExampleOptions, DataOptions, RunOptions):
    """Which methods and seeds; the settings of each script are in its section of --config."""

    methods: tuple[Method, ...] = METHODS
    """Lock methods to run at --seed; the first one also at --more-seeds."""
    more_seeds: tuple[Natural, ...] = ()
    """Further seeds for the first method, each with its own base classifier, lock, trained model and reference."""


def refusals(options: Options) -> None:
    """What is refused before anything is trained."""
    if options.seed in options.more_seeds:
        raise UserError(f"--more-seeds: {options.seed} is --seed already")
    for producer, settings in (
        (train_base, {}),
        *((lock, {"lock_method": method}) for method in options.methods),
        (train, {}),
    ):
        producer.check(part_options(options, producer, **settings), alone=True)


@script(app="adv_lock", name="run_all", refusals=refusals)
def run_all(options: Options, run: Run) -> None:
    """Run what is missing and join the tables; with --force, run all of it again."""
    from common.evaluation import plots

    part = SubRuns(options, run)
    results = {}
    for seed in (options.seed, *options.more_seeds):
        methods = options.methods if seed == options.seed else options.methods[:1]
        results |= {(method, seed): trained for method, trained in _one_seed(part, seed, methods).items()}
    first = options.methods[0]
    base = part.results[0]
    tested = base["metrics"]["test_accuracy_n"]
    run.data(base["dataset"], base["data_sha256"])
    for metric in (*MEASURED, "reference_accuracy"):
        values = [trained["metrics"][metric] for (method, _), trained in results.items() if method == first]
        run.metrics(**_mean_and_spread(metric, values), **{f"{metric}_n": tested})
    run.metrics(minutes=part.minutes)
    bars = {
        name: [independent(results[method, options.seed]["metrics"][metric], tested) for method in options.methods]
        for name, metric in (("original", "original_accuracy"), ("locked", "locked_accuracy"))
    }
    reference = independent(results[first, options.seed]["metrics"]["reference_accuracy"], tested)
    title, levels = f"trained on locked images, seed {options.seed}", {"reference": reference}
    run.figure("methods", plots.grouped_bars, options.methods, bars, title=title, levels=levels)


def _one_seed(part: SubRuns, seed: int, methods: tuple[str, ...]) -> dict[str, dict]:
    """Results of the models trained on locked images, by method; rows of the table."""
    place = f"seed-{seed}"
    model = part(train_base, place, "base", seed=seed) / "model.keras"
    trained_models, reference = {}, None
    for method in methods:
        source = part(lock, place, method, seed=seed, model=model, lock_method=method)
        _rows(part.run, source, seed, method)
        if reference is None:
            reference = part(train, place, "reference", seed=seed, lock_data=source, train_on="original")
            _rows(part.run, reference, seed, "original")
        trained = part(train, place, method, seed=seed, lock_data=source, reference=reference)
        trained_models[method] = part.results[-1]
        _rows(part.run, trained, seed, method)
    return trained_models


def _rows(run: Run, folder: Path, seed: int, method: str) -> None:
    for row in read_table(folder):
        run.row(**{**row, "seed": seed, "attack": method})


def _mean_and_spread(metric: str, values: list[float]) -> dict[str, float]:
    import statistics

    spread = {f"{metric}_std": statistics.stdev(values)} if len(values) > 1 else {}
    return {metric: statistics.fmean(values), **spread}


if __name__ == "__main__":
    run_all.main()
