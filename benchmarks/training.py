"""Training side by side: the suite's loop against `model.fit`, an adversarial step against the sum of its parts."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from common.errors import UserError
from common.runs.options import Budget, Count, DataOptions, LinfBudget, ScriptOptions, option
from common.runs.record import Run
from common.runs.script import script

if TYPE_CHECKING:
    import keras

    from common.datasets import Arrays
    from common.training.loop import Adversary


@dataclass(kw_only=True)
class Options(DataOptions, ScriptOptions):
    """What is measured, on which network, and how often."""

    archs: tuple[Literal["small_cnn", "resnet20"], ...] = ("small_cnn", "resnet20")
    """Networks."""
    contenders: tuple[Literal["fit", "adversarial", "xla", "bfloat16"], ...] = ("fit", "adversarial", "xla", "bfloat16")
    """What the suite's plain loop is compared with: model.fit, itself with PGD inside, with XLA, in half precision."""
    n_train: Count | None = None
    """Number of training images; null takes as many as the batches need."""
    batches: Count = 4
    """Batches of a repetition."""
    batch_size: Count = 128
    """Images a batch."""
    repeats: Count = 7
    """Repetitions, of which the median counts; each runs every contender once."""
    steps: Count = option(7, "attack_steps")
    """Steps of PGD in an adversarial training step."""
    eps: LinfBudget = 8 / 255
    """Budget of PGD in L-inf, in [0, 1]."""
    learning_rate: Budget = 0.01
    """Learning rate of the SGD with Nesterov momentum 0.9, the same for all."""


@script(app="benchmarks", name="training")
def training(options: Options, run: Run) -> None:
    """Time the same batches in every loop and compare with the targets."""
    from common import datasets

    wanted = options.batches * options.batch_size
    count = min(wanted, options.n_train or wanted)
    data = datasets.load(options.dataset, data_dir=options.data_dir, seed=options.seed, n_train=count, n_test=1)
    if len(data.x_train) < wanted:
        raise UserError(
            f"--batches {options.batches} of {options.batch_size} images: need {wanted} images; there are"
            f" {len(data.x_train)}. Lower --batches or --batch-size"
        )
    run.data(data.name, data.sha256)
    met = []
    for arch in dict.fromkeys(options.archs):
        met += _measure(options, run, arch, data)
    run.metrics(targets=len(met), targets_met=sum(met))


def _measure(options: Options, run: Run, arch: str, data: "Arrays") -> list[bool]:
    """Rows and metrics of one network; which targets were met."""
    import tensorflow as tf

    from benchmarks.peers import timing
    from benchmarks.peers.suite_side import compiled_gradient
    from common.progress import Progress
    from common.training.batches import batches
    from common.training.methods import pgd_training

    epoch = batches(data.x_train, data.y_train, batch_size=options.batch_size, seed=options.seed)(0)
    classes, shape = data.classes, data.x_train.shape[1:]

    def loop(precision: str = "float32", **settings: Any) -> "Paced":
        model = _model(arch, shape, classes, precision, options.seed)
        return Paced(lambda pace: _suite(options, model, epoch, pace, **settings))

    attack = pgd_training(eps=options.eps, alpha=2.5 * options.eps / options.steps, steps=options.steps)
    attacked = _model(arch, shape, classes, "float32", options.seed)
    gradient, held = compiled_gradient(attacked), list(epoch)

    def bare() -> float:
        started = time.perf_counter()
        for x, y in held:
            for _ in range(options.steps):
                last = gradient(x, y)
        last.numpy()
        return time.perf_counter() - started

    makers: dict[str, Callable[[], Callable[[], float]]] = {
        "fit": lambda: Paced(
            lambda pace: _keras_fit(options, _model(arch, shape, classes, "float32", options.seed), epoch, pace)
        ),
        "adversarial": lambda: loop(adversary=attack.adversary),
        "xla": lambda: loop(jit_compile=True),
        "bfloat16": lambda: loop("mixed_bfloat16"),
    }
    running: dict[str, Callable[[], float]] = {"ours": loop()}
    for name in dict.fromkeys(options.contenders):
        running[name] = makers[name]()
    if "adversarial" in running:
        running["bare"] = bare
    run.log(f"{arch}: {options.batches} batches of {options.batch_size}; {', '.join(running)}")
    with Progress((options.repeats + 1) * len(running), arch, units="epochs") as progress:
        for name in list(running):
            # The first epoch compiles. XLA may not know an operation; that is its row then, and no reason to end.
            try:
                running[name]()
            except tf.errors.OpError as error:
                if name != "xla":
                    raise
                run.row(model=arch, split=name, metric=f"left out: {type(error).__name__}", value=0)
                del running[name]
            progress.add()
        seconds = timing.interleaved(running, options.repeats, show=progress.add)
    for name, taken in seconds.items():
        spread = timing.Spread.of([value / options.batches for value in taken])
        run.row(model=arch, split=name, metric="seconds_per_step", value=spread.median, **_range(spread))
    if "bare" in seconds:
        parts = [a + b for a, b in zip(seconds["bare"], seconds["ours"], strict=True)]
        seconds = {**seconds, "parts": parts}
    met = []
    for metric, one, other, bound in (
        ("ours_over_fit", "ours", "fit", 1.05),
        ("adversarial_over_parts", "adversarial", "parts", 1.15),
        ("xla_over_plain", "xla", "ours", None),
        ("bfloat16_over_float32", "bfloat16", "ours", None),
    ):
        if one not in seconds or other not in seconds:
            continue
        spread = timing.ratio(seconds, one, other)
        run.row(model=arch, split=metric, metric="ratio", value=spread.median, **_range(spread))
        run.metrics(**{f"{arch}_{metric}": spread.median})
        run.log(f"  {metric:26} {spread.median:.3f}  [{spread.low:.3f}, {spread.high:.3f}]")
        if bound is not None:
            met.append(spread.median <= bound)
            run.row(model=arch, split=metric, metric="target", value=bound)
            run.row(model=arch, split=metric, metric="met", value=int(met[-1]))
    return met


class Paced:
    """A training loop in a thread of its own that goes one epoch further at each call, which answers with its seconds.

    So several loops take turns, each with what it has compiled. `body` runs the loop with a Keras callback in it, which
    waits for its turn where an epoch begins and stops the clock where it ends.
    """

    def __init__(self, body: Callable[[Any], None]) -> None:
        import keras

        class Pace(keras.callbacks.Callback):
            def on_epoch_begin(pace, epoch, logs=None):  # noqa: N805
                self._resting.release()
                self._turn.acquire()
                self._started = time.perf_counter()

            def on_epoch_end(pace, epoch, logs=None):  # noqa: N805
                self._seconds = time.perf_counter() - self._started

        self._turn, self._resting = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None

        def run() -> None:
            try:
                body(Pace())
            except BaseException as error:
                self._error = error
            finally:
                self._resting.release()

        # A daemon: one that waits for a turn that never comes must not keep the process.
        threading.Thread(target=run, daemon=True).start()
        self._wait()

    def __call__(self) -> float:
        self._turn.release()
        self._wait()
        return self._seconds

    def _wait(self) -> None:
        self._resting.acquire()
        if self._error is not None:
            raise self._error


def _model(arch: str, shape: tuple[int, ...], classes: int, precision: str, seed: int) -> "keras.Model":
    import keras

    from common.models import build

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        return build(arch, shape, classes, mean=[0.5] * shape[-1], std=[0.25] * shape[-1], seed=seed)
    finally:
        keras.config.set_dtype_policy(before)


def _optimizer(options: Options) -> "keras.Optimizer":
    import keras

    return keras.optimizers.SGD(options.learning_rate, momentum=0.9, nesterov=True)


def _suite(
    options: Options,
    model: "keras.Model",
    epoch: Any,
    pace: Any,
    *,
    adversary: "Adversary | None" = None,
    jit_compile: bool = False,
) -> None:
    from common.training.loop import cross_entropy, train

    train(
        model,
        lambda number: epoch,
        cross_entropy,
        _optimizer(options),
        epochs=options.repeats + 1,
        adversary=adversary,
        callbacks=[pace],
        seed=options.seed,
        jit_compile=jit_compile,
        verbose=False,
    )


def _keras_fit(options: Options, model: "keras.Model", epoch: Any, pace: Any) -> None:
    import keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(_optimizer(options), loss=loss, metrics=["accuracy"], jit_compile=False)
    model.fit(epoch, epochs=options.repeats + 1, callbacks=[pace], verbose=0, shuffle=False)


def _range(spread: Any) -> dict[str, float]:
    return {"low": spread.low, "high": spread.high}


if __name__ == "__main__":
    training.main()
