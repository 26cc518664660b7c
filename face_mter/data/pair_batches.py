"""Batches of pairs of different people: sources and targets, drawn for each epoch."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from common.arrays import as_float
from common.errors import UserError
from common.training.batches import Batch, Epochs, assembled, step_seeds

Tensor = tf.Tensor


def pair_epochs(
    x: np.ndarray,
    y: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    augment: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Epochs:
    """Batches (source, target, labels of the sources, of the targets), `batch_size` pairs each, of `x` uint8 (N, H, W,
    C) with people or digits `y` (N,); images become float32 in [0, 1].

    In each epoch the people are shuffled and dealt into two halves, and so are the images of either half; pairs are
    formed in that order until the smaller half is used up. `augment` as in `common.training.batches`. An epoch depends
    on `seed` and its number alone.

    Errors: `UserError` for fewer than two people, and when a half holds fewer images than a batch.
    """
    if len(np.unique(y)) < 2:
        raise UserError("pairs of different people need two people; the training part has one")
    with tf.device("CPU"):
        images, labels = tf.constant(x), tf.constant(y, tf.int32)

    def assemble(rows: Tensor, step_seed: Tensor) -> Batch:
        sides = []
        for side in range(2):
            picked = tf.gather(images, rows[side])
            if augment is not None:
                picked = augment(picked, tf.random.fold_in(step_seed, side))
            sides.append(as_float(picked))
        return *sides, *tf.unstack(tf.gather(labels, rows), 2)

    def epoch_batches(epoch: int) -> tf.data.Dataset:
        rows = pairs_of(y, [seed, epoch])
        count = rows.shape[1] // batch_size
        if not count:
            raise UserError(f"--batch-size: {batch_size} pairs; half of the people have {rows.shape[1]} images only")
        rows = rows[:, : count * batch_size].reshape(2, count, batch_size).transpose(1, 0, 2)
        return assembled(rows, step_seeds([seed, epoch], count), assemble=assemble)

    return epoch_batches


def pairs_of(y: np.ndarray, seed: list[int]) -> np.ndarray:
    """Rows of `y` (N,) as pairs of an epoch: int64 (2, P), labels in the first line never occur in the second."""
    rng = np.random.default_rng(seed)
    people = rng.permutation(np.unique(y))
    halves = [rng.permutation(np.flatnonzero(np.isin(y, people[half::2]))) for half in range(2)]
    count = min(map(len, halves))
    return np.stack([half[:count] for half in halves])
