"""ST-SiameseNet and ST-iFGSM against the structure of the original code: ratios measured in one run.

That structure, rewritten in Keras 3: each of the twenty trips is sliced off and encoded by a call of its own, Keras
trains, and the attack is a Python loop around the network called eagerly, which clips in NumPy and never stops. Both
sides have the same weights, trips and labels.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import UserError
from common.runs.options import Budget, Count, ScriptOptions, option
from common.runs.record import Run
from common.runs.script import script
from mobility_humid.data.layout import Layout
from mobility_humid.data.trips import SEEK, SERVE, SLOT, SLOTS, X, Y

if TYPE_CHECKING:
    import keras

    from mobility_humid.models.networks import Siamese

GRID = (50, 93)
# Log-odds of both, in the one order that the original knows; more is another network.
TOLERANCE = 1e-4
LEARNING_RATE = 1e-4
BOUNDS = {"attack_speedup": 3.0, "train_speedup": 1.4}
# Metric, and whose seconds are divided by whose.
RATIOS = (
    ("attack_speedup", "original_attack", "attack"),
    ("attack_speedup_stopping", "original_attack", "stopping_attack"),
    ("gradient_speedup", "sliced_gradient", "cached_gradient"),
    ("folding_speedup", "sliced_gradient", "folded_gradient"),
    ("train_speedup", "original_training", "training"),
)


@dataclass(kw_only=True)
class Options(ScriptOptions):
    """What is measured, and how often."""

    batch_size: Count = 64
    """Pairs of drivers in a batch; the overhead of an eager call weighs less in a larger one."""
    steps: Count = 2
    """Gradients of the attack, the same for both sides; by default those of the original, which take seconds each."""
    train_steps: Count = 2
    """Training steps of a repetition."""
    repeats: Count = 5
    """Repetitions, of which the median counts; each runs every contender once."""
    per_kind: Count = 5
    """Trips of each kind for each driver; the original has five seek and five serve trips."""
    padding_length: Count = 60
    """Points of a trip."""
    units: tuple[Count, ...] = (200, 100, 48)
    """Units of an encoder's two LSTM layers and of its dense layer."""
    eps: Budget = option(2, "eta")
    """Budget of the attack along each axis, in cells."""


@script(app="benchmarks", name="mobility")
def mobility(options: Options, run: Run) -> None:
    """Time training steps, attacks and gradients of both structures in turn, and compare with the targets."""
    import hashlib

    if len(options.units) != 3:
        raise UserError(f"--units: expected three numbers, for LSTM, LSTM and dense layer; got {len(options.units)}")
    layout = pair_layout(options.padding_length, options.per_kind)
    x = random_pairs(layout, options.batch_size, options.seed)
    run.data("random walks", hashlib.sha256(x.tobytes()).hexdigest())
    ours, original = both(layout, options.units, x, options.seed)
    gap = disagreement(ours, original, x)
    run.row(metric="largest_difference", split="log-odds", value=gap)
    run.log(f"log-odds of both structures differ by at most {gap:.1e}")
    if not gap <= TOLERANCE:
        raise RuntimeError(f"the two structures are different networks: their log-odds differ by {gap}")
    # Neither side begins at its goal, as where only pairs that were told right are attacked.
    answers = (np.asarray(ours(x, training=False))[:, 0] > 0).astype(np.int32)
    attacks = _attacks(options, ours, original, x, answers)
    seconds = _in_turn(options, run, attacks)
    found = attacks["stopping_attack"]()
    fooled = (np.asarray(ours(found, training=False))[:, 0] > 0) != answers
    run.row(model="stopping_attack", metric="success", value=float(fooled.mean()), n=len(x))
    # Afterwards, because it changes the weights.
    same = (np.arange(len(x)) % 2 == 0).astype(np.int32)
    seconds |= _in_turn(options, run, _trainings(options, ours, original, x, same))
    _report(run, seconds)


def pair_layout(length: int, per_kind: int = 5) -> Layout:
    """Pairs of drivers with `per_kind` seek and as many serve trips each, of `length` points (x, y, slot)."""
    return Layout((SEEK, SERVE), per_kind, 2, length, 3)


def random_pairs(layout: Layout, count: int, seed: int) -> np.ndarray:
    """Samples float32 (count, rows, length, 3) of random walks on the map, of some minutes to some hours, padded in
    front."""
    rng = np.random.default_rng([seed, 0x7219])
    shape = (count, layout.trip_rows, layout.length)
    lengths = np.clip(rng.lognormal(2.8, 0.7, shape[:2]), 3, layout.length).astype(int)
    there = np.arange(layout.length) >= layout.length - lengths[..., None]
    start = rng.integers(0, GRID, (*shape[:2], 1, 2))
    places = np.clip(start + np.cumsum(rng.integers(-1, 2, (*shape, 2)), axis=2), 0, np.array(GRID) - 1)
    slots = rng.integers(1, SLOTS - 60, (*shape[:2], 1)) + np.cumsum(rng.integers(0, 2, shape), axis=2)
    points = np.concatenate([places, np.minimum(slots, SLOTS)[..., None]], axis=-1)
    return (points * there[..., None]).astype(np.float32)


def both(layout: Layout, units: tuple[int, ...], x: np.ndarray, seed: int) -> tuple["Siamese", "keras.Model"]:
    """The suite's network, untrained but undecided about the pairs `x`, and the original's with the same weights."""
    from mobility_humid.models.networks import Siamese

    arguments = {"place_spacing": 4.0, "dropout": 0.0, "profile_scale": ()}
    ours = Siamese(head="concat", layout=layout, grid=GRID, encoder="lstm", units=units, seed=seed, **arguments)
    ours.head_layers[-1].bias.assign([-float(np.median(ours(x, training=False)))])
    original = sliced_network(layout, units)
    copy_weights(ours, original)
    return ours, original


def sliced_network(layout: Layout, units: tuple[int, ...]) -> "keras.Model":
    """The original's structure: trips (B, rows, length, 3) in [0, 1] -> the probability (B, 1) of one driver."""
    import keras

    def encoder(name: str) -> "keras.Model":
        stack = [
            keras.layers.LSTM(units[0], return_sequences=True),
            keras.layers.LSTM(units[1]),
            keras.layers.Dense(units[2], activation="relu"),
        ]
        return keras.Sequential([keras.Input((layout.length, layout.features)), *stack], name=name)

    inputs = keras.Input(layout.shape)
    of_kind, each = [encoder("seek"), encoder("serve")], 2 * layout.per_kind
    features = keras.layers.concatenate([of_kind[row // each](inputs[:, row]) for row in range(layout.trip_rows)])
    for size in (64, 32, 8):
        features = keras.layers.Dense(size, activation="relu", name=f"head_{size}")(features)
    model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid", name="probability")(features))
    optimizer = keras.optimizers.Adam(LEARNING_RATE)
    model.compile(optimizer, loss="binary_crossentropy", metrics=["accuracy"], jit_compile=False)
    return model


def copy_weights(ours: "Siamese", original: "keras.Model") -> None:
    """Give `original` the weights of `ours`, whose head sees the trips in another order."""
    for name, encoder in zip(("seek", "serve"), ours.encoders, strict=True):
        layers = (encoder.lstm_1, encoder.lstm_2, encoder.dense)
        original.get_layer(name).set_weights([weight for layer in layers for weight in layer.get_weights()])
    head = [layer.get_weights() for layer in ours.head_layers]
    # Ours joins driver by driver, the original kind by kind.
    kernel = head[0][0]
    blocks = kernel.reshape(2, len(ours.layout.kinds), -1, kernel.shape[-1])
    head[0][0] = blocks.swapaxes(0, 1).reshape(kernel.shape)
    for name, weights in zip(("head_64", "head_32", "head_8", "probability"), head, strict=True):
        original.get_layer(name).set_weights(weights)


def in_unit_box(x: np.ndarray) -> np.ndarray:
    """Samples in cells and slots as the original takes them, in [0, 1]."""
    return (x / _ends()).astype(np.float32)


def on_grid(x: np.ndarray) -> np.ndarray:
    """Samples in [0, 1], brought to whole cells and slots in NumPy."""
    return (np.rint(x * _ends()).astype(np.int32) / _ends()).astype(np.float32)


def disagreement(ours: "Siamese", original: "keras.Model", x: np.ndarray) -> float:
    """The largest difference of both networks' log-odds for samples `x` in cells, in the order that both know."""
    probability = np.asarray(original(in_unit_box(x), training=False), np.float64)
    # In training mode ours answers in one order too, and without dropout there is no other difference.
    answer = np.asarray(ours(x, training=True), np.float64)
    return float(np.abs(np.log(probability) - np.log1p(-probability) - answer).max())


def eager_attack(
    model: "keras.Model", x: np.ndarray, y: np.ndarray, movable: np.ndarray, *, eta: float, alpha: float, steps: int
) -> np.ndarray:
    """ST-iFGSM in L-inf as the original runs it, before it is rounded: samples of the shape of `x` in [0, 1].

    `y` (B,) 1 for the same driver, `movable` 0 or 1 of the shape of `x`, `eta` in cells, `alpha` a step in [0, 1].
    """
    import keras
    import tensorflow as tf

    labels = tf.constant(y[:, None], tf.float32)
    reach = np.array([eta, eta, np.inf], np.float32) / _ends()
    moved = x
    for _ in range(steps):
        seen = tf.constant(moved)
        with tf.GradientTape() as tape:
            tape.watch(seen)
            loss = keras.losses.binary_crossentropy(labels, model(seen, training=False))
        slope = tape.gradient(loss, seen).numpy()
        shift = moved + np.float32(alpha) * movable * np.sign(slope) - x
        moved = x + np.clip(shift, -reach, reach)
    return moved


def unstopped_attack(model: "Siamese", *, eta: float, alpha: float, steps: int) -> Callable[[Any, Any], Any]:
    """The suite's ST-iFGSM in L-inf as a compiled function of x, y that takes all its steps, whatever succeeds."""
    import tensorflow as tf

    from common.attacks import in_ball, run, untargeted_ce
    from mobility_humid.attacks import trips

    layout = model.layout
    value = trips.OnTrips(layout, GRID)(in_ball(untargeted_ce))
    signature = [tf.TensorSpec([None, *layout.shape], tf.float32), tf.TensorSpec([None], tf.int32)]

    @tf.function(input_signature=signature, autograph=False)
    def attack(x, y):
        moved = run(value, model, trips.moving_inputs(layout, x, y, eps=eta, alpha=alpha, steps=steps))
        return trips.replace_rows(layout, x, trips.snap(moved))

    return attack


def _attacks(
    options: Options, ours: "Siamese", original: "keras.Model", x: np.ndarray, y: np.ndarray
) -> dict[str, Callable[[], Any]]:
    """What takes turns: attacks of equal numbers of gradients, and single compiled gradients."""
    import tensorflow as tf

    from common.attacks import attack_dataset
    from mobility_humid.attacks import trips

    layout, unit_x, movable = ours.layout, in_unit_box(x), ours.layout.movable(x)
    alpha = 2.5 * options.eps / options.steps
    unstopped = unstopped_attack(ours, eta=options.eps, alpha=alpha, steps=options.steps)
    settings = {"eta": options.eps, "alpha": alpha, "steps": options.steps}

    def original_attack() -> np.ndarray:
        unit = {**settings, "alpha": alpha / (GRID[0] - 1)}
        return on_grid(eager_attack(original, unit_x, y, movable, **unit))

    def stopping_attack() -> np.ndarray:
        where = {"name": "st_ifgsm_linf", "layout": layout, "grid": GRID}
        attack = partial(trips.trip_attack, ours, **where, **settings, seed=options.seed)
        return attack_dataset(attack, x, y, batch_size=options.batch_size).x

    sample = tf.constant(x)
    victim = trips.partial_victim(ours, layout, {"sample": sample, **trips.unmoved(ours, sample)})
    gradients = {
        "sliced_gradient": _gradient(lambda x: original(x, training=False), unit_x, y, probabilities=True),
        "folded_gradient": _gradient(lambda x: ours(x, training=False), x, y),
        "cached_gradient": _gradient(victim, x[:, layout.moving], y),
    }
    return {
        "original_attack": original_attack,
        "attack": lambda: unstopped(x, y).numpy(),
        "stopping_attack": stopping_attack,
        **gradients,
    }


def _gradient(
    answer: Callable[[Any], Any], x: np.ndarray, y: np.ndarray, *, probabilities: bool = False
) -> Callable[[], np.ndarray]:
    """One compiled gradient of the cross-entropy of `answer` by its argument, at `x`."""
    import keras
    import tensorflow as tf

    labels = tf.constant(y[:, None], tf.float32)

    @tf.function(autograph=False)
    def gradient(x):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            loss = keras.losses.binary_crossentropy(labels, answer(x), from_logits=not probabilities)
        return tape.gradient(loss, x)

    held = tf.constant(x)
    return lambda: gradient(held).numpy()


def _trainings(
    options: Options, ours: "Siamese", original: "keras.Model", x: np.ndarray, same: np.ndarray
) -> dict[str, Callable[[], Any]]:
    """What takes turns: `train_steps` steps of each side, on the same batch."""
    import keras

    from common.training.loop import compiled_step
    from mobility_humid.training.verification import same_driver_loss

    unit_x, targets = in_unit_box(x), same[:, None].astype(np.float32)
    step = compiled_step(ours, same_driver_loss, keras.optimizers.Adam(LEARNING_RATE), seed=options.seed)

    def training() -> None:
        for _ in range(options.train_steps):
            logs = step((x, same))
        float(logs["loss"])

    def original_training() -> None:
        for _ in range(options.train_steps):
            original.train_on_batch(unit_x, targets)

    return {"original_training": original_training, "training": training}


def _in_turn(options: Options, run: Run, contenders: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """The seconds of each contender's repetitions, after one that compiles, if anything does."""
    from benchmarks.peers import timing
    from common.progress import Progress

    run.log(f"{options.batch_size} pairs; {', '.join(contenders)}")

    def timed(contender: Callable[[], Any]) -> Callable[[], float]:
        def seconds() -> float:
            started = time.perf_counter()
            contender()
            return time.perf_counter() - started

        return seconds

    running = {name: timed(contender) for name, contender in contenders.items()}
    # The eager loop has nothing to compile, and takes most of the time.
    compiling = [name for name in running if name != "original_attack"]
    calls = len(compiling) + options.repeats * len(running)
    with Progress(calls, f"{options.batch_size} pairs", units="calls") as progress:
        for name in compiling:
            run.row(model=name, metric="first_seconds", value=running[name]())
            progress.add()
        taken = timing.interleaved(running, options.repeats, show=progress.add)
    for name, values in taken.items():
        # Of training a step counts, of an attack the whole.
        share = options.train_steps if name.endswith("training") else 1
        spread = timing.Spread.of([value / share for value in values])
        run.row(model=name, metric="seconds", value=spread.median, low=spread.low, high=spread.high)
    return taken


def _report(run: Run, seconds: dict[str, list[float]]) -> None:
    """Rows and metrics of the ratios, and which targets were met."""
    from benchmarks.peers import timing

    met = []
    for metric, one, other in RATIOS:
        spread = timing.ratio(seconds, one, other)
        run.row(split=metric, metric="ratio", value=spread.median, low=spread.low, high=spread.high)
        run.metrics(**{metric: spread.median})
        run.log(f"  {metric:24} {spread.median:6.2f}  [{spread.low:.2f}, {spread.high:.2f}]")
        if metric in BOUNDS:
            met.append(spread.median >= BOUNDS[metric])
            run.row(split=metric, metric="target", value=BOUNDS[metric])
            run.row(split=metric, metric="met", value=int(met[-1]))
    run.metrics(targets=len(met), targets_met=sum(met))


def _ends() -> np.ndarray:
    """What is 1 in [0, 1]: the last cell across and up, and the last slot."""
    ends = np.empty(3, np.float32)
    ends[[X, Y, SLOT]] = GRID[0] - 1, GRID[1] - 1, SLOTS
    return ends


if __name__ == "__main__":
    mobility.main()
