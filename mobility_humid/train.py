"""Train the driver verifier ST-Siamese: do two days of trips belong to the same driver?"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from common.errors import UserError
from common.runs.options import Budget, Count, DataOptions, DeviceOptions, Natural, RunOptions, ScriptOptions, option
from common.runs.record import Run
from common.runs.script import script
from mobility_humid.prepare import prepare

if TYPE_CHECKING:
    import numpy as np

    from mobility_humid.data.samples import Fleet, Sampling
    from mobility_humid.models.networks import Siamese
    from mobility_humid.training.fit import TripRecipe

# Pairs that the baselines are fitted to: their features have no use for more.
_BASELINE_PAIRS = 4000


@dataclass(kw_only=True)
class SampleOptions(DataOptions, RunOptions):
    """Drivers, days, and trips in a sample."""

    dataset: str = option("city", "data_path")
    """Trips: city, trips that prepare.py wrote (.npz), or whatever prepare.py reads, which is then prepared first."""
    traj_type: Literal["seek", "serve", "all"] = "all"
    """Trips without a passenger, with one, or all of them; of a fleet that does not say which, all."""
    with_speed: bool = False
    """Give the networks the speed too, as a fourth feature of each point."""
    with_profile: bool = False
    """Give the networks the 11 profile features of a driver's day too."""
    num_plates: Count | None = None
    """Number of drivers, seen and unseen together, the first ones; null takes all."""
    num_days: Count | None = None
    """Days to train on, the first ones; null takes all that validation and test leave."""
    num_trajs: Count = 10
    """Trips of a driver in a sample, of all kinds together."""
    days_per_sample: Count = 1
    """Days that a driver's trips in a sample come from; the two sides of a pair share none."""
    missing_trips: bool = False
    """Take days with fewer trips than a sample holds too: the places of missing trips stay empty."""
    padding_length: Count = 30
    """Points of a trip, the last ones; shorter trips have zeros in front."""
    validation_days: Count = 2
    """Days to validate on, those before the test days."""
    test_days: Count = 3
    """Days to test on, the last ones."""
    n_test: Count = 500
    """Samples to test on, of each part."""

    @property
    def sampling(self) -> "Sampling":
        """The same for the library."""
        from mobility_humid.data.samples import Sampling

        # A classifier has no unseen drivers, and no option for their share.
        left_out = () if isinstance(self, UnseenOptions) else UnseenOptions.__annotations__
        return Sampling(**{f.name: getattr(self, f.name) for f in fields(Sampling) if f.name not in left_out})


@dataclass(kw_only=True)
class UnseenOptions:
    """Which drivers a verifier is tested on that it was not trained on."""

    unseen_share: Budget = 0.25
    """Share of the drivers that are held out from training."""
    fold: Natural = 0
    """Which of them: of a quarter there are four disjoint groups, 0 to 3."""


@dataclass(kw_only=True)
class FoldsOptions(UnseenOptions):
    """Several groups of drivers in turn, so that a figure is over many."""

    folds: Count = 1
    """Disjoint groups of unseen drivers, each with a model of its own, from --fold on."""

    @property
    def each(self) -> list["FoldsOptions"]:
        """The options of each of them."""
        return [replace(self, fold=self.fold + number) for number in range(self.folds)]


SAMPLE_FIELDS = (
    "dataset",
    "seed",
    *(name for name in SampleOptions.__annotations__ if name not in ("dataset", "n_test")),
    *UnseenOptions.__annotations__,
)
"""What must be the same in a training and in an attack on its model."""


@dataclass(kw_only=True)
class FittingOptions(SampleOptions, DeviceOptions, ScriptOptions):
    """How a network is trained."""

    encoder: Literal["lstm", "places", "ways"] = "lstm"
    """What reads the trips: two LSTM layers, as published, or what suits many trips a sample, a map of where and when
    time was spent (places), or seven maps of squares: of all points, of where trips begin, and end, and of where they
    go east, west, north and south (ways)."""
    units: tuple[Count, ...] = (64, 48, 32)
    """Units of the encoder's LSTM, LSTM and dense layer; 200,100,48 in the paper."""
    place_spacing: Budget = 4.0
    """Cells between two places (encoders places and ways)."""
    dropout: Budget = 0.0
    """Dropout in front of the head, in [0, 1)."""
    epochs: Count = 8
    """Passes over --n-train samples."""
    batch_size: Count = 64
    """Samples a step, over all devices."""
    n_train: Count = 4000
    """Samples drawn for each epoch."""
    learning_rate: Budget = 3e-3
    """Highest learning rate of Adam; it decays along a cosine."""
    weight_decay: Budget = 0.0
    """L2 weight decay, in the loss, over all weights."""
    jit_compile: bool = False
    """Compile the training step with XLA; on a CPU it is then slower."""

    @property
    def recipe(self) -> "TripRecipe":
        """The same for the library."""
        from mobility_humid.training.fit import TripRecipe

        # All but the schedule, which is always the recipe's own.
        names = [f.name for f in fields(TripRecipe) if f.name not in ("lr_schedule", "lr_epochs", "warmup_epochs")]
        return TripRecipe(**{name: getattr(self, name) for name in names})


@dataclass(kw_only=True)
class Options(FittingOptions, FoldsOptions):
    """The verifier."""

    head: Literal["concat", "symmetric", "linear"] = "symmetric"
    """How two drivers are compared: all their trips concatenated, as published, which takes hundreds of thousands of
    pairs to learn; or, symmetric in both, by |a - b| and a * b of their mean trips, or how alike their maps are, with
    hidden layers (symmetric) or none (linear)."""


def check_samples(options: SampleOptions) -> None:
    """Refuse what can be refused before trips are read or prepared. Errors: as `samples.check_samples`."""
    from mobility_humid.data import samples

    samples.check_samples(options.sampling)


def refusals(options: FittingOptions) -> None:
    """What is refused before trips are read or prepared."""
    check_samples(options)
    _check_network(options)


def _check_network(options: FittingOptions) -> None:
    if len(options.units) != 3:
        raise UserError(f"--units: expected three numbers, for LSTM, LSTM and dense layer; got {len(options.units)}")
    if not options.dropout < 1:
        raise UserError(f"--dropout: must be below 1; got {options.dropout}")
    if not options.place_spacing > 0:
        raise UserError(f"--place-spacing: must be above 0; got {options.place_spacing}")


def needs(options: SampleOptions) -> None:
    """What prepare.py would refuse, where it is to be run."""
    if Path(options.dataset).suffix != ".npz":
        prepare.expect(None, options)


def trips_file(options: SampleOptions, log: Callable[[str], None]) -> Path:
    """The file of trips that `options` name, made by prepare.py if need be."""
    path = Path(options.dataset)
    if path.suffix == ".npz":
        return path
    return prepare.require(None, options, log=log) / "trips.npz"


def load_fleet(options: SampleOptions, log: Callable[[str], None], *, sides: int) -> "Fleet":
    """The fleet that `options` name, prepared first if need be; samples have `sides` drivers, 1 or 2.

    Errors: `UserError` for a data set that cannot be read, or that lacks drivers, days, kinds of trips or profiles.
    """
    from mobility_humid.data.samples import fleet_of
    from mobility_humid.data.trips import load_trips

    return fleet_of(load_trips(trips_file(options, log)), options.sampling, sides=sides, name=options.dataset)


def network_arguments(options: FittingOptions, fleet: "Fleet") -> dict[str, Any]:
    """Arguments that both networks take. Errors: `UserError` for a network that cannot be."""
    from mobility_humid.data.trips import world_of

    _check_network(options)
    return {
        "layout": fleet.layout,
        "grid": fleet.trips.grid.size,
        "encoder": options.encoder,
        "units": options.units,
        "place_spacing": options.place_spacing,
        "dropout": options.dropout,
        "profile_scale": fleet.profile_scale() if options.with_profile else (),
        "seed": options.seed,
        "world": world_of(fleet.trips),
    }


class Scored(NamedTuple):
    """Of one fold and part: the pairs' scores by model, above 0 for the same driver, float (n,) each; `same` (n,) and
    `driver` (n, 2)."""

    scores: dict[str, "np.ndarray"]
    same: "np.ndarray"
    driver: "np.ndarray"


@script(app="mobility_humid", name="train", refusals=refusals, needs=needs, columns=("fold",))
def train(options: Options, run: Run) -> None:
    """Train on pairs of seen drivers, fix the threshold on validation days, test on seen and unseen drivers."""
    from common.evaluation import plots

    scored: dict[str, list[Scored]] = {}
    for own in options.each:
        history = _train_one(own, run, scored)
    _record(run, scored, options.fold)
    if options.folds == 1:
        names = ("accuracy", "validation_accuracy", "validation_auc")
        curves = {name: [epoch[name] for epoch in history] for name in names}
        n = {"accuracy": options.n_train} | dict.fromkeys(names[1:], options.n_test)
        run.figure("training", plots.accuracy_curves, curves, title="same driver or not", n=n, dependent=True)


def _train_one(options: Options, run: Run, scored: dict[str, list[Scored]]) -> list[dict[str, float]]:
    """Train on the seen drivers of one fold, and score the test pairs; the history."""
    from common.training.methods import Method
    from mobility_humid.data.samples import VALIDATION
    from mobility_humid.models.networks import Siamese
    from mobility_humid.training import verification
    from mobility_humid.training.fit import fit_trips

    fleet = load_fleet(options, run.log, sides=2)
    run.data(options.dataset, fleet.trips.sha256)
    validation = fleet.pairs(VALIDATION, options.n_test)
    x_validation = fleet.samples(validation)

    def build() -> Siamese:
        model = Siamese(head=options.head, **network_arguments(options, fleet))
        verification.adapt_likeness(model, fleet)
        return model

    of_fold = f"_fold{options.fold}" if options.folds > 1 else ""
    model, history = fit_trips(
        options.recipe,
        run,
        build,
        fleet.epochs(options.n_train, options.batch_size, lambda pairs: pairs.same),
        Method(verification.same_driver_loss),
        lambda model: verification.watch(model, x_validation, validation.same),
        title=f"{options.encoder} encoders, {options.head} head" + (f", fold {options.fold}" if of_fold else ""),
        checkpoints=run.checkpoints / f"fold{options.fold}" if of_fold else None,
    )
    verification.fix_threshold(model, x_validation, validation.same)
    run.save_model(model, f"model{of_fold}")
    _score(options, run, fleet, model, x_validation, scored)
    return history


def _score(
    options: Options,
    run: Run,
    fleet: "Fleet",
    model: "Siamese",
    x_validation: "np.ndarray",
    scored: dict[str, list[Scored]],
) -> None:
    """Scores of pairs of seen and unseen drivers, of the network and of the baselines."""
    from common.evaluation import predictions, statistics
    from mobility_humid.data.samples import SEEN, TRAIN, UNSEEN, VALIDATION
    from mobility_humid.models import baselines

    drawn = {part: fleet.pairs(part, options.n_test) for part in (VALIDATION, SEEN, UNSEEN)}
    validation, *tests = drawn.values()
    found = {"network": [predictions.outputs(model, x)[:, 0] for x in (x_validation, *map(fleet.samples, tests))]}
    run.log("baselines: heat maps with logistic regression, gradient boosting on whole days")
    fitted = fleet.sampler(TRAIN).pairs(_BASELINE_PAIRS, [options.seed, 99])
    found["heat_map"] = baselines.heat_map_scores(fleet.trips, fitted, [validation, *tests], progress=True)
    found["whole_day"] = baselines.whole_day_scores(fleet.trips, fitted, [validation, *tests], progress=True)
    # Everyone's threshold is fixed on the same validation pairs; the network has its own inside.
    for name, scores in found.items():
        if name != "network":
            threshold = statistics.best_threshold(scores[0], validation.same)
            found[name] = [of - threshold for of in scores]
    for place, (part, pairs) in enumerate(drawn.items()):
        if part != VALIDATION:
            of_part = {name: scores[place] for name, scores in found.items()}
            scored.setdefault(part, []).append(Scored(of_part, pairs.same, pairs.driver))


def _record(run: Run, scored: dict[str, list[Scored]], first_fold: int) -> None:
    """Accuracy, F1 and AUC, means over the folds, of all models; the network's less each baseline's, on the same
    pairs; and of each fold alone."""
    from mobility_humid.training import verification

    for part, folds in scored.items():
        same, drivers = [fold.same for fold in folds], [fold.driver for fold in folds]
        network = [fold.scores["network"] for fold in folds]
        for name in folds[0].scores:
            own = [fold.scores[name] for fold in folds]
            prefix = "" if name == "network" else f"{name}_"
            for metric, measured in verification.quality(own, same, drivers).items():
                run.row(model=name, split=part, metric=metric, **measured._asdict())
                run.intervals({f"{prefix}{metric}_{part}": measured})
            if name != "network":
                for metric, measured in verification.quality(network, same, drivers, less=own).items():
                    metric = f"{metric}_less_{name}"
                    run.row(model="network", split=part, metric=metric, **measured._asdict())
                    run.intervals({f"{metric}_{part}": measured})
            for number, fold in enumerate(folds if len(folds) > 1 else []):
                alone = verification.quality([fold.scores[name]], [fold.same], [fold.driver])
                for metric, measured in alone.items():
                    row = {"model": name, "split": part, "metric": metric, "fold": first_fold + number}
                    run.row(**row, **measured._asdict())


if __name__ == "__main__":
    train.main()
