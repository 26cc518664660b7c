"""The Square attack (Andriushchenko et al. 2020): random search in a ball by windows, without any gradient.

Shapes, units, checks and errors are those of `budget`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from common.attacks.attack import Bound, named
from common.attacks.budget import Ball, Check, Norm
from common.attacks.compile import Array
from common.attacks.loop import Attack, Inputs, Model, Restarts, at_success, seeds_of, worst_case
from common.attacks.objectives import untargeted_margin
from common.attacks.tensors import broadcast_like, folded, norm_of, normalize, one_each, uniform
from common.attacks.threat_models import ThreatModel
from common.attacks.updates import UpdateRule

Tensor = tf.Tensor

# The share of the coordinates in the first windows, and after how many queries it is halved once more.
_SHARE = 0.8
_HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# In L2 and L1: side of the smallest window, and squares along each side of the image in the start.
_SMALLEST, _TILES = 3, 5
# Power of the rings' weights in the pattern of a window (in L1 of Croce & Hein 2021).
_POWER = {"l2": 2, "l1": 4}
_RINGS = 4096


class _State(NamedTuple):
    best: Tensor
    value: Tensor
    count: Tensor


@dataclass(frozen=True)
class Windows:
    """Update rule of `x`, `eps`, `seed` and `index`: the best point so far with one window changed at random.

    Axes between the first and the last are places, the last has channels; without a third axis there is one channel.
    """

    norm: Norm = "linf"

    def __call__(self, inputs: Inputs, threat_model: ThreatModel) -> UpdateRule:
        x0, seeds = inputs["x"], seeds_of(inputs)
        propose = self._ends if self.norm == "linf" else self._moved_mass

        def init(x: Tensor) -> _State:
            return _State(x, one_each(x, float("-inf")), one_each(x))

        def step(state: _State, x: Tensor, value: Tensor, success: Tensor, gradient: Tensor) -> tuple[Tensor, _State]:
            value = broadcast_like(value, x)
            better = (value > state.value) | (state.count == 0)
            state = _State(tf.where(better, x, state.best), tf.where(better, value, state.value), state.count)
            draws = folded(seeds, tf.reshape(state.count, [-1]) + 1.0)
            moved = threat_model.project(propose(inputs, x0, state, draws))
            return moved, state._replace(count=state.count + 1.0)

        return UpdateRule(init, step, needs_gradient=False)

    def _ends(self, inputs: Inputs, x0: Tensor, state: _State, seeds: Tensor) -> Tensor:
        """One window, all at one or the other end of the budget."""
        window = _Window(x0, state.count, seeds, places=1)
        return tf.where(window.mask(0), x0 + inputs["eps"] * window.signs(), state.best)

    def _moved_mass(self, inputs: Inputs, x0: Tensor, state: _State, seeds: Tensor) -> Tensor:
        """The budget of one window goes to another, together with what has not been spent."""
        order, eps = int(self.norm[1]), inputs["eps"]
        window = _Window(x0, state.count, seeds, places=2, smallest=_SMALLEST)
        shift = state.best - x0
        here, there = window.mask(0), window.mask(1)

        def size(value: Tensor) -> Tensor:
            # Per channel.
            return tf.reduce_sum(tf.abs(value) ** order, axis=[1, 2], keepdims=True)

        old = tf.where(here, shift, 0.0)
        fresh = window.pattern(self.norm) * window.signs() + old / (1e-12 + size(old) ** (1 / order))
        spent = norm_of(shift, self.norm) ** order
        free = tf.maximum(eps**order - spent, 0.0) / tf.cast(tf.shape(x0)[-1], tf.float32)
        mass = (free + size(tf.where(here | there, shift, 0.0))) ** (1 / order)
        fresh = fresh / (1e-12 + size(fresh) ** (1 / order)) * mass
        shift = tf.where(here, fresh, tf.where(there, 0.0, shift))
        if self.norm == "l2":
            shift = eps * normalize(shift, 2)
        return x0 + shift


class _Window:
    """Squares in images: of each example one side, by its `count` of queries, and some `places`, signs and patterns,
    drawn from its seeds."""

    def __init__(self, x: Tensor, count: Tensor, seeds: Tensor, *, places: int, smallest: int = 1) -> None:
        self.sides = [tf.cast(side, tf.float32) for side in tf.unstack(tf.shape(x)[1 : max(x.shape.rank - 1, 2)])]
        self.rank, axes = x.shape.rank, len(self.sides)
        self.channels = tf.shape(x)[-1] if x.shape.rank > 2 else tf.constant(1)
        halved = tf.reduce_sum(tf.cast(tf.reshape(count, [-1, 1]) > tf.constant(_HALVED, tf.float32), tf.float32), 1)
        area = _SHARE * 0.5**halved * tf.reduce_prod(self.sides)
        side = tf.maximum(tf.round(area ** (1 / axes)), float(smallest))
        if smallest > 1:
            side += tf.cast(side % 2 == 0, tf.float32)
        self.side = tf.minimum(side, tf.reduce_min(self.sides))
        self.draws = uniform(seeds, [places * axes + 1])
        self._signs = uniform(folded(seeds, tf.ones_like(seeds[:, 0])), [self.channels], -1.0, 1.0)

    def corner(self, place: int) -> list[Tensor]:
        """The first row, column, ... (B,) of the window at a place."""
        axes = len(self.sides)
        return [
            tf.floor(self.draws[:, place * axes + axis] * (side - self.side + 1.0))
            for axis, side in enumerate(self.sides)
        ]

    def mask(self, place: int) -> Tensor:
        """Where the window is, bool (B, ..., 1), to broadcast against examples."""
        inside = None
        for axis, (first, side) in enumerate(zip(self.corner(place), self.sides, strict=True)):
            along = self._along(axis, side)
            first, size = (tf.reshape(value, [-1] + [1] * (self.rank - 1)) for value in (first, self.side))
            own = (along >= first) & (along < first + size)
            inside = own if inside is None else inside & own
        return inside

    def signs(self) -> Tensor:
        """One sign for each channel: (B, 1, ..., channels)."""
        signs = tf.sign(self._signs)
        shape = [-1] + [1] * (self.rank - 1) if self.rank == 2 else [tf.shape(signs)[0], *[1] * (self.rank - 2), -1]
        return tf.reshape(signs, shape)

    def pattern(self, norm: str) -> Tensor:
        """The pattern of a window in the first one and 0 outside of it: (B, H, W, 1)."""
        places = [self._along(axis, side) for axis, side in enumerate(self.sides)]
        rows, columns = (
            along - tf.reshape(first, [-1, 1, 1, 1]) for along, first in zip(places, self.corner(0), strict=True)
        )
        turned, side = (tf.reshape(of, [-1, 1, 1, 1]) for of in (self.draws[:, -1] > 0.5, self.side))
        return _pattern(rows, columns, side, turned, norm)

    def _along(self, axis: int, side: Tensor) -> Tensor:
        return tf.reshape(tf.range(side), [1] * (axis + 1) + [-1] + [1] * (self.rank - 2 - axis))


def _pattern(rows: Tensor, columns: Tensor, side: Tensor, turned: Tensor, norm: str) -> Tensor:
    """Two neighbouring mounds, one up and one down, that fill a square of a `side`, where `turned` side by side, of
    norm 1; 0 outside."""
    across, along = tf.where(turned, columns, rows), tf.where(turned, rows, columns)
    half = tf.floor(side / 2)
    up = _mound(across, along, half, side, norm)
    return normalize(up - _mound(across - half, along, side - half, side, norm), int(norm[1]))


def _mound(across: Tensor, along: Tensor, height: Tensor, width: Tensor, norm: str) -> Tensor:
    """Rings about the middle of a rectangle, each of a weight of 1 over its number to a power, added up towards the
    middle; of norm 1, 0 outside."""
    inside = (across >= 0) & (across < height) & (along >= 0) & (along < width)
    middle = tf.floor(height / 2), tf.floor(width / 2)
    ring = tf.maximum(tf.abs(across - middle[0]), tf.abs(along - middle[1]))
    sums = tf.constant(np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1.0, _RINGS) ** _POWER[norm])]), tf.float32)
    # Beyond so many rings the sums change no more.
    inner, outer = (
        tf.cast(tf.clip_by_value(count, 0.0, _RINGS - 1.0), tf.int32) for count in (ring, tf.maximum(*middle) + 1.0)
    )
    heights = tf.gather(sums, outer) - tf.gather(sums, inner)
    return normalize(tf.where(inside, tf.maximum(heights, 0.0), 0.0), int(norm[1]))


@dataclass(frozen=True)
class Stripes:
    """Start: in L-inf every column at one or the other end of the budget; else the pattern of windows all over the
    image."""

    norm: Norm = "linf"

    def __call__(self, inputs: Inputs, threat_model: ThreatModel) -> Tensor:
        x, eps, seeds = inputs["x"], inputs["eps"], seeds_of(inputs)
        shape, number = tf.shape(x), tf.zeros_like(inputs["index"])
        if self.norm == "linf":
            columns = shape[1:] if x.shape.rank < 4 else tf.concat([[1], shape[2:]], axis=0)
            return threat_model.project(x + eps * tf.sign(uniform(folded(seeds, number), columns, -1.0, 1.0)))
        sides = tf.cast(shape[1:3], tf.float32)
        side = tf.maximum(tf.floor(sides[0] / _TILES), 1.0)
        rows, columns = tf.reshape(tf.range(sides[0]), [1, -1, 1, 1]), tf.reshape(tf.range(sides[1]), [1, 1, -1, 1])
        turned = tf.reshape(uniform(folded(seeds, number), [1]) > 0.5, [-1, 1, 1, 1])
        pattern = _pattern(rows % side, columns % side, side, turned, self.norm)
        tiles = tf.cast(tf.math.ceil(sides / side), tf.int32)
        signs = tf.sign(uniform(folded(seeds, number + 1), tf.concat([tiles, shape[3:]], axis=0), -1.0, 1.0))
        for axis, places in enumerate((rows, columns), start=1):
            signs = tf.gather(signs, tf.cast(tf.reshape(places, [-1]) // side, tf.int32), axis=axis)
        return threat_model.project(x + eps * normalize(pattern * signs, int(self.norm[1])))


@dataclass(frozen=True)
class CheckImages:
    """Checks of the inputs, in addition to those of `Check`: in L2 and L1 windows have two sides."""

    norm: Norm

    def __call__(self, model: Model, inputs: Inputs) -> None:
        Check(self.norm)(model, inputs)
        if self.norm != "linf" and inputs["x"].shape.rank != 4:
            raise ValueError(f"in {self.norm} Square takes images (B, H, W, C); received shape {inputs['x'].shape}")


@named
def square(
    model: Model,
    x: Array,
    y: Array,
    *,
    eps,
    norm: Norm = "linf",
    steps: int = 5000,
    restarts: int = 1,
    stop: bool = True,
    seed: int | Tensor = 0,
    index: Array | None = None,
    mask=None,
    low=0.0,
    high=1.0,
) -> Bound:
    """Random search by windows of ever smaller size, `steps` queries (Andriushchenko et al. 2020, algorithms 1 to 3; in
    L1 as Croce & Hein 2021). It takes no gradient: where it succeeds and gradients did not, those were of little use.

    `x` (B, H, W, C); in L-inf of any shape, with windows over the axes between the first and the last.
    """
    if restarts < 1:
        raise ValueError(f"restarts must be at least 1; received {restarts}")
    attack = Attack(
        objective=untargeted_margin,
        threat_model=Ball(norm),
        update=Windows(norm),
        start=Stripes(norm),
        selection=worst_case,
        stop=at_success if stop else None,
        rounds=Restarts(until=at_success if stop else None),
        check=CheckImages(norm),
    )
    inputs = {"x": x, "y": y, "eps": eps, "steps": steps, "restarts": restarts, "seed": seed, "index": index}
    return Bound(attack, model, {**inputs, "mask": mask, "low": low, "high": high})
