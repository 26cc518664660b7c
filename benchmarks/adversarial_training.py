"""Train an image classifier, plainly or adversarially, and attack it: PGD-20, and a stronger union of attacks."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from common.runs.options import Budget, Count, DataOptions, ExampleOptions, LinfBudget, ScriptOptions, option
from common.runs.record import Run
from common.runs.script import script
from common.runs.training_options import FittingOptions

if TYPE_CHECKING:
    import keras

    from common.datasets import Arrays

MethodName = Literal["standard", "fast", "pgd", "trades"]


@dataclass(kw_only=True)
class Options(FittingOptions, ExampleOptions, DataOptions, ScriptOptions):
    """One method; budgets are L-inf, in [0, 1]."""

    method: MethodName = "pgd"
    """Plain training, one step from a random start (Wong 2020), PGD (Madry 2018) or TRADES (Zhang 2019)."""
    eps: LinfBudget = 8 / 255
    """Budget, in training and in the evaluation."""
    alpha: LinfBudget = 2 / 255
    """Step of pgd and trades; that of fast is 1.25 x eps."""
    steps: Count = option(7, "attack_steps")
    """Steps of pgd and trades."""
    beta: Budget = 6.0
    """Weight of the divergence in trades."""
    n_watch: Count = 250
    """Test images attacked by PGD-10 after every epoch, to see single-step training fail; never used to choose."""
    n_slow: Count = option(1000, "n_strong")
    """Test images for the stronger attack, the first of them."""


def refusals(options: Options) -> None:
    """What is refused before anything is read."""
    from common.training import fit

    fit.check(options.recipe)


@script(app="benchmarks", name="adversarial_training", refusals=refusals)
def adversarial_training(options: Options, run: Run) -> None:
    """Train by one method, save `model.keras`, and measure accuracy on clean and attacked test images."""
    from common import datasets
    from common.evaluation import plots, predictions, robustness
    from common.training import fit
    from common.training.methods import make_method

    data = datasets.load(
        options.dataset,
        data_dir=options.data_dir,
        seed=options.seed,
        n_train=options.n_train,
        n_test=options.n_test,
    )
    run.data(data.name, data.sha256)
    x_test = data.x_test.astype("float32") / 255.0

    def evaluate(model: "keras.Model") -> dict[str, float]:
        watched = slice(options.n_watch)
        attack = _pgd(options, model, steps=10)
        kept = robustness.robustness(model, x_test[watched], data.y_test[watched], attack, progress=True)
        return {
            "test_accuracy": predictions.accuracy(model, data.x_test, data.y_test, progress=True),
            "test_accuracy_pgd10": float(kept.robust.mean()),
        }

    model, history = fit.fit(
        options.recipe,
        run,
        data.x_train,
        data.y_train,
        data.classes,
        evaluate,
        title=f"{options.method} training",
        seed=options.seed,
        method=make_method(
            options.method, eps=options.eps, alpha=options.alpha, steps=options.steps, beta=options.beta
        ),
    )
    run.save_model(model)
    curves = {name: [epoch[name] for epoch in history] for name in history[0] if name.startswith("test_accuracy")}
    watched = min(options.n_watch, len(data.y_test))
    n = {name: len(data.y_test) if name == "test_accuracy" else watched for name in curves}
    run.figure("accuracy", plots.accuracy_curves, curves, title=f"{options.arch}, {options.method} training", n=n)
    _attack(options, run, model, data, x_test)


def _pgd(options: Options, model: "keras.Model", **settings):
    from functools import partial

    from common.attacks import pgd

    settings = {"eps": options.eps, "alpha": 2 / 255, "seed": options.seed, **settings}
    return partial(pgd, model, **settings)


def _attack(options: Options, run: Run, model: "keras.Model", data: "Arrays", x_test) -> None:
    from functools import partial

    import numpy as np

    from common.attacks import fgsm
    from common.evaluation import predictions, robustness

    y = data.y_test

    def measure(name: str, kept: np.ndarray) -> None:
        columns = {"model": options.method, "attack": name, "norm": "linf", "eps": options.eps, "split": "test"}
        run.headline(name, float(kept.mean()), len(kept), **columns)

    def robust(rows: np.ndarray, attack, title: str) -> np.ndarray:
        run.log(f"{title}, {len(rows)} images")
        return robustness.robustness(model, x_test[rows], y[rows], attack, progress=True).robust

    every = np.arange(len(y))
    measure("clean", predictions.predict(model, data.x_test, progress=True) == y)
    measure("fgsm", robust(every, partial(fgsm, model, eps=options.eps), "FGSM"))
    measure("pgd20", robust(every, _pgd(options, model, steps=20), "PGD-20"))
    # Cross-entropy is blind where the logits are far apart, the margin is not: an example has to withstand both.
    standing = np.ones(min(options.n_slow, len(y)), bool)
    for loss in ("ce", "margin"):
        rows = np.flatnonzero(standing)
        attack = _pgd(options, model, steps=50, restarts=5, stop=True, loss=loss)
        standing[rows] = robust(rows, attack, f"PGD-50, 5 restarts, {loss}")
    measure("strong", standing)


if __name__ == "__main__":
    adversarial_training.main()
