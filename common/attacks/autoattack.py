"""AutoAttack (Croce & Hein 2020): attacks without anything to tune, each on what the ones before have left.

result = autoattack(model, x, y, norm="linf", eps=8 / 255)
print(result.robust.mean(), result.steps)
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf

from common.arrays import to_array, to_labels
from common.attacks.apgd import apgd
from common.attacks.budget import Norm
from common.attacks.compile import as_float32, check_box, compiled
from common.attacks.dataset import attack_dataset, of_rows
from common.attacks.fab import fab
from common.attacks.logits import check_logits, logits_of
from common.attacks.loop import Model, choose
from common.attacks.objectives import untargeted_dlr, untargeted_margin
from common.attacks.randomness import RandomModel
from common.attacks.square import square
from common.attacks.tensors import example_seeds
from common.errors import UserError
from common.files import read_npz, write_npz

Version = Literal["standard", "plus", "rand", "fast", "custom"]
Step = Callable[..., tf.Tensor]

CLEAN = "clean"
"""The name of what no attack has touched yet."""

SQUARE = "square"
DRAWS = 20
"""Draws of a random model, in each gradient of `rand` and wherever a `RandomModel` is judged."""

# More than this share of all examples broken by random search alone says that gradients are masked (AutoAttack's rule).
_MASKED = 0.002
# From these ratios on an example counts as nearly broken: of those that longer attacks broke most were above.
_NEAR, _NEARER = -0.25, -0.15
# What of the budget rounding may add: float32 sums over an image.
_ROUNDING = 1e-5


class Left(NamedTuple):
    """An attack of several: how many examples it was `given` and has `broken`, how many are `left` of all, and the
    gradients and the seconds it took."""

    name: str
    given: int
    broken: int
    left: int
    gradients: int
    seconds: float


class Near(NamedTuple):
    """An attack for examples alone that an attack before has come near to breaking: whose `ratio` is `above`."""

    attack: Step
    above: float


class IfMasked(NamedTuple):
    """An attack that is run where those before are `masked` alone."""

    attack: Step


class AutoAttackResult(NamedTuple):
    """The worst case of all attacks, example by example.

    `x` float32 (N, ...): an adversarial example where one was found, else the clean input; `clean`, `robust` bool (N,):
    answered rightly without attacks, and whatever they did. `steps`: what each has left. `broken_by` int (N,): the
    number of the first attack in `steps` that succeeded, 0 for what was wrong before, -1 for robust examples.

    `ratio` (N,): the largest difference of logits ratio (Croce & Hein 2020, equation 6) of all that attacks have
    returned, above 0 for broken examples and near to it where it was close. `left_out`: what the version asks for and
    this model does not allow, in words.
    """

    x: np.ndarray
    clean: np.ndarray
    robust: np.ndarray
    broken_by: np.ndarray
    ratio: np.ndarray
    steps: tuple[Left, ...]
    left_out: tuple[str, ...] = ()

    @property
    def masked(self) -> bool:
        """Whether random search has broken more than 0.2 % of all examples that gradients had left: those are of
        little use then, and what else they leave proves little."""
        broken = sum(step.broken for step in self.steps if step.name == SQUARE)
        return broken > _MASKED * len(self.robust)

    @property
    def gradients(self) -> int:
        """How many gradients of one example all attacks took together."""
        return sum(step.gradients for step in self.steps)


def autoattack(
    model: Model,
    x: np.ndarray,
    y: np.ndarray,
    *,
    eps: float | np.ndarray,
    norm: Norm = "linf",
    version: Version = "standard",
    attacks: Mapping[str, Step | Near] | None = None,
    seed: int = 0,
    index: np.ndarray | None = None,
    low: float = 0.0,
    high: float = 1.0,
    batch_size: int = 256,
    state: Path | str | None = None,
    progress: bool = False,
    log: Callable[[str], None] | None = None,
) -> AutoAttackResult:
    """Attack `x` (N, ...) float in [`low`, `high`] with labels `y` (N,) within `eps`, a scalar or (N,), of a norm.

    `version`: `standard` is the paper's, APGD-CE, targeted APGD-DLR, FAB-T and Square; `plus` adds APGD-DLR, FAB
    towards whichever boundary is nearest, and more restarts; `rand`, for models that draw, climbs the mean of 20 draws
    by APGD-CE and APGD-DLR. `fast` takes a fifth of the paper's gradients or less: three short attacks, by margin,
    cross-entropy and towards the three nearest classes, two more for those alone that came near, and a short Square;
    where that says that gradients are `masked`, all of `standard` as well. `custom` runs `attacks`, functions of x, y
    and, if they have such an argument, index, by their names. What is found is looked at anew, at its own place and
    within ball and box; a success is nothing else.

    Draws are tied to `index` (N,), the examples' places in the data set, by default 0 to N - 1: of a part of them there
    comes what comes of all. `state`, an `.npz`, is written after each attack; from one that is there the evaluation
    goes on, with the same results as without the stop. `log` is told what each attack has left.

    Errors: `ValueError` as the attacks; `UserError` for a `state` that is damaged or of another evaluation, naming what
    differs.
    """
    if (version == "custom") != (attacks is not None):
        raise ValueError("attacks are given with version='custom', and with that alone")
    # Checked here too, for where nothing is answered rightly no attack sees them.
    x = as_float32(x)
    check_box(x, tf.constant(low, tf.float32), tf.constant(high, tf.float32))
    classes = check_logits(model, x[:8])
    x, y = x.numpy(), to_labels(y, len(x), classes)
    left_out: tuple[str, ...] = ()
    if attacks is None:
        shared = {"norm": norm, "eps": eps, "seed": seed, "low": low, "high": high}
        attacks, left_out = plan(version, model, classes, images=x.ndim == 4, **shared)
    index = np.arange(len(x), dtype=np.int32) if index is None else np.asarray(to_array(index, "index"), np.int32)
    if index.shape != (len(x),):
        raise ValueError(f"index must be of shape ({len(x)},); received shape {index.shape}")
    task = _Task(model, x, y, index, norm, eps, low, high, batch_size, progress)
    file = None if state is None else _State(Path(state), task, {"version": version, "seed": seed}, list(attacks))
    found = None if file is None else file.read()
    found = (task.clean() if found is None else found)._replace(left_out=left_out)
    for number, (name, attack) in enumerate(attacks.items(), start=1):
        if number < len(found.steps):
            continue
        found = task.after(found, name, attack)
        if file is not None:
            file.write(found)
        last = found.steps[-1]
        if log is not None and last.given:
            log(f"{name}: {last.left} of {len(x)} examples left, {last.broken} broken, {last.seconds:.0f} s")
    return found


def autoattacked(
    model: Model,
    x: Any,
    y: Any,
    *,
    eps: float,
    norm: Norm = "linf",
    version: Version = "standard",
    stop: bool = True,
    seed: int = 0,
    index: np.ndarray | None = None,
    low: float = 0.0,
    high: float = 1.0,
) -> np.ndarray:
    """The adversarial examples (n, ...) of `autoattack`, as an evaluation takes an attack, by `functools.partial`.

    With `stop=False`, for examples that were lost when they were rounded, for AutoAttack stops where it has just
    crossed the border: the larger margin of two times APGD on it, once towards three classes, with all steps.
    """
    x, y = np.asarray(x, np.float32), np.asarray(y)
    shared = {"eps": eps, "norm": norm, "seed": seed, "index": index, "low": low, "high": high}
    if stop:
        return autoattack(model, x, y, version=version, **shared).x
    climb = partial(apgd, model, x, y, loss="margin", stop=False, **shared)
    one, other = climb(), climb(targets=min(3, max(check_logits(model, x[:8]), 2) - 1))
    margin = untargeted_margin(model, {"y": tf.constant(y, tf.int32)})
    return choose(margin(one)[0] >= margin(other)[0], one, other).numpy()


def plan(
    version: Version,
    model: Model,
    classes: int,
    *,
    images: bool,
    norm: Norm,
    eps: Any,
    seed: int,
    low: float,
    high: float,
) -> tuple[dict[str, Step | Near | IfMasked], tuple[str, ...]]:
    """The attacks of a version on a model of so many classes, by name, and what is left out, of images or other inputs.

    Errors: `ValueError` for another version or norm.
    """
    if norm not in ("linf", "l2", "l1"):
        raise ValueError(f"norm must be linf, l2 or l1; received {norm!r}")
    shared = {"norm": norm, "low": low, "high": high, "seed": seed}
    climb, others = partial(apgd, model, eps=eps, **shared), classes - 1
    left_out = []
    if classes < 4:
        left_out.append(
            f"the targeted difference of logits ratio needs 4 classes, this model has {classes}: apgd-t"
            " raises the margin of logits instead"
        )
    ratio = "dlr" if classes >= 4 else "margin"
    # In L1 as in the L1 version of AutoAttack (Croce & Hein 2021).
    targets, restarts = (min(5 if norm == "l1" else 9, others), 5 if norm == "l1" else 1)
    targeted = partial(climb, loss=ratio, targets=targets)
    search = partial(square, model, eps=eps, **shared)
    boundary = partial(fab, model, eps=eps, targets=min(9, others), **shared)
    searches = {SQUARE: search}
    if norm != "linf" and not images:
        left_out.append(f"square: its windows in {norm} are those of images")
        searches = {}
    standard = {"apgd-ce": partial(climb, restarts=restarts), "apgd-t": targeted, "fab-t": boundary, **searches}
    if version == "fast":
        again = partial(apgd, model, eps=eps, **{**shared, "seed": seed + 1})
        near = {
            "near-ce": Near(partial(again, restarts=2), _NEAR),
            "near-t": Near(partial(again, loss="margin", targets=min(3, others)), _NEARER),
        }
        return {
            "margin": partial(climb, loss="margin", steps=20),
            "ce": partial(climb, steps=60),
            "margin-t": partial(climb, loss="margin", targets=min(3, others), steps=30),
            **near,
            **{name: partial(attack, steps=200) for name, attack in searches.items()},
            **{f"standard {name}": IfMasked(attack) for name, attack in standard.items()},
        }, tuple(left_out)
    if version == "standard":
        return standard, tuple(left_out)
    if version == "rand":
        several = {"apgd-ce": partial(climb, draws=DRAWS)}
        if classes >= 3:
            several["apgd-dlr"] = partial(climb, loss="dlr", draws=DRAWS)
        else:
            left_out.append("apgd-dlr: the difference of logits ratio needs 3 classes")
        return several, tuple(line for line in left_out if line.startswith("apgd-dlr"))
    if version == "plus":
        attacks = {"apgd-ce": partial(climb, restarts=5)}
        if classes >= 3:
            attacks["apgd-dlr"] = partial(climb, loss="dlr", restarts=5)
        else:
            left_out.append("apgd-dlr: the difference of logits ratio needs 3 classes")
        restarted = partial(boundary, restarts=5, start_eps=eps)
        attacks["fab"] = partial(restarted, targets=others, one_by_one=False)
        return {**attacks, **searches, "apgd-t": targeted, "fab-t": restarted}, tuple(left_out)
    raise ValueError(f"version must be standard, plus, rand, fast or custom; received {version!r}")


class _Task(NamedTuple):
    """Examples, model and threat model, which all attacks share."""

    model: Model
    x: np.ndarray
    y: np.ndarray
    index: np.ndarray
    norm: Norm
    eps: Any
    low: float
    high: float
    batch_size: int
    progress: bool

    def look(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whether each of `x` (n, ...) is answered with its label in `y` (n,), and its ratio."""
        signature = [tf.TensorSpec([None, *x.shape[1:]], tf.float32), tf.TensorSpec([None], tf.int32)]
        look = compiled(self.model, ("right", x.shape[1:]), _look, signature)
        right, ratio = np.empty(len(x), bool), np.empty(len(x), np.float32)
        for first in range(0, len(x), self.batch_size):
            rows = slice(first, first + self.batch_size)
            right[rows], ratio[rows] = look(x[rows], y[rows])
        return right, ratio

    def clean(self) -> AutoAttackResult:
        started = time.perf_counter()
        clean, ratio = self.look(self.x, self.y)
        step = Left(CLEAN, len(clean), 0, int(clean.sum()), 0, time.perf_counter() - started)
        broken_by = np.where(clean, -1, 0).astype(np.int32)
        return AutoAttackResult(self.x.copy(), clean, clean.copy(), broken_by, ratio, (step,))

    def after(self, found: AutoAttackResult, name: str, attack: Step | Near | IfMasked) -> AutoAttackResult:
        """`found` with what `attack` does to those that are left."""
        started, rows = time.perf_counter(), np.flatnonzero(found.robust)
        if isinstance(attack, Near):
            attack, rows = attack.attack, rows[found.ratio[rows] > attack.above]
        elif isinstance(attack, IfMasked):
            attack, rows = attack.attack, rows if found.masked else rows[:0]
        robust, broken_by = found.robust.copy(), found.broken_by.copy()
        x, ratio, gradients = found.x.copy(), found.ratio.copy(), 0
        if len(rows):
            own, clean, y = of_rows(attack, rows, len(x), self.index), self.x[rows], self.y[rows]
            crafted = attack_dataset(own, clean, y, batch_size=self.batch_size, progress=self.progress, name=name)
            eps = np.broadcast_to(self.eps, len(x))[rows]
            allowed = within(clean, crafted.x, self.norm, eps, self.low, self.high)
            right, near = self.look(np.where(_column(allowed, clean), crafted.x, clean), y)
            broken, gradients = rows[~right], crafted.gradients or 0
            x[broken], robust[broken], broken_by[broken] = crafted.x[~right], False, len(found.steps)
            ratio[rows] = np.fmax(ratio[rows], near)
        step = Left(
            name,
            len(rows),
            int((found.robust & ~robust).sum()),
            int(robust.sum()),
            gradients,
            time.perf_counter() - started,
        )
        return found._replace(x=x, robust=robust, broken_by=broken_by, ratio=ratio, steps=(*found.steps, step))


class _State:
    """A file that an evaluation goes on from: what it is of, and what has been found."""

    def __init__(self, path: Path, task: _Task, told: Mapping[str, Any], attacks: Sequence[str]) -> None:
        self.path, self.clean = path, task.x
        self.told = {
            **told,
            "attacks": list(attacks),
            "norm": task.norm,
            "eps": _digest(np.asarray(task.eps, np.float64)),
            "box": [float(task.low), float(task.high)],
            "examples": _digest(task.x, task.index),
            "labels": _digest(task.y),
            "model": _digest(*(variable.numpy() for variable in getattr(task.model, "variables", ()))),
        }

    def read(self) -> AutoAttackResult | None:
        """What was found so far; None where there is no file yet. Errors: `UserError`, as `autoattack`."""
        if not self.path.exists():
            return None
        arrays = read_npz(self.path)
        try:
            told, steps = (json.loads(str(arrays[name])) for name in ("told", "steps"))
            for name, mine in self.told.items():
                if told[name] != mine:
                    raise UserError(f"{self.path}: is of an evaluation with other {name}; give another file, or none")
            x, broken_by, ratio = self.clean.copy(), arrays["broken_by"], arrays["ratio"]
            x[arrays["rows"]] = arrays["x"]
        except (KeyError, ValueError, IndexError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{self.path}: is no state of an AutoAttack; give another file, or none") from error
        return AutoAttackResult(
            x, broken_by != 0, broken_by < 0, broken_by, ratio, tuple(Left(*step) for step in steps)
        )

    def write(self, found: AutoAttackResult) -> None:
        rows = np.flatnonzero(found.broken_by > 0)
        arrays = {"broken_by": found.broken_by, "ratio": found.ratio, "rows": rows, "x": found.x[rows]}
        texts = {"told": json.dumps(self.told), "steps": json.dumps(found.steps)}
        write_npz(self.path, {**arrays, **{name: np.array(text) for name, text in texts.items()}})


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _look(model: Model, x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    if not isinstance(model, RandomModel):
        return _answered(logits_of(model)(x), y)
    seeds = example_seeds(tf.zeros([2], tf.int32), tf.range(tf.shape(x)[0]))
    many, drawn = model.several(x, seeds, DRAWS)
    right, ratio = _answered(logits_of(lambda x: model(x, drawn))(many), tf.repeat(y, DRAWS))
    right, ratio = (tf.reshape(tf.cast(each, tf.float32), [-1, DRAWS]) for each in (right, ratio))
    return tf.reduce_mean(right, axis=1) >= 0.5, tf.reduce_mean(ratio, axis=1)


def _answered(logits: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    ratio, wrong = untargeted_dlr(lambda z: z, {"y": y})(_three_or_more(logits))
    # Of several numbers the first would be the largest where one is none.
    return ~wrong & ~tf.reduce_any(tf.math.is_nan(logits), axis=1), ratio


def _three_or_more(logits: tf.Tensor) -> tf.Tensor:
    """`logits` (B, classes), of two classes with a third that is as far below them as they are apart: the ratio then
    says nothing but who leads."""
    if logits.shape[1] > 2:
        return logits
    low, high = tf.reduce_min(logits, axis=1, keepdims=True), tf.reduce_max(logits, axis=1, keepdims=True)
    return tf.concat([logits, 2 * low - high], axis=1)


def _column(flags: np.ndarray, x: np.ndarray) -> np.ndarray:
    return flags.reshape(-1, *[1] * (x.ndim - 1))


def within(x: np.ndarray, moved: np.ndarray, norm: Norm, eps: Any, low: float, high: float) -> np.ndarray:
    """Which of `moved` (N, ...) are finite, in the box and in the ball of `x` with the radius `eps`, (N,) or scalar,
    but for rounding: bool (N,)."""
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    sides = len(x), math.prod(x.shape[1:])
    flat = moved.reshape(sides)
    if not len(x):
        return np.zeros(0, bool)
    size = np.linalg.norm((moved.astype(np.float64) - x).reshape(sides), ord=order, axis=1)
    inside = np.isfinite(flat).all(axis=1) & (flat >= low).all(axis=1) & (flat <= high).all(axis=1)
    return inside & (size <= np.asarray(eps) * (1 + _ROUNDING) + 1e-6)
