"""The fast adaptive boundary attack (Croce & Hein 2020, FAB): the smallest perturbation, along the linearised boundary.

Shapes, units, compilation and errors are those of `budget`; what is returned is as in `minimal`.
"""

from dataclasses import dataclass

import tensorflow as tf

from common.attacks.apgd import NearClasses
from common.attacks.attack import Bound, named
from common.attacks.budget import Norm
from common.attacks.compile import Array
from common.attacks.deepfool import InTurn, InTurnOf, NearestInTurn
from common.attacks.loop import Attack, Inputs, Model, Objective, Restarts, choose, seeds_of
from common.attacks.minimal import MinimumNorm, NotNegative, box, distance
from common.attacks.objectives import towards
from common.attacks.tensors import broadcast_like, direction, norm_of, sum_features
from common.attacks.threat_models import ThreatModel
from common.attacks.updates import UpdateRule

Tensor = tf.Tensor

# The paper's constants: the largest share of the step from the clean input, how far a step goes beyond the boundary,
# and what of the way from the clean input is left after a success.
_LARGEST_SHARE, _BEYOND, _BACK = 0.1, 1.05, 0.9
# A step counts as at least so long when the two are weighed.
_SHORTEST = 1e-8
_ROUNDS = 64


def nearest_on_plane(x: Tensor, slope: Tensor, gain: Tensor, low: Tensor, high: Tensor, norm: Norm) -> Tensor:
    """The smallest shift (B, ...) in a norm that takes `x` (B, ...) within [low, high] to where the product with
    `slope` is larger by `gain`, (B, 1, ...) of either sign; the shift that gains most where none gains so much.

    Each coordinate moves by `level` times its weight, 1 in L-inf and |slope| in L2, as far as the box lets it: one
    level per example, at which the gain, concave and made of straight pieces, is met; Newton's steps come from below.
    In L1 the steepest coordinates go to the ends of the box, one after the other.
    """
    sign = tf.sign(gain)
    size, wanted = tf.abs(slope), tf.abs(gain)
    way = tf.sign(slope) * sign
    room = tf.where(way > 0, high - x, tf.where(way < 0, x - low, 0.0))
    if norm == "l1":
        return way * _steepest_first(size, room, wanted)
    weight = tf.ones_like(size) if norm == "linf" else size

    def newton(level: Tensor, move: Tensor, going: Tensor):
        move = tf.minimum(level * weight, room)
        lacking = wanted - sum_features(size * move)
        growth = sum_features(tf.where(level * weight < room, size * weight, 0.0))
        ahead = level + tf.math.divide_no_nan(tf.maximum(lacking, 0.0), growth)
        ahead = tf.where(lacking > 1e-6 * wanted, ahead, level)
        return ahead, move, tf.reduce_any(ahead > level)

    zero = tf.zeros_like(wanted)
    _, move, _ = tf.while_loop(
        lambda level, move, going: going,
        newton,
        (zero, tf.zeros_like(x), tf.constant(True)),
        maximum_iterations=_ROUNDS,
    )
    return way * move


def _steepest_first(size: Tensor, room: Tensor, wanted: Tensor) -> Tensor:
    """How far each coordinate moves, 0 or more: those of the largest `size` all of their `room`, until the products add
    up to what is `wanted`."""
    shape = tf.shape(size)
    size, room = (tf.reshape(value, [shape[0], -1]) for value in (size, room))
    order = tf.argsort(size, axis=1, direction="DESCENDING", stable=True)
    gains = tf.gather(size * room, order, batch_dims=1)
    before = tf.cumsum(gains, axis=1, exclusive=True)
    share = tf.clip_by_value(tf.math.divide_no_nan(tf.reshape(wanted, [-1, 1]) - before, gains), 0.0, 1.0)
    place = tf.argsort(order, axis=1)
    return tf.reshape(room * tf.gather(share, place, batch_dims=1), shape)


@dataclass(frozen=True)
class Boundary:
    """The logit of `target` minus that of `y`, at `x` or, where that is misclassified, on the way back from it;
    success: `x` is misclassified."""

    def __call__(self, model: Model, inputs: Inputs) -> Objective:
        lead = towards(model, inputs)

        def objective(x: Tensor) -> tuple[Tensor, Tensor]:
            _, success = lead(tf.stop_gradient(x))
            # The gradient is that at the point gone back to, as it is.
            value, _ = lead(x + tf.stop_gradient(_gone_back(inputs["x"], x, success) - x))
            return value, success

        return objective


def _gone_back(x0: Tensor, x: Tensor, success: Tensor) -> Tensor:
    return choose(success, x0 + _BACK * (x - x0), x)


@dataclass(frozen=True)
class AlongBoundary:
    """Update rule: next to the linearised boundary, a little towards where the clean input meets it (algorithm 1)."""

    norm: Norm

    def __call__(self, inputs: Inputs, threat_model: ThreatModel) -> UpdateRule:
        x0 = inputs["x"]
        # The box as the threat model has it: where the mask is 0 it has no room.
        low, high = (threat_model.project(tf.zeros_like(x0) + end) for end in (-tf.float32.max, tf.float32.max))

        def step(state: tuple, x: Tensor, value: Tensor, success: Tensor, gradient: Tensor) -> tuple[Tensor, tuple]:
            x = _gone_back(x0, x, success)
            gradient = threat_model.tangent(x, gradient)
            # Only the boundary's place and direction count; small slopes would vanish in their squares.
            scale = tf.math.reciprocal_no_nan(norm_of(gradient, "linf"))
            slope, lacking = gradient * scale, -broadcast_like(value, x) * scale
            here = nearest_on_plane(x, slope, lacking, low, high, self.norm)
            there = nearest_on_plane(x0, slope, lacking + sum_features(slope * (x - x0)), low, high, self.norm)
            near, far = (tf.maximum(norm_of(shift, self.norm), _SHORTEST) for shift in (here, there))
            share = tf.minimum(near / (near + far), _LARGEST_SHARE)
            return (x + _BEYOND * here) * (1.0 - share) + (x0 + _BEYOND * there) * share, state

        return UpdateRule(lambda x: (), step)


@dataclass(frozen=True)
class HalfWay:
    """The first search, of each target if it is `targeted`, starts from the clean input, all others half a budget away
    in a random direction."""

    norm: Norm
    targeted: bool

    def __call__(self, inputs: Inputs, threat_model: ThreatModel) -> Tensor:
        x = inputs["x"]
        searches = inputs["restarts"] // (inputs["candidates"].shape[1] if self.targeted else 1)
        first = inputs["restart"] % searches == 0
        away = x + 0.5 * inputs["start_eps"] * direction(seeds_of(inputs), x, self.norm)
        return choose(first, x, threat_model.project(away))


@dataclass(frozen=True)
class Within:
    """Stop at a success no further away than `enough`, or where `x` itself is one."""

    norm: Norm

    def __call__(self, inputs: Inputs, x: Tensor, value: Tensor, success: Tensor) -> Tensor:
        return success & (distance(inputs, x, self.norm) <= tf.reshape(inputs["enough"], [-1]))


@named
def fab(
    model: Model,
    x: Array,
    y: Array,
    *,
    norm: Norm = "linf",
    steps: int = 100,
    targets: int = 9,
    one_by_one: bool = True,
    restarts: int = 1,
    eps=0.0,
    start_eps=0.3,
    seed: int | Tensor = 0,
    index: Array | None = None,
    mask=None,
    low=0.0,
    high=1.0,
) -> Bound:
    """Smallest perturbation in a norm, towards each of the nearest `targets` classes `one_by_one` (Croce & Hein 2020,
    FAB-T), else, for a gradient of each in every step, to the boundary that is nearest there (FAB).

    Any misclassification counts. An example is left once one is found no further away than `eps`, a scalar or (B,). Of
    several `restarts` the first starts from `x`, the others from `start_eps` / 2 away.
    """
    if restarts < 1 or targets < 1:
        raise ValueError(f"restarts and targets must be at least 1; received {restarts} and {targets}")
    nearest = MinimumNorm(norm)
    attack = Attack(
        objective=Boundary() if one_by_one else InTurn(Boundary()),
        threat_model=box,
        update=AlongBoundary(norm) if one_by_one else NearestInTurn(AlongBoundary(norm), norm),
        start=HalfWay(norm, one_by_one),
        selection=nearest,
        stop=Within(norm),
        rounds=Restarts(until=Within(norm), targeted=one_by_one, selection=nearest),
        prepare=NearClasses(targets) if one_by_one else InTurnOf(targets),
        check=NotNegative(("enough",)),
        numbered=not one_by_one,
    )
    sizes = {"enough": float(eps) if isinstance(eps, int | float) else eps, "start_eps": start_eps}
    inputs = {"x": x, "y": y, "steps": steps, "restarts": restarts, "seed": seed, "index": index}
    return Bound(attack, model, {**inputs, **sizes, "mask": mask, "low": low, "high": high})
