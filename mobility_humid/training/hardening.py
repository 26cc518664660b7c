"""Adversarial training on trips: what the training loop is given as its adversary.

Both kinds take `rounds` gradients a batch to craft, and work on the trips that an attacker would move. Samples are made
with the model in inference mode, and are on whole cells, as those of the attacks.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

from common.attacks import pgd, salient, untargeted_ce
from common.attacks.tensors import example_seeds, finite, uniform
from common.training.batches import Batch
from common.training.loop import Adversary
from mobility_humid.attacks.trips import fixed_but_moving, put_back, snap, stand, through_grid
from mobility_humid.data.layout import Layout

Tensor = tf.Tensor


def fast_st_fgsm(
    layout: Layout, grid: Sequence[int], *, eta: float, alpha: float, rounds: int, drop: float = 0.2
) -> Adversary:
    """Fast ST-FGSM (ST-iFGSM paper, adversarial training): from a random start within `eta` cells, up to `rounds` steps
    of `alpha` cells; what fools the model gives up the share `drop` of its points, those of least gradient, and goes
    on.

    A sample is trained on where it last fooled the model, with the fewest points, and as it is where it never did or
    was answered wrongly before. (The original updates the weights after every round, and on fooling samples alone.)
    """

    def adversary(model: keras.Model, batch: Batch, seed: Tensor) -> Batch:
        x, y = batch
        ground = stand(x[:, layout.moving], grid, eta)
        objective = untargeted_ce(through_grid(fixed_but_moving(model, layout, x)), y)
        _, wrong = objective(ground.x)

        def within(moving: Tensor, points: Tensor) -> Tensor:
            # Points that were given up go back to where they were.
            moving = tf.clip_by_value(moving, ground.low, ground.high)
            return tf.where((points > 0) & (ground.mask > 0), moving, ground.x)

        points = tf.reduce_max(ground.mask, axis=-1, keepdims=True)
        noise = uniform(example_seeds(seed, tf.range(tf.shape(x)[0])), tf.shape(ground.x)[1:], -eta, eta)
        moving, kept = within(ground.x + noise, points), ground.x
        for _ in range(rounds):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(moving)
                score, _ = objective(moving)
            slope = finite(tape.gradient(score, moving))
            moving = within(moving + alpha * tf.sign(slope), points)
            _, fooled = objective(moving)
            hit = (fooled & ~wrong)[:, None, None, None]
            kept = tf.where(hit, snap(moving), kept)
            weight = tf.reduce_sum(tf.abs(slope) * ground.mask, axis=-1, keepdims=True) * points
            points = tf.where(hit, tf.cast(salient(weight, drop), points.dtype), points)
            moving = within(moving, points)
        return put_back(layout, x, kept), y

    return adversary


def pgd_on_trips(layout: Layout, grid: Sequence[int], *, eta: float, alpha: float, rounds: int) -> Adversary:
    """Plain PGD adversarial training (Madry et al. 2018, equation 2.1): every sample where `rounds` steps of `alpha`
    cells from a random start within `eta` cells take it."""

    def adversary(model: keras.Model, batch: Batch, seed: Tensor) -> Batch:
        x, y = batch
        ground = stand(x[:, layout.moving], grid, eta)
        moved = pgd(
            through_grid(fixed_but_moving(model, layout, x)),
            ground.x,
            y,
            eps=eta,
            alpha=alpha,
            steps=rounds,
            seed=seed,
            mask=ground.mask,
            low=ground.low,
            high=ground.high,
        )
        return put_back(layout, x, snap(moved)), y

    return adversary
