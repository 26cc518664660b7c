"""Does an attack find what is there? (Zimmermann et al. 2022, "Increasing confidence in adversarial robustness
evaluations"): for each example a new last layer with an adversarial point that is known to exist, because it was put
there. An attack that finds fewer than 95 of 100 proves little about the model by what it fails to find.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from common.arrays import to_array
from common.attacks import Attack, Inputs, Objective, inference, run_dataset
from common.attacks.budget import BALLS, Norm
from common.attacks.compile import as_float32, compiled
from common.attacks.tensors import direction, example_seeds, folded
from common.evaluation import statistics
from common.evaluation.predictions import outputs
from common.evaluation.statistics import Estimate
from common.models import flat, has_graph, places

Tensor = tf.Tensor

INNER = 999
"""Points inside the ball of an example that its read-out has to tell from the one on the boundary."""
WANTED = 0.95
"""Share of planted points that an attack must find."""

# How near the border of a read-out is to the planted point, from the nearest inner one on; the paper's.
_CLOSE = 0.999
# Ridges of a read-out, of the mean variance of a feature, from smooth to sharp, the first that separates; and how many
# points are tried where one cannot be told from the inner ones.
_RIDGES, _TRIES = (10.0, 1.0, 0.1, 0.01, 1e-3), 3


class Found(NamedTuple):
    """What an attack makes of planted points, bool (n,) each: where one could be `planted`, the `hits` of the attack,
    those of a random search by as many points as the read-outs were fitted to, `lucky`; and the `seconds` of it all."""

    planted: np.ndarray
    hits: np.ndarray
    lucky: np.ndarray
    seconds: float

    @property
    def found(self) -> Estimate:
        """The share that the attack finds."""
        return statistics.rate(self.hits[self.planted], None)

    @property
    def random(self) -> Estimate:
        """The share that random search finds."""
        return statistics.rate(self.lucky[self.planted], None)

    @property
    def passed(self) -> bool:
        """Whether the attack finds enough."""
        return self.found.value >= WANTED


def features_of(model: Any) -> keras.Model | None:
    """`model` up to what its last affine layer is given; None for one without a graph, or without such a layer."""
    if not has_graph(model):
        return None
    dense = [place for place in places(flat(model)) if isinstance(place.layer, keras.layers.Dense)]
    if not dense or len(dense[-1].inputs) != 1 or len(dense[-1].inputs[0].shape) != 2:
        return None
    return keras.Model(flat(model).inputs[0], dense[-1].inputs[0])


def read_out(features: Callable, inputs: Inputs) -> Objective:
    """The answer of each example's own read-out: `weights` (B, D) times its `features`, plus `bias` (B,); success: it
    is positive."""
    forward, weights, bias = inference(features), inputs["weights"], inputs["bias"]

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        value = tf.reduce_sum(tf.cast(forward(x), tf.float32) * weights, axis=1) + bias
        return value, value > 0

    return objective


def find_planted(
    features: Callable,
    x: np.ndarray,
    attack: Attack,
    inputs: Mapping[str, Any],
    *,
    eps: float,
    norm: Norm = "linf",
    inner: int = INNER,
    accepted: Callable[[Tensor], Tensor] | None = None,
    low: float = 0.0,
    high: float = 1.0,
    seed: int = 0,
    index: np.ndarray | None = None,
    batch_size: int = 128,
    progress: bool = False,
) -> Found:
    """How many points that were planted in the balls of `x` (n, ...) `attack` finds, with its objective replaced.

    `features`: x -> (B, D), what the read-outs look at. For each example one point on the boundary of the ball and
    `inner` points inside it are drawn; a linear read-out separates the one from the others, its border hard by it.
    `inputs`: what the attack is given beside x, eps and the read-outs, such as its steps. With `accepted`, x -> bool
    (B,), a planted point is one that it accepts, and so must be what the attack finds. Examples in whose ball no point
    can be told from the others are left out. Draws are tied to `index` (n,), by default 0 to n - 1.
    """
    started = time.perf_counter()
    x = as_float32(to_array(x)).numpy()
    index = np.arange(len(x), dtype=np.int32) if index is None else np.asarray(index, np.int32)
    weights, bias = [], []
    planted, lucky, hits = np.zeros((3, len(x)), bool)
    signature = [tf.TensorSpec(x.shape[1:], tf.float32), tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.int32)]
    signature += [tf.TensorSpec([], tf.float32)] * 3
    draw = compiled(
        features,
        ("planted", x.shape[1:], norm, inner, batch_size),
        lambda model, *given: _draw(model, norm, inner, batch_size, *given),
        signature,
    )
    for row, (place, example) in enumerate(zip(index, x, strict=True)):
        fitted = None
        for attempt in range(_TRIES):
            points, told = draw(example, place, seed + 7919 * attempt, eps, low, high)
            if accepted is None or bool(accepted(points[:1])[0]):
                fitted = _separate(told.numpy())
            if fitted is not None:
                break
        if fitted is None:
            continue
        planted[row] = True
        weights.append(fitted[0])
        bias.append(fitted[1])
        # Points that the read-out was not fitted to.
        _, others = draw(example, place, seed + 104729, eps, low, high)
        lucky[row] = (others.numpy()[1:] @ fitted[0] + fitted[1] > 0).any()
    if not planted.any():
        return Found(planted, hits, lucky, time.perf_counter() - started)
    own = x[planted]
    given = {"x": own, "eps": eps, "low": low, "high": high, "seed": seed, "index": index[planted], **inputs}
    given |= {"weights": np.stack(weights), "bias": np.array(bias, np.float32)}
    swapped = dataclasses.replace(attack, objective=read_out, check=None, prepare=None)
    result = run_dataset(swapped, features, given, name="planted points", batch_size=batch_size, progress=progress)
    told = outputs(features, result.x, batch_size=batch_size)
    right = (told * given["weights"]).sum(axis=1) + given["bias"] > 0
    if accepted is not None:
        right &= np.concatenate(
            [accepted(tf.constant(result.x[i : i + batch_size])) for i in range(0, len(own), batch_size)]
        )
    hits[planted] = right
    return Found(planted, hits, lucky, time.perf_counter() - started)


def _draw(
    model: Callable, norm: Norm, inner: int, batch: int, x: Tensor, place: Tensor, seed: Tensor, eps, low, high
) -> tuple[Tensor, Tensor]:
    """Points in the ball of one example x (...), the first on its boundary: (1 + inner, ...), and their features."""
    count = inner + 1
    many = tf.repeat(x[None], count, axis=0)
    ball = BALLS[norm](many, eps, low, high, None)
    seeds = example_seeds(tf.stack([seed, place]), tf.range(count))
    shift = direction(seeds, many, norm)
    if norm == "linf":
        shift = tf.sign(shift)
    # Inside, yet not so far in that the one outside could be told by its distance alone.
    within = ball.random_point(folded(seeds, tf.ones([count], tf.int32)))
    first = tf.reshape(tf.range(count) == 0, [-1] + [1] * (many.shape.rank - 1))
    points = tf.where(first, ball.project(many + eps * shift), within)
    forward = inference(model)
    told = tf.concat([tf.cast(forward(points[i : i + batch]), tf.float32) for i in range(0, count, batch)], axis=0)
    return points, tf.reshape(told, [count, -1])


def _separate(told: np.ndarray) -> tuple[np.ndarray, np.float32] | None:
    """Weights (D,) and bias of a linear read-out that answers the first of `told` (n, D) with more than 0 and the
    others with less; None where none of the kind is found. The direction is that of least squares (Fisher's)."""
    first, others = told[0].astype(np.float64), told[1:].astype(np.float64)
    centre = others.mean(axis=0)
    spread = others - centre
    covariance = spread.T @ spread / len(others)
    size = max(np.trace(covariance) / len(centre), 1e-30)
    for ridge in _RIDGES:
        weights = np.linalg.solve(covariance + ridge * size * np.eye(len(centre)), first - centre)
        length = np.linalg.norm(weights)
        if not np.isfinite(length) or length == 0:
            return None
        weights /= length
        ours, theirs = first @ weights, (others @ weights).max()
        if not ours > theirs:
            continue
        border = theirs + _CLOSE * (ours - theirs)
        # So that the answer to the planted point is one, whatever the scale of the features; single precision keeps it.
        scale = 1.0 / max(ours - border, 1e-12)
        read = (weights * scale).astype(np.float32), np.float32(-border * scale)
        answers = told.astype(np.float32) @ read[0] + read[1]
        if answers[0] > 0 and answers[1:].max() < 0:
            return read
    return None
