"""Attacks on trips: ST-FGSM, ST-iFGSM (L-inf, L2, L1, L0), CW (L2, L0), and noise of the same budget.

All of them move the points of one driver's trips without a passenger: by at most `eta` cells along each axis (L-inf,
L0, CW) or by a norm of at most `radius` cells over all coordinates (L2, L1), on the map, on whole cells. Time, speed
and padding never change. The networks see snapped trips throughout, with the gradient passed straight through the
rounding, so what succeeds in the search succeeds in the result.

What the network makes of all other trips is computed once, not at every step.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from common.arrays import to_labels
from common.attacks import (
    Result,
    ascent,
    bim,
    cw_l0,
    cw_l2,
    eliminate,
    fgsm,
    linf,
    pgd,
    search,
    untargeted_ce,
)
from common.attacks.calls import compiled
from common.attacks.tensors import example_seeds, finite, per_example, seed_pair, uniform
from common.errors import UserError
from common.progress import blocks
from mobility_humid.data.layout import Layout
from mobility_humid.data.trips import SLOT, X, Y
from mobility_humid.models.networks import TripModel

Tensor = tf.Tensor
Victim = Callable[[Tensor], Tensor]
ATTACKS = (
    *("st_fgsm_linf", "st_fgsm_l2", "st_fgsm_l1"),
    *("st_ifgsm_linf", "st_ifgsm_l2", "st_ifgsm_l1", "st_ifgsm_l0"),
    *("cw_l2", "cw_l0", "strong", "noise"),
)
# Rounds that prune some hundred points to a single one, a fifth of them at a time (ST-iFGSM's share).
_ROUNDS, _DROP = 50, 0.2
_CW = {"constant": 1.0, "learning_rate": 0.1}
_HALVINGS = 8


class Ground(NamedTuple):
    """Where the moving trips stand. `x` (B, K, length, features) as they are; `mask`, `low`, `high` of its shape: what
    may move, and how far."""

    x: Tensor
    mask: Tensor
    low: Tensor
    high: Tensor


class Budget(NamedTuple):
    """How far, and how: `eta` cells along each axis, `alpha` cells a step, `steps`, and `radius` cells for L2 and L1;
    scalars. `seed` (2,), `index` (B,) tie draws to the samples."""

    eta: Tensor
    alpha: Tensor
    steps: Tensor
    radius: Tensor
    search_steps: Tensor
    seed: Tensor
    index: Tensor


def attack(
    name: str,
    model: keras.Model,
    layout: Layout,
    x: np.ndarray,
    y: np.ndarray,
    grid: Sequence[int],
    *,
    eta: int = 2,
    steps: int = 20,
    alpha: float | None = None,
    radius: float | None = None,
    restarts: int = 5,
    search_steps: int = 5,
    l0_from: str = "clean",
    seed: int = 0,
    batch_size: int = 128,
    progress: bool = False,
) -> np.ndarray:
    """The attack called `name` on samples `x` (n, rows, length, features) in whole cells: moved samples, of its shape.

    `y` int32 (n,), 1 for the same driver, or the driver's class; `grid` (width, height) of the map. `alpha` is by
    default 2.5 `eta` / `steps`, for L2 and L1 of `radius` instead. `restarts` are those of `strong` (PGD on the margin
    from random starts), `search_steps` those of CW, `l0_from` "clean" (the paper) or "previous": where each round of L0
    begins.

    Errors: `UserError` for an unknown name, trips that none but a passenger moves, and L2 or L1 without `radius`.
    """
    if name not in ATTACKS:
        raise UserError(f"{name!r}: no such attack; choose of {', '.join(ATTACKS)}")
    check_movable(layout)
    normed = name.endswith(("_l2", "_l1")) and not name.startswith("cw")
    if normed and radius is None:
        raise UserError(f"{name}: needs --radius, in cells")
    if alpha is None:
        alpha = 2.5 * (radius if normed else eta) / max(steps, 1)
    signature = [tf.TensorSpec([None, *x.shape[1:]], tf.float32), tf.TensorSpec([None], tf.int32)]
    signature += [tf.TensorSpec([], tf.float32)] * 2 + [tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.float32)]
    signature += [tf.TensorSpec([], tf.int32), tf.TensorSpec([2], tf.int32), tf.TensorSpec([None], tf.int32)]
    key = ("trips", name, layout, tuple(grid), restarts, l0_from)

    def graph(model: keras.Model, x: Tensor, y: Tensor, *budget: Tensor) -> Tensor:
        return attack_batch(name, model, layout, x, y, grid, Budget(*budget), restarts=restarts, l0_from=l0_from)

    y = to_labels(y, len(x))
    run = compiled(model, key, graph, signature)
    settings = (float(eta), float(alpha), steps, float(radius or 0.0), search_steps)
    settings = [tf.constant(v, spec.dtype) for v, spec in zip(settings, signature[2:7], strict=True)]
    out = np.empty_like(x, np.float32)
    for rows in blocks(len(x), batch_size, name, units="samples", shown=progress):
        index = np.arange(rows.start, rows.stop, dtype=np.int32)
        out[rows] = run(x[rows], y[rows], *settings, seed_pair(seed), index)
    return out


FIXED = "--traj-type serve: where a served trip goes is the passenger's choice; an attack needs seek trips"


def check_movable(layout: Layout) -> None:
    """Errors: `UserError` when passengers fix all trips of a sample."""
    if layout.moving is None:
        raise UserError(FIXED)


def attack_batch(
    name: str,
    model: keras.Model,
    layout: Layout,
    x: Tensor,
    y: Tensor,
    grid: Sequence[int],
    budget: Budget,
    *,
    restarts: int = 1,
    l0_from: str = "clean",
) -> Tensor:
    """`attack` on one batch inside a graph, a training step's for instance: snapped samples, (B, ...)."""
    rows = layout.moving
    normed = name.endswith(("_l2", "_l1")) and not name.startswith("cw")
    ground = stand(x[:, rows], grid, None if normed else budget.eta)
    victim = fixed_but_moving(model, layout, x)
    norm = name.rsplit("_", 1)[-1]
    to_grid = _snap_into(ground, norm, budget.radius) if normed else snap

    seen = through_grid(victim, to_grid)
    common = {"mask": ground.mask, "low": ground.low, "high": ground.high}
    size = budget.radius if normed else budget.eta
    if name == "noise":
        seeds = example_seeds(budget.seed, budget.index)
        corner = tf.sign(uniform(seeds, tf.shape(ground.x)[1:], -1.0, 1.0))
        moved = tf.clip_by_value(ground.x + budget.eta * corner * ground.mask, ground.low, ground.high)
    elif name.startswith("st_fgsm"):
        moved = fgsm(seen, ground.x, y, eps=size, norm=norm, **common)
    elif name == "st_ifgsm_l0":
        moved = _fewest_points(seen, ground, y, budget, l0_from)
    elif name.startswith("st_ifgsm"):
        moved = bim(seen, ground.x, y, eps=size, alpha=budget.alpha, steps=budget.steps, norm=norm, stop=True, **common)
    elif name == "strong":
        settings = {"alpha": budget.alpha, "steps": budget.steps, "restarts": restarts, "stop": True}
        settings |= {"eps": size, "seed": budget.seed, "index": budget.index, **common}
        # The two losses fail in different places: the one where logits lie far apart, the other on plateaus.
        moved, other = (pgd(seen, ground.x, y, loss=loss, **settings) for loss in ("margin", "ce"))
        _, fooled = untargeted_ce(seen, y)(moved)
        moved = tf.where(fooled[:, None, None, None], moved, other)
    else:
        find = {"cw_l2": cw_l2, "cw_l0": lambda *args, **options: cw_l0(*args, per="pixel", **options)}[name]
        moved = find(seen, ground.x, y, steps=budget.steps, search_steps=budget.search_steps, **_CW, **common)
    return tf.stop_gradient(put_back(layout, x, to_grid(moved)))


def stand(moving: Tensor, grid: Sequence[int], eta: float | Tensor | None) -> Ground:
    """What may move of trips `moving` (B, K, length, features), and where to: the map, at most `eta` cells away (no
    limit for None)."""
    features = moving.shape[-1]
    free = np.isin(np.arange(features), (X, Y)).astype(np.float32)
    top = np.where(np.arange(features) == X, grid[0] - 1, np.where(np.arange(features) == Y, grid[1] - 1, np.inf))
    mask = tf.cast(moving[..., SLOT : SLOT + 1] > 0, tf.float32) * free
    low, high = tf.zeros_like(moving), tf.zeros_like(moving) + top.astype(np.float32)
    if eta is not None:
        low, high = tf.maximum(low, moving - eta), tf.minimum(high, moving + eta)
    # What is fixed stands between equal ends, whatever it is, and what is off the map may stay where it is.
    may = mask > 0
    low, high = tf.where(may, tf.minimum(low, moving), moving), tf.where(may, tf.maximum(high, moving), moving)
    return Ground(moving, mask, low, high)


def snap(moving: Tensor) -> Tensor:
    """On whole cells: `moving` with all coordinates rounded; time and speed are whole already."""
    return tf.round(moving)


def through_grid(victim: Victim, to_grid: Callable[[Tensor], Tensor] = snap) -> Victim:
    """`victim` shown trips on whole cells, with the gradient passed straight through the rounding."""
    return lambda moving: victim(moving + tf.stop_gradient(to_grid(moving) - moving))


def put_back(layout: Layout, x: Tensor, moving: Tensor) -> Tensor:
    """Samples `x` (B, ...) with `moving` (B, K, length, features) for the trips that move."""
    rows = layout.moving
    return tf.concat([x[:, : rows.start], moving, x[:, rows.stop :]], axis=1)


def fixed_but_moving(model: keras.Model, layout: Layout, x: Tensor) -> Victim:
    """`model` as a function of the moving trips (B, K, length, features) alone, all else as in `x` (B, ...)."""
    if not isinstance(model, TripModel):
        return lambda moving: model(put_back(layout, x, moving), training=False)
    embedded = [tf.stop_gradient(e) for e in model.embed_all(x)]
    profiles = model.profiles(x)

    def victim(moving: Tensor) -> Tensor:
        # The moving trips are the last driver's, and of the first kind.
        first = tf.concat([embedded[0][:, :-1], model.embed(moving, 0)[:, None]], axis=1)
        return model.judge([first, *embedded[1:]], profiles)

    return victim


def _fewest_points(seen: Victim, ground: Ground, y: Tensor, budget: Budget, l0_from: str) -> Tensor:
    """ST-iFGSM L0: the L-inf attack on ever fewer points, a fifth of those with the least gradient given up each
    round."""
    objective = untargeted_ce(seen, y)

    def inner(mask: Tensor, previous: Tensor) -> Result:
        space = linf(ground.x, budget.eta, ground.low, ground.high, ground.mask * mask)
        start = ground.x if l0_from == "clean" else previous
        found = search(objective, ascent(tf.sign, budget.alpha), space, start, budget.steps, stop=True)
        return found._replace(x=snap(found.x))

    def saliency(moved: Tensor) -> Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(moved)
            score, _ = objective(moved)
        changed = tf.reduce_any(moved != ground.x, axis=-1, keepdims=True)
        slope = tf.reduce_sum(tf.abs(finite(tape.gradient(score, moved))) * ground.mask, axis=-1, keepdims=True)
        # A point that has moved counts, however flat the loss is where it stands now.
        return tf.where(changed, tf.maximum(slope, tf.constant(1e-30, slope.dtype)), 0.0)

    points = tf.reduce_max(ground.mask, axis=-1, keepdims=True)
    return eliminate(inner, saliency, ground.x, points, rounds=_ROUNDS, drop=_DROP).x


def _snap_into(ground: Ground, norm: str, radius: Tensor) -> Callable[[Tensor], Tensor]:
    """On whole cells and within `radius`: rounding a point of the ball may leave it, so the shift is shrunk until it
    does not."""

    def size(shift: Tensor) -> Tensor:
        axes = per_example(shift)
        total = tf.reduce_sum(tf.abs(shift) if norm == "l1" else tf.square(shift), axis=axes, keepdims=True)
        return total if norm == "l1" else tf.sqrt(total)

    def to_grid(moving: Tensor) -> Tensor:
        shift = moving - ground.x
        low, high = tf.zeros_like(size(shift)), tf.ones_like(size(shift))
        fits = size(tf.round(shift)) <= radius
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            inside = size(tf.round(middle * shift)) <= radius
            low, high = tf.where(inside, middle, low), tf.where(inside, high, middle)
        return ground.x + tf.round(tf.where(fits, 1.0, low) * shift)

    return to_grid
