"""The libraries that the suite is measured against, each behind the same calls, all on the same Keras model.

    with opened(model, path, batch_size=256) as peers:
        seconds, changed, _ = peers["foolbox"].timed("pgd", x, y, eps=0.3, alpha=0.01, steps=40)

`x` is float32 (N, H, W, C) in [0, 1], `y` int32 (N,), the answer float32 of the shape of `x`; norms are `linf`, `l2`
and `l1`.
Libraries for PyTorch run in a process of their own, which opens the same `.keras` file (`torch_side.py`) and keeps its
own time. Every library is given what makes it fast and does not change it: a compiled function where it takes
one, frozen weights, and its `run` without the closing evaluation where there is one.
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import keras

ROOT = Path(__file__).resolve().parents[2]
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}


class Timed(NamedTuple):
    """The seconds that an attack took from array to array, what it returned, and what else it tells of itself."""

    seconds: float
    x: np.ndarray
    notes: Mapping[str, float] = {}


class LeftOutError(Exception):
    """A library has no such attack, or its attack does not work here; the message says which and why."""


class Peer:
    """A library: the methods of a subclass are the attacks that it has.

    `fgsm(x, y, eps, norm)`, `pgd(x, y, eps, alpha, steps, norm, random_start)`, `mi_fgsm(x, y, eps, alpha, steps,
    momentum, norm)`, `cw_l2(x, y, steps, search_steps, constant, learning_rate)`,
    `ddn(x, y, steps, gamma, initial_eps)`.
    """

    name: ClassVar[str]
    distribution: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]

    def __init__(self, model: "keras.Model", batch_size: int) -> None:
        self.model, self.batch_size = model, batch_size

    @classmethod
    def available(cls) -> bool:
        """Whether the library is installed."""
        return all(importlib.util.find_spec(module) is not None for module in cls.needs)

    @classmethod
    def version(cls) -> str:
        """The installed version, or "not installed"."""
        return importlib.metadata.version(cls.distribution) if cls.available() else "not installed"

    def timed(self, attack: str, x: np.ndarray, y: np.ndarray, **settings: Any) -> Timed:
        """Run an attack by its name. Errors: `LeftOutError`, also for whatever the library raises."""
        if not hasattr(self, attack):
            raise LeftOutError(f"has no {attack}")
        try:
            started = time.perf_counter()
            changed = getattr(self, attack)(x, y, **settings)
            return Timed(time.perf_counter() - started, changed)
        except LeftOutError:
            raise
        except Exception as error:  # a library of others may raise anything, and what it raises is its row
            raise LeftOutError(f"{type(error).__name__}: {one_line(error)}") from error

    def in_batches(self, attack: Callable[[Any, Any], Any], x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """`attack(x, y)` on TensorFlow tensors, a batch at a time."""
        import tensorflow as tf

        out = np.empty_like(x)
        for first in range(0, len(x), self.batch_size):
            rows = slice(first, first + self.batch_size)
            out[rows] = attack(tf.constant(x[rows]), tf.constant(y[rows])).numpy()
        return out

    def close(self) -> None:
        """Give back what the peer holds."""


class CleverHans(Peer):
    """CleverHans 4, its functions for TensorFlow 2, which compile the gradient themselves."""

    name = "cleverhans"
    distribution = "cleverhans"
    needs = ("cleverhans", "tensorflow_probability")

    def fgsm(self, x, y, *, eps, norm="linf"):
        from cleverhans.tf2.attacks.fast_gradient_method import fast_gradient_method

        def attack(x, y):
            return fast_gradient_method(self.model, x, eps, ORDERS[norm], clip_min=0.0, clip_max=1.0, y=y)

        return self.in_batches(attack, x, y)

    def pgd(self, x, y, *, eps, alpha, steps, norm="linf", random_start=True, clip=(0.0, 1.0)):
        from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent

        def attack(x, y):
            return projected_gradient_descent(
                self.model,
                x,
                eps,
                alpha,
                steps,
                ORDERS[norm],
                clip_min=clip[0],
                clip_max=clip[1],
                y=y,
                rand_init=random_start,
            )

        return self.in_batches(attack, x, y)

    def mi_fgsm(self, x, y, *, eps, alpha, steps, momentum=1.0, norm="linf", clip=(0.0, 1.0)):
        from cleverhans.tf2.attacks.momentum_iterative_method import momentum_iterative_method

        def attack(x, y):
            return momentum_iterative_method(
                self.model,
                x,
                eps=eps,
                eps_iter=alpha,
                nb_iter=steps,
                norm=ORDERS[norm],
                clip_min=clip[0],
                clip_max=clip[1],
                y=y,
                decay_factor=momentum,
            )

        return self.in_batches(attack, x, y)

    def cw_l2(self, x, y, *, steps, search_steps, constant, learning_rate):
        from cleverhans.tf2.attacks.carlini_wagner_l2 import carlini_wagner_l2

        # A `y` makes it targeted, whatever `targeted` says; without, it flees the model's own answers, here the same.
        return carlini_wagner_l2(
            self.model,
            x,
            batch_size=self.batch_size,
            binary_search_steps=search_steps,
            max_iterations=steps,
            initial_const=constant,
            learning_rate=learning_rate,
        )


class Foolbox(Peer):
    """Foolbox 3, which runs eagerly; the model's forward pass is compiled for it, which spares it a tenth."""

    name = "foolbox"
    distribution = "foolbox"
    needs = ("foolbox",)

    def __init__(self, model: "keras.Model", batch_size: int) -> None:
        super().__init__(model, batch_size)
        import foolbox
        import tensorflow as tf

        signature = [tf.TensorSpec([None, *model.input_shape[1:]], tf.float32)]
        self.forward = tf.function(lambda x: model(x, training=False), input_signature=signature)
        self.device = "/GPU:0" if tf.config.list_physical_devices("GPU") else "/CPU:0"
        self.foolbox = foolbox
        self.tensors = foolbox.TensorFlowModel(self.forward, bounds=(0, 1), device=self.device)

    def fgsm(self, x, y, *, eps, norm="linf"):
        return self._fixed({"linf": "FGSM", "l2": "FGM", "l1": "L1FastGradientAttack"}[norm], x, y, eps)

    def pgd(self, x, y, *, eps, alpha, steps, norm="linf", random_start=True, clip=(0.0, 1.0)):
        options = {"abs_stepsize": alpha, "steps": steps, "random_start": random_start}
        return self._fixed({"linf": "LinfPGD", "l2": "L2PGD", "l1": "L1PGD"}[norm], x, y, eps, clip, **options)

    def mi_fgsm(self, x, y, *, eps, alpha, steps, momentum=1.0, norm="linf", clip=(0.0, 1.0)):
        name = f"{norm.title()}MomentumIterativeFastGradientMethod"
        return self._fixed(name, x, y, eps, clip, abs_stepsize=alpha, steps=steps, momentum=momentum)

    def cw_l2(self, x, y, *, steps, search_steps, constant, learning_rate):
        options = {"binary_search_steps": search_steps, "steps": steps}
        return self._run("L2CarliniWagnerAttack", x, y, stepsize=learning_rate, initial_const=constant, **options)

    def ddn(self, x, y, *, steps=100, gamma=0.05, initial_eps=1.0):
        return self._run("DDNAttack", x, y, steps=steps, gamma=gamma, init_epsilon=initial_eps)

    def smallest(self, x, y, *, name, norm, steps):
        """An attack of `FOOLBOX_MINIMAL` that looks for the smallest perturbation, with so many gradients."""
        of = FOOLBOX_MINIMAL[norm][name]
        return self._run(of.kind, x, y, steps=max(steps // of.share, 1), **of.options)

    def _fixed(self, name, x, y, eps, clip=(0.0, 1.0), **options):
        return self._run(name, x, y, {"epsilon": eps}, clip, **options)

    def _run(self, name, x, y, budget=None, clip=(0.0, 1.0), **options):
        attack = getattr(self.foolbox.attacks, name)(**options)
        tensors = self.tensors
        if clip != (0.0, 1.0):
            tensors = self.foolbox.TensorFlowModel(self.forward, bounds=clip, device=self.device)

        def run(x, y):
            return attack.run(tensors, x, self.foolbox.criteria.Misclassification(y), **(budget or {}))

        # Beside labels of another integer type than argmax answers with, it calls a function that NumPy 2 has not.
        return self.in_batches(run, x, y.astype(np.int64))


class Smallest(NamedTuple):
    """An attack of Foolbox that looks for the smallest perturbation: its class, by how many searches or classes its
    gradients are shared out, and its settings."""

    kind: str
    share: int = 1
    options: Mapping[str, Any] = {}


_SEARCHES = {"binary_search_steps": 9, "initial_const": 0.1}
# By norm, by the names in tables; DeepFool goes to the nine nearest classes, each with a gradient.
FOOLBOX_MINIMAL: dict[str, dict[str, Smallest]] = {
    "linf": {"foolbox_fmn": Smallest("LInfFMNAttack"), "foolbox_deepfool": Smallest("LinfDeepFoolAttack", 9)},
    "l2": {
        "foolbox_ddn": Smallest("DDNAttack"),
        "foolbox_fmn": Smallest("L2FMNAttack"),
        "foolbox_deepfool": Smallest("L2DeepFoolAttack", 9),
        "foolbox_cw": Smallest("L2CarliniWagnerAttack", 9, _SEARCHES),
    },
    "l1": {
        "foolbox_fmn": Smallest("L1FMNAttack"),
        "foolbox_ead": Smallest("EADAttack", 9, _SEARCHES | {"regularization": 0.01, "decision_rule": "L1"}),
    },
    "l0": {"foolbox_fmn": Smallest("L0FMNAttack")},
}


class FoolboxDropping(Peer):
    """What a careful user would build on Foolbox: PGD in chunks of steps, between which fooled examples are dropped.

    Over the whole data set, so that the batches stay full. Foolbox itself always continues to the last step.
    """

    name = "foolbox_dropping"
    distribution = "foolbox"
    needs = ("foolbox",)
    chunk = 5

    def __init__(self, model: "keras.Model", batch_size: int) -> None:
        super().__init__(model, batch_size)
        self.library = Foolbox(model, batch_size)

    def pgd(self, x, y, *, eps, alpha, steps, norm="linf", random_start=True):
        import tensorflow as tf

        out, left = np.array(x), np.arange(len(x))
        for first in range(0, steps, self.chunk):
            options = {"abs_stepsize": alpha, "steps": min(self.chunk, steps - first)}
            attack = _continued(self.library.foolbox, norm)(random_start=random_start or first > 0, **options)
            fooled = np.zeros(len(left), bool)
            for begin in range(0, len(left), self.batch_size):
                rows = left[begin : begin + self.batch_size]
                attack.points = tf.constant(out[rows]) if first else None
                criterion = self.library.foolbox.criteria.Misclassification(tf.constant(y[rows], tf.int64))
                moved = attack.run(self.library.tensors, tf.constant(x[rows]), criterion, epsilon=eps)
                out[rows] = moved.numpy()
                answers = tf.argmax(self.library.forward(moved), axis=1).numpy()
                fooled[begin : begin + len(rows)] = answers != y[rows]
            left = left[~fooled]
        return out


def _continued(foolbox: Any, norm: str) -> type:
    """Foolbox's PGD continued from `points` where there are any; the centre of the ball is still the original."""
    import eagerpy

    class Continued({"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]):
        points: Any = None

        def get_random_start(self, x0, epsilon):
            return super().get_random_start(x0, epsilon) if self.points is None else eagerpy.astensor(self.points)

    return Continued


class Art(Peer):
    """The Adversarial Robustness Toolbox, its classifier for TensorFlow 2."""

    name = "art"
    distribution = "adversarial-robustness-toolbox"
    needs = ("art",)

    def __init__(self, model: "keras.Model", batch_size: int) -> None:
        super().__init__(model, batch_size)
        import keras
        from art.estimators.classification import TensorFlowV2Classifier

        self.classifier = TensorFlowV2Classifier(
            model,
            nb_classes=model.output_shape[-1],
            input_shape=model.input_shape[1:],
            loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            clip_values=(0, 1),
        )

    def fgsm(self, x, y, *, eps, norm="linf"):
        from art.attacks.evasion import FastGradientMethod

        return FastGradientMethod(self.classifier, norm=ORDERS[norm], eps=eps, batch_size=self.batch_size).generate(
            x, y
        )

    def pgd(self, x, y, *, eps, alpha, steps, norm="linf", random_start=True):
        from art.attacks.evasion import ProjectedGradientDescent

        attack = ProjectedGradientDescent(
            self.classifier,
            norm=ORDERS[norm],
            eps=eps,
            eps_step=alpha,
            max_iter=steps,
            num_random_init=int(random_start),
            batch_size=self.batch_size,
            verbose=False,
        )
        return attack.generate(x, y)

    def mi_fgsm(self, x, y, *, eps, alpha, steps, momentum=1.0, norm="linf"):
        from art.attacks.evasion import MomentumIterativeMethod

        attack = MomentumIterativeMethod(
            self.classifier,
            norm=ORDERS[norm],
            eps=eps,
            eps_step=alpha,
            decay=momentum,
            max_iter=steps,
            batch_size=self.batch_size,
            verbose=False,
        )
        return attack.generate(x, y)

    def cw_l2(self, x, y, *, steps, search_steps, constant, learning_rate):
        from art.attacks.evasion import CarliniL2Method

        attack = CarliniL2Method(
            self.classifier,
            learning_rate=learning_rate,
            binary_search_steps=search_steps,
            max_iter=steps,
            initial_const=constant,
            batch_size=self.batch_size,
            verbose=False,
        )
        return attack.generate(x, y)


class OnTorch(Peer):
    """A library for PyTorch, in the other process: same weights, same arrays, its own clock."""

    side: "TorchSide"

    def timed(self, attack: str, x: np.ndarray, y: np.ndarray, **settings: Any) -> Timed:
        """As `Peer.timed`; carrying the arrays to and fro is not counted."""
        return self.side.timed(self.name, attack, x, y, settings)


class TorchAttacks(OnTorch):
    """torchattacks 3.5."""

    name = "torchattacks"
    distribution = "torchattacks"
    needs = ("torch", "torchattacks")


class Official(OnTorch):
    """AutoAttack as its authors have it: `autoattack(x, y, eps, norm, seed)`, which torchattacks has as well."""

    name = "official"
    distribution = "pyautoattack"
    needs = ("torch", "pyautoattack")


class FoolboxOnTorch(OnTorch):
    """Foolbox 3 on PyTorch, whose eager mode costs less than TensorFlow's."""

    name = "foolbox_torch"
    distribution = "foolbox"
    needs = ("torch", "foolbox")


class BareTorch(OnTorch):
    """No library: PyTorch's gradients of the loss, one after the other (`gradients(x, y, steps)`)."""

    name = "bare_torch"
    distribution = "torch"
    needs = ("torch",)


PEERS: tuple[type[Peer], ...] = (
    CleverHans,
    Foolbox,
    FoolboxDropping,
    TorchAttacks,
    Official,
    FoolboxOnTorch,
    BareTorch,
    Art,
)


class TorchSide:
    """The process that runs PyTorch: one JSON line asks, one answers, arrays pass through a folder."""

    def __init__(self, path: Path, batch_size: int, seed: int = 0) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="torch_side")
        search = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": os.pathsep.join(search)}
        command = [sys.executable, str(Path(__file__).with_name("torch_side.py"))]
        command += [str(path.resolve()), str(batch_size), str(seed)]
        # What the libraries there print would bury this side's output; it is kept for the case that the process dies.
        self._notes = open(Path(self._folder.name, "notes.txt"), "w+", encoding="utf-8")  # noqa: SIM115
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._notes, text=True
        )
        self.network = str(self._answer()["network"])

    def timed(self, peer: str, attack: str, x: np.ndarray, y: np.ndarray, settings: Mapping[str, Any]) -> Timed:
        """Run an attack there. Errors: `LeftOutError` with what the library raised."""
        given, answered = (Path(self._folder.name, name) for name in ("given.npz", "answered.npy"))
        np.savez(given, x=x, y=y)
        question = {"peer": peer, "attack": attack, "settings": dict(settings)}
        self._process.stdin.write(json.dumps(question | {"given": str(given), "answered": str(answered)}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        return Timed(answer["seconds"], np.load(answered, allow_pickle=False), answer.get("notes", {}))

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._notes.close()
        self._folder.cleanup()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._notes.seek(0)
            raise LeftOutError(f"the PyTorch process ended: {one_line(self._notes.read()[-300:])}")
        answer = json.loads(line)
        if "error" in answer:
            raise LeftOutError(answer["error"])
        return answer


@contextlib.contextmanager
def opened(model: "keras.Model", path: Path, *, batch_size: int, seed: int = 0) -> Iterator[dict[str, Peer]]:
    """The installed peers by name, around `model`, which is also the file `path`; its weights are frozen meanwhile."""
    trainable = model.trainable
    model.trainable = False
    side = None
    try:
        peers = {}
        for kind in PEERS:
            if not kind.available():
                continue
            peers[kind.name] = peer = kind(model, batch_size)
            if isinstance(peer, OnTorch):
                side = peer.side = side or TorchSide(path, batch_size, seed)
        yield peers
    finally:
        model.trainable = trainable
        if side is not None:
            side.close()


def one_line(error: object) -> str:
    """The start of what an exception says, without line breaks."""
    return " ".join(str(error).split())[:200]
