"""The gradient attacks by their papers' names, each one call: a space, a rule and an objective put into the loop.

Shapes and units, for all of them: `x` float (B, ...) in [low, high]; `y` int (B,); budgets in the units of `x`. The
answer is a float32 tensor of the shape of `x`, a constant to any gradient tape around it. Called eagerly, an attack
checks its input and runs compiled: one trace per model and input shape, one more under a mask, whatever the batch, the
budget and the number of steps. Called inside a `tf.function` (a training step, say) it becomes part of that graph, of
whose input only the box is checked; with `jit_compile=True`, where nothing can be raised, examples outside the box or
not finite are answered with NaN throughout. A gradient that is not a number counts as 0 everywhere, so that where there
is no other an attack without a random start answers with `x`; `gradient_rows` in `common.evaluation.robustness` counts
those.

`eps` and `alpha`: scalar, (B,), or, for L-inf, any shape that broadcasts to `x` at its rank. `mask`: broadcasts to `x`
likewise; where it is 0 nothing changes. `index`: the examples' places in the data set, (B,), to which random starts are
tied. With 0 steps the answer is the start.

Errors: `ValueError` for input outside the box, not finite or not floating, a budget that is negative or not finite, a
label out of range, a shape that does not fit.
"""

import functools
import inspect
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
    as_targets,
    check_box,
    check_broadcast,
    check_finite,
    check_labels,
    compiled,
    marked,
)
from common.attacks.loop import Objective, Rank, Result, choose, merge, search, strongest
from common.attacks.tensors import align, example_seeds, seed_pair, uniform
from common.attacks.threat_models import linf

Tensor = tf.Tensor
Norm = Literal["linf", "l2", "l1"]

_SPACES = {"linf": threat_models.linf, "l2": threat_models.l2, "l1": threat_models.l1}
# Share of the coordinates that an L1 step moves.
_L1_SHARE = 0.01


class Plan(NamedTuple):
    """What decides the graph: everything else enters it as a tensor."""

    objective: str
    norm: Norm
    start: Literal["clean", "uniform", "corner"]
    keep: Literal["last", "best"] = "last"
    momentum: bool = False
    restarts: bool = False
    stop: bool = False
    masked: bool = False


class Tensors(NamedTuple):
    """What enters the graph."""

    x: Tensor
    y: Tensor
    eps: Tensor
    alpha: Tensor
    steps: Tensor
    momentum: Tensor
    restarts: Tensor
    threshold: Tensor
    seed: Tensor
    index: Tensor
    mask: Tensor
    low: Tensor
    high: Tensor


class Prepared(NamedTuple):
    """An attack on a batch, checked and ready to run."""

    plan: Plan
    model: Model
    tensors: Tensors


class NamedAttack:
    """An attack that is called by its paper's name. `prepare` takes the same arguments and only gets it ready."""

    def __init__(self, prepare: Callable[..., Prepared]) -> None:
        functools.update_wrapper(self, prepare)
        self.prepare = prepare
        self.__signature__ = inspect.signature(prepare).replace(return_annotation=Tensor)

    def __call__(self, *args: Any, **options: Any) -> Tensor:
        return run(*self.prepare(*args, **options))


def run(plan: Plan, model: Model, tensors: Tensors) -> Tensor:
    """What a prepared attack finds: (B, ...)."""
    if tf.inside_function():
        return marked(_graph(plan, model, tensors), tensors.x, tensors.low, tensors.high)
    return call(_graph, plan, model, tensors)


@NamedAttack
def fgsm(
    model: Model, x: Array, y: Array, *, eps, norm: Norm = "linf", targeted: bool = False, mask=None, low=0.0, high=1.0
) -> Prepared:
    """One step of size `eps` along the gradient's sign (Goodfellow et al. 2015); `targeted`: towards the class `y`."""
    plan = Plan(_objective(targeted), norm, "clean")
    return _prepare(plan, model, x, y, eps=eps, alpha=eps, steps=1, mask=mask, low=low, high=high)


@NamedAttack
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
) -> Prepared:
    """`steps` steps of size `alpha` from the clean input (Kurakin et al. 2017, basic iterative method)."""
    plan = Plan(_objective(targeted), norm, "clean", stop=stop)
    return _prepare(plan, model, x, y, eps=eps, alpha=alpha, steps=steps, mask=mask, low=low, high=high)


@NamedAttack
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
) -> Prepared:
    """BIM along the running sum of normalised gradients, decayed by `momentum` (Dong et al. 2018)."""
    plan = Plan(_objective(targeted), norm, "clean", momentum=True, stop=stop)
    return _prepare(
        plan, model, x, y, eps=eps, alpha=alpha, steps=steps, momentum=momentum, mask=mask, low=low, high=high
    )


@NamedAttack
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
) -> Prepared:
    """BIM from a random point of the space (Madry et al. 2018, section 2.1).

    Of several `restarts` each example keeps its strongest: success first, then loss. `keep="best"` does the same over
    all iterates. `stop` leaves an example where it first succeeds. `loss="margin"` raises the difference of logits in
    place of the cross-entropy, whose gradient vanishes where the logits lie some hundred apart.
    """
    if restarts < 1:
        raise ValueError(f"restarts must be at least 1; received {restarts}")
    if keep not in ("last", "best"):
        raise ValueError(f"keep must be 'last' or 'best'; received {keep!r}")
    if loss not in ("ce", "margin"):
        raise ValueError(f"loss must be 'ce' or 'margin'; received {loss!r}")
    start = "uniform" if random_start else "clean"
    plan = Plan(_objective(targeted, loss), norm, start, keep, restarts=restarts > 1, stop=stop)
    return _prepare(
        plan,
        model,
        x,
        y,
        eps=eps,
        alpha=alpha,
        steps=steps,
        restarts=restarts,
        seed=seed,
        index=index,
        mask=mask,
        low=low,
        high=high,
    )


@NamedAttack
def step_ll(model: Model, x: Array, *, eps, mask=None, low=0.0, high=1.0) -> Prepared:
    """One step of size `eps` towards the least likely class (Kurakin et al. 2017, step l.l.)."""
    target = _least_likely(model, x)
    return fgsm.prepare(model, x, target, eps=eps, targeted=True, mask=mask, low=low, high=high)


@NamedAttack
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
) -> Prepared:
    """`start_eps` (half of `eps`) to a random corner, the rest by Step-LL (Tramer et al. 2018, R+Step-LL).

    The least likely class is that of the clean input.
    """
    eps = tf.cast(eps, tf.float32)
    start_eps = eps / 2 if start_eps is None else tf.cast(start_eps, tf.float32)
    if not tf.inside_function() and bool(tf.reduce_any(start_eps > eps)):
        raise ValueError(f"start_eps must be at most eps; received {start_eps.numpy().max()}")
    plan = Plan("targeted_ce", "linf", "corner")
    target = _least_likely(model, x)
    return _prepare(
        plan,
        model,
        x,
        target,
        eps=eps,
        alpha=eps - start_eps,
        steps=1,
        seed=seed,
        index=index,
        mask=mask,
        low=low,
        high=high,
    )


@NamedAttack
def fftgsm(embed: Model, x: Array, target: Array, *, eps, mask=None, low=0.0, high=1.0) -> Prepared:
    """One step of size `eps` that raises the cosine of `embed(x)` to `target` (B, D) (MTER: fast feature target)."""
    plan = Plan("cosine_to", "linf", "clean")
    return _prepare(plan, embed, x, target, eps=eps, alpha=eps, steps=1, mask=mask, low=low, high=high)


@NamedAttack
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
) -> Prepared:
    """FFTGSM in `steps` steps of size `alpha` (MTER: iterative feature target).

    With `threshold` (scalar or (B,)) an example stops once its cosine is above it.
    """
    plan = Plan("cosine_to", "linf", "clean", stop=threshold is not None)
    return _prepare(
        plan,
        embed,
        x,
        target,
        eps=eps,
        alpha=alpha,
        steps=steps,
        threshold=1.0 if threshold is None else threshold,
        mask=mask,
        low=low,
        high=high,
    )


@NamedAttack
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
) -> Prepared:
    """IFTGSM from random points of the space; each example keeps its nearest iterate over all `restarts`.

    `threshold` as in `iftgsm`. Towards the negative of an embedding it leads away from it, until the cosine to that is
    below minus `threshold`.
    """
    if restarts < 1:
        raise ValueError(f"restarts must be at least 1; received {restarts}")
    plan = Plan("cosine_to", "linf", "uniform", "best", restarts=restarts > 1, stop=threshold is not None)
    return _prepare(
        plan,
        embed,
        x,
        target,
        eps=eps,
        alpha=alpha,
        steps=steps,
        restarts=restarts,
        threshold=1.0 if threshold is None else threshold,
        seed=seed,
        index=index,
        mask=mask,
        low=low,
        high=high,
    )


def _objective(targeted: bool, loss: str = "ce") -> str:
    return f"{'targeted' if targeted else 'untargeted'}_{loss}"


def _least_likely(model: Model, x: Array) -> Tensor:
    x = as_float32(x)
    if tf.inside_function():
        return objectives.least_likely(model, x)
    check_finite(x)
    signature = [tf.TensorSpec([None, *x.shape[1:]], x.dtype)]
    return compiled(model, ("least_likely", x.shape[1:], x.dtype), objectives.least_likely, signature)(x)


def _prepare(
    plan: Plan,
    model: Model,
    x: Array,
    y: Array,
    *,
    eps,
    alpha,
    steps: int | Tensor,
    mask,
    low,
    high,
    momentum: float = 0.0,
    restarts: int = 1,
    threshold: float | Tensor = 1.0,
    seed: int | Tensor = 0,
    index: Array | None = None,
) -> Prepared:
    if plan.norm not in _SPACES:
        raise ValueError(f"norm must be one of {', '.join(_SPACES)}; received {plan.norm!r}")
    x = as_float32(x)
    plan = plan._replace(masked=mask is not None)
    tensors = Tensors(
        x=x,
        y=as_targets(y) if plan.objective == "cosine_to" else as_labels(y),
        eps=align(eps, x),
        alpha=align(alpha, x),
        steps=tf.cast(steps, tf.int32),
        momentum=tf.cast(momentum, x.dtype),
        restarts=tf.cast(restarts, tf.int32),
        threshold=tf.cast(threshold, tf.float32),
        seed=seed_pair(seed),
        index=_places(x) if index is None else tf.cast(index, tf.int32),
        mask=align(1.0 if mask is None else mask, x),
        low=align(low, x),
        high=align(high, x),
    )
    if tf.inside_function():
        check_box(tensors.x, tensors.low, tensors.high)
    else:
        _check(plan, model, tensors)
    return Prepared(plan, model, tensors)


def _places(x: Tensor) -> Tensor:
    # The shape as a tensor would cost an eager call more than all other arguments together.
    return tf.range(tf.shape(x)[0] if x.shape[0] is None else x.shape[0])


def call(function: Callable, plan: Plan, model: Model, t: Tensors, *extra: Tensor, **static: Any) -> Any:
    """`function(plan, model, tensors, *extra, **static)`, compiled once for all but tensors' values and batch sizes."""
    signature = [tf.TensorSpec([None] * value.shape.rank, value.dtype) for value in t]
    signature[0] = tf.TensorSpec([None, *t.x.shape[1:]], t.x.dtype)
    signature += [tf.TensorSpec([None, *value.shape[1:]] if value.shape.rank else [], value.dtype) for value in extra]
    key = (function.__name__, plan, static, *((spec.shape.as_list(), spec.dtype) for spec in signature))

    def whole(model: Model, *flat: Tensor) -> Any:
        return function(plan, model, Tensors(*flat[: len(t)]), *flat[len(t) :], **static)

    return compiled(model, repr(key), whole, signature)(*t, *extra)


class Parts(NamedTuple):
    """What a plan plugs into the loop."""

    objective: Objective
    rule: updates.Rule
    space: threat_models.Space
    rank: Rank | None


def parts(plan: Plan, model: Model, t: Tensors) -> Parts:
    space = _SPACES[plan.norm](t.x, t.eps, t.low, t.high, t.mask if plan.masked else None)
    if plan.objective == "cosine_to":
        objective = objectives.cosine_to(model, t.y, t.threshold)
    else:
        objective = getattr(objectives, plan.objective)(model, t.y)
    direction = {"linf": tf.sign, "l2": updates.unit_l2, "l1": updates.top_l1(_L1_SHARE)}[plan.norm]
    rule = updates.ascent(direction, t.alpha, t.momentum if plan.momentum else None)
    return Parts(objective, rule, space, strongest if plan.keep == "best" else None)


def first_point(plan: Plan, space: threat_models.Space, t: Tensors, restart: Tensor) -> Tensor:
    """Where a restart, counted from 0, begins: (B, ...)."""
    seeds = example_seeds(tf.random.fold_in(t.seed, restart), t.index)
    x = t.x
    if plan.start == "uniform":
        x = space.start(seeds)
    elif plan.start == "corner":
        corner = tf.sign(uniform(seeds, tf.shape(t.x)[1:], -1.0, 1.0))
        x = space.project(t.x + (t.eps - t.alpha) * corner)
    return tf.ensure_shape(x, t.x.shape)


def _graph(plan: Plan, model: Model, t: Tensors) -> Tensor:
    objective, rule, space, rank = parts(plan, model, t)

    def run(restart: Tensor, steps: Tensor) -> Result:
        x = first_point(plan, space, t, restart)
        return search(objective, rule, space, x, steps, rank=rank, stop=plan.stop)

    def again(restart: Tensor, best: Result) -> tuple[Tensor, Result]:
        if not plan.stop:
            return restart + 1, merge(run(restart, t.steps), best)
        # What has succeeded stays, and takes no gradient of the restarts after.
        later = merge(run(restart, tf.where(best.done, 0, t.steps)), best)
        return restart + 1, choose(best.done, best, later)

    best = run(tf.constant(0), t.steps)
    if plan.restarts:
        _, best = tf.while_loop(
            lambda restart, best: restart < t.restarts, again, (tf.constant(1), best), parallel_iterations=1
        )
    # Through the projections and the momentum an outer tape would differentiate every step of the attack.
    return tf.stop_gradient(best.x)


def _check(plan: Plan, model: Model, t: Tensors) -> None:
    _check_shapes(plan, t)
    check_box(t.x, t.low, t.high)
    for name in ("eps", "alpha"):
        value = getattr(t, name).numpy()
        if not (sound := (value >= 0) & np.isfinite(value)).all():
            raise ValueError(f"{name} must be finite and 0 or more; received {value[~sound][0]}")
    if int(t.steps) < 0:
        raise ValueError(f"steps must be 0 or more; received {int(t.steps)}")
    if plan.objective != "cosine_to":
        check_labels(model, t.x, t.y)


def _check_shapes(plan: Plan, t: Tensors) -> None:
    if plan.norm != "linf" and np.prod(t.eps.shape[1:]) != 1:
        raise ValueError(f"an {plan.norm} budget is one number per example; received shape {tuple(t.eps.shape)}")
    check_broadcast(t.x, eps=t.eps, alpha=t.alpha, mask=t.mask, low=t.low, high=t.high)
    batch, feature = t.x.shape[0], plan.objective == "cosine_to"
    if t.y.shape[:1] != [batch] or t.y.shape.rank != 1 + feature:
        wanted = f"({batch}, features)" if feature else f"({batch},)"
        raise ValueError(f"one target or label per example, {wanted}, is wanted; received shape {tuple(t.y.shape)}")
    if t.index.shape != [batch]:
        raise ValueError(f"index must be of shape ({batch},); received shape {tuple(t.index.shape)}")


Tensor = tf.Tensor


def corner_noise(x: Array, *, eps: float | Tensor, seed: int | Tensor = 0, index: Tensor | None = None) -> Tensor:
    """`x` (B, ...) in [0, 1] with every value up or down by `eps` (L-inf), at random: the largest change of the budget.

    `index`: the examples' places in the data set (B,), to which the draws are tied.
    """
    x = as_float32(x)
    places = tf.range(tf.shape(x)[0]) if index is None else tf.cast(index, tf.int32)
    seeds = example_seeds(seed_pair(seed), places)
    signs = tf.sign(uniform(seeds, tf.shape(x)[1:], -1.0, 1.0))
    return linf(x, eps).project(x + eps * signs)
