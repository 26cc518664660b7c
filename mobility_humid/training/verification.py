"""Loss, threshold and metrics of the driver verifier, with intervals by driver."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from common.evaluation.predictions import outputs
from common.evaluation.statistics import (
    Estimate,
    Statistic,
    auc,
    best_threshold,
    bootstrap,
    weighted_auc,
    weighted_f1,
    weighted_mean,
)
from common.progress import blocks
from common.training.batches import Batch, assembled
from common.training.loop import Loss, Terms
from mobility_humid.data.pairs import Pairs
from mobility_humid.data.samples import TRAIN, Fleet
from mobility_humid.models.certified import CertifiedSiamese, Observed
from mobility_humid.models.networks import Siamese

# Pairs whose maps represent the fleet's.
_MET = 400
# Pairs whose tables are held at a time.
_BLOCK = 100
# Of the weights of what cannot be moved.
_INVERSE_PENALTY = 0.03


def adapt_likeness(model: Siamese, fleet: Fleet) -> None:
    """Show a network that compares maps those of the seen drivers on the training days."""
    if not (model.on_map and model.head != "concat"):
        return
    drawn = fleet.sampler(TRAIN).pairs(_MET, [fleet.sampling.seed, 98])
    x = fleet.samples(drawn)
    blocks = [model.embed_all(x[first : first + 50]) for first in range(0, len(x), 50)]
    for layer, shares in zip(model.likeness, zip(*blocks, strict=True), strict=True):
        layer.adapt(np.concatenate([np.asarray(block).reshape(-1, block.shape[-1]) for block in shares]))


def same_driver_loss(model: keras.Model, batch: Batch) -> tuple[Terms, Terms]:
    """Mean binary cross-entropy of (x, y), y 1 for the same driver; logs the accuracy on the batch."""
    x, y = batch
    z = model(x, training=True)[:, 0]
    loss = tf.nn.sigmoid_cross_entropy_with_logits(labels=tf.cast(y, z.dtype), logits=z)
    right = tf.cast(z > 0, y.dtype) == y
    return {"cross_entropy": tf.reduce_mean(loss)}, {"accuracy": tf.reduce_mean(tf.cast(right, tf.float32))}


def watch(model: Siamese, x: np.ndarray, same: np.ndarray) -> dict[str, float]:
    """Loss, accuracy and AUC on validation pairs `x` (n, ...), `same` (n,)."""
    z = outputs(model, x)[:, 0].astype(np.float64)
    return {
        "validation_loss": float(np.mean(np.logaddexp(0, z) - same * z)),
        "validation_accuracy": float(np.mean((z > 0) == same)),
        "validation_auc": auc(z, same),
    }


def fix_threshold(model: Siamese, x: np.ndarray, same: np.ndarray) -> None:
    """Let `model` decide where it is most often right on validation pairs `x` (n, ...), `same` (n,)."""
    # The logits have the threshold of before taken off already.
    model.threshold.assign(float(model.threshold.numpy()) + best_threshold(outputs(model, x)[:, 0], same))


def fit_fixed(model: CertifiedSiamese, fleet: Fleet, pairs: Pairs) -> None:
    """Weigh what no attack moves by logistic regression on `pairs`: it takes many more than the rest, which is a few
    numbers, and needs less of each."""
    features = np.concatenate(
        [
            np.asarray(model.features(fleet.samples(_some(pairs, rows))))
            for rows in blocks(len(pairs.same), _BLOCK, "what cannot be moved", units="pairs")
        ]
    )
    scale = StandardScaler().fit(features)
    found = LogisticRegression(C=_INVERSE_PENALTY, max_iter=3000).fit(scale.transform(features), pairs.same)
    weights = found.coef_[0] / scale.scale_
    model.weigh(weights, float(found.intercept_[0] - weights @ scale.mean_))


class Seen(NamedTuple):
    """What was observed of pairs, in blocks, and `same` int32 (n,)."""

    blocks: list[Observed]
    same: np.ndarray


def observe(model: CertifiedSiamese, fleet: Fleet, pairs: Pairs) -> Seen:
    """What `model` reads of pairs, its weights apart."""
    seen = [
        Observed(*map(np.asarray, model.observe(fleet.samples(_some(pairs, rows)))))
        for rows in blocks(len(pairs.same), _BLOCK, "certified verifiers", units="pairs", shown=False)
    ]
    return Seen(seen, pairs.same)


def observed_epochs(seen: Seen, batch_size: int, seed: int) -> Callable[[int], tf.data.Dataset]:
    """Batches (features, levels, where, same) of what was observed, in another order each epoch."""
    parts = [np.concatenate(of) for of in zip(*seen.blocks, strict=True)]
    with tf.device("CPU"):
        tables = [tf.constant(part) for part in (*parts, seen.same.astype(np.int32))]

    def epoch_batches(epoch: int) -> tf.data.Dataset:
        order = np.random.default_rng([seed, 0, epoch]).permutation(len(seen.same))
        rows = order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)
        return assembled(rows, assemble=lambda rows: tuple(tf.gather(table, rows) for table in tables))

    return epoch_batches


def worst_case_loss(eta: int) -> Loss:
    """The mean binary cross-entropy of batches of `observed_epochs` where each moving point is the worst within `eta`
    cells, exactly; logs the certified accuracy on the batch."""

    def loss(model: CertifiedSiamese, batch: Batch) -> tuple[Terms, Terms]:
        *seen, y = batch
        low, high = model.bounds(Observed(*seen), eta, training=True)
        z = tf.where(y == 1, low, high)
        entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=tf.cast(y, z.dtype), logits=z)
        right = tf.cast(z > 0, y.dtype) == y
        return {"cross_entropy": tf.reduce_mean(entropy)}, {"accuracy": tf.reduce_mean(tf.cast(right, tf.float32))}

    return loss


def worst(model: CertifiedSiamese, seen: Seen, eta: int) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest logits, float32 (n,) each, that pairs can have within `eta` cells."""
    return _by_blocks(lambda block: model.bounds(block, eta), seen)


def channels(model: CertifiedSiamese, seen: Seen) -> tuple[np.ndarray, np.ndarray]:
    """What a verifier makes of what cannot be moved, and of the rest, float32 (n,) each."""
    return _by_blocks(model.channels, seen)


def _by_blocks(function: Callable, seen: Seen) -> tuple[np.ndarray, np.ndarray]:
    found = [[np.asarray(end) for end in function(block)] for block in seen.blocks]
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


def _some(pairs: Pairs, rows: slice) -> Pairs:
    return Pairs(*(of[rows] for of in pairs))


def watch_worst(model: CertifiedSiamese, seen: Seen, eta: int) -> dict[str, float]:
    """Loss and accuracy on validation pairs at their worst within `eta` cells."""
    low, high = worst(model, seen, eta)
    z = np.where(seen.same == 1, low, high).astype(np.float64)
    return {
        "validation_loss": float(np.mean(np.logaddexp(0, z) - seen.same * z)),
        "validation_accuracy": float(np.mean((z > 0) == seen.same)),
    }


def fix_worst_threshold(model: CertifiedSiamese, seen: Seen, eta: int) -> None:
    """Let `model` decide where most validation pairs are certified within `eta` cells."""
    low, high = worst(model, seen, eta)
    shift = best_threshold(np.where(seen.same == 1, low, high), seen.same)
    model.threshold.assign(float(model.threshold.numpy()) + shift)


def quality(
    scores: Sequence[np.ndarray],
    same: Sequence[np.ndarray],
    drivers: Sequence[np.ndarray],
    *,
    less: Sequence[np.ndarray] | None = None,
) -> dict[str, Estimate]:
    """Accuracy, F1 (of the same driver) and AUC of `scores` (n,) of each fold, above 0 for the same driver: means over
    the folds, with intervals by driver; with `less`, how much higher they are than those of other scores of the same
    pairs.

    No two folds share a pair; thresholds and scales are each fold's own, so that AUC compares pairs of one fold alone.
    """
    ends = np.cumsum([len(of) for of in same])
    folds = [slice(end - len(of), end) for end, of in zip(ends, same, strict=True)]

    def of_folds(scores: Sequence[np.ndarray], make: Callable) -> Statistic:
        each = [make(own, y) for own, y in zip(scores, same, strict=True)]
        return lambda weights: np.mean([of(weights[:, rows]) for of, rows in zip(each, folds, strict=True)], axis=0)

    found = {}
    for metric, make in _QUALITY.items():
        of_ours = of_folds(scores, make)
        of_theirs = None if less is None else of_folds(less, make)
        statistic = of_ours if of_theirs is None else lambda w, a=of_ours, b=of_theirs: a(w) - b(w)
        value = float(statistic(np.ones((1, ends[-1])))[0])
        found[metric] = Estimate(value, int(ends[-1]), *bootstrap(statistic, np.concatenate(drivers)))
    return found


_QUALITY = {
    "accuracy": lambda scores, same: weighted_mean((scores > 0) == (same == 1)),
    "f1": lambda scores, same: weighted_f1(scores > 0, same == 1),
    "auc": weighted_auc,
}
