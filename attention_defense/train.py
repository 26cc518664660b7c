"""Train a classifier: standard, adversarial, or by AAD, which also rectifies and preserves its attention."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from common.errors import UserError
from common.runs.options import (
    Budget,
    Count,
    DataOptions,
    ExampleOptions,
    LinfBudget,
    Natural,
    RunOptions,
    ScriptOptions,
    option,
)
from common.runs.record import Run
from common.runs.script import script
from common.runs.training_options import FittingOptions

if TYPE_CHECKING:
    import keras
    import numpy as np

    from common.datasets import Arrays
    from common.training.methods import Method

MethodName = Literal["standard", "step_ll", "fast", "pgd", "trades", "aad", "aad_two_step", "aad_iou"]
# Images on which the terms' gradients are measured after every epoch.
_MEASURED = 64


# What an attack, an analysis and an explanation must have in common with the training of their model.
IMAGE_FIELDS = ("dataset", "seed", "image_size")


@dataclass(kw_only=True)
class ImageOptions(DataOptions, RunOptions):
    """Which images."""

    image_size: Count | None = None
    """Side, in pixels, to which the images of a folder are scaled, and at which scenes are drawn."""


@dataclass(kw_only=True)
class Options(ImageOptions, FittingOptions, ExampleOptions, ScriptOptions):
    """The network and how it is defended."""

    arch: str = "small_cnn"
    """Network: small_cnn, cifarnet, cifarnet_bn, resnet18, resnet20, resnet50, ..., or
    efficientnet_lite0, which begins with ImageNet weights."""
    method: MethodName = "aad"
    """Standard training; on Step-LL, fast FGSM or PGD examples; TRADES; AAD, with a second step, or attacking while the
    attention overlaps."""
    eps: LinfBudget = 8 / 255
    """Radius of the training examples (L-inf), in [0, 1]."""
    steps: Count = option(4, "pgd_steps")
    """Steps of PGD and TRADES, of 2 x radius / steps each; 4 cost about as many passes as AAD."""
    trades_beta: Budget = 6.0
    """Weight of the divergence of TRADES."""
    alpha: Budget = 8.0
    """Weight of classification in AAD."""
    beta: Budget = 4.0
    """Weight of rectification in AAD."""
    gamma: Budget = 1.0
    """Weight of preservation in AAD, of maps of mean 1; see the README for the original's."""
    sharpness: Budget = 10.0
    """Slope of the soft mask that occludes the attended area."""
    iou_key: Budget = 0.2
    """aad_iou: an image is attacked further while the IoU of its attended areas is above this."""
    iou_steps: Count = 5
    """aad_iou: most steps."""
    layer: str | None = None
    """Layer whose attention is trained; by default the last with a map of at least 7 x 7 cells."""
    n_validation: Natural = 200
    """Training images held out to measure the accuracy under PGD-10 after every epoch; not used for model selection."""
    epochs: Count = 8
    """Passes over the training images."""
    learning_rate: Budget = 0.1
    """Highest learning rate."""
    batch_size: Count = 64
    """Images a step, over all devices."""


def refusals(options: Options) -> None:
    """What is refused before anything is read."""
    from attention_defense.models.networks import NETWORKS
    from common.training import fit

    _check(options)
    fit.check(options.recipe, NETWORKS)


@script(app="attention_defense", name="train", refusals=refusals)
def train(options: Options, run: Run) -> None:
    """Train, watch the accuracy under PGD, save `model.keras`."""
    from attention_defense.models.grad_cam import Attention
    from attention_defense.models.networks import NETWORKS
    from attention_defense.training import defence
    from common.evaluation import plots, predictions
    from common.models import build
    from common.training import fit

    data = load(options, run, n_train=options.n_train, n_test=options.n_test)
    count = min(options.n_validation, len(data.x_train) // 2)
    held, kept = slice(len(data.x_train) - count, None), slice(len(data.x_train) - count)
    watched = data.x_train[held], data.y_train[held]
    method = _method(options)
    if options.method in defence.ATTENTIVE:
        # A layer that is none is refused before anything is trained.
        Attention(build(options.arch, data.x_train.shape[1:], data.classes, networks=NETWORKS), options.layer)

    def evaluate(model: "keras.Model") -> dict[str, float]:
        found = {"test_accuracy": predictions.accuracy(model, data.x_test, data.y_test, progress=True)}
        if count:
            found["validation_pgd"] = _under_pgd(options, model, *watched)
        if options.method in defence.ATTENTIVE:
            found |= _gradient_norms(model, method, data.x_train[:_MEASURED], data.y_train[:_MEASURED])
        return found

    model, history = fit.fit(
        options.recipe,
        run,
        data.x_train[kept],
        data.y_train[kept],
        data.classes,
        evaluate,
        title=options.method,
        seed=options.seed,
        method=method,
        networks=NETWORKS,
    )
    last = history[-1]
    run.headline("clean_accuracy", last["test_accuracy"], len(data.y_test), model=options.method, split="test")
    if count:
        columns = {"model": options.method, "attack": "pgd10", "split": "validation"}
        run.headline("accuracy", last["validation_pgd"], count, key="validation_pgd", **columns)
    run.metrics(**{name: value for name, value in last.items() if name.startswith("gradient_norm_")})
    run.save_model(model)
    names = [name for name in ("accuracy", "test_accuracy", "validation_pgd") if name in last]
    curves = {name.replace("_", " "): [epoch[name] for epoch in history] for name in names}
    n = {"accuracy": len(data.x_train) - count, "test accuracy": len(data.y_test), "validation pgd": count}
    run.figure("training", plots.accuracy_curves, curves, title=f"{options.method}: {options.arch}", n=n)


def load(options: ImageOptions, run: Run, *, n_train: int | None, n_test: int | None) -> "Arrays":
    """The data set that `options` name, with so many training and test images, recorded in `run`."""
    from common import datasets

    data = datasets.load(
        options.dataset,
        data_dir=options.data_dir,
        seed=options.seed,
        n_train=n_train,
        n_test=n_test,
        image_size=options.image_size,
        progress=True,
    )
    run.data(data.name, data.sha256)
    return data


def _method(options: Options) -> "Method":
    from attention_defense.models.losses import Weights
    from attention_defense.training import defence
    from common.training.methods import make_method

    if options.method not in get_args(defence.Name):
        return make_method(options.method, eps=options.eps, steps=options.steps, beta=options.trades_beta)
    return defence.method(
        options.method,
        eps=options.eps,
        weights=Weights(options.alpha, options.beta, options.gamma),
        layer=options.layer,
        sharpness=options.sharpness,
        iou_key=options.iou_key,
        iou_steps=options.iou_steps,
    )


def _gradient_norms(model: "keras.Model", method: "Method", x: "np.ndarray", y: "np.ndarray") -> dict[str, float]:
    import tensorflow as tf

    from common.arrays import as_float
    from common.training.loop import gradient_norms

    seed, turn = tf.zeros([2], tf.int32), [tf.ones([len(x)], tf.int32)] * (method.replays > 1)
    batch = method.adversary(model, (as_float(tf.constant(x)), tf.constant(y), *turn), seed)
    return gradient_norms(model, method.loss, batch)


def _under_pgd(options: Options, model: "keras.Model", x: "np.ndarray", y: "np.ndarray") -> float:
    import functools

    import numpy as np

    from common.arrays import as_float
    from common.attacks import attack_dataset, pgd
    from common.evaluation.predictions import accuracy

    attack = functools.partial(pgd, model, eps=options.eps, alpha=options.eps / 4, steps=10, stop=True)
    moved = attack_dataset(attack, np.asarray(as_float(x)), y, batch_size=100, progress=True).x
    return accuracy(model, moved, y)


def _check(options: Options) -> None:
    if options.method != "standard" and not options.eps > 0:
        raise UserError(f"--eps: must be above 0 for --method {options.method}; received {options.eps:g}")
    if not options.alpha > 0:
        raise UserError(f"--alpha: must be above 0; received {options.alpha:g}")
    if options.method.startswith("aad") and not options.beta and not options.gamma:
        raise UserError("--beta, --gamma: one of them must be above 0, or the method is step_ll")


if __name__ == "__main__":
    train.main()
