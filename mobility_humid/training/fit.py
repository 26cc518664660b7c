"""How a network of trips is trained: by Adam, on samples drawn for each epoch, keeping the best epoch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras

from common.training import devices, fit
from common.training.batches import Epochs
from common.training.methods import Method
from common.training.recipe import Journal, TrainingRecipe


@dataclass(frozen=True, kw_only=True)
class TripRecipe(TrainingRecipe):
    """`n_train` samples are drawn for each epoch; `seed` draws the steps of its training."""

    epochs: int = 8
    batch_size: int = 64
    n_train: int = 4000
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    seed: int = 0


def fit_trips(
    recipe: TripRecipe,
    journal: Journal,
    make: Callable[[], keras.Model],
    epoch_batches: Epochs,
    method: Method,
    evaluate: Callable[[keras.Model], Mapping[str, float]],
    *,
    title: str,
    best: str = "validation_loss",
    checkpoints: Path | None = None,
) -> tuple[keras.Model, list[dict[str, float]]]:
    """The network that `make` makes, trained, with the weights of the epoch of least `best`, and its history; as
    `common.training.fit.fit_network`."""
    strategy = devices.prepare(recipe.strategy, recipe.precision)
    devices.check_batch_size(strategy, recipe.batch_size)
    steps = max(recipe.n_train // recipe.batch_size, 1)
    return fit.fit_network(
        recipe,
        journal,
        strategy,
        make,
        epoch_batches,
        evaluate,
        steps_per_epoch=steps,
        title=f"{title}: {steps * recipe.batch_size} samples an epoch",
        seed=recipe.seed,
        # LSTM gradients through sixty points have rare, large peaks.
        optimizer=partial(keras.optimizers.Adam, clipnorm=1.0),
        method=method,
        best=best,
        checkpoints=checkpoints,
    )
