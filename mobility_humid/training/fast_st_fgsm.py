"""Adversarial training on trips: what the training loop is given as its adversary.

Both kinds take `rounds` gradients a batch to craft, and work on the trips that an attacker would move. Samples are made
with the model in inference mode, and are on whole cells, as those of the attacks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from common.attacks import (
    Attack,
    Inputs,
    Model,
    ThreatModel,
    UpdateRule,
    choose,
    in_ball,
    random_point,
    run,
    salient,
    untargeted_ce,
)
from common.attacks.tensors import example_seeds, uniform
from common.training.batches import Batch
from common.training.loop import Adversary
from mobility_humid.attacks.trips import OnTrips, moving_inputs, replace_rows, snap
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

    attack = fast_crafting(layout, grid)
    # An evaluation for the gradient of each round, and one for where its step has led.
    settings = {"eps": eta, "alpha": alpha, "steps": 2 * rounds, "drop": drop}

    def adversary(model: keras.Model, batch: Batch, seed: Tensor) -> Batch:
        x, y = batch
        return replace_rows(layout, x, run(attack, model, moving_inputs(layout, x, y, seed=seed, **settings))), y

    return adversary


def fast_crafting(layout: Layout, grid: Sequence[int]) -> Attack:
    """What Fast ST-FGSM trains on, as a value; `steps` are two for each of its rounds."""
    return OnTrips(layout, tuple(grid))(
        in_ball(untargeted_ce, update=_pruned_ascent, start=_random_point, prepare=_wrong_before)
    )


def pgd_crafting(layout: Layout, grid: Sequence[int]) -> Attack:
    """What PGD adversarial training trains on, as a value."""
    return OnTrips(layout, tuple(grid))(in_ball(untargeted_ce, start=random_point))


def _wrong_before(model: Model, inputs: Inputs) -> dict[str, Tensor]:
    return {"wrong": untargeted_ce(model, inputs)(inputs["x"])[1]}


def _random_point(inputs: Inputs, threat_model: ThreatModel) -> Tensor:
    x, eta = inputs["x"], inputs["eps"]
    noise = uniform(example_seeds(inputs["seed"], inputs["index"]), tf.shape(x)[1:], -eta, eta)
    return threat_model.project(x + noise)


class _State(NamedTuple):
    """`probing` (B,): at the point that a step has led to, which is judged and then pruned; `count` (B,), evaluations
    so far; the `slope` of the last step; the `points` that may still move, 0 or 1; the trips that are `kept`."""

    probing: Tensor
    count: Tensor
    slope: Tensor
    points: Tensor
    kept: Tensor


def _pruned_ascent(inputs: Inputs, threat_model: ThreatModel) -> UpdateRule:
    """Ascent on ever fewer points: a step along the gradient's sign, a look at where it has led, and, where that fools
    the model, points given up. Its last proposal is what last fooled the model."""
    x0, mask = inputs["x"], inputs["mask"]

    def within(moving: Tensor, points: Tensor) -> Tensor:
        # Points that were given up go back to where they were.
        return tf.where(points > 0, threat_model.project(moving), x0)

    def init(x: Tensor) -> _State:
        nobody = tf.zeros(tf.shape(x)[:1], tf.bool)
        points = tf.reduce_max(mask, axis=-1, keepdims=True)
        return _State(nobody, tf.zeros_like(nobody, tf.int32), tf.zeros_like(x), points, x0)

    def step(state: _State, x: Tensor, value: Tensor, success: Tensor, gradient: Tensor) -> tuple[Tensor, _State]:
        probing, count, slope, points, kept = state
        hit = probing & success & ~inputs["wrong"]
        kept = choose(hit, snap(x), kept)

        def pruned() -> Tensor:
            weight = tf.reduce_sum(tf.abs(slope) * mask, axis=-1, keepdims=True) * points
            return choose(hit, tf.cast(salient(weight, inputs["drop"]), points.dtype), points)

        points = tf.cond(tf.reduce_any(hit), pruned, lambda: points)
        points = tf.ensure_shape(points, state.points.shape)
        last = count + 1 >= inputs["steps"]
        after = choose(last, kept, within(x, points))
        ahead = within(x + inputs["alpha"] * tf.sign(gradient), points)
        slope = choose(probing, slope, gradient)
        return choose(probing, after, ahead), _State(~probing, count + 1, slope, points, kept)

    return UpdateRule(init, step, needs_gradient=lambda state: tf.reduce_any(~state.probing))


def pgd_on_trips(layout: Layout, grid: Sequence[int], *, eta: float, alpha: float, rounds: int) -> Adversary:
    """Plain PGD adversarial training (Madry et al. 2018, equation 2.1): every sample where `rounds` steps of `alpha`
    cells from a random start within `eta` cells take it."""

    attack = pgd_crafting(layout, grid)
    settings = {"eps": eta, "alpha": alpha, "steps": rounds}

    def adversary(model: keras.Model, batch: Batch, seed: Tensor) -> Batch:
        x, y = batch
        moved = run(attack, model, moving_inputs(layout, x, y, seed=seed, **settings))
        return replace_rows(layout, x, snap(moved)), y

    return adversary
