"""Attacks that look for the smallest perturbation, by their papers' names, each one call.

Shapes, units, compilation and errors are those of `named`. There is no budget: of all iterates that reach the goal the
one nearest to `x` is returned, and an example that never reaches it comes back as it was. What is answered wrongly
already comes back as it was, too.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf

from common.attacks import objectives, threat_models, updates
from common.attacks.calls import (
    Array,
    Model,
    as_float32,
    as_labels,
    check_box,
    check_broadcast,
    check_labels,
    compiled,
    marked,
)
from common.attacks.loop import Objective, Rank, Result, merge, search
from common.attacks.pruning import eliminate
from common.attacks.tensors import align, finite, per_example

Tensor = tf.Tensor
Size = Callable[[Tensor], Tensor]
"""x (B, ...) -> how far it is from the clean input, (B,)."""

# The ends of the box stand where tanh is this, not at infinity: a pixel that is black or white has a slope.
_TANH_AT_ENDS = 0.9
_LARGEST_CONSTANT = 1e10
# Share of the pixels left that a round of CW-L0 gives up, and rounds enough to come down from many pixels to one.
_DROP = 0.2
_ROUNDS = 40


def ddn(
    model: Model,
    x: Array,
    y: Array,
    *,
    steps: int = 100,
    gamma: float = 0.05,
    initial_eps: float = 1.0,
    targeted: bool = False,
    mask=None,
    low=0.0,
    high=1.0,
) -> Tensor:
    """Smallest L2 norm, decoupled from the direction: it shrinks by `gamma` at a success and grows by it at a failure
    (Rony et al. 2019, algorithm 1, without the rounding to 8 bits)."""

    def attack(model: Model, t: _Tensors) -> Result:
        rule = updates.ddn(t.x, t.steps, gamma=t.settings[0], initial_eps=t.settings[1])
        objective = _cross_entropy(targeted)(model, t.y)
        return _descend(objective, rule, t, t.x, nearest(_l2_from(t.x)))

    return _run(("ddn", targeted), attack, model, x, y, steps, mask, low, high, gamma=gamma, initial_eps=initial_eps)


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
    mask=None,
    low=0.0,
    high=1.0,
) -> Tensor:
    """Fewest changed coordinates, by way of the smooth count sum of d^2 / (d^2 + `sigma`) (Cina et al. 2025,
    algorithm 1)."""

    def attack(model: Model, t: _Tensors) -> Result:
        sigma, learning_rate, threshold, threshold_rate = t.settings
        margin = _margin(targeted)(model, t.y, 0.0)
        size = tf.cast(tf.reduce_prod(tf.shape(t.x)[1:]), tf.float32)

        def objective(x: Tensor) -> tuple[Tensor, Tensor]:
            lead, done = margin(x)
            square = tf.square(x - t.x)
            count = tf.reduce_sum(square / (square + sigma), axis=per_example(x))
            return tf.minimum(lead, 0.0) - count / size, done

        rule = updates.sigma_zero(
            t.x,
            t.space.project,
            t.steps,
            alpha=learning_rate,
            threshold=threshold,
            threshold_rate=threshold_rate,
        )
        return _descend(objective, rule, t, t.x, nearest(_l0_from(t.x)))

    return _run(
        ("sigma_zero", targeted),
        attack,
        model,
        x,
        y,
        steps,
        mask,
        low,
        high,
        sigma=sigma,
        learning_rate=learning_rate,
        threshold=threshold,
        threshold_rate=threshold_rate,
    )


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
    mask=None,
    low=0.0,
    high=1.0,
) -> Tensor:
    """Smallest L2 norm by Adam on ||d||^2 + c max(-margin, -`confidence`) in the space of tanh, with a search for each
    example's own c from `constant` up (Carlini & Wagner 2017, section VI-A). The box must have ends."""

    def attack(model: Model, t: _Tensors) -> Result:
        constant, learning_rate, confidence, search_steps = t.settings
        goal = _margin(targeted)(model, t.y, confidence)
        start = tf.fill(tf.shape(t.x)[:1], constant)
        return _carlini_wagner(goal, t, t.mask, confidence, learning_rate, start, tf.cast(search_steps, tf.int32))

    return _run(
        ("cw_l2", targeted),
        attack,
        model,
        x,
        y,
        steps,
        mask,
        low,
        high,
        constant=constant,
        learning_rate=learning_rate,
        confidence=confidence,
        search_steps=search_steps,
    )


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
    mask=None,
    low=0.0,
    high=1.0,
) -> Tensor:
    """Few changed coordinates: CW-L2 on ever fewer, giving up those of least |gradient| x |change| (Carlini & Wagner
    2017, section VI-B). `per="pixel"` keeps or gives up the channels, the last axis of `x`, together.
    """
    if per not in ("coordinate", "pixel"):
        raise ValueError(f"per must be 'coordinate' or 'pixel'; received {per!r}")

    def attack(model: Model, t: _Tensors) -> Result:
        constant, learning_rate, confidence, search_steps = t.settings
        goal = _margin(targeted)(model, t.y, confidence)
        start = tf.fill(tf.shape(t.x)[:1], constant)

        def inner(mask: Tensor, begin: Tensor) -> Result:
            rounds = tf.cast(search_steps, tf.int32)
            return _carlini_wagner(goal, t, t.mask * mask, confidence, learning_rate, start, rounds)

        def saliency(x: Tensor) -> Tensor:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                score, _ = goal(x)
            weight = tf.abs(finite(tape.gradient(score, x))) * tf.abs(x - t.x)
            return tf.reduce_sum(weight, axis=-1, keepdims=True) if per == "pixel" else weight

        units = tf.ones_like(t.x[..., :1] if per == "pixel" else t.x)
        return eliminate(inner, saliency, t.x, units, rounds=_ROUNDS, drop=_DROP)

    return _run(
        ("cw_l0", targeted, per),
        attack,
        model,
        x,
        y,
        steps,
        mask,
        low,
        high,
        constant=constant,
        learning_rate=learning_rate,
        confidence=confidence,
        search_steps=search_steps,
    )


def nearest(size: Size) -> Rank:
    """Of successes the one of smallest `size`; a failure is no candidate."""
    return lambda x, score, done: tf.where(done, -size(x), float("-inf"))


class _Tensors(NamedTuple):
    """What enters the graph: `settings` are the attack's own scalars."""

    x: Tensor
    y: Tensor
    steps: Tensor
    mask: Tensor
    low: Tensor
    high: Tensor
    settings: tuple[Tensor, ...]

    @property
    def space(self) -> threat_models.Space:
        return threat_models.box(self.x, self.low, self.high, self.mask)


def _run(key: Any, attack: Callable, model: Model, x: Array, y: Array, steps, mask, low, high, **settings) -> Tensor:
    x = as_float32(x)
    tensors = _Tensors(
        x=x,
        y=as_labels(y),
        steps=tf.cast(steps, tf.int32),
        mask=align(1.0 if mask is None else mask, x),
        low=align(low, x),
        high=align(high, x),
        settings=tuple(tf.cast(value, tf.float32) for value in settings.values()),
    )

    def graph(model: Model, *flat: Tensor) -> Tensor:
        t = _Tensors(*flat[:6], flat[6:])
        found = attack(model, t)
        return tf.stop_gradient(tf.where(align(tf.cast(found.done, x.dtype), t.x) != 0, found.x, t.x))

    flat = [*tensors[:6], *tensors.settings]
    if tf.inside_function():
        check_box(x, tensors.low, tensors.high)
        return marked(graph(model, *flat), tensors.x, tensors.low, tensors.high)
    _check(model, tensors, settings)
    signature = [tf.TensorSpec([None] * value.shape.rank, value.dtype) for value in flat]
    signature[0] = tf.TensorSpec([None, *x.shape[1:]], x.dtype)
    key = (key, *((spec.shape.as_list(), spec.dtype) for spec in signature))
    return compiled(model, repr(key), graph, signature)(*flat)


def _check(model: Model, t: _Tensors, settings: dict[str, Any]) -> None:
    check_broadcast(t.x, mask=t.mask, low=t.low, high=t.high)
    check_box(t.x, t.low, t.high)
    if "constant" in settings and not (np.isfinite(t.low.numpy()).all() and np.isfinite(t.high.numpy()).all()):
        raise ValueError("low and high must be finite: the space of tanh, in which this attack moves, has two ends")
    if t.y.shape != t.x.shape[:1]:
        raise ValueError(f"one label per example, ({t.x.shape[0]},), is wanted; received shape {tuple(t.y.shape)}")
    for name, value in {"steps": int(t.steps), **settings}.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be finite and 0 or more; received {value}")
    check_labels(model, t.x, t.y)


def _cross_entropy(targeted: bool) -> Callable[..., Objective]:
    return objectives.targeted_ce if targeted else objectives.untargeted_ce


def _margin(targeted: bool) -> Callable[..., Objective]:
    return objectives.targeted_margin if targeted else objectives.untargeted_margin


def _descend(objective: Objective, rule: updates.Rule, t: _Tensors, start: Tensor, rank: Rank) -> Result:
    return search(objective, rule, t.space, start, t.steps, rank=rank)


def _l2_from(x0: Tensor) -> Size:
    return lambda x: tf.sqrt(tf.reduce_sum(tf.square(x - x0), axis=per_example(x)))


def _l0_from(x0: Tensor) -> Size:
    return lambda x: tf.reduce_sum(tf.cast(x != x0, tf.float32), axis=per_example(x))


def _carlini_wagner(
    goal: Objective,
    t: _Tensors,
    mask: Tensor,
    confidence: Tensor,
    learning_rate: Tensor,
    constant: Tensor,
    search_steps: Tensor,
) -> Result:
    """The nearest success over all rounds of the search for c, (B,); a round is a descent from the clean input."""
    free = tf.broadcast_to(mask, tf.shape(t.x)) != 0
    middle, reach = (t.low + t.high) / 2, (t.high - t.low) / (2 * _TANH_AT_ENDS)

    def encode(x: Tensor) -> Tensor:
        ends = tf.clip_by_value(tf.math.divide_no_nan(x - middle, reach), -_TANH_AT_ENDS, _TANH_AT_ENDS)
        return tf.ensure_shape(tf.atanh(ends), t.x.shape)

    def decode(w: Tensor) -> Tensor:
        x = middle + reach * tf.tanh(w)
        # Takes back what rounding adds, and must not stop the gradient where it does.
        x += tf.stop_gradient(tf.where(w == start, t.x, tf.clip_by_value(x, t.low, t.high)) - x)
        return tf.ensure_shape(tf.where(free, x, t.x), t.x.shape)

    start = encode(t.x)
    space = threat_models.box(start, encode(t.low + tf.zeros_like(t.x)), encode(t.high + tf.zeros_like(t.x)))

    def rank(w: Tensor, score: Tensor, done: Tensor) -> Tensor:
        # A success has no hinge left: its score is minus its squared distance.
        return tf.where(done, score, float("-inf"))

    def descend(c: Tensor) -> Result:
        def objective(w: Tensor) -> tuple[Tensor, Tensor]:
            x = decode(w)
            lead, done = goal(x)
            distance = tf.reduce_sum(tf.square(x - t.x), axis=per_example(x))
            return -distance - c * tf.nn.relu(confidence - lead), done

        return search(objective, updates.adam(learning_rate), space, start, t.steps, rank=rank)

    def one_round(k: Tensor, best: Result, c: Tensor, fails: Tensor, works: Tensor):
        found = descend(c)
        fails, works = tf.where(found.done, fails, c), tf.where(found.done, c, works)
        return k + 1, merge(found, best, rank), _next_constant(c, fails, works), fails, works

    nothing = tf.fill(tf.shape(constant), float("-inf"))
    _, best, _, _, _ = tf.while_loop(
        lambda k, *_: k < search_steps,
        one_round,
        (
            tf.constant(0),
            Result(start, nothing, tf.zeros_like(constant, tf.bool)),
            constant,
            tf.zeros_like(constant),
            -nothing,
        ),
        parallel_iterations=1,
    )
    return Result(decode(best.x), best.score, best.done)


def _next_constant(c: Tensor, fails: Tensor, works: Tensor) -> Tensor:
    """Ten times `c` until one works, then half way between the last that failed and the last that worked."""
    return tf.where(tf.math.is_finite(works), (fails + works) / 2, tf.minimum(10 * c, _LARGEST_CONSTANT))
