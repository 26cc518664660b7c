"""Harden ST-Siamese or the classifier by adversarial training, and attack it before and after."""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from common.errors import UserError
from common.runs.options import Budget, Count, DeviceOptions, option
from common.runs.record import Run
from common.runs.script import script
from mobility_humid.classification import classification
from mobility_humid.siamese_attack import (
    HEAD,
    Attacker,
    AttackOptions,
    attack_all,
    check_victim,
    load_victim,
    record_bounds,
    victim_needs,
)
from mobility_humid.train import UnseenOptions, load_fleet, train

if TYPE_CHECKING:
    from pathlib import Path

    import keras

    from common.evaluation.robustness import Evaluation, Outcome
    from mobility_humid.data.samples import Fleet
    from mobility_humid.training.tasks import Samples, Task

METHODS = ("fast", "pgd")
# Steps of the attack after every epoch.
_WATCH_STEPS = 10
Evaluations = dict[str, "Evaluation"]
# What trains the model of each task.
PRODUCERS = {"siamese": train, "classification": classification}


@dataclass(kw_only=True)
class Options(AttackOptions, UnseenOptions, DeviceOptions):
    """How a model is hardened, and how it is attacked then."""

    task: Literal["siamese", "classification"] = "siamese"
    """Harden the model of train.py or that of classification.py."""
    methods: tuple[str, ...] = METHODS
    """Fast ST-FGSM (fast), plain PGD adversarial training (pgd), each with --rounds gradients a batch to craft, and
    none, which continues training on clean trips."""
    rounds: Count = 3
    """Gradients a batch takes to craft; the training step takes one more."""
    adv_alpha: Budget | None = None
    """Cells a step in training; by default half of eps."""
    epochs: Count = 3
    """Passes over --n-train samples, from the weights of the model that is hardened."""
    n_train: Count = 1500
    """Samples drawn for each epoch."""
    train_batch_size: Count = 64
    """Samples a training step, over all devices."""
    learning_rate: Budget = 1e-3
    """Highest learning rate of Adam; it decays along a cosine."""
    weight_decay: Budget = 0.0
    """L2 weight decay, in the loss, over all weights."""
    attack: tuple[str, ...] = option(("st_ifgsm_linf", "strong", "noise"), "attacks")
    """Attacks before and after, as in the attack scripts."""
    curve: tuple[Count, ...] = option((), "etas")
    """Further eps for st_ifgsm_linf and noise."""
    n_test: Count = 300
    """Samples to test on, of each part."""
    n_slow: Count = 30
    """Samples of each part for the attacks that take many gradients: L0, CW, APGD and strong."""
    n_watch: Count = 100
    """Validation samples attacked after every epoch; the epoch with the highest mean of clean and attacked accuracy is
    kept."""
    jit_compile: bool = False
    """Compile the training step with XLA; on a CPU it is then slower."""


def refusals(options: Options) -> None:
    """What is refused before trips are read."""
    if unknown := [name for name in options.methods if name not in (*METHODS, "none")]:
        raise UserError(f"--methods: {unknown[0]!r} is none of {', '.join(METHODS)}, none")
    check_victim(options)


def needs(options: Options) -> None:
    """What the scripts before this one would refuse, where they are to be run."""
    victim_needs(options, PRODUCERS[options.task])


@script(app="mobility_humid", name="fast_adversarial_train", refusals=refusals, needs=needs)
def fast_adversarial_train(options: Options, run: Run) -> None:
    """Train on from a model with each method; attack all of them on the same test samples."""
    from common.evaluation import plots
    from mobility_humid.training.tasks import TASKS

    task = TASKS[options.task]
    fleet = load_fleet(options, run.log, sides=task.sides)
    run.data(options.dataset, fleet.trips.sha256)
    model, path = load_victim(options, run, task, PRODUCERS[task.name], fleet)
    parts = {part: task.samples(fleet, part, options.n_test) for part in task.parts}
    # The curves of all methods are written again, also by a resumed run.
    run.curves_until(0)
    found = {"before": _attacked(options, run, fleet, model, parts, "before")}
    for method in options.methods:
        # Always the same model with other weights: its attacks are traced once.
        model.set_weights(_hardened(options, run, fleet, task, path, method, model).get_weights())
        found[method] = _attacked(options, run, fleet, model, parts, method)
        _transfer(options, run, fleet, found["before"], found[method], method)
    for name, when in {"before": "before", options.methods[0]: "after"}.items():
        _headline(options, run, found[name], when, task)
    _differences(options, run, found)
    record_bounds(options, run, fleet, task)
    drawn = {
        "clean": "clean",
        f"ST-iFGSM, {options.eps} cells": HEAD,
        "strong": "strong",
    }
    bars = {}
    for label, attack in drawn.items():
        of = [_joined(evaluations, HEAD if attack == "clean" else attack) for evaluations in found.values()]
        if all(of):
            bars[label] = [outcome.rate(outcome.clean if attack == "clean" else outcome.robust) for outcome in of]
    run.figure(
        "defence", plots.grouped_bars, list(found), bars, title=f"{task.name}: test samples, before and after training"
    )


def _headline(options: Options, run: Run, evaluations: Evaluations, when: str, task: "Task") -> None:
    """Accuracy on all test samples, and on each part, clean and under ST-iFGSM and the strong attack."""
    for part in (None, *task.parts) if len(task.parts) > 1 else (None,):
        ending = when if part is None else f"{when}_{part}"
        head = _joined(evaluations, HEAD, part)
        rates = {"clean_accuracy": (head.clean, head), "attacked_accuracy": (head.robust, head)}
        for name, attack in (("noise_accuracy", "noise"), ("strong_accuracy", "strong")):
            if (outcome := _joined(evaluations, attack, part)) is not None:
                rates[name] = (outcome.robust, outcome)
        run.intervals({f"{name}_{ending}": of.rate(hits) for name, (hits, of) in rates.items()})


def _differences(options: Options, run: Run, found: dict[str, Evaluations]) -> None:
    """Rows for what each method gains and costs against the model before, on the same samples."""
    from common.evaluation.robustness import difference

    for name, evaluations in found.items():
        first = next(iter(evaluations.values()))
        for attack in dict.fromkeys(o.entry.name for o in first.outcomes) if name != "before" else ():
            if (before := _joined(found["before"], attack)) is None:
                continue
            after = _joined(evaluations, attack)
            gains = {
                "attacked_accuracy_gain": difference(after, before),
                "clean_accuracy_gain": difference(after, before, lambda outcome: outcome.clean),
            }
            for metric, gain in gains.items():
                run.row(model=name, attack=attack, eps=options.eps, metric=metric, **gain._asdict())


def _attacked(
    options: Options, run: Run, fleet: "Fleet", model: "keras.Model", parts: "dict[str, Samples]", name: str
) -> Evaluations:
    run.log(f"-- attacking the model {name}")
    return attack_all(options, run, Attacker(options, model, fleet), parts, name)


def _transfer(options: Options, run: Run, fleet: "Fleet", before: Evaluations, after: Evaluations, name: str) -> None:
    """Rows for how the model `name` answers on trips that were moved against the model before: a white-box attack has
    to do better than that."""
    from common.evaluation.robustness import Entry
    from mobility_humid.evaluation.outcomes import measured

    for part, evaluation in after.items():
        moved = before[part].outcome(HEAD, options.eps).x
        outcome = evaluation.show(Entry(name="transfer", eps=options.eps), moved)
        for row in outcome.rows(partial(measured, layout=fleet.layout)):
            run.row(model=name, split=part, **row)


def _hardened(
    options: Options, run: Run, fleet: "Fleet", task: "Task", path: "Path", method: str, stand_in: "keras.Model"
) -> "keras.Model":
    """The model in `path`, trained on by `method`, and saved as `model_<method>.keras`.

    While it trains, `stand_in`, a model like it, is given its weights and attacked in its place.
    """
    from common.training import checkpoints
    from common.training.methods import Method
    from mobility_humid.data.samples import VALIDATION
    from mobility_humid.training import fast_st_fgsm
    from mobility_humid.training.fit import TripRecipe, fit_trips

    grid = fleet.trips.grid.size
    settings = {"eta": options.eps, "alpha": options.adv_alpha or options.eps / 2, "rounds": options.rounds}
    make = {"fast": fast_st_fgsm.fast_st_fgsm, "pgd": fast_st_fgsm.pgd_on_trips}.get(method)
    validation = task.samples(fleet, VALIDATION, options.n_test)
    watched = validation.first(options.n_watch)

    def evaluate(model: "keras.Model") -> dict[str, float]:
        stand_in.set_weights(model.get_weights())
        attacker = Attacker(replace(options, steps=_WATCH_STEPS, alpha=None), stand_in, fleet)
        robust = attacker.evaluation(watched).run(attacker.entry(HEAD)).robust
        measured = {**task.watch(model, validation), "validation_attacked_accuracy": float(robust.mean())}
        both = measured["validation_accuracy"] + measured["validation_attacked_accuracy"]
        return {**measured, "validation_error": 1 - both / 2}

    model, history = fit_trips(
        TripRecipe(
            epochs=options.epochs,
            batch_size=options.train_batch_size,
            n_train=options.n_train,
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            jit_compile=options.jit_compile,
            strategy=options.strategy,
            precision=options.precision,
            seed=options.seed,
        ),
        run,
        lambda: checkpoints.load_model(path),
        fleet.epochs(options.n_train, options.train_batch_size, task.label),
        Method(task.loss, make(fleet.layout, grid, **settings) if make else None),
        evaluate,
        title=f"{method} adversarial training" if make else "training on",
        best="validation_error",
        checkpoints=run.checkpoints / method,
    )
    for epoch, logs in enumerate(history):
        run.curve(method=options.methods.index(method), epoch=epoch + 1, **logs)
    task.calibrate(model, validation)
    run.save_model(model, f"model_{method}")
    return model


def _joined(evaluations: Evaluations, attack: str, part: str | None = None) -> "Outcome | None":
    """The outcomes of one attack, at its first budget, on all parts, or on one, as one; None if it was not run."""
    from common.evaluation.robustness import join

    found = [evaluation.outcome(attack) for of, evaluation in evaluations.items() if part in (None, of)]
    return join(found) if found and found[0] is not None else None


if __name__ == "__main__":
    fast_adversarial_train.main()
