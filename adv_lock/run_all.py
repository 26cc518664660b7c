"""The whole experiment: base classifier, every lock method, thieves and clean reference, one table."""

from dataclasses import dataclass, replace
from typing import ClassVar

from adv_lock.lock import lock
from adv_lock.train import train
from adv_lock.train_base import train_base
from common.cli import CommonOptions, Natural, run_name, script
from common.errors import UserError
from common.runs import Run, read_table

METRICS = ("original_accuracy", "original_accuracy_peak", "locked_accuracy", "inverse_map_rate")


@dataclass(kw_only=True)
class Options(CommonOptions):
    """Which methods and seeds; the settings of each script stand in its section of --config."""

    without: ClassVar[tuple[str, ...]] = ("seeds",)

    methods: tuple[str, ...] = ("basic", "mixup", "horiz", "mixandcat")
    """Lock methods to run at --seed; the first one also at --more-seeds."""
    more_seeds: tuple[Natural, ...] = ()
    """Further seeds for the first method, each with a base classifier, lock, thief and reference of its own."""


@script(app="adv_lock", name="run_all")
def run_all(options: Options, run: Run) -> None:
    """Run what is not there yet and join the tables; a finished part is never run again."""
    from common import plots

    unknown = set(options.methods) - {"basic", "mixup", "horiz", "mixandcat"}
    if unknown or not options.methods:
        raise UserError(
            f"--methods: {', '.join(sorted(unknown)) or 'none'}; choose from basic, mixup, horiz, mixandcat"
        )
    if options.seed in options.more_seeds:
        raise UserError(f"--more-seeds: {options.seed} is --seed already")
    results = {}
    for seed in (options.seed, *options.more_seeds):
        methods = options.methods if seed == options.seed else options.methods[:1]
        results |= {(method, seed): thief for method, thief in _one_seed(options, run, seed, methods).items()}
    first = options.methods[0]
    for metric in (*METRICS, "reference_accuracy"):
        values = [thief["metrics"][metric] for (method, _), thief in results.items() if method == first]
        run.metrics(**_mean_and_spread(metric, values))
    bars = {
        name: [results[method, options.seed]["metrics"][metric] for method in options.methods]
        for name, metric in (("original", "original_accuracy"), ("locked", "locked_accuracy"))
    }
    figure = run.folder / "methods.png"
    reference = results[first, options.seed]["metrics"]["reference_accuracy"]
    plots.grouped_bars(
        options.methods, bars, figure, title="test accuracy of the thief", levels={"reference": reference}
    )
    run.artifact("methods", figure)


def _one_seed(options: Options, run: Run, seed: int, methods: tuple[str, ...]) -> dict[str, dict]:
    place = f"{run_name(options)}/seed-{seed}"
    options = replace(options, seed=seed)
    base = _run(train_base, options, run, f"{place}/base", seed)
    model = train_base.folder(base) / "model.keras"
    thieves = {}
    reference = None
    for method in methods:
        locked = _run(lock, options, run, f"{place}/{method}", seed, model=model, lock_method=method)
        source = lock.folder(locked)
        if reference is None:
            clean = {"lock_data": source, "train_on": "original"}
            reference = train.folder(_run(train, options, run, f"{place}/reference", seed, **clean))
            _rows(run, reference, seed, "original", ("original_accuracy", "transfer_success"))
        thief = _run(train, options, run, f"{place}/{method}", seed, lock_data=source, reference=reference)
        _rows(run, source, seed, method, None)
        _rows(run, train.folder(thief), seed, method, None)
        thieves[method] = train(thief)
    return thieves


def _run(producer, options: Options, run: Run, name: str, seed: int, **settings):
    """The producer's options, after its run is there; their other settings come from its section of the config."""
    wanted = producer.options_from(replace(options, name=name), seed=seed, **settings)
    run.say(f"-- {producer.name} {name}")
    producer(replace(wanted, resume=True))
    return wanted


def _rows(run: Run, folder, seed: int, method: str, metrics: tuple[str, ...] | None) -> None:
    for row in read_table(folder):
        if metrics is None or row["metric"] in metrics:
            run.row(**{**row, "seed": seed, "attack": method})


def _mean_and_spread(metric: str, values: list[float]) -> dict[str, float]:
    import statistics

    spread = {f"{metric}_std": statistics.stdev(values)} if len(values) > 1 else {}
    return {metric: statistics.fmean(values), **spread}


if __name__ == "__main__":
    run_all.main()
