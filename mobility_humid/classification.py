"""Train the driver classifier: which of a few drivers made these trips?"""

from dataclasses import dataclass

from common.runs.options import Budget, Count
from common.runs.record import Run
from common.runs.script import script
from mobility_humid.train import FittingOptions, load_fleet, needs, network_arguments, refusals

# Samples a driver that the baselines are fitted to.
_BASELINE_SAMPLES = 100


@dataclass(kw_only=True)
class Options(FittingOptions):
    """The classifier."""

    num_plates: int | None = 10
    """Number of drivers to tell apart, the first ones; null takes all."""
    epochs: Count = 12
    """Passes over --n-train samples."""
    dropout: Budget = 0.5
    """Dropout in front of the head, in [0, 1)."""


@script(app="mobility_humid", name="classification", refusals=refusals, needs=needs)
def classification(options: Options, run: Run) -> None:
    """Train on the trips of a few drivers, test on later days of theirs."""
    import numpy as np

    from common.evaluation import plots, predictions, statistics
    from common.training.methods import standard_training
    from mobility_humid.data.samples import TEST, TRAIN, VALIDATION
    from mobility_humid.models import baselines
    from mobility_humid.models.networks import Classifier
    from mobility_humid.training.fit import fit_trips
    from mobility_humid.training.tasks import watch_names

    fleet = load_fleet(options, run.log, sides=1)
    run.data(options.dataset, fleet.trips.sha256)
    classes = len(fleet.trips.drivers)
    validation, test = (fleet.singles(part, options.n_test) for part in (VALIDATION, TEST))
    x_validation = fleet.samples(validation)
    model, history = fit_trips(
        options.recipe,
        run,
        lambda: Classifier(classes=classes, **network_arguments(options, fleet)),
        fleet.epochs(options.n_train, options.batch_size, lambda drawn: drawn.driver),
        standard_training(),
        lambda model: watch_names(model, x_validation, validation.driver),
        title=f"{options.encoder} encoder, {classes} drivers",
    )
    answers = {"network": predictions.predict(model, fleet.samples(test))}
    run.log("baselines: heat maps with logistic regression, trees on whole days")
    fitted = fleet.sampler(TRAIN).singles(_BASELINE_SAMPLES * classes, [options.seed, 99])
    (answers["heat_map"],) = baselines.heat_map_names(fleet.trips, fitted, [test])
    (answers["whole_day"],) = baselines.whole_day_names(fleet.trips, fitted, [test], progress=True)
    for name, answer in answers.items():
        rate = statistics.rate(answer == test.driver, test.driver)
        run.row(model=name, split=TEST, metric="accuracy", **rate._asdict())
        run.intervals({"accuracy" if name == "network" else f"{name}_accuracy": rate})
    run.metrics(
        chance=1 / classes,
        worst_driver=min(np.mean((answers["network"] == d)[test.driver == d]) for d in np.unique(test.driver)),
    )
    run.save_model(model)
    curves = {name: [epoch[name] for epoch in history] for name in ("accuracy", "validation_accuracy")}
    n = {"accuracy": options.n_train, "validation_accuracy": len(validation.driver)}
    run.figure("training", plots.accuracy_curves, curves, title=f"which of {classes} drivers", n=n, dependent=True)


if __name__ == "__main__":
    classification.main()
