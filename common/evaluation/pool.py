"""The examples of a verdict, with the worst that attacks have found for each."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from common.arrays import to_array, to_labels
from common.attacks import RandomModel, inference, logits_of
from common.attacks.autoattack import within
from common.attacks.budget import Norm
from common.attacks.compile import compiled
from common.attacks.tensors import example_seeds
from common.evaluation import statistics, views
from common.evaluation.quality import quantize, whole_levels
from common.evaluation.statistics import Estimate
from common.evaluation.views import DRAWS
from common.progress import blocks

Model = Callable[[tf.Tensor], tf.Tensor]


class Tried(NamedTuple):
    """An attack: the `accuracy` that it alone leaves of the examples that it met, None where it met only what others
    had left; how many examples it broke that were `new`; the gradients and seconds it took."""

    name: str
    accuracy: Estimate | None
    new: int
    gradients: int | None
    seconds: float


@dataclasses.dataclass
class Pool:
    """The examples with the worst that was found for each, judged by the defence itself, as it is stored."""

    model: Model
    detector: Model | None
    clean: np.ndarray
    y: np.ndarray
    eps: float
    norm: Norm
    low: float
    high: float
    eight_bit: bool
    batch_size: int
    draws: int
    right: np.ndarray = dataclasses.field(init=False)
    best: np.ndarray = dataclasses.field(init=False)
    worst: np.ndarray = dataclasses.field(init=False)
    by: np.ndarray = dataclasses.field(init=False)
    share_right: np.ndarray = dataclasses.field(init=False)
    tried: list[Tried] = dataclasses.field(default_factory=list)
    stood: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """By an attack's name, whom it alone has left, bool (N,)."""

    @classmethod
    def of(
        cls, model: Model, detector: Model | None, x: Any, y: Any, eps, norm, low, high, eight_bit, batch_size
    ) -> "Pool":
        x = to_array(x)
        if x.dtype == np.uint8:
            x = x / np.float32(255)
        x = quantize(np.asarray(x, np.float32)) if eight_bit else np.asarray(x, np.float32)
        if not len(x) or not ((x >= low) & (x <= high)).all():
            raise ValueError(f"x must hold examples in [{low:g}, {high:g}]")
        if not eps > 0:
            raise ValueError(f"eps must be above 0; received {eps}")
        if eight_bit and norm == "linf":
            whole_levels(eps)
        answer = inference(model)(tf.constant(x[:2]))
        if answer.shape.rank != 2:
            raise ValueError(f"a classifier answers with one vector for each example; received {tuple(answer.shape)}")
        y = to_labels(y, len(x), max(int(answer.shape[1]), 2))
        draws = DRAWS if views.differs(model, tf.constant(x[:64])) else 1
        pool = cls(model, detector, x, y, eps, norm, low, high, eight_bit, batch_size, draws)
        rows = np.arange(len(y))
        right = 1 - pool.failed(x, rows)
        rejected = pool.rejected(x) if detector is not None else np.zeros(len(y), bool)
        pool.share_right = np.where(rejected, 0.0, right)
        pool.right = pool.share_right >= 0.5
        pool.best, pool.worst = pool.store(x), np.where(pool.right, 1 - right, 1.0)
        pool.by = np.full(len(y), -1, np.int32)
        return pool

    def estimate(self) -> Estimate:
        """Accuracy without attack."""
        return statistics.independent(float(self.share_right.mean()), len(self.y))

    def left(self) -> np.ndarray:
        """Of the answers to the worst that was found for each example those that are right, asked anew: (N,)."""
        share = 1 - self.failed(self.float_of(self.best), np.arange(len(self.y)))
        return np.where(self.right, share, 0.0)

    def failed(self, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The share of answers to `x` (n, ...), float, of the examples `rows` (n,), that are wrong and accepted."""
        signature = [tf.TensorSpec([None, *x.shape[1:]], tf.float32), tf.TensorSpec([], tf.int32)]
        answer = compiled(self.model, ("drawn classes", x.shape[1:]), _classes, signature)
        wrong = np.zeros(len(x))
        for draw in range(self.draws):
            for part in blocks(len(x), self.batch_size, "judging", units="examples", shown=False):
                wrong[part] += answer(x[part], draw).numpy() != self.y[rows[part]]
        wrong /= self.draws
        return wrong if self.detector is None else np.where(self.rejected(x), 0.0, wrong)

    def rejected(self, x: np.ndarray) -> np.ndarray:
        """What the detector rejects, bool (n,)."""
        signature = [tf.TensorSpec([None, *x.shape[1:]], tf.float32)]
        answer = compiled(self.detector, ("rejected", x.shape[1:]), rejected_by, signature)
        found = np.empty(len(x), bool)
        for part in blocks(len(x), self.batch_size, "judging", units="examples", shown=False):
            found[part] = answer(x[part])
        return found

    def store(self, x: np.ndarray) -> np.ndarray:
        """As a file holds it."""
        return np.rint(x * 255).astype(np.uint8) if self.eight_bit else np.asarray(x, np.float32)

    def float_of(self, stored: np.ndarray) -> np.ndarray:
        """As a model takes it."""
        return (stored / np.float32(255)).astype(np.float32) if self.eight_bit else stored

    def offer(
        self, name: str, rows: np.ndarray, x: np.ndarray, gradients: int | None, seconds: float, met: int | None
    ) -> np.ndarray:
        """Keep what of `x`, for the examples `rows`, is worse than what was found before, in box and ball, and as it is
        stored: rounded, or, where that leads out of the ball or back over the border, rounded towards the clean
        example. `met`: how many examples, the first, the attack was for, None for those that others had left. Of the
        examples that `x` breaks, those that it does not as it is stored."""
        clean, number = self.clean[rows], len(self.tried)
        alone, new = self.right[rows].copy(), 0
        for stored in self._stored(clean, x):
            moved = self.float_of(stored)
            allowed = within(clean, moved, self.norm, self.eps, self.low, self.high)
            failed = np.where(allowed, self.failed(moved, rows), 0.0)
            alone &= failed < 0.5
            better = self.right[rows] & (failed > self.worst[rows]) & (failed > 0)
            fresh = better & (failed >= 0.5) & (self.worst[rows] < 0.5)
            new += int(fresh.sum())
            self.best[rows[better]], self.worst[rows[better]] = stored[better], failed[better]
            self.by[rows[fresh]] = number
        stood = self.stood.setdefault(name, self.right.copy())
        stood[rows] &= alone
        left = None if met is None else statistics.independent(float(stood[:met].mean()), met)
        self.tried.append(Tried(name, left, new, gradients, seconds))
        standing = rows[alone & self.right[rows]]
        if not self.eight_bit or not len(standing):
            return standing[:0]
        return standing[self.failed(x[np.isin(rows, standing)], standing) >= 0.5]

    def add(self, name: str, rows: np.ndarray, x: np.ndarray, gradients: int | None, seconds: float) -> None:
        """More of what the last attack, `name`, has found."""
        before = self.tried.pop()
        self.offer(name, rows, x, None, seconds, before.accuracy and before.accuracy.n)
        after = self.tried.pop()
        taken = None if before.gradients is None else before.gradients + (gradients or 0)
        self.tried.append(after._replace(new=before.new + after.new, gradients=taken))

    @property
    def classes(self) -> int:
        """How many there are."""
        return max(int(inference(self.model)(tf.constant(self.clean[:1])).shape[1]), 2)

    def _stored(self, clean: np.ndarray, x: np.ndarray) -> Iterator[np.ndarray]:
        yield self.store(x)
        if self.eight_bit:
            levels = x * 255
            yield np.where(x > clean, np.floor(levels + 1e-3), np.ceil(levels - 1e-3)).astype(np.uint8)


def _classes(model: Model, x: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
    if isinstance(model, RandomModel):
        answer = model(x, example_seeds(tf.stack([draw, 1]), tf.range(tf.shape(x)[0])))
    else:
        answer = inference(model)(x)
    answer = tf.cast(answer, tf.float32)
    if answer.shape[1] == 1:
        answer = logits_of(model)(x)
    wrong = tf.reduce_any(tf.math.is_nan(answer), axis=1)
    return tf.where(wrong, -1, tf.argmax(answer, axis=1, output_type=tf.int32))


def rejected_by(detector: Model, x: tf.Tensor) -> tf.Tensor:
    """What a detector rejects of `x` (B, ...): bool (B,)."""
    return tf.reshape(tf.cast(inference(detector)(x), tf.float32), [-1]) > 0
