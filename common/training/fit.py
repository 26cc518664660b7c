"""Training a network by a recipe: optimiser, schedule, curves, checkpoints, and the epoch that is kept."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from common import files
from common.errors import UserError
from common.models import NETWORKS, Builder, build, check_name
from common.training import augmentation, batches, devices, loop
from common.training.batches import Epochs
from common.training.methods import Method, standard_training
from common.training.recipe import Journal, Recipe, TrainingRecipe


def fit(
    recipe: Recipe,
    journal: Journal,
    x: np.ndarray,
    y: np.ndarray,
    classes: int,
    evaluate: Callable[[keras.Model], Mapping[str, float]],
    *,
    title: str,
    seed: int,
    method: Method | None = None,
    networks: Mapping[str, Builder] | None = None,
    further: augmentation.Augment | None = None,
    checkpoints: Path | None = None,
) -> tuple[keras.Model, list[dict[str, float]]]:
    """A network `recipe.arch` trained on uint8 `x` (N, H, W, C), labels `y` (N,), and its history.

    `seed` draws initial weights, order and augmentation. `method` is the kind of training, plain unless given;
    `networks` those to choose from, by default `common.models.NETWORKS`; `further` changes batches after the recipe's
    own augmentation. `checkpoints` as in `fit_network`.

    After every epoch `evaluate(model)` is measured and written to `metrics.csv` and TensorBoard. An interrupted
    training in the same folder is resumed.
    """
    strategy = devices.prepare(recipe.strategy, recipe.precision)
    replicas = devices.check_batch_size(strategy, recipe.batch_size)
    batch_size = min(recipe.batch_size, max(len(x) - len(x) % replicas, replicas))
    mean, std = channel_statistics(x)
    crop = augmentation.crop_and_flip()
    parts = {"none": (), "crop_flip": (crop,), "crop_flip_jitter": (crop, augmentation.jitter_and_rotate())}
    changes = [*parts[recipe.augment], *([] if further is None else [further])]
    augment = augmentation.chain(*changes) if len(changes) > 1 else next(iter(changes), None)
    return fit_network(
        recipe,
        journal,
        strategy,
        lambda: build(recipe.arch, x.shape[1:], classes, networks=networks or NETWORKS, mean=mean, std=std, seed=seed),
        batches.batches(x, y, batch_size=batch_size, seed=seed, augment=augment),
        evaluate,
        steps_per_epoch=len(x) // batch_size,
        title=f"{title}: {recipe.arch}, {len(x)} images",
        seed=seed,
        method=method,
        optimizer=nesterov(recipe),
        checkpoints=checkpoints,
    )


def nesterov(recipe: Recipe) -> Callable[[Any], keras.optimizers.Optimizer]:
    """SGD with the Nesterov momentum of `recipe`, for a learning rate."""
    check_momentum(recipe)
    return partial(keras.optimizers.SGD, momentum=recipe.momentum, nesterov=True)


def fit_network(
    recipe: TrainingRecipe,
    journal: Journal,
    strategy: tf.distribute.Strategy,
    make: Callable[[], keras.Model],
    epoch_batches: Epochs,
    evaluate: Callable[[keras.Model], Mapping[str, float]],
    *,
    steps_per_epoch: int,
    title: str,
    seed: int,
    optimizer: Callable[[Any], keras.optimizers.Optimizer],
    method: Method | None = None,
    best: str | None = None,
    checkpoints: Path | None = None,
) -> tuple[keras.Model, list[dict[str, float]]]:
    """The network that `make` makes, trained on any batches as `recipe` says, and its history.

    `optimizer` makes one of a learning rate; `method` is plain training unless given. The weights are those of the last
    epoch, or those of the epoch with the least `best`, which `evaluate` or the loss measures. A run with several
    trainings gives each its folder for `checkpoints`, and writes the curves itself.
    """
    method, folder = method or standard_training(), checkpoints or journal.checkpoints
    callbacks = [] if best is None else [BestEpoch(journal.chief, folder, best)]
    if checkpoints is None:
        callbacks.append(Curves(journal))
    rate = loop.learning_rate(
        recipe.lr_schedule,
        recipe.learning_rate,
        epochs=recipe.epochs,
        steps_per_epoch=steps_per_epoch * method.replays,
        milestones=recipe.lr_epochs,
        warmup_epochs=min(recipe.warmup_epochs, recipe.epochs / 2),
    )
    with strategy.scope():
        model = make()
        scaled = devices.scaled_for(recipe.precision, optimizer(rate))
    journal.log(f"{title}, {model.count_params():,} weights, {recipe.epochs} epochs")
    history = loop.train(
        model,
        batches.minibatch_replay(epoch_batches, method.replays) if method.replays > 1 else epoch_batches,
        method.loss,
        scaled,
        epochs=recipe.epochs,
        adversary=method.adversary,
        weight_decay=recipe.weight_decay,
        evaluate=lambda: evaluate(model),
        callbacks=callbacks,
        checkpoint_folder=folder,
        resume=True,
        chief=journal.chief,
        seed=seed,
        strategy=strategy,
        jit_compile=recipe.jit_compile,
    )
    if best is not None:
        epoch = min(range(len(history)), key=lambda i: history[i][best])
        journal.log(f"kept epoch {epoch + 1}: {best.replace('_', ' ')} {history[epoch][best]:.4f}")
    return model, history


def check(recipe: Recipe, networks: Mapping[str, Builder] | None = None) -> None:
    """Refuse what `fit` would refuse of `recipe` alone, before there are data.

    Errors: `UserError` for an unknown network, and a momentum of 1 and more.
    """
    check_name(recipe.arch, networks or NETWORKS)
    check_momentum(recipe)


def check_momentum(recipe: Recipe) -> None:
    """Errors: `UserError` for a momentum with which nothing is ever forgotten."""
    if not recipe.momentum < 1:
        raise UserError(f"--momentum: must be below 1; received {recipe.momentum}")


def channel_statistics(x: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 `x` (N, H, W, C), in units of [0, 1]."""
    # Ten thousand images are plenty for a mean and spare a float copy of the whole set.
    scaled = x[:: max(len(x) // 10_000, 1)].astype(np.float32) / 255.0
    mean = tuple(float(v) for v in scaled.mean(axis=(0, 1, 2)))
    return mean, tuple(max(float(v), 1e-3) for v in scaled.std(axis=(0, 1, 2)))


class BestEpoch(keras.callbacks.Callback):
    """Remembers the weights of the epoch of least `measured`, on disk in `folder` too, for a resumed run."""

    def __init__(self, chief: bool, folder: Path, measured: str) -> None:
        super().__init__()
        self._chief, self._path, self._measured = chief, folder / "best.npz", measured

    def on_train_begin(self, logs=None):
        self.value, self.weights = np.inf, None
        if self._path.is_file():
            stored = files.read_npz(self._path)
            self.value = float(stored.pop("value"))
            self.weights = [stored[name] for name in sorted(stored)]

    def on_epoch_end(self, epoch, logs=None):
        if logs[self._measured] < self.value:
            self.value, self.weights = logs[self._measured], self.model.get_weights()
            if self._chief:
                named = {f"weight_{i:05d}": weight for i, weight in enumerate(self.weights)}
                files.write_npz(self._path, {**named, "value": np.array(self.value)}, compress=False)

    def on_train_end(self, logs=None):
        if self.weights is not None:
            self.model.set_weights(self.weights)


class Curves(keras.callbacks.Callback):
    """Writes each epoch's measurements to `journal` and to TensorBoard."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal, self._writer = journal, None

    def on_train_begin(self, logs=None):
        if self._journal.chief:
            self._writer = tf.summary.create_file_writer(str(self._journal.folder / "tensorboard"))

    def on_epoch_begin(self, epoch, logs=None):
        self._journal.curves_until(epoch + 1)

    def on_epoch_end(self, epoch, logs=None):
        self._journal.curve(epoch=epoch + 1, **logs)
        if self._writer is not None:
            with self._writer.as_default(step=epoch + 1):
                for name, value in logs.items():
                    tf.summary.scalar(name, value)
            self._writer.flush()
