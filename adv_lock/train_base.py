"""Train the base classifier F on clean data: the network whose mistakes a lock writes into pictures."""

from dataclasses import dataclass

from adv_lock.fitting import FittingOptions, load
from common.runs.record import Run
from common.runs.script import script


@dataclass(kw_only=True)
class Options(FittingOptions):
    """The owner's side: clean pictures and their labels."""


def refusals(options: Options) -> None:
    """What is refused before anything is read."""
    from adv_lock.models.networks import NETWORKS
    from common.training import fit

    fit.check(options, NETWORKS)


@script(app="adv_lock", name="train_base", refusals=refusals)
def train_base(options: Options, run: Run) -> None:
    """Train F and save it as `model.keras`."""
    from adv_lock.models.networks import NETWORKS
    from common.evaluation import predictions
    from common.training import checkpoints, fit

    data = load(options, options.image_size)
    run.data(data.name, data.sha256)
    model, history = fit.fit(
        options,
        run,
        data.x_train,
        data.y_train,
        data.classes,
        lambda model: {"test_accuracy": predictions.accuracy(model, data.x_test, data.y_test, progress=True)},
        title="base classifier",
        seed=options.seed,
        networks=NETWORKS,
    )
    if run.chief:
        checkpoints.save_model(model, run.folder / "model.keras")
        run.artifact("model", run.folder / "model.keras")
    value, n = history[-1]["test_accuracy"], len(data.x_test)
    run.rate("test_accuracy", value, n, model=options.arch, split="test")
    run.metrics(test_accuracy=value, test_accuracy_n=n)


if __name__ == "__main__":
    train_base.main()
