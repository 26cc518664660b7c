"""The whole experiment: base classifier, every lock method, thieves and clean reference, one table."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from adv_lock.class_maps import METHODS
from adv_lock.lock import lock
from adv_lock.train import train
from adv_lock.train_base import train_base
from common.cli import CommonOptions, Natural, Script, run_name, script
from common.errors import UserError
from common.runs import Run, read_table

MEASURED = ("original_accuracy", "original_accuracy_peak", "locked_accuracy", "inverse_map_rate")


@dataclass(kw_only=True)
class Options(CommonOptions):
    """Which methods and seeds; the settings of each script stand in its section of --config."""

    without: ClassVar[tuple[str, ...]] = ("seeds",)

    methods: tuple[str, ...] = METHODS
    """Lock methods to run at --seed; the first one also at --more-seeds."""
    more_seeds: tuple[Natural, ...] = ()
    """Further seeds for the first method, each with a base classifier, lock, thief and reference of its own."""


@script(app="adv_lock", name="run_all")
def run_all(options: Options, run: Run) -> None:
    """Run what is not there yet and join the tables; with --force, run all of it anew."""
    from common import plots

    unknown = set(options.methods) - set(METHODS)
    if unknown or not options.methods:
        given = ", ".join(sorted(unknown)) or "none"
        raise UserError(f"--methods: expected some of {', '.join(METHODS)}, got {given}")
    if options.seed in options.more_seeds:
        raise UserError(f"--more-seeds: {options.seed} is --seed already")
    parts: list[dict] = []
    results = {}
    for seed in (options.seed, *options.more_seeds):
        methods = options.methods if seed == options.seed else options.methods[:1]
        results |= {(method, seed): thief for method, thief in _one_seed(options, run, seed, methods, parts).items()}
    first = options.methods[0]
    run.data(parts[0]["dataset"], parts[0]["data_sha256"])
    for metric in (*MEASURED, "reference_accuracy"):
        values = [thief["metrics"][metric] for (method, _), thief in results.items() if method == first]
        run.metrics(**_mean_and_spread(metric, values), **{f"{metric}_n": parts[0]["metrics"]["test_accuracy_n"]})
    # Of all its parts, whichever process ran them: a resumed run takes seconds itself.
    run.metrics(minutes=sum(part["seconds"] for part in parts) / 60)
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


def _one_seed(options: Options, run: Run, seed: int, methods: tuple[str, ...], parts: list[dict]) -> dict[str, dict]:
    """The thieves' results by method; the results of all that ran for them are added to `parts`."""
    place = f"{run_name(options)}/seed-{seed}"

    def part(producer: Script, name: str, **settings) -> tuple[Path, dict]:
        """A run of another script, its other settings from its section of the config."""
        wanted = producer.options_from(replace(options, name=f"{place}/{name}"), seed=seed, **settings)
        run.say(f"-- {producer.name} {place}/{name}")
        parts.append(producer(replace(wanted, force=options.force, resume=not options.force)))
        return producer.folder(wanted), parts[-1]

    model = part(train_base, "base")[0] / "model.keras"
    thieves, reference = {}, None
    for method in methods:
        source, _ = part(lock, method, model=model, lock_method=method)
        _rows(run, source, seed, method)
        if reference is None:
            reference, _ = part(train, "reference", lock_data=source, train_on="original")
            _rows(run, reference, seed, "original")
        thief, thieves[method] = part(train, method, lock_data=source, reference=reference)
        _rows(run, thief, seed, method)
    return thieves


def _rows(run: Run, folder: Path, seed: int, method: str) -> None:
    for row in read_table(folder):
        run.row(**{**row, "seed": seed, "attack": method})


def _mean_and_spread(metric: str, values: list[float]) -> dict[str, float]:
    import statistics

    spread = {f"{metric}_std": statistics.stdev(values)} if len(values) > 1 else {}
    return {metric: statistics.fmean(values), **spread}


if __name__ == "__main__":
    run_all.main()
