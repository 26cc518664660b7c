"""How the scripts of this app train a network: options, schedule, curves, and the epoch that is kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from common.errors import UserError
from common.runs.options import Budget, Count
from common.runs.record import Run
from mobility_humid.data.samples import Fleet, SampleOptions, check_samples

if TYPE_CHECKING:
    from pathlib import Path

    import keras

    from common.training.loop import Adversary, Loss


@dataclass(kw_only=True)
class FittingOptions(SampleOptions):
    """How a network is trained."""

    encoder: Literal["lstm", "places"] = "lstm"
    """What reads the trips: two LSTM layers, as published, or a map of where and when time was spent, which suits many
    trips a sample."""
    units: tuple[Count, ...] = (64, 48, 32)
    """Units of the encoder's LSTM, LSTM and dense layer; 200,100,48 in the paper."""
    place_spacing: Budget = 4.0
    """Cells between two places (encoder places)."""
    dropout: Budget = 0.0
    """Share of what the comparison or the naming sees that is left out in training, in [0, 1)."""
    epochs: Count = 8
    """Passes over --n-train samples."""
    batch_size: Count = 64
    """Samples a step, over all devices."""
    n_train: Count = 4000
    """Samples drawn for an epoch, anew each time."""
    learning_rate: Budget = 3e-3
    """Learning rate of Adam at its highest; it falls along a cosine."""
    weight_decay: Budget = 0.0
    """L2 weight decay, in the loss, over all weights."""
    jit_compile: bool = False
    """Compile the training step with XLA; on a CPU it is then slower."""


def refusals(options: FittingOptions) -> None:
    """What is refused before trips are read or prepared."""
    check_samples(options)
    _check_network(options)


def _check_network(options: FittingOptions) -> None:
    if len(options.units) != 3:
        raise UserError(f"--units: expected three numbers, for LSTM, LSTM and dense layer; got {len(options.units)}")
    if not options.dropout < 1:
        raise UserError(f"--dropout: is a share and below 1; got {options.dropout}")
    if not options.place_spacing > 0:
        raise UserError(f"--place-spacing: must be above 0; got {options.place_spacing}")


def network_arguments(options: FittingOptions, fleet: Fleet) -> dict[str, Any]:
    """Arguments that both networks take. Errors: `UserError` for a network that cannot be."""
    _check_network(options)
    return {
        "layout": fleet.layout,
        "grid": fleet.trips.grid.size,
        "encoder": options.encoder,
        "units": options.units,
        "place_spacing": options.place_spacing,
        "dropout": options.dropout,
        "profile_scale": fleet.profile_scale() if options.with_profile else (),
        "seed": options.seed,
    }


def fit(
    options: FittingOptions,
    run: Run,
    build: "Callable[[], keras.Model]",
    epoch_batches: Callable,
    loss: "Loss",
    evaluate: "Callable[[keras.Model], Mapping[str, float]]",
    *,
    title: str,
    adversary: "Adversary | None" = None,
    best: str = "validation_loss",
    checkpoints: "Path | None" = None,
) -> "tuple[keras.Model, list[dict[str, float]]]":
    """The network that `build` makes, trained, with the weights of the epoch of least `best`, and its history.

    After every epoch `evaluate(model)` is measured and written to `metrics.csv`; a run with several trainings gives
    each its folder for `checkpoints` and writes the curves itself. The training goes on where an interrupted one
    stopped.
    """
    import keras

    from common.training import devices, loop
    from common.training.fit import curve_callbacks

    strategy = devices.prepare(options.strategy, options.precision)
    devices.check_batch_size(strategy, options.batch_size)
    steps = max(options.n_train // options.batch_size, 1)
    rate = loop.learning_rate(
        "cosine",
        options.learning_rate,
        epochs=options.epochs,
        steps_per_epoch=steps,
        warmup_epochs=min(1, options.epochs / 2),
    )
    with strategy.scope():
        model = build()
        # LSTM gradients through sixty points have rare, large peaks.
        optimizer = devices.scaled_for(options.precision, keras.optimizers.Adam(rate, clipnorm=1.0))
    folder = checkpoints or run.checkpoints
    run.say(f"{title}: {model.count_params():,} weights, {steps * options.batch_size} samples, {options.epochs} epochs")
    history = loop.train(
        model,
        epoch_batches,
        loss,
        optimizer,
        epochs=options.epochs,
        adversary=adversary,
        weight_decay=options.weight_decay,
        evaluate=lambda: evaluate(model),
        callbacks=[_best_epoch(run.chief, folder, best), *([] if checkpoints else curve_callbacks(run))],
        checkpoint_folder=folder,
        resume=True,
        chief=run.chief,
        seed=options.seed,
        strategy=strategy,
        jit_compile=options.jit_compile,
    )
    epoch = min(range(len(history)), key=lambda i: history[i][best])
    run.say(f"kept epoch {epoch + 1}: {best.replace('_', ' ')} {history[epoch][best]:.4f}")
    return model, history


def _best_epoch(chief: bool, folder: "Path", measured: str) -> Any:
    """A Keras callback that remembers the weights of the epoch of least `measured`, on disk too, for a resumed run."""
    import keras
    import numpy as np

    from common import files

    path = folder / "best.npz"

    class BestEpoch(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.value, self.weights = np.inf, None
            if path.is_file():
                stored = files.read_npz(path)
                self.value = float(stored.pop("value"))
                self.weights = [stored[name] for name in sorted(stored)]

        def on_epoch_end(self, epoch, logs=None):
            if logs[measured] < self.value:
                self.value, self.weights = logs[measured], self.model.get_weights()
                if chief:
                    named = {f"weight_{i:05d}": weight for i, weight in enumerate(self.weights)}
                    files.write_npz(path, {**named, "value": np.array(self.value)}, compress=False)

        def on_train_end(self, logs=None):
            if self.weights is not None:
                self.model.set_weights(self.weights)

    return BestEpoch()
