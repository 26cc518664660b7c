"""Attacks within a budget, by their papers' names, each one call: an objective, a threat model and an update rule.

Shapes and units, for all of them: `x` float (B, ...) in [low, high]; `y` int (B,); budgets in the units of `x`. The
answer is a float32 tensor of the shape of `x`, a constant to any gradient tape around it; what is checked, compiled and
raised says `common.attacks.attack.run`. A gradient that is not a number counts as 0 everywhere, so that where there is
no other an attack without a random start answers with `x`; `gradient_rows` in `common.evaluation.robustness` counts
those.

`eps` and `alpha`: scalar, (B,), or, for L-inf, any shape that broadcasts to `x` at its rank. `mask`: broadcasts to `x`
likewise; where it is 0 nothing changes. `index`: the examples' places in the data set, (B,), to which random starts are
tied. With 0 steps the answer is the start.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from common.attacks import threat_models, updates
from common.attacks.attack import Bound, check_classes, named
from common.attacks.compile import Array
from common.attacks.logits import check_logits
from common.attacks.loop import (
    Attack,
    Inputs,
    Model,
    Objective,
    Restarts,
    at_success,
    clean,
    seeds_of,
    worst_case,
)
from common.attacks.objectives import (
    cosine_to,
    least_likely,
    targeted_ce,
    targeted_margin,
    untargeted_ce,
    untargeted_margin,
)
from common.attacks.tensors import example_seeds, uniform
from common.attacks.threat_models import ThreatModel
from common.attacks.updates import UpdateRule

Tensor = tf.Tensor
Norm = Literal["linf", "l2", "l1"]

BALLS = {"linf": threat_models.linf, "l2": threat_models.l2, "l1": threat_models.l1}
DUAL: dict[str, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}
"""The norm in which a slope is measured, by that of the shift."""
# Share of the coordinates that an L1 step moves.
_L1_SHARE = 0.01
_DIRECTIONS = {"linf": tf.sign, "l2": updates.unit_l2, "l1": updates.top_l1(_L1_SHARE)}


@dataclass(frozen=True)
class Ball:
    """Within `eps` of the clean input, in the box: threat model of `x`, `eps`, `low`, `high` and, if there is one,
    `mask`."""

    norm: Norm = "linf"

    def __post_init__(self) -> None:
        if self.norm not in BALLS:
            raise ValueError(f"norm must be one of {', '.join(BALLS)}; received {self.norm!r}")

    def __call__(self, inputs: Inputs) -> ThreatModel:
        return BALLS[self.norm](*(inputs[name] for name in ("x", "eps", "low", "high")), inputs.get("mask"))


@dataclass(frozen=True)
class Ascent:
    """Steps of `alpha` along the steepest direction in a norm: update rule of `alpha` and, if there is one,
    `momentum`."""

    norm: Norm = "linf"

    def __call__(self, inputs: Inputs, threat_model: ThreatModel) -> UpdateRule:
        return updates.ascent(
            _DIRECTIONS[self.norm], inputs["alpha"], inputs.get("momentum"), tangent=threat_model.tangent
        )


def ascent_of_the_rest(inputs: Inputs, threat_model: ThreatModel) -> UpdateRule:
    """Steps of what `start_eps` has left of `eps`."""
    return updates.ascent(tf.sign, inputs["eps"] - inputs["start_eps"], tangent=threat_model.tangent)


@dataclass(frozen=True)
class Check:
    """Checks of the inputs of an attack in a ball, in addition to those that `run` makes of any."""

    norm: Norm = "linf"
    classes: bool = True

    def __call__(self, model: Model, inputs: Inputs) -> None:
        if self.norm != "linf" and np.prod(inputs["eps"].shape[1:]) != 1:
            raise ValueError(
                f"an {self.norm} budget is one number per example; received shape {tuple(inputs['eps'].shape)}"
            )
        if "start_eps" in inputs and bool(tf.reduce_any(inputs["start_eps"] > inputs["eps"])):
            raise ValueError(f"start_eps must be at most eps; received {inputs['start_eps'].numpy().max()}")
        if self.classes:
            check_classes(model, inputs)


def towards_least_likely(model: Model, inputs: Inputs) -> dict[str, Tensor]:
    """The least likely class of the clean input as the target."""
    return {"target": least_likely(model, inputs["x"])}


def random_point(inputs: Inputs, threat_model: ThreatModel) -> Tensor:
    """Start anywhere in the threat model."""
    return threat_model.random_point(seeds_of(inputs))


def random_sign(inputs: Inputs, threat_model: ThreatModel) -> Tensor:
    """Start `start_eps` away along both ends of every axis, at random."""
    signs = tf.sign(uniform(seeds_of(inputs), tf.shape(inputs["x"])[1:], -1.0, 1.0))
    return threat_model.project(inputs["x"] + inputs["start_eps"] * signs)


def in_ball(
    objective: Callable[[Model, Inputs], Objective], norm: Norm = "linf", *, classes: bool = True, **parts: Any
) -> Attack:
    """Gradient steps in a ball: `parts` are further fields of `Attack`. `classes`: `y` or `target` are classes of the
    model's."""
    parts = {"threat_model": Ball(norm), "update": Ascent(norm), "check": Check(norm, classes), **parts}
    return Attack(objective=objective, **parts)


def _classes(targeted: bool, y: Array) -> dict[str, Array]:
    return {"target" if targeted else "y": y}


def _cross_entropy(targeted: bool) -> Callable[[Model, Inputs], Objective]:
    return targeted_ce if targeted else untargeted_ce


@named
def fgsm(
    model: Model, x: Array, y: Array, *, eps, norm: Norm = "linf", targeted: bool = False, mask=None, low=0.0, high=1.0
) -> Bound:
    """One step of size `eps` along the gradient's sign (Goodfellow et al. 2015); `targeted`: towards the class `y`."""
    inputs = {"x": x, **_classes(targeted, y), "eps": eps, "alpha": eps, "steps": 1}
    return Bound(in_ball(_cross_entropy(targeted), norm), model, {**inputs, "mask": mask, "low": low, "high": high})


@named
def bim(
    model: Model,
    x: Array,
    y: Array,
    *,
    eps,
    alpha,
    steps: int,
    norm: Norm = "linf",
    targeted: bool = False,
    stop: bool = False,
    mask=None,
    low=0.0,
    high=1.0,
) -> Bound:
    """`steps` steps of size `alpha` from the clean input (Kurakin et al. 2017, basic iterative method)."""
    attack = in_ball(_cross_entropy(targeted), norm, stop=at_success if stop else None)
    inputs = {"x": x, **_classes(targeted, y), "eps": eps, "alpha": alpha, "steps": steps}
    return Bound(attack, model, {**inputs, "mask": mask, "low": low, "high": high})


@named
def mi_fgsm(
    model: Model,
    x: Array,
    y: Array,
    *,
    eps,
    alpha,
    steps: int,
    momentum: float = 1.0,
    norm: Norm = "linf",
    targeted: bool = False,
    stop: bool = False,
    mask=None,
    low=0.0,
    high=1.0,
) -> Bound:
    """BIM along the running sum of normalised gradients, decayed by `momentum` (Dong et al. 2018)."""
    bound = bim.bind(
        model,
        x,
        y,
        eps=eps,
        alpha=alpha,
        steps=steps,
        norm=norm,
        targeted=targeted,
        stop=stop,
        mask=mask,
        low=low,
        high=high,
    )
    return bound._replace(inputs={**bound.inputs, "momentum": tf.cast(momentum, tf.float32)})


@named
def pgd(
    model: Model,
    x: Array,
    y: Array,
    *,
    eps,
    alpha,
    steps: int,
    norm: Norm = "linf",
    targeted: bool = False,
    random_start: bool = True,
    restarts: int = 1,
    keep: Literal["last", "best"] = "last",
    stop: bool = False,
    loss: Literal["ce", "margin"] = "ce",
    seed: int | Tensor = 0,
    index: Array | None = None,
    mask=None,
    low=0.0,
    high=1.0,
) -> Bound:
    """BIM from a random point of the threat model (Madry et al. 2018, section 2.1).

    Of several `restarts` each example keeps its worst case: success first, then loss. `keep="best"` does the same over
    all iterates. `stop` leaves an example where it first succeeds. `loss="margin"` raises the difference of logits in
    place of the cross-entropy, whose gradient vanishes where the logits lie some hundred apart.
    """
    if restarts < 1:
        raise ValueError(f"restarts must be at least 1; received {restarts}")
    if keep not in ("last", "best"):
        raise ValueError(f"keep must be 'last' or 'best'; received {keep!r}")
    if loss not in ("ce", "margin"):
        raise ValueError(f"loss must be 'ce' or 'margin'; received {loss!r}")
    margin = targeted_margin if targeted else untargeted_margin
    attack = in_ball(
        margin if loss == "margin" else _cross_entropy(targeted),
        norm,
        start=random_point if random_start else clean,
        selection=worst_case if keep == "best" else None,
        stop=at_success if stop else None,
        rounds=Restarts(until=at_success if stop else None) if restarts > 1 else None,
    )
    inputs = {"x": x, **_classes(targeted, y), "eps": eps, "alpha": alpha, "steps": steps, "restarts": restarts}
    inputs |= {"seed": seed, "index": index, "mask": mask, "low": low, "high": high}
    return Bound(attack, model, inputs)


@named
def step_ll(model: Model, x: Array, *, eps, mask=None, low=0.0, high=1.0) -> Bound:
    """One step of size `eps` towards the least likely class (Kurakin et al. 2017, step l.l.)."""
    inputs = {"x": x, "eps": eps, "alpha": eps, "steps": 1, "mask": mask, "low": low, "high": high}
    return Bound(in_ball(targeted_ce, prepare=towards_least_likely, check=_check_classifier), model, inputs)


@named
def iter_ll(
    model: Model, x: Array, *, eps, alpha, steps: int, stop: bool = False, mask=None, low=0.0, high=1.0
) -> Bound:
    """Step-LL in `steps` steps of size `alpha`, towards the least likely class of the clean input (Kurakin et al.
    2017, iter. l.l.)."""
    attack = in_ball(
        targeted_ce, prepare=towards_least_likely, check=_check_classifier, stop=at_success if stop else None
    )
    inputs = {"x": x, "eps": eps, "alpha": alpha, "steps": steps, "mask": mask, "low": low, "high": high}
    return Bound(attack, model, inputs)


@named
def r_step_ll(
    model: Model,
    x: Array,
    *,
    eps,
    start_eps=None,
    seed: int | Tensor = 0,
    index: Array | None = None,
    mask=None,
    low=0.0,
    high=1.0,
) -> Bound:
    """`start_eps` (half of `eps`) along a random sign, the rest by Step-LL (Tramer et al. 2018, R+Step-LL).

    The least likely class is that of the clean input.
    """
    eps = tf.cast(eps, tf.float32)
    start_eps = eps / 2 if start_eps is None else tf.cast(start_eps, tf.float32)
    attack = in_ball(
        targeted_ce,
        prepare=towards_least_likely,
        check=_check_classifier,
        start=random_sign,
        update=ascent_of_the_rest,
    )
    inputs = {"x": x, "eps": eps, "start_eps": start_eps, "steps": 1}
    return Bound(attack, model, {**inputs, "seed": seed, "index": index, "mask": mask, "low": low, "high": high})


@named
def fftgsm(embed: Model, x: Array, target: Array, *, eps, mask=None, low=0.0, high=1.0) -> Bound:
    """One step of size `eps` that raises the cosine of `embed(x)` to `target` (B, D) (MTER: fast feature target)."""
    return iftgsm.bind(embed, x, target, eps=eps, alpha=eps, steps=1, mask=mask, low=low, high=high)


@named
def iftgsm(
    embed: Model,
    x: Array,
    target: Array,
    *,
    eps,
    alpha,
    steps: int,
    threshold: float | Tensor | None = None,
    mask=None,
    low=0.0,
    high=1.0,
) -> Bound:
    """FFTGSM in `steps` steps of size `alpha` (MTER: iterative feature target).

    With `threshold` (scalar or (B,)) an example stops once its cosine is above it.
    """
    attack = in_ball(cosine_to, classes=False, stop=None if threshold is None else at_success)
    inputs = {"x": x, "embedding": target, "eps": eps, "alpha": alpha, "steps": steps, "threshold": threshold}
    return Bound(attack, embed, {**inputs, "mask": mask, "low": low, "high": high})


@named
def feature_pgd(
    embed: Model,
    x: Array,
    target: Array,
    *,
    eps,
    alpha,
    steps: int,
    restarts: int = 1,
    threshold: float | Tensor | None = None,
    seed: int | Tensor = 0,
    index: Array | None = None,
    mask=None,
    low=0.0,
    high=1.0,
) -> Bound:
    """IFTGSM from random points of the threat model; each example keeps its nearest iterate over all `restarts`.

    `threshold` as in `iftgsm`. Towards the negative of an embedding it leads away from it, until the cosine to that is
    below minus `threshold`.
    """
    if restarts < 1:
        raise ValueError(f"restarts must be at least 1; received {restarts}")
    stop = threshold is not None
    attack = in_ball(
        cosine_to,
        classes=False,
        start=random_point,
        selection=worst_case,
        stop=at_success if stop else None,
        rounds=Restarts(until=at_success if stop else None) if restarts > 1 else None,
    )
    inputs = {"x": x, "embedding": target, "eps": eps, "alpha": alpha, "steps": steps, "threshold": threshold}
    inputs |= {"restarts": restarts, "seed": seed, "index": index, "mask": mask, "low": low, "high": high}
    return Bound(attack, embed, inputs)


def _check_classifier(model: Model, inputs: Inputs) -> None:
    """As `check_classes`, for attacks that take no labels."""
    Check(classes=False)(model, inputs)
    check_logits(model, inputs["x"])


@named
def random_sign_noise(
    model: Model,
    x: Array,
    *,
    eps,
    seed: int | Tensor = 0,
    index: Array | None = None,
    mask=None,
    low=0.0,
    high=1.0,
) -> Bound:
    """`x` with every value up or down by `eps` (L-inf), at random: the largest change of the budget, and a control that
    looks at no model."""
    inputs = {"x": x, "eps": eps, "alpha": 0.0, "steps": 0, "seed": seed, "index": index}
    return Bound(NOISE, model, {**inputs, "mask": mask, "low": low, "high": high})


def _blind(model: Model, inputs: Inputs) -> Objective:
    return lambda x: (tf.zeros(tf.shape(x)[:1]), tf.zeros(tf.shape(x)[:1], tf.bool))


def _both_ends(inputs: Inputs, threat_model: ThreatModel) -> Tensor:
    x = inputs["x"]
    signs = tf.sign(uniform(example_seeds(inputs["seed"], inputs["index"]), tf.shape(x)[1:], -1.0, 1.0))
    return threat_model.project(x + inputs["eps"] * signs)


def _still(inputs: Inputs, threat_model: ThreatModel) -> UpdateRule:
    return UpdateRule(lambda x: (), lambda state, x, *told: (x, state), needs_gradient=False)


NOISE = in_ball(_blind, classes=False, start=_both_ends, update=_still)
"""`random_sign_noise` as a value, of `eps` and no steps."""
