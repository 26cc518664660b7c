"""What the base classifier, the thief and the clean reference share: options, network and training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from common.cli import Budget, CommonOptions, Count
from common.errors import UserError
from common.runs import Run

FOLDER_SIZE = 32
"""Side, in pixels, at which the pictures of a folder are learnt from unless --image-size says otherwise."""

if TYPE_CHECKING:
    import keras

    from common.datasets import Arrays


@dataclass(kw_only=True)
class FittingOptions(CommonOptions):
    """How a network is trained."""

    arch: str = "small_cnn"
    """Network: small_cnn, resnet20..110, resnet18, resnet50, preresnet20..110, densenet100bc, densenet190bc,
    vgg11, vgg13, vgg16, vgg19 or alexnet."""
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
    image_size: Count | None = None
    """Side, in pixels, to which the pictures of a folder are scaled for training; by default 32."""


def load(options: CommonOptions, image_size: int | None = None) -> "Arrays":
    """The data set that `options` name, in memory; refuses data of a single class."""
    from common import datasets

    data = datasets.load(
        options.dataset,
        data_dir=options.data_dir,
        seed=options.seed,
        n_train=options.n_train,
        n_test=options.n_test,
        image_size=image_size or _folder_size(options.dataset),
    )
    if data.classes < 2:
        raise UserError(f"{options.dataset}: holds one class only; a lock needs a second class to point to")
    return data


def is_folder(dataset: str) -> bool:
    """Whether `dataset` is a folder of pictures; a name goes before a folder that is called like it."""
    from common import datasets

    return dataset not in datasets.NAMES and Path(dataset).is_dir()


def _folder_size(dataset: str) -> int | None:
    from common import datasets

    path = Path(dataset)
    return FOLDER_SIZE if dataset not in datasets.NAMES and path.exists() and path.suffix != ".npz" else None


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
) -> "tuple[keras.Model, list[dict[str, float]]]":
    """A network `options.arch` trained on uint8 `x` (N, H, W, C), labels `y` (N,), and its history.

    `seed` draws initial weights, order and augmentation.

    After every epoch `evaluate(model)` is measured and written to `metrics.csv` and TensorBoard. The training goes on
    where an interrupted run in the same folder stopped.
    """
    import keras

    from adv_lock.networks import NETWORKS
    from common import augmentation, devices, training
    from common.models import build

    if not options.momentum < 1:
        raise UserError(f"--momentum: must be below 1; received {options.momentum}")
    strategy = devices.prepare(options.strategy, options.precision)
    # Ten thousand images are plenty for a mean and spare a float copy of the whole set.
    scaled = x[:: max(len(x) // 10_000, 1)].astype(np.float32) / 255.0
    mean = tuple(float(v) for v in scaled.mean(axis=(0, 1, 2)))
    std = tuple(max(float(v), 1e-3) for v in scaled.std(axis=(0, 1, 2)))
    batch_size = min(options.batch_size, len(x))
    rate = training.learning_rate(
        options.lr_schedule,
        options.learning_rate,
        epochs=options.epochs,
        steps_per_epoch=len(x) // batch_size,
        milestones=options.lr_epochs,
        warmup_epochs=min(options.warmup_epochs, options.epochs / 2),
    )
    with strategy.scope():
        model = build(options.arch, x.shape[1:], classes, networks=NETWORKS, mean=mean, std=std, seed=seed)
        optimizer = keras.optimizers.SGD(rate, momentum=options.momentum, nesterov=True)
        if options.precision == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    crop = augmentation.crop_and_flip()
    augment = {
        "none": None,
        "crop_flip": crop,
        "crop_flip_jitter": augmentation.chain(crop, augmentation.jitter_and_rotate()),
    }[options.augment]
    run.say(f"{title}: {options.arch}, {model.count_params():,} weights, {len(x)} images, {options.epochs} epochs")
    history = training.train(
        model,
        training.batches(x, y, batch_size=batch_size, seed=seed, augment=augment),
        training.cross_entropy,
        optimizer,
        epochs=options.epochs,
        weight_decay=options.weight_decay,
        evaluate=lambda: evaluate(model),
        callbacks=curve_callbacks(run),
        checkpoint_folder=run.checkpoints,
        resume=True,
        chief=run.chief,
        seed=seed,
        strategy=strategy,
    )
    return model, history


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
