"""Batches of arrays in memory, shuffled for each epoch."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from common.arrays import as_float, to_array, to_labels
from common.errors import UserError

Tensor = tf.Tensor
Batch = tuple[Tensor, ...]
Epochs = Callable[[int], tf.data.Dataset]
"""epoch -> its batches; the same for the same epoch, so that a resumed run sees what it would have seen."""


def batches(
    x: np.ndarray,
    y: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    augment: Callable[[Tensor, Tensor], Tensor] | None = None,
    high: float = 1.0,
) -> Epochs:
    """Shuffled batches (images float32 in [0, 1], labels int32) of arrays in memory, another order in each epoch.

    `x` uint8 (N, H, W, C), or float in [0, 1]; `augment`: images (B, H, W, C), seed (2,) -> images. The order and the
    augmentation of an epoch depend on `seed` and the epoch alone. Images that fill no
    last batch wait for another epoch.

    Errors: `ValueError` for labels that are not one class number an example, for fewer examples than a batch, and for
    numbers that are not finite or look like grey levels: none negative and some above 2. Those that are meant so take
    another `high`.
    """
    x, y = to_array(x), to_labels(y, len(x))
    if x.dtype != np.uint8 and x.dtype.kind in "iuf" and x.size:
        _check_range(x.min(), x.max(), high)
    with tf.device("CPU"):
        images, labels = tf.constant(x), tf.constant(y)
    count = len(x) // batch_size
    if not len(x):
        raise UserError("x: holds no examples to train on; expected one or more")
    if count == 0:
        raise UserError(f"batch_size {batch_size} is larger than the {len(x)} training examples")

    def epoch_batches(epoch: int) -> tf.data.Dataset:
        order = np.random.default_rng([seed, epoch]).permutation(len(x))[: count * batch_size]

        def assemble(rows: Tensor, step_seed: Tensor) -> Batch:
            picked = tf.gather(images, rows)
            if augment is not None:
                picked = augment(picked, step_seed)
            return as_float(picked), tf.gather(labels, rows)

        return assembled(order.reshape(count, batch_size), step_seeds([seed, epoch], count), assemble=assemble)

    return epoch_batches


def assembled(*per_step: np.ndarray, assemble: Callable[..., Batch]) -> tf.data.Dataset:
    """`assemble(*of_step)` for each step of an epoch, ahead of the training; `per_step` (steps, ...) each."""
    dataset = tf.data.Dataset.from_tensor_slices(per_step)
    return dataset.map(assemble, num_parallel_calls=2, deterministic=True).prefetch(2)


def step_seeds(seed: Sequence[int], steps: int) -> np.ndarray:
    """Seeds int32 (steps, 2) of the draws in each step of an epoch, where `seed` has given its order."""
    return np.random.default_rng([*seed, 1]).integers(2**31, size=(steps, 2), dtype=np.int32)


def _check_range(least: float, most: float, high: float) -> None:
    if not (math.isfinite(least) and math.isfinite(most)):
        raise UserError("x holds values that are not finite")
    if least >= 0 and most > max(high, 2):
        raise UserError(
            f"x: 8-bit images are wanted as uint8, others as floats in [0, 1]; received {least:.4g} to {most:.4g}."
            f" Divide by 255, or give high={most:.4g} if that is meant"
        )


def minibatch_replay(epoch_batches: Epochs, replays: int) -> Epochs:
    """Each batch `replays` times in a row, with the turn, from 1, as a further component int32 (B,)."""

    def of_epoch(epoch: int) -> tf.data.Dataset:
        once = epoch_batches(epoch)

        def again(*batch: Tensor) -> tf.data.Dataset:
            numbers = tf.data.Dataset.range(1, replays + 1, output_type=tf.int32)
            return numbers.map(lambda turn: (*batch, tf.fill(tf.shape(batch[0])[:1], turn)))

        count = tf.data.experimental.assert_cardinality(replays * once.cardinality())
        return once.flat_map(again).apply(count).prefetch(2)

    return of_epoch
