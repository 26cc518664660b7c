"""Attacks that look for the smallest perturbation, by their papers' names, each one call.

Shapes, units, compilation and errors are those of `budget`. There is no budget: of all iterates that reach the goal the
one nearest to `x` is returned, and an example that never reaches it comes back as it was. What is misclassified already
comes back as it was, too, and takes no gradient; `dataset.attack_dataset` puts others in its place.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from common.attacks import objectives, threat_models, updates
from common.attacks.attack import Bound, check_classes, check_not_negative, named
from common.attacks.compile import Array
from common.attacks.loop import (
    Attack,
    Inputs,
    Memory,
    Model,
    Objective,
    Result,
    Selection,
    Stop,
    merge,
    value_and_gradient,
)
from common.attacks.pruning import Pruning
from common.attacks.tensors import finite, norm_of, per_example, sum_features
from common.attacks.threat_models import ThreatModel
from common.attacks.updates import UpdateRule

Tensor = tf.Tensor

# The ends of the box are where tanh has this value, not at infinity: a black or white pixel has a gradient.
_TANH_AT_ENDS = 0.9
_LARGEST_CONSTANT = 1e10
# Share of the pixels left that a round of CW-L0 gives up, and rounds enough to come down from many pixels to one.
_DROP = 0.2
_ROUNDS = 40


@dataclass(frozen=True)
class MinimumNorm:
    """Of successes the one nearest to `x`, in a norm or by the number of changed coordinates (`l0`); a failure is no
    candidate."""

    norm: Literal["l0", "linf", "l2", "l1"]

    def __call__(self, inputs: Inputs, x: Tensor, value: Tensor, success: Tensor) -> Tensor:
        return tf.where(success, -distance(inputs, x, self.norm), float("-inf"))


def distance(inputs: Inputs, x: Tensor, norm: Literal["l0", "linf", "l2", "l1"]) -> Tensor:
    """How far each of `x` (B, ...) is from the clean input: (B,)."""
    shift = x - inputs["x"]
    size = sum_features(tf.cast(shift != 0, tf.float32)) if norm == "l0" else norm_of(shift, norm)
    return tf.reshape(size, [-1])


def box(inputs: Inputs) -> ThreatModel:
    """The box alone."""
    return threat_models.box(*(inputs[name] for name in ("x", "low", "high")), inputs.get("mask"))


def misclassified_already(inputs: Inputs, x: Tensor, value: Tensor, success: Tensor) -> Tensor:
    """Stop at a success that is the clean input itself."""
    return success & tf.reduce_all(x == inputs["x"], axis=per_example(x))


@dataclass(frozen=True)
class NotNegative:
    """Checks of the inputs of these attacks, in addition to those that `run` makes of any: those called `names` finite
    and 0 or more."""

    names: tuple[str, ...]
    box_has_ends: bool = False

    def __call__(self, model: Model, inputs: Inputs) -> None:
        ends = (inputs[name].numpy() for name in ("low", "high"))
        if self.box_has_ends and not all(np.isfinite(end).all() for end in ends):
            raise ValueError("low and high must be finite: the space of tanh, in which this attack moves, has two ends")
        check_not_negative(inputs, self.names)
        check_classes(model, inputs)


@named
def ddn(
    model: Model,
    x: Array,
    y: Array,
    *,
    steps: int = 100,
    gamma: float = 0.05,
    initial_eps: float = 1.0,
    targeted: bool = False,
    index: Array | None = None,
    mask=None,
    low=0.0,
    high=1.0,
) -> Bound:
    """Smallest L2 norm, decoupled from the direction: it shrinks by `gamma` at a success and grows by it at a failure
    (Rony et al. 2019, algorithm 1, without the rounding to 8 bits). `initial_eps`: scalar or (B,)."""
    attack = Attack(
        objective=objectives.targeted_ce if targeted else objectives.untargeted_ce,
        threat_model=box,
        update=_decoupled,
        selection=MinimumNorm("l2"),
        stop=misclassified_already,
        check=NotNegative(("gamma", "initial_eps")),
    )
    return minimum_bound(
        attack, model, x, y, steps, targeted, index, mask, low, high, gamma=gamma, initial_eps=initial_eps
    )


def _decoupled(inputs: Inputs, threat_model: ThreatModel) -> UpdateRule:
    return updates.ddn(
        inputs["x"],
        inputs["steps"],
        gamma=inputs["gamma"],
        initial_eps=inputs["initial_eps"],
        tangent=threat_model.tangent,
    )


@named
def sigma_zero(
    model: Model,
    x: Array,
    y: Array,
    *,
    steps: int = 1000,
    sigma: float = 1e-3,
    learning_rate: float = 1.0,
    threshold: float = 0.3,
    threshold_rate: float = 0.01,
    targeted: bool = False,
    index: Array | None = None,
    mask=None,
    low=0.0,
    high=1.0,
) -> Bound:
    """Fewest changed coordinates, by way of the smooth count sum of d^2 / (d^2 + `sigma`) (Cina et al. 2025,
    algorithm 1)."""
    settings = {
        "sigma": sigma,
        "learning_rate": learning_rate,
        "threshold": threshold,
        "threshold_rate": threshold_rate,
    }
    attack = Attack(
        objective=SmoothCount(targeted),
        threat_model=box,
        update=_sparse,
        selection=MinimumNorm("l0"),
        stop=misclassified_already,
        check=NotNegative(tuple(settings)),
    )
    return minimum_bound(attack, model, x, y, steps, targeted, index, mask, low, high, **settings)


@dataclass(frozen=True)
class SmoothCount:
    """The margin up to 0, less the share of coordinates that have changed, counted smoothly."""

    targeted: bool

    def __call__(self, model: Model, inputs: Inputs) -> Objective:
        margin = _margin(self.targeted, model, inputs)
        count_all = tf.cast(tf.reduce_prod(tf.shape(inputs["x"])[1:]), tf.float32)

        def objective(x: Tensor) -> tuple[Tensor, Tensor]:
            lead, success = margin(x)
            square = tf.square(x - inputs["x"])
            count = tf.reduce_sum(square / (square + inputs["sigma"]), axis=per_example(x))
            return tf.minimum(lead, 0.0) - count / count_all, success

        return objective


def _sparse(inputs: Inputs, threat_model: ThreatModel) -> UpdateRule:
    return updates.sigma_zero(
        inputs["x"],
        threat_model,
        inputs["steps"],
        alpha=inputs["learning_rate"],
        threshold=inputs["threshold"],
        threshold_rate=inputs["threshold_rate"],
    )


@named
def cw_l2(
    model: Model,
    x: Array,
    y: Array,
    *,
    steps: int = 1000,
    search_steps: int = 9,
    constant: float = 1e-3,
    learning_rate: float = 0.01,
    confidence: float = 0.0,
    targeted: bool = False,
    index: Array | None = None,
    mask=None,
    low=0.0,
    high=1.0,
) -> Bound:
    """Smallest L2 norm by Adam on ||d||^2 + c max(-margin, -`confidence`) in the space of tanh, with a search for each
    example's own c from `constant` up (Carlini & Wagner 2017, section VI-A). The box must have ends."""
    settings = {"constant": constant, "learning_rate": learning_rate, "confidence": confidence}
    inputs = {**settings, "search_steps": search_steps}
    return minimum_bound(carlini_wagner(targeted), model, x, y, steps, targeted, index, mask, low, high, **inputs)


@named
def cw_l0(
    model: Model,
    x: Array,
    y: Array,
    *,
    steps: int = 200,
    search_steps: int = 3,
    constant: float = 1.0,
    learning_rate: float = 0.05,
    confidence: float = 0.0,
    per: Literal["coordinate", "pixel"] = "coordinate",
    targeted: bool = False,
    index: Array | None = None,
    mask=None,
    low=0.0,
    high=1.0,
) -> Bound:
    """Few changed coordinates: CW-L2 on ever fewer, giving up those of least |gradient| x |change| (Carlini & Wagner
    2017, section VI-B). `per="pixel"` keeps or gives up the channels, the last axis of `x`, together.
    """
    if per not in ("coordinate", "pixel"):
        raise ValueError(f"per must be 'coordinate' or 'pixel'; received {per!r}")
    attack = pruned_carlini_wagner(targeted, per)
    settings = {"constant": constant, "learning_rate": learning_rate, "confidence": confidence}
    inputs = {**settings, "search_steps": search_steps, "drop": _DROP, "prune_rounds": _ROUNDS}
    return minimum_bound(attack, model, x, y, steps, targeted, index, mask, low, high, **inputs)


@dataclass(frozen=True)
class Units:
    """What is kept or given up as one: single coordinates, or all channels of a pixel, the last axis."""

    per: Literal["coordinate", "pixel"]

    def __call__(self, inputs: Inputs) -> Tensor:
        return tf.ones_like(inputs["x"] if self.per == "coordinate" else inputs["x"][..., :1])


@dataclass(frozen=True)
class ChangeTimesSlope:
    """How much each unit matters: |gradient of the margin| x |change|, summed over the unit."""

    targeted: bool
    units: Units

    def __call__(self, model: Model, inputs: Inputs, found: Result) -> Tensor:
        _, _, slope = value_and_gradient(_margin(self.targeted, model, inputs), found.x)
        weight = tf.abs(finite(slope)) * tf.abs(found.x - inputs["x"])
        return tf.reduce_sum(weight, axis=-1, keepdims=True) if self.units.per == "pixel" else weight


def pruned_carlini_wagner(targeted: bool = False, per: Literal["coordinate", "pixel"] = "coordinate") -> Attack:
    """CW-L0 as a value, of the inputs of `carlini_wagner`, `drop` and `prune_rounds`."""
    attack, units = carlini_wagner(targeted), Units(per)
    pruning = Pruning(units, ChangeTimesSlope(targeted, units), wants_gradient=False, inner=attack.rounds)
    return replace(attack, rounds=pruning)


def carlini_wagner(targeted: bool = False) -> Attack:
    """CW-L2 as a value, of `steps`, `search_steps`, `constant`, `learning_rate` and `confidence`. In the space of tanh:
    a point w represents the example `_decoded(inputs, w)`."""
    return Attack(
        objective=DistanceAndHinge(targeted, _decoded),
        threat_model=_tanh_box,
        update=_adam,
        start=_encoded_clean,
        selection=_nearest_in_tanh,
        stop=_nothing_to_gain,
        rounds=ConstantSearch(_nearest_in_tanh, _nothing_to_gain),
        prepare=_encoded_inputs,
        output=_decoded,
        check=NotNegative(("constant", "learning_rate", "confidence", "search_steps"), box_has_ends=True),
    )


def _itself(inputs: Inputs, x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class DistanceAndHinge:
    """Minus the squared distance, less `constant` times what the margin lacks of `confidence`. `decode`: inputs, the
    point searched -> the example that it stands for."""

    targeted: bool
    decode: Callable[[Inputs, Tensor], Tensor] = _itself

    def __call__(self, model: Model, inputs: Inputs) -> Objective:
        goal = _margin(self.targeted, model, inputs)

        def objective(w: Tensor) -> tuple[Tensor, Tensor]:
            x = self.decode(inputs, w)
            lead, success = goal(x)
            distance = tf.reduce_sum(tf.square(x - inputs["x"]), axis=per_example(x))
            return -distance - inputs["constant"] * tf.nn.relu(inputs["confidence"] - lead), success

        return objective


@dataclass(frozen=True)
class ConstantSearch:
    """A descent from the clean input for each of `search_steps` constants: ten times `constant` until one works, then
    half way between the last that failed and the last that worked. The best by `selection` is kept, up to one with
    which the search is `over`."""

    selection: Selection
    over: Stop
    shared_parts = False
    wants_gradient = False

    def init(self, inputs: Inputs) -> Memory:
        constant = tf.broadcast_to(inputs["constant"], tf.shape(inputs["x"])[:1])
        infinite = tf.fill(tf.shape(constant), float("inf"))
        count = tf.zeros_like(constant, tf.int32)
        return {"constant": constant, "fails": tf.zeros_like(constant), "works": infinite, "count": count}

    def inputs(self, inputs: Inputs, memory: Memory, best: Result) -> Inputs:
        return {**inputs, "constant": memory["constant"]}

    def next(self, model: Model, inputs: Inputs, memory: Memory, found: Result, best: Result):
        constant, count = memory["constant"], memory["count"] + 1
        fails = tf.where(found.success, memory["fails"], constant)
        works = tf.where(found.success, constant, memory["works"])
        following = _next_constant(constant, fails, works)
        best = merge(inputs, found, best, self.selection)
        again = (count < inputs["search_steps"]) & ~self.over(inputs, best.x, best.value, best.success)
        return {"constant": following, "fails": fails, "works": works, "count": count}, best, again


def _next_constant(constant: Tensor, fails: Tensor, works: Tensor) -> Tensor:
    larger = tf.minimum(10 * constant, _LARGEST_CONSTANT)
    return tf.where(tf.math.is_finite(works), (fails + works) / 2, larger)


def _nearest_in_tanh(inputs: Inputs, w: Tensor, value: Tensor, success: Tensor) -> Tensor:
    # A success has no hinge left: its value is minus its squared distance.
    return tf.where(success, value, float("-inf"))


def _nothing_to_gain(inputs: Inputs, w: Tensor, value: Tensor, success: Tensor) -> Tensor:
    return success & (value >= 0)


def _adam(inputs: Inputs, threat_model: ThreatModel) -> UpdateRule:
    return updates.adam(inputs["learning_rate"])


def _tanh_box(inputs: Inputs) -> ThreatModel:
    return threat_models.box(inputs["w"], inputs["w_low"], inputs["w_high"])


def _encoded_clean(inputs: Inputs, threat_model: ThreatModel) -> Tensor:
    return inputs["w"]


def _encoded_inputs(model: Model, inputs: Inputs) -> dict[str, Tensor]:
    x = inputs["x"]
    ends = {name: inputs[name] + tf.zeros_like(x) for name in ("low", "high")}
    middle, reach = _scale(inputs)

    def encoded(x: Tensor) -> Tensor:
        ends = tf.clip_by_value(tf.math.divide_no_nan(x - middle, reach), -_TANH_AT_ENDS, _TANH_AT_ENDS)
        return tf.ensure_shape(tf.atanh(ends), inputs["x"].shape)

    return {"w": encoded(x), "w_low": encoded(ends["low"]), "w_high": encoded(ends["high"])}


def _decoded(inputs: Inputs, w: Tensor) -> Tensor:
    clean, (middle, reach) = inputs["x"], _scale(inputs)
    x = middle + reach * tf.tanh(w)
    # Takes back what rounding adds, and must not stop the gradient where it does.
    whole = tf.where(w == inputs["w"], clean, tf.clip_by_value(x, inputs["low"], inputs["high"]))
    x += tf.stop_gradient(whole - x)
    if "mask" in inputs:
        x = tf.where(tf.broadcast_to(inputs["mask"], tf.shape(clean)) != 0, x, clean)
    return tf.ensure_shape(x, clean.shape)


def _scale(inputs: Inputs) -> tuple[Tensor, Tensor]:
    low, high = inputs["low"], inputs["high"]
    return (low + high) / 2, (high - low) / (2 * _TANH_AT_ENDS)


def _margin(targeted: bool, model: Model, inputs: Inputs) -> Objective:
    return (objectives.targeted_margin if targeted else objectives.untargeted_margin)(model, inputs)


def minimum_bound(
    attack: Attack, model: Model, x, y, steps, targeted: bool, index, mask, low, high, **settings: Any
) -> Bound:
    """`attack` on what all of these attacks take, and its own `settings`: numbers, or one for each example."""
    inputs = {"x": x, "target" if targeted else "y": y, "steps": steps, "index": index}
    # Single numbers, or, of some, one for each example; counts stay whole.
    for name in set(settings) - {"search_steps", "prune_rounds"}:
        value = settings[name]
        settings[name] = float(value) if isinstance(value, int | float) else tf.cast(value, tf.float32)
    return Bound(attack, model, {**inputs, "mask": mask, "low": low, "high": high, **settings})
