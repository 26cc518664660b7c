"""How an image classifier is trained by a script: options, network, optimiser, schedule, curves, checkpoints."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from common.errors import UserError
from common.runs.options import Budget, CommonOptions, Count
from common.runs.record import Run

if TYPE_CHECKING:
    from pathlib import Path

    import keras
    import tensorflow as tf

    from common.models import Builder
    from common.training.batches import Epochs
    from common.training.methods import Method


@dataclass(kw_only=True)
class FittingOptions(CommonOptions):
    """How a network is trained."""

    arch: str = "small_cnn"
    """Network: small_cnn, resnet20, resnet32, resnet44, resnet56, resnet110, resnet18 or resnet50."""
    epochs: Count = 20
    """Passes over the training images."""
    batch_size: Count = 128
    """Images a step, over all devices."""
    learning_rate: Budget = 0.1
    """Learning rate at its highest."""
    lr_schedule: Literal["constant", "step", "cosine"] = "cosine"
    """How the learning rate falls: not, by a tenth at each of --lr-epochs, or along a cosine to zero."""
    lr_epochs: tuple[Count, ...] = ()
    """Epochs at which the step schedule divides the learning rate by ten."""
    warmup_epochs: Budget = 1
    """Epochs over which the cosine schedule first rises to the learning rate."""
    momentum: Budget = 0.9
    """Nesterov momentum of the SGD, in [0, 1)."""
    weight_decay: Budget = 5e-4
    """L2 weight decay, in the loss, over all weights."""
    augment: Literal["none", "crop_flip", "crop_flip_jitter"] = "crop_flip"
    """Random crops of the image padded by 4 and mirroring; jitter adds colour (25 %) and rotation (2 degrees)."""
    jit_compile: bool = False
    """Compile the training step with XLA; on a CPU it is then slower."""


def fit(
    options: FittingOptions,
    run: Run,
    x: np.ndarray,
    y: np.ndarray,
    classes: int,
    evaluate: Callable[["keras.Model"], Mapping[str, float]],
    *,
    title: str,
    seed: int,
    method: "Method | None" = None,
    networks: "Mapping[str, Builder] | None" = None,
) -> "tuple[keras.Model, list[dict[str, float]]]":
    """A network `options.arch` trained on uint8 `x` (N, H, W, C), labels `y` (N,), and its history.

    `seed` draws initial weights, order and augmentation. `method` is the kind of training, plain unless given;
    `networks` those to choose from, by default `common.models.NETWORKS`.

    After every epoch `evaluate(model)` is measured and written to `metrics.csv` and TensorBoard. The training goes on
    where an interrupted run in the same folder stopped.
    """
    from common.models import NETWORKS, build
    from common.training import augmentation, batches, devices

    strategy = devices.prepare(options.strategy, options.precision)
    replicas = devices.check_batch_size(strategy, options.batch_size)
    batch_size = min(options.batch_size, max(len(x) - len(x) % replicas, replicas))
    mean, std = channel_statistics(x)
    crop = augmentation.crop_and_flip()
    augment = {
        "none": None,
        "crop_flip": crop,
        "crop_flip_jitter": augmentation.chain(crop, augmentation.jitter_and_rotate()),
    }[options.augment]
    return fit_network(
        options,
        run,
        strategy,
        lambda: build(options.arch, x.shape[1:], classes, networks=networks or NETWORKS, mean=mean, std=std, seed=seed),
        batches.batches(x, y, batch_size=batch_size, seed=seed, augment=augment),
        evaluate,
        steps_per_epoch=len(x) // batch_size,
        title=f"{title}: {options.arch}, {len(x)} images",
        seed=seed,
        method=method,
    )


def fit_network(
    options: FittingOptions,
    run: Run,
    strategy: "tf.distribute.Strategy",
    build: "Callable[[], keras.Model]",
    epoch_batches: "Epochs",
    evaluate: Callable[["keras.Model"], Mapping[str, float]],
    *,
    steps_per_epoch: int,
    title: str,
    seed: int,
    method: "Method | None" = None,
    checkpoints: "Path | None" = None,
) -> "tuple[keras.Model, list[dict[str, float]]]":
    """The network that `build` makes, trained on any batches by SGD as `options` say, and its history.

    What `fit` does beside choosing network and batches. A run with several trainings gives each its folder for
    `checkpoints`, and writes the curves itself.
    """
    import keras

    from common.training import batches, devices, loop
    from common.training.methods import standard_training

    check_momentum(options)
    method = method or standard_training()
    rate = loop.learning_rate(
        options.lr_schedule,
        options.learning_rate,
        epochs=options.epochs,
        steps_per_epoch=steps_per_epoch * method.turns,
        milestones=options.lr_epochs,
        warmup_epochs=min(options.warmup_epochs, options.epochs / 2),
    )
    with strategy.scope():
        model = build()
        optimizer = keras.optimizers.SGD(rate, momentum=options.momentum, nesterov=True)
        optimizer = devices.scaled_for(options.precision, optimizer)
    run.say(f"{title}, {model.count_params():,} weights, {options.epochs} epochs")
    history = loop.train(
        model,
        batches.repeated(epoch_batches, method.turns) if method.turns > 1 else epoch_batches,
        method.loss,
        optimizer,
        epochs=options.epochs,
        adversary=method.adversary,
        weight_decay=options.weight_decay,
        evaluate=lambda: evaluate(model),
        callbacks=[] if checkpoints else curve_callbacks(run),
        checkpoint_folder=checkpoints or run.checkpoints,
        resume=True,
        chief=run.chief,
        seed=seed,
        strategy=strategy,
        jit_compile=options.jit_compile,
    )
    return model, history


def check(options: FittingOptions, networks: "Mapping[str, Builder] | None" = None) -> None:
    """Refuse what `fit` would refuse of `options` alone, before there are data.

    Errors: `UserError` for an unknown network, and a momentum of 1 and more.
    """
    from common.models import NETWORKS, check_name

    check_name(options.arch, networks or NETWORKS)
    check_momentum(options)


def check_momentum(options: FittingOptions) -> None:
    """Errors: `UserError` for a momentum with which nothing is ever forgotten."""
    if not options.momentum < 1:
        raise UserError(f"--momentum: must be below 1; received {options.momentum}")


def channel_statistics(x: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 `x` (N, H, W, C), in units of [0, 1]."""
    # Ten thousand images are plenty for a mean and spare a float copy of the whole set.
    scaled = x[:: max(len(x) // 10_000, 1)].astype(np.float32) / 255.0
    mean = tuple(float(v) for v in scaled.mean(axis=(0, 1, 2)))
    return mean, tuple(max(float(v), 1e-3) for v in scaled.std(axis=(0, 1, 2)))


def curve_callbacks(run: Run) -> list:
    """Keras callbacks that write each epoch's measurements to the run's metrics.csv and to TensorBoard."""
    import keras
    import tensorflow as tf

    class Curves(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.writer = tf.summary.create_file_writer(str(run.folder / "tensorboard")) if run.chief else None

        def on_epoch_begin(self, epoch, logs=None):
            run.curves_until(epoch + 1)

        def on_epoch_end(self, epoch, logs=None):
            run.curve(epoch=epoch + 1, **logs)
            if self.writer is not None:
                with self.writer.as_default(step=epoch + 1):
                    for name, value in logs.items():
                        tf.summary.scalar(name, value)
                self.writer.flush()

    return [Curves()]
