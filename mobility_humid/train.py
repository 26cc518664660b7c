"""Train ST-Siamese: are two days of trips those of the same driver?"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from common.runs.record import Run
from common.runs.script import script
from mobility_humid.data.samples import SEEN, TRAIN, UNSEEN, VALIDATION, Fleet, load_fleet, needs
from mobility_humid.training.fit import FittingOptions, fit, network_arguments, refusals

if TYPE_CHECKING:
    import numpy as np

    from mobility_humid.models.networks import Siamese

# Pairs that the baselines are fitted to: their features have no use for more.
_BASELINE_PAIRS = 4000


@dataclass(kw_only=True)
class Options(FittingOptions):
    """The verifier."""

    head: Literal["concat", "symmetric"] = "symmetric"
    """How two drivers are compared: all their trips side by side, as published, which takes hundreds of thousands of
    pairs to learn; or their mean trips by |a - b| and a * b, the same for both orders."""


@script(app="mobility_humid", name="train", refusals=refusals, needs=needs)
def train(options: Options, run: Run) -> None:
    """Train on pairs of seen drivers, fix the threshold on validation days, test on seen and unseen drivers."""
    from common.evaluation import plots
    from common.training import checkpoints
    from mobility_humid.models.networks import Siamese
    from mobility_humid.training import verification

    fleet = load_fleet(options, run.say, sides=2)
    run.data(options.dataset, fleet.trips.sha256)
    validation = fleet.pairs(VALIDATION, options.n_test)
    x_validation = fleet.samples(validation)

    def build() -> Siamese:
        model = Siamese(head=options.head, **network_arguments(options, fleet))
        verification.meet_fleet(model, fleet)
        return model

    model, history = fit(
        options,
        run,
        build,
        fleet.epochs(options.n_train, options.batch_size, lambda pairs: pairs.same),
        verification.same_driver_loss,
        lambda model: verification.watch(model, x_validation, validation.same),
        title=f"{options.encoder} encoders, {options.head} head",
    )
    verification.fix_threshold(model, x_validation, validation.same)
    _evaluate(options, run, fleet, model, x_validation)
    if run.chief:
        checkpoints.save_model(model, run.folder / "model.keras")
        run.artifact("model", run.folder / "model.keras")
        names = ("accuracy", "validation_accuracy", "validation_auc")
        curves = {name: [epoch[name] for epoch in history] for name in names}
        plots.accuracy_curves(curves, run.folder / "training.png", title="same driver or not")
        run.artifact("training", run.folder / "training.png")


def _evaluate(options: Options, run: Run, fleet: Fleet, model: "Siamese", x_validation: "np.ndarray") -> None:
    """Accuracy, F1 and AUC on seen and unseen drivers, beside those of the baselines on the same pairs."""
    from common.evaluation import predictions, statistics
    from mobility_humid.models import baselines
    from mobility_humid.training import verification

    validation, *tests = (fleet.pairs(part, options.n_test) for part in (VALIDATION, SEEN, UNSEEN))
    scores = {"network": [predictions.outputs(model, x)[:, 0] for x in (x_validation, *map(fleet.samples, tests))]}
    run.say("baselines: heat maps with logistic regression, gradient boosting on whole days")
    fitted = fleet.sampler(TRAIN).pairs(_BASELINE_PAIRS, [options.seed, 99])
    scores["heat_map"] = baselines.heat_map_scores(fleet.trips, fitted, [validation, *tests], progress=True)
    scores["whole_day"] = baselines.whole_day_scores(fleet.trips, fitted, [validation, *tests], progress=True)
    for name, (on_validation, *on_tests) in scores.items():
        # Everyone's threshold is fixed on the same validation pairs; the network has its own inside.
        threshold = 0.0 if name == "network" else statistics.best_threshold(on_validation, validation.same)
        prefix = "" if name == "network" else f"{name}_"
        for part, pairs, found in zip((SEEN, UNSEEN), tests, on_tests, strict=True):
            for metric, measured in verification.quality(found - threshold, pairs).items():
                run.row(model=name, split=part, metric=metric, **measured._asdict())
                run.intervals({f"{prefix}{metric}_{part}": measured})


if __name__ == "__main__":
    train.main()
