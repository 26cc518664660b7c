"""How a network of trips is trained: schedule, curves, and the epoch that is kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import keras
import numpy as np

from common import files
from common.training import devices, loop
from common.training.fit import Curves
from common.training.loop import Adversary, Loss
from common.training.recipe import Journal


@dataclass(frozen=True, kw_only=True)
class TripRecipe:
    """By Adam, its `learning_rate` at the highest, along a cosine; `n_train` samples an epoch, drawn anew for each.
    `weight_decay` is L2 in the loss, over all weights; `strategy` and `precision` as in `common.training.devices`."""

    epochs: int = 8
    batch_size: int = 64
    n_train: int = 4000
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    jit_compile: bool = False
    strategy: Literal["none", "mirrored", "multiworker"] = "none"
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    seed: int = 0


def fit(
    recipe: TripRecipe,
    journal: Journal,
    build: Callable[[], keras.Model],
    epoch_batches: Callable,
    loss: Loss,
    evaluate: Callable[[keras.Model], Mapping[str, float]],
    *,
    title: str,
    adversary: Adversary | None = None,
    best: str = "validation_loss",
    checkpoints: Path | None = None,
) -> tuple[keras.Model, list[dict[str, float]]]:
    """The network that `build` makes, trained, with the weights of the epoch of least `best`, and its history.

    After every epoch `evaluate(model)` is measured and written to `metrics.csv`; a run with several trainings gives
    each its folder for `checkpoints` and writes the curves itself. The training goes on where an interrupted one
    stopped.
    """
    strategy = devices.prepare(recipe.strategy, recipe.precision)
    devices.check_batch_size(strategy, recipe.batch_size)
    steps = max(recipe.n_train // recipe.batch_size, 1)
    rate = loop.learning_rate(
        "cosine",
        recipe.learning_rate,
        epochs=recipe.epochs,
        steps_per_epoch=steps,
        warmup_epochs=min(1, recipe.epochs / 2),
    )
    with strategy.scope():
        model = build()
        # LSTM gradients through sixty points have rare, large peaks.
        optimizer = devices.scaled_for(recipe.precision, keras.optimizers.Adam(rate, clipnorm=1.0))
    folder = checkpoints or journal.checkpoints
    journal.log(
        f"{title}: {model.count_params():,} weights, {steps * recipe.batch_size} samples, {recipe.epochs} epochs"
    )
    history = loop.train(
        model,
        epoch_batches,
        loss,
        optimizer,
        epochs=recipe.epochs,
        adversary=adversary,
        weight_decay=recipe.weight_decay,
        evaluate=lambda: evaluate(model),
        callbacks=[BestEpoch(journal.chief, folder, best), *([] if checkpoints else [Curves(journal)])],
        checkpoint_folder=folder,
        resume=True,
        chief=journal.chief,
        seed=recipe.seed,
        strategy=strategy,
        jit_compile=recipe.jit_compile,
    )
    epoch = min(range(len(history)), key=lambda i: history[i][best])
    journal.log(f"kept epoch {epoch + 1}: {best.replace('_', ' ')} {history[epoch][best]:.4f}")
    return model, history


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
