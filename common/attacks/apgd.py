"""Auto-PGD (Croce & Hein 2020): gradient ascent in a ball that finds its own step size, and has nothing to be tuned.

Shapes, units, checks and errors are those of `budget`.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import tensorflow as tf

from common.attacks.attack import Bound, named
from common.attacks.budget import Ball, Check, Norm
from common.attacks.compile import Array
from common.attacks.logits import check_logits
from common.attacks.loop import (
    Attack,
    Inputs,
    Memory,
    Model,
    Restarts,
    Result,
    at_success,
    choose,
    seeds_of,
    worst_case,
)
from common.attacks.objectives import (
    probability_margin,
    runners_up,
    targeted_dlr,
    towards,
    untargeted_ce,
    untargeted_dlr,
    untargeted_margin,
)
from common.attacks.randomness import Expected
from common.attacks.tensors import broadcast_like, direction, normal, normalize, one_each, per_example
from common.attacks.threat_models import ThreatModel
from common.attacks.updates import UpdateRule

Tensor = tf.Tensor
Loss = Literal["ce", "dlr", "margin", "pma"]

LOSSES = {"ce": untargeted_ce, "dlr": untargeted_dlr, "margin": untargeted_margin, "pma": probability_margin}
TARGETED = {"dlr": targeted_dlr, "margin": towards}
CLASSES = {"dlr": 3, "targeted_dlr": 4}
"""Classes that a loss needs, where it is not two."""

# The paper's constants: share of the way that a step goes by itself and not by momentum, share of steps that must have
# raised the value if the step size is to stay, and the first, the shortest and the difference of the periods in which
# that is looked at, as shares of all steps.
_OWN_SHARE, _RAISED = 0.75, 0.75
_PERIOD, _SHORTEST, _SHORTER = 0.22, 0.06, 0.03
# In L1 (Croce & Hein 2021): share of the coordinates that the first steps move, by what that and the step
# size are divided, the smallest step size, when fewer coordinates count as fewer, and the period.
_FIRST_SHARE, _SPARSER, _SMALLEST, _FEWER, _PERIOD_L1 = 0.2, 1.5, 0.1, 0.95, 0.04
# The first step size, in budgets.
_LARGEST, _LARGEST_L1 = 2.0, 1.0
# The radii of the stages in L1, and what share of the steps each has (the same paper).
_RADII, _STEPS = (3.0, 2.0, 1.0), (0.3, 0.3, 0.4)


class _State(NamedTuple):
    """One row per example: points and gradients of its rank, the rest with one number in each row."""

    before: Tensor
    best: Tensor
    slope: Tensor
    """The gradient at `best`."""
    value: Tensor
    """The best, the last and, where it was last looked at, the best."""
    last: Tensor
    checked: Tensor
    size: Tensor
    """Of a step, in budgets."""
    count: Tensor
    """Steps taken; of these since the last look, and of those which raised the value."""
    since: Tensor
    raised: Tensor
    period: Tensor
    reduced: Tensor
    """Whether the last look has halved the step size."""
    share: Tensor
    """L1: share of the coordinates that a step moves, and how many had moved at the last look."""
    moved: Tensor


@dataclass(frozen=True)
class Auto:
    """Update rule of `x`, `eps` and `steps`: algorithm 1 of Croce & Hein 2020, in L1 of 2021."""

    norm: Norm = "linf"

    def __call__(self, inputs: Inputs, threat_model: ThreatModel) -> UpdateRule:
        sparse, x0 = self.norm == "l1", inputs["x"]
        steps = broadcast_like(tf.cast(inputs["steps"], tf.float32), x0)
        largest = _LARGEST_L1 if sparse else _LARGEST
        all_of = tf.cast(tf.reduce_prod(tf.shape(x0)[1:]), tf.float32)

        def init(x: Tensor) -> _State:
            zero, one, lowest = (one_each(x, value) for value in (0.0, 1.0, float("-inf")))
            period = tf.maximum(tf.floor((_PERIOD_L1 if sparse else _PERIOD) * steps + 1e-4), 1.0) * one
            # A stage that goes on from what another has found moves about as many coordinates as that.
            changed = tf.where(_later(inputs, x), _changed(x, x0), all_of * one)
            share = tf.where(changed < all_of, changed / all_of / _SPARSER, _FIRST_SHARE)
            counts = {"count": zero, "since": zero, "raised": zero, "period": period, "reduced": one}
            values = {"value": lowest, "last": lowest, "checked": lowest, "size": largest * one}
            points = {"before": x, "best": x, "slope": tf.zeros_like(x)}
            return _State(**points, **values, **counts, share=share, moved=changed)

        def step(state: _State, x: Tensor, value: Tensor, success: Tensor, gradient: Tensor) -> tuple[Tensor, _State]:
            value = broadcast_like(tf.where(tf.math.is_nan(value), float("-inf"), value), x)
            first = state.count == 0
            better = (value > state.value) | first
            best, slope = tf.where(better, x, state.best), tf.where(better, gradient, state.slope)
            highest = tf.where(better, value, state.value)
            state = state._replace(
                best=best,
                slope=slope,
                value=highest,
                checked=tf.where(first, highest, state.checked),
                raised=state.raised + tf.cast((value > state.last) & ~first, tf.float32),
                last=value,
                since=state.since + tf.cast(~first, tf.float32),
            )
            state, back = _sparser(state, x0, all_of) if sparse else _halved(state, steps)
            x, gradient = tf.where(back, best, x), tf.where(back, slope, gradient)
            length = state.size * inputs["eps"]
            moved = threat_model.project(x + length * self._direction(gradient, state, threat_model, x))
            if not sparse:
                own = tf.where(first, 1.0, _OWN_SHARE)
                moved = x + own * (moved - x) + (1.0 - own) * (x - state.before)
            return moved, state._replace(before=x, count=state.count + 1.0)

        return UpdateRule(init, step)

    def _direction(self, gradient: Tensor, state: _State, threat_model: ThreatModel, x: Tensor) -> Tensor:
        gradient = threat_model.tangent(x, gradient)
        if self.norm == "linf":
            return tf.sign(gradient)
        if self.norm == "l2":
            return normalize(gradient, 2)
        size = tf.reshape(tf.abs(gradient), [tf.shape(gradient)[0], -1])
        all_of = tf.shape(size)[1]
        # What rounding takes from a whole number of coordinates is no coordinate.
        count = tf.cast(tf.reshape(state.share, [-1]) * tf.cast(all_of, tf.float32) + 1e-3, tf.int32)
        least = tf.gather(tf.sort(size, axis=1), all_of - tf.clip_by_value(count, 1, all_of), batch_dims=1)
        return normalize(tf.where(tf.abs(gradient) >= broadcast_like(least, gradient), tf.sign(gradient), 0.0), 1)


def _halved(state: _State, steps: Tensor) -> tuple[_State, Tensor]:
    """The state after a look at the step size, and which examples go back to their best point with half of it."""
    now = state.since >= state.period
    stuck = (state.reduced == 0) & (state.checked >= state.value)
    back = now & ((state.raised <= _RAISED * state.period) | stuck)
    shorter, shortest = (tf.maximum(tf.floor(share * steps + 1e-4), 1.0) for share in (_SHORTER, _SHORTEST))
    state = state._replace(
        size=tf.where(back, state.size / 2, state.size),
        reduced=tf.where(now, tf.cast(back, tf.float32), state.reduced),
        checked=tf.where(now, state.value, state.checked),
        period=tf.where(now, tf.maximum(state.period - shorter, shortest), state.period),
        since=tf.where(now, 0.0, state.since),
        raised=tf.where(now, 0.0, state.raised),
    )
    return state, back


def _sparser(state: _State, x0: Tensor, all_of: Tensor) -> tuple[_State, Tensor]:
    """As `_halved`, in L1: back to the best point where that has become sparser, with the full step size."""
    now = state.since >= state.period
    changed = _changed(state.best, x0)
    back = now & (changed < _FEWER * state.moved)
    smaller = tf.clip_by_value(state.size / _SPARSER, _SMALLEST * _LARGEST_L1, _LARGEST_L1)
    state = state._replace(
        size=tf.where(back, _LARGEST_L1, tf.where(now, smaller, state.size)),
        share=tf.where(now, changed / all_of / _SPARSER, state.share),
        moved=tf.where(now, changed, state.moved),
        since=tf.where(now, 0.0, state.since),
    )
    return state, back


def _changed(x: Tensor, x0: Tensor) -> Tensor:
    """How many coordinates differ, kept at the rank of `x`; what a projection leaves by rounding is no difference."""
    size = tf.abs(x - x0)
    least = 1e-5 * tf.reduce_max(size, axis=per_example(x), keepdims=True)
    return tf.reduce_sum(tf.cast(size > least, tf.float32), axis=per_example(x), keepdims=True)


def _later(inputs: Inputs, x: Tensor) -> Tensor:
    """Which examples start where another search has ended."""
    stage = inputs.get("stage", 0)
    return broadcast_like(tf.broadcast_to(tf.cast(stage > 0, tf.float32), tf.shape(x)[:1]), x) > 0


@dataclass(frozen=True)
class Surface:
    """Start on the surface of the ball, in a direction drawn at random; in L1 at the point of the ball next to a normal
    draw; in a stage that follows another, where that has ended."""

    norm: Norm = "linf"

    def __call__(self, inputs: Inputs, threat_model: ThreatModel) -> Tensor:
        x, seeds = inputs["x"], seeds_of(inputs)
        sparse = self.norm == "l1"
        shift = normal(seeds, tf.shape(x)[1:]) if sparse else inputs["eps"] * direction(seeds, x, self.norm)
        point = threat_model.project(x + shift)
        if "stage" not in inputs:
            return point
        return choose(inputs["stage"] > 0, threat_model.project(inputs["previous"]), point)


@dataclass(frozen=True)
class Shrinking:
    """Each search of `inner` in three stages, in balls of ever smaller radii, each from where the one before has ended
    (Croce & Hein 2021); what is found in the last alone counts."""

    inner: Restarts
    shared_parts = False
    wants_gradient = False

    def init(self, inputs: Inputs) -> Memory:
        stage = tf.zeros(tf.shape(inputs["x"])[:1], tf.int32)
        return {"stage": stage, "previous": inputs["x"], "inner": self.inner.init(inputs)}

    def inputs(self, inputs: Inputs, memory: Memory, best: Result) -> Inputs:
        stage, steps = memory["stage"], tf.cast(inputs["steps"], tf.float32)
        now = self.inner.inputs(inputs, memory["inner"], best)
        own = {"stage": stage, "previous": memory["previous"]}
        own["eps"] = inputs["eps"] * broadcast_like(tf.gather(_RADII, stage), inputs["x"])
        # The last stage has what rounding has left.
        early = tf.floor(_STEPS[0] * steps + 1e-4)
        own["steps"] = tf.cast(tf.where(stage < len(_RADII) - 1, early, steps - 2 * early), tf.int32)
        return {**now, **own}

    def next(self, model: Model, inputs: Inputs, memory: Memory, found: Result, best: Result):
        last = memory["stage"] == len(_RADII) - 1
        inner, of_inner, again = self.inner.next(model, inputs, memory["inner"], found, best)
        stage = tf.where(last, 0, memory["stage"] + 1)
        memory = {"stage": stage, "previous": found.x, "inner": choose(last, inner, memory["inner"])}
        return memory, choose(last, of_inner, best), again | ~last


def at_last_success(inputs: Inputs, x: Tensor, value: Tensor, success: Tensor) -> Tensor:
    """Stop at a success of the last of several stages."""
    return success & (inputs["stage"] == len(_RADII) - 1)


@dataclass(frozen=True)
class NearClasses:
    """The `candidates` (B, count): the classes of the largest logits of the clean input beside `y`."""

    count: int

    def __call__(self, model: Model, inputs: Inputs) -> dict[str, Tensor]:
        return {"candidates": runners_up(model, inputs["x"], inputs["y"], self.count)}


@dataclass(frozen=True)
class CheckLoss:
    """Checks of the inputs, in addition to those of `Check`: classes enough for the loss."""

    norm: Norm
    loss: str
    needed: int

    def __call__(self, model: Model, inputs: Inputs) -> None:
        Check(self.norm)(model, inputs)
        if (classes := check_logits(model, inputs["x"])) < self.needed:
            raise ValueError(
                f"loss {self.loss!r} needs {self.needed} classes or more, this model has {classes}: use 'margin'"
            )


def auto_pgd(
    norm: Norm, loss: Loss, *, targets: int = 0, stop: bool = True, shrinking: bool = False, draws: int = 1
) -> Attack:
    """APGD as a value, of `x`, `y`, `eps`, `steps`, `restarts`, `seed` and `index`."""
    targeted = targets > 0
    losses = TARGETED if targeted else LOSSES
    if loss not in losses:
        raise ValueError(f"loss must be one of {', '.join(losses)}; received {loss!r}")
    restarts = Restarts(until=at_success if stop else None, targeted=targeted)
    needed = CLASSES.get(f"targeted_{loss}" if targeted else loss, 2)
    return Attack(
        objective=losses[loss] if draws == 1 else Expected(losses[loss], draws),
        threat_model=Ball(norm),
        update=Auto(norm),
        start=Surface(norm),
        selection=worst_case,
        stop=(at_last_success if shrinking else at_success) if stop else None,
        rounds=Shrinking(restarts) if shrinking else restarts,
        prepare=NearClasses(targets) if targeted else None,
        check=CheckLoss(norm, loss, needed) if needed > 2 else Check(norm),
        numbered=draws > 1,
    )


@named
def apgd(
    model: Model,
    x: Array,
    y: Array,
    *,
    eps,
    norm: Norm = "linf",
    loss: Loss = "ce",
    steps: int = 100,
    restarts: int = 1,
    targets: int = 0,
    stop: bool = True,
    draws: int = 1,
    seed: int | Tensor = 0,
    index: Array | None = None,
    mask=None,
    low=0.0,
    high=1.0,
) -> Bound:
    """APGD (Croce & Hein 2020, algorithm 1; in L1 of 2021, with steps along few coordinates and shrinking radii).

    `loss`: cross-entropy, difference of logits ratio, margin of logits or of probabilities. With `targets` that many of
    the nearest classes are tried one after the other, by the targeted losses `dlr` or `margin`. `stop` leaves an
    example where it first succeeds. Of all searches each example keeps its worst case. Of a model that draws, such as a
    `RandomModel`, the mean loss of so many `draws` is raised.

    Errors: `ValueError` for a loss that needs more classes than there are: `dlr` three, with `targets` four.
    """
    if restarts < 1 or draws < 1 or targets < 0:
        raise ValueError(
            f"restarts and draws must be at least 1, targets at least 0; received {restarts}, {draws} and {targets}"
        )
    attack = auto_pgd(norm, loss, targets=targets, stop=stop, shrinking=norm == "l1", draws=draws)
    inputs = {"x": x, "y": y, "eps": eps, "steps": steps, "restarts": restarts, "seed": seed, "index": index}
    return Bound(attack, model, {**inputs, "mask": mask, "low": low, "high": high})
