"""Attacks on trips: ST-FGSM, ST-iFGSM (L-inf, L2, L1, L0), CW (L2, L0), APGD, and noise of the same budget.

All of them move the points of one driver's trips without a passenger: by at most `eta` cells along each axis (L-inf,
L0, CW) or by a norm of at most `radius` cells over all coordinates (L2, L1), on the map, on whole cells. Time, speed
and padding never change. The networks see snapped trips throughout, with the gradient passed straight through the
rounding, so what succeeds in the search succeeds in the result.

What the network makes of all other trips is computed once, not at every step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from common import attacks
from common.arrays import to_labels
from common.attacks import Attack, Bound, Inputs, Memory, Model, Objective, Pruning, Result, at_success, in_ball
from common.attacks.apgd import auto_pgd
from common.attacks.minimal import carlini_wagner, pruned_carlini_wagner
from common.attacks.objectives import steep_logits
from common.attacks.tensors import per_example
from common.errors import UserError
from common.progress import blocks
from mobility_humid.data.layout import Layout
from mobility_humid.data.trips import SLOT, X, Y
from mobility_humid.models.networks import TripModel

Tensor = tf.Tensor
Victim = Callable[[Tensor], Tensor]
# Rounds that prune some hundred points to a single one, a fifth of them at a time (ST-iFGSM's share).
_ROUNDS, _DROP = 50, 0.2
_CW = {"constant": 1.0, "learning_rate": 0.1}
_HALVINGS = 8
# Samples that are brought on whole cells at a time.
_BLOCK = 256
FIXED = "--traj-type serve: where a served trip goes is the passenger's choice; an attack needs seek trips"


class TripAttack(NamedTuple):
    """An attack by its name on the command line.

    `norm` of its budget, as tables name it; `in_radius`: that budget is a radius and not eta; `slow`: it takes many
    times the gradients of the others; `control`: it looks at no model; `only`: so many steps it takes, whatever is
    asked for; `factor`: its steps, in those of the others; `of_cw`: its steps are those for one of CW's constants.
    """

    make: Callable[["OnTrips"], Attack]
    norm: str
    in_radius: bool = False
    slow: bool = False
    control: bool = False
    only: int | None = None
    factor: int = 1
    of_cw: bool = False


@attacks.named
def trip_attack(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    *,
    name: str,
    layout: Layout,
    grid: Sequence[int],
    eta: int = 2,
    steps: int = 20,
    alpha: float | None = None,
    radius: float | None = None,
    restarts: int = 5,
    search_steps: int = 5,
    prune_rounds: int = _ROUNDS,
    l0_from: str = "clean",
    seed: int = 0,
) -> Bound:
    """The attack called `name` on samples `x` (n, rows, length, features) in whole cells: moved samples, of its shape.

    `y` int32 (n,), 1 for the same driver, or the driver's class; `grid` (width, height) of the map. `alpha` is by
    default 2.5 `eta` / `steps`, for L2 and L1 of `radius` instead; APGD finds its own. `restarts` are those of APGD and
    of `strong` (PGD on the margin from random starts), `search_steps` those of CW, `prune_rounds` and `l0_from` those
    of L0: each round of it begins from "clean" (the paper) or from "previous".

    Errors: `UserError` for an unknown name, trips that none but a passenger moves, and L2 or L1 without `radius`.
    """
    check_movable(layout)
    if name not in ATTACKS:
        raise UserError(f"{name!r}: no such attack; choose of {', '.join(ATTACKS)}")
    chosen = ATTACKS[name]
    if chosen.in_radius and radius is None:
        raise UserError(f"{name}: needs --radius, in cells")
    size = radius if chosen.in_radius else eta
    trips = OnTrips(layout, tuple(grid), chosen.norm if chosen.in_radius else None, l0_from == "previous")
    if chosen.only is not None:
        steps, alpha = chosen.only, size
    elif alpha is None:
        alpha = 2.5 * size / max(steps, 1)
    inputs = moving_inputs(layout, tf.constant(x), to_labels(y, len(x)), eps=size, alpha=alpha, steps=steps, seed=seed)
    inputs |= {"restarts": restarts, "drop": _DROP, "search_steps": search_steps, "prune_rounds": prune_rounds}

    def whole(found: np.ndarray | Tensor) -> np.ndarray:
        """Samples with the trips that were `found`, on whole cells."""
        found, out = np.asarray(found), np.array(x, np.float32)
        for rows in blocks(len(x), _BLOCK, name, units="samples", shown=False):
            moving = {"x": tf.constant(x[rows, layout.moving], tf.float32), "eps": tf.cast(size, tf.float32)}
            out[rows, layout.moving] = trips.to_grid(moving, tf.constant(found[rows]))
        return out

    return Bound(chosen.make(trips), model, {**inputs, "confidence": 0.0, **_CW}, whole)


def check_movable(layout: Layout) -> None:
    """Errors: `UserError` when passengers fix all trips of a sample."""
    if layout.moving is None:
        raise UserError(FIXED)


def moving_inputs(layout: Layout, x: Tensor, y: Any, **more: Any) -> dict[str, Any]:
    """Inputs for attacks on samples `x` (B, ...): their moving trips, and the `sample` that these belong to."""
    # Where a point may go is known once its trip is.
    return {"x": x[:, layout.moving], "sample": x, "y": y, "low": -np.inf, "high": np.inf, **more}


@dataclass(frozen=True)
class OnTrips:
    """Attacks of `common.attacks` on the moving trips of samples: the model sees them on whole cells, in their places.

    `norm`: of the ball, in whose radius the trips stay on whole cells, too; None where eta cells are the limit.
    `previous`: rounds of pruning begin where the one before has ended.
    """

    layout: Layout
    grid: tuple[int, int]
    norm: str | None = None
    previous: bool = False

    def __call__(self, attack: Attack) -> Attack:
        """`attack`, a value for any classifier, on trips."""
        rounds = attack.rounds
        if isinstance(rounds, Pruning):
            rounds = replace(rounds, saliency=Facing(self, rounds.saliency))
        return replace(
            attack,
            objective=Facing(self, attack.objective),
            prepare=_Prepared(self, None if attack.prepare is None else Facing(self, attack.prepare)),
            rounds=rounds,
            check=None,
        )

    def victim(self, model: Model, inputs: Inputs) -> Victim:
        """`model` as a function of moving trips (B, K, length, features), shown on whole cells, with the gradient
        passed straight through the rounding."""
        return straight_through_grid(
            partial_victim(model, self.layout, inputs), lambda moving: self.to_grid(inputs, moving)
        )

    def to_grid(self, inputs: Inputs, moving: Tensor) -> Tensor:
        """`moving` trips on whole cells; in a ball not rounded out of it."""
        return snap(moving) if self.norm is None else _snap_into(inputs["x"], moving, self.norm, inputs["eps"])


@dataclass(frozen=True)
class Facing:
    """A part of an attack that is shown, in place of the model, what the model makes of moving trips."""

    trips: OnTrips
    part: Callable

    def __call__(self, model: Model, inputs: Inputs, *more: Any) -> Any:
        return self.part(self.trips.victim(model, inputs), inputs, *more)


@dataclass(frozen=True)
class _Prepared:
    """What may move, and where to, and what the model makes of all that does not move."""

    trips: OnTrips
    further: Callable | None

    def __call__(self, model: Model, inputs: Inputs) -> dict[str, Tensor]:
        eta = inputs["eps"] if self.trips.norm is None else None
        found = trip_bounds(inputs["x"], self.trips.grid, eta)._asdict() | unmoved(model, inputs["sample"])
        return found if self.further is None else found | self.further(model, {**inputs, **found})


class TripBounds(NamedTuple):
    """What may move of trips (B, K, length, features), 0 or 1, and between which ends, of the same shape."""

    mask: Tensor
    low: Tensor
    high: Tensor


def trip_bounds(moving: Tensor, grid: Sequence[int], eta: float | Tensor | None) -> TripBounds:
    """The bounds of trips `moving` (B, K, length, features): the map, at most `eta` cells away (no limit for None)."""
    features = moving.shape[-1]
    free = np.isin(np.arange(features), (X, Y)).astype(np.float32)
    top = np.where(np.arange(features) == X, grid[0] - 1, np.where(np.arange(features) == Y, grid[1] - 1, np.inf))
    mask = tf.cast(moving[..., SLOT : SLOT + 1] > 0, tf.float32) * free
    low, high = tf.zeros_like(moving), tf.zeros_like(moving) + top.astype(np.float32)
    if eta is not None:
        low, high = tf.maximum(low, moving - eta), tf.minimum(high, moving + eta)
    # Fixed coordinates have equal bounds; a point off the map may remain where it is.
    may = mask > 0
    low, high = tf.where(may, tf.minimum(low, moving), moving), tf.where(may, tf.maximum(high, moving), moving)
    return TripBounds(mask, low, high)


def snap(moving: Tensor) -> Tensor:
    """On whole cells: `moving` with all coordinates rounded; time and speed are whole already."""
    return tf.round(moving)


def straight_through_grid(victim: Victim, to_grid: Callable[[Tensor], Tensor] = snap) -> Victim:
    """`victim` shown trips on whole cells, with the gradient passed straight through the rounding."""
    return lambda moving: victim(moving + tf.stop_gradient(to_grid(moving) - moving))


def replace_rows(layout: Layout, x: Tensor, moving: Tensor) -> Tensor:
    """Samples `x` (B, ...) with `moving` (B, K, length, features) for the trips that move."""
    rows = layout.moving
    return tf.concat([x[:, : rows.start], moving, x[:, rows.stop :]], axis=1)


def unmoved(model: Model, x: Tensor) -> dict[str, Tensor]:
    """What moving trips of samples `x` (B, ...) leave as it is, as inputs of an attack: nothing but for networks of
    this suite."""
    if not isinstance(model, TripModel):
        return {}
    return {_UNMOVED.format(name): tf.stop_gradient(value) for name, value in model.unmoved(x).items()}


def partial_victim(model: keras.Model, layout: Layout, inputs: Inputs) -> Victim:
    """`model` as a function of the moving trips (B, K, length, features) alone, all else as in the `sample` (B, ...)
    and what is `unmoved` of it."""
    x = inputs["sample"]
    if not isinstance(model, TripModel):
        return lambda moving: model(replace_rows(layout, x, moving), training=False)
    before = _UNMOVED.format("")
    kept = {name.removeprefix(before): value for name, value in inputs.items() if name.startswith(before)}
    return lambda moving: model.answer(moving, kept, x)


_UNMOVED = "unmoved_{}"


@dataclass(frozen=True)
class BothLosses:
    """Restarts on the margin, then as many on the cross-entropy: the two fail in different places, the one where logits
    lie far apart, the other on plateaus. An example that has succeeded takes no further one."""

    shared_parts = False
    wants_gradient = False

    def init(self, inputs: Inputs) -> Memory:
        return {"number": tf.zeros(tf.shape(inputs["x"])[:1], tf.int32)}

    def inputs(self, inputs: Inputs, memory: Memory, best: Result) -> Inputs:
        number, restarts = memory["number"], inputs["restarts"]
        return {**inputs, "restart": number % restarts, "on_margin": number < restarts}

    def next(self, model: Model, inputs: Inputs, memory: Memory, found: Result, best: Result):
        number, restarts = memory["number"], inputs["restarts"]
        # The values of two losses do not compare.
        best = attacks.choose(number == restarts, found, attacks.merge(inputs, found, best))
        return {"number": number + 1}, best, ~best.success & (number + 1 < 2 * restarts)


def margin_or_entropy(model: Model, inputs: Inputs) -> Objective:
    """The margin where `on_margin` (B,), else the cross-entropy."""
    logits = steep_logits(model)

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        z = logits(x)
        (margin, success), (entropy, _) = (
            loss(lambda x: z, inputs)(x) for loss in (attacks.untargeted_margin, attacks.untargeted_ce)
        )
        return tf.where(inputs["on_margin"], margin, entropy), success

    return objective


def movable_points(inputs: Inputs) -> Tensor:
    """The points that may move, as units of pruning: (B, K, length, 1)."""
    return tf.reduce_max(inputs["mask"], axis=-1, keepdims=True)


def slope_of_moved(model: Model, inputs: Inputs, found: Result) -> Tensor:
    """How much each point that has moved matters: the slope of the loss by its coordinates."""
    moved = tf.reduce_any(found.x != inputs["x"], axis=-1, keepdims=True)
    slope = tf.reduce_sum(tf.abs(found.gradient) * inputs["mask"], axis=-1, keepdims=True)
    # A moved point counts, however flat the loss is there.
    return tf.where(moved, tf.maximum(slope, tf.constant(1e-30, slope.dtype)), 0.0)


def previous(inputs: Inputs, threat_model: attacks.ThreatModel) -> Tensor:
    """Start where the round before has ended."""
    return inputs["previous"]


def _snapped(inputs: Inputs, moving: Tensor) -> Tensor:
    return snap(moving)


def _single(trips: OnTrips) -> Attack:
    return trips(in_ball(attacks.untargeted_ce, trips.norm or "linf"))


def _iterated(trips: OnTrips) -> Attack:
    return replace(_single(trips), stop=at_success)


def _few_points(trips: OnTrips) -> Attack:
    """ST-iFGSM L0: the L-inf attack on ever fewer points, a fifth of those with the least gradient given up each
    round."""
    return trips(
        in_ball(
            attacks.untargeted_ce,
            start=previous if trips.previous else attacks.clean,
            stop=at_success,
            rounds=Pruning(movable_points, slope_of_moved),
            output=_snapped,
        )
    )


def _strong(trips: OnTrips) -> Attack:
    return trips(in_ball(margin_or_entropy, start=attacks.random_point, stop=at_success, rounds=BothLosses()))


def _auto(trips: OnTrips) -> Attack:
    return trips(auto_pgd(trips.norm or "linf", "margin"))


def _few_cells(trips: OnTrips) -> Attack:
    return trips(carlini_wagner())


def _few_points_by_cw(trips: OnTrips) -> Attack:
    return trips(pruned_carlini_wagner(per="pixel"))


def _noise(trips: OnTrips) -> Attack:
    return trips(attacks.NOISE)


ATTACKS = {
    **{
        f"{name}_{norm}": TripAttack(make, norm, in_radius=norm != "linf", only=only)
        for name, make, only in (("st_fgsm", _single, 1), ("st_ifgsm", _iterated, None))
        for norm in ("linf", "l2", "l1")
    },
    "st_ifgsm_l0": TripAttack(_few_points, "l0", slow=True),
    "cw_l2": TripAttack(_few_cells, "l2", slow=True, of_cw=True),
    "cw_l0": TripAttack(_few_points_by_cw, "l0", slow=True, of_cw=True),
    "strong": TripAttack(_strong, "linf", slow=True, factor=2),
    **{f"apgd_{norm}": TripAttack(_auto, norm, in_radius=norm != "linf", slow=True) for norm in ("linf", "l2")},
    "noise": TripAttack(_noise, "linf", control=True, only=0),
}


def _snap_into(x0: Tensor, moving: Tensor, norm: str, radius: Tensor) -> Tensor:
    """On whole cells and within `radius` of `x0`: rounding a point of the ball may leave it, so the shift is shrunk
    until it does not."""

    def size(shift: Tensor) -> Tensor:
        axes = per_example(shift)
        total = tf.reduce_sum(tf.abs(shift) if norm == "l1" else tf.square(shift), axis=axes, keepdims=True)
        return total if norm == "l1" else tf.sqrt(total)

    shift = moving - x0
    low, high = tf.zeros_like(size(shift)), tf.ones_like(size(shift))
    fits = size(tf.round(shift)) <= radius
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        inside = size(tf.round(middle * shift)) <= radius
        low, high = tf.where(inside, middle, low), tf.where(inside, high, middle)
    return x0 + tf.round(tf.where(fits, 1.0, low) * shift)
