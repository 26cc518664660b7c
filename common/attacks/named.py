"""The gradient attacks by their papers' names, each one call: a space, a rule and an objective put into the loop.

Shapes and units, for all of them: `x` float (B, ...) in [low, high]; `y` int (B,); budgets in the units of `x`. The
answer is a float32 tensor of the shape of `x`, a constant to any gradient tape around it. Called eagerly, an attack
checks its input and runs compiled: one trace per model and input shape, one more under a mask, whatever the batch, the
budget and the number of steps. Called inside a `tf.function` (a training step, say) it becomes part of that graph,
unchecked.

`eps` and `alpha`: scalar, (B,), or, for L-inf, any shape that broadcasts to `x` at its rank. `mask`: broadcasts to `x`
likewise; where it is 0 nothing changes. `index`: the examples' places in the data set, (B,), to which random starts are
tied. With 0 steps the answer is the start.

Errors: `ValueError` for input outside the box, not finite or not floating, a budget that is negative or not finite, a
label out of range, a shape that does not fit.
"""

import weakref
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf

from common.attacks import objectives, randomness, rules, spaces
from common.attacks.geometry import align
from common.attacks.logits import check_logits
from common.attacks.loop import Result, merge, search, strongest

Tensor = tf.Tensor
Array = np.ndarray | tf.Tensor
Model = Callable[[Tensor], Tensor]
Norm = Literal["linf", "l2", "l1"]

_SPACES = {"linf": spaces.linf, "l2": spaces.l2, "l1": spaces.l1}
# Share of the coordinates that an L1 step moves.
_L1_SHARE = 0.01
_compiled: "weakref.WeakKeyDictionary[Any, dict]" = weakref.WeakKeyDictionary()


class _Plan(NamedTuple):
    """What decides the graph: everything else enters it as a tensor."""

    objective: Literal["untargeted_ce", "targeted_ce", "cosine_to"]
    norm: Norm
    start: Literal["clean", "uniform", "corner"]
    keep: Literal["last", "best"] = "last"
    momentum: bool = False
    restarts: bool = False
    stop: bool = False
    masked: bool = False


class _Tensors(NamedTuple):
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


def fgsm(
    model: Model, x: Array, y: Array, *, eps, norm: Norm = "linf", targeted: bool = False, mask=None, low=0.0, high=1.0
) -> Tensor:
    """One step of size `eps` along the gradient's sign (Goodfellow et al. 2015); `targeted`: towards the class `y`."""
    plan = _Plan(_cross_entropy(targeted), norm, "clean")
    return _attack(plan, model, x, y, eps=eps, alpha=eps, steps=1, mask=mask, low=low, high=high)


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
) -> Tensor:
    """`steps` steps of size `alpha` from the clean input (Kurakin et al. 2017, basic iterative method)."""
    plan = _Plan(_cross_entropy(targeted), norm, "clean", stop=stop)
    return _attack(plan, model, x, y, eps=eps, alpha=alpha, steps=steps, mask=mask, low=low, high=high)


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
) -> Tensor:
    """BIM along the running sum of normalised gradients, decayed by `momentum` (Dong et al. 2018)."""
    plan = _Plan(_cross_entropy(targeted), norm, "clean", momentum=True, stop=stop)
    return _attack(
        plan, model, x, y, eps=eps, alpha=alpha, steps=steps, momentum=momentum, mask=mask, low=low, high=high
    )


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
    seed: int | Tensor = 0,
    index: Array | None = None,
    mask=None,
    low=0.0,
    high=1.0,
) -> Tensor:
    """BIM from a random point of the space (Madry et al. 2018, section 2.1).

    Of several `restarts` each example keeps its strongest: success first, then loss. `keep="best"` does the same over
    all iterates. `stop` leaves an example where it first succeeds.
    """
    if restarts < 1:
        raise ValueError(f"restarts must be at least 1; received {restarts}")
    if keep not in ("last", "best"):
        raise ValueError(f"keep must be 'last' or 'best'; received {keep!r}")
    start = "uniform" if random_start else "clean"
    plan = _Plan(_cross_entropy(targeted), norm, start, keep, restarts=restarts > 1, stop=stop)
    return _attack(
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


def step_ll(model: Model, x: Array, *, eps, mask=None, low=0.0, high=1.0) -> Tensor:
    """One step of size `eps` towards the least likely class (Kurakin et al. 2017, step l.l.)."""
    target = _least_likely(model, x)
    return fgsm(model, x, target, eps=eps, targeted=True, mask=mask, low=low, high=high)


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
) -> Tensor:
    """`start_eps` (half of `eps`) to a random corner, the rest by Step-LL (Tramer et al. 2018, R+Step-LL).

    The least likely class is that of the clean input.
    """
    eps = tf.cast(eps, tf.float32)
    start_eps = eps / 2 if start_eps is None else tf.cast(start_eps, tf.float32)
    if not tf.inside_function() and bool(tf.reduce_any(start_eps > eps)):
        raise ValueError(f"start_eps must be at most eps; received {start_eps.numpy().max()}")
    plan = _Plan("targeted_ce", "linf", "corner")
    target = _least_likely(model, x)
    return _attack(
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


def fftgsm(embed: Model, x: Array, target: Array, *, eps, mask=None, low=0.0, high=1.0) -> Tensor:
    """One step of size `eps` that raises the cosine of `embed(x)` to `target` (B, D) (MTER: fast feature target)."""
    plan = _Plan("cosine_to", "linf", "clean")
    return _attack(plan, embed, x, target, eps=eps, alpha=eps, steps=1, mask=mask, low=low, high=high)


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
) -> Tensor:
    """FFTGSM in `steps` steps of size `alpha` (MTER: iterative feature target).

    With `threshold` (scalar or (B,)) an example stops once its cosine is above it.
    """
    plan = _Plan("cosine_to", "linf", "clean", stop=threshold is not None)
    return _attack(
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


def in_batches(
    attack: Callable[..., Tensor],
    x: np.ndarray,
    y: np.ndarray,
    *,
    batch_size: int = 256,
    progress: bool = False,
) -> np.ndarray:
    """`attack(x, y, index=...)` over a data set of any size; float32 array of the shape of `x`.

    `attack` is e.g. `functools.partial(pgd, model, eps=8/255, alpha=2/255, steps=40)`, or, where nothing is random or a
    budget belongs to each example, `lambda x, y, index: fgsm(model, x, y, eps=eps[index])`. The batch size changes no
    result.
    """
    from keras.utils import Progbar

    bar = Progbar(len(x)) if progress else None
    out = np.empty(np.shape(x), np.float32)
    for first in range(0, len(x), batch_size):
        rows = slice(first, min(first + batch_size, len(x)))
        out[rows] = attack(x[rows], y[rows], index=np.arange(rows.start, rows.stop, dtype=np.int32))
        if bar:
            bar.update(rows.stop)
    return out


def _cross_entropy(targeted: bool) -> Literal["targeted_ce", "untargeted_ce"]:
    return "targeted_ce" if targeted else "untargeted_ce"


def _least_likely(model: Model, x: Array) -> Tensor:
    x = _float32(x)
    if tf.inside_function():
        return objectives.least_likely(model, x)
    _check_finite(x)
    signature = [tf.TensorSpec([None, *x.shape[1:]], x.dtype)]
    return _compile(model, ("least_likely", x.shape[1:], x.dtype), objectives.least_likely, signature)(x)


def _attack(
    plan: _Plan,
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
) -> Tensor:
    if plan.norm not in _SPACES:
        raise ValueError(f"norm must be one of {', '.join(_SPACES)}; received {plan.norm!r}")
    x = _float32(x)
    plan = plan._replace(masked=mask is not None)
    tensors = _Tensors(
        x=x,
        y=tf.cast(y, tf.float32 if plan.objective == "cosine_to" else tf.int32),
        eps=align(eps, x),
        alpha=align(alpha, x),
        steps=tf.cast(steps, tf.int32),
        momentum=tf.cast(momentum, x.dtype),
        restarts=tf.cast(restarts, tf.int32),
        threshold=tf.cast(threshold, tf.float32),
        seed=randomness.seed_pair(seed),
        index=tf.range(tf.shape(x)[0]) if index is None else tf.cast(index, tf.int32),
        mask=align(1.0 if mask is None else mask, x),
        low=align(low, x),
        high=align(high, x),
    )
    if tf.inside_function():
        return _graph(plan, model, tensors)
    _check(plan, model, tensors)
    signature = [tf.TensorSpec([None] * t.shape.rank, t.dtype) for t in tensors]
    signature[0] = tf.TensorSpec([None, *x.shape[1:]], x.dtype)
    key = (plan, *((spec.shape.as_list(), spec.dtype) for spec in signature))
    return _compile(model, repr(key), lambda model, *flat: _graph(plan, model, _Tensors(*flat)), signature)(*tensors)


def _graph(plan: _Plan, model: Model, t: _Tensors) -> Tensor:
    space = _SPACES[plan.norm](t.x, t.eps, t.low, t.high, t.mask if plan.masked else None)
    if plan.objective == "cosine_to":
        objective = objectives.cosine_to(model, t.y, t.threshold)
    else:
        objective = getattr(objectives, plan.objective)(model, t.y)
    direction = {"linf": tf.sign, "l2": rules.unit_l2, "l1": rules.top_l1(_L1_SHARE)}[plan.norm]
    rule = rules.ascent(direction, t.alpha, t.momentum if plan.momentum else None)

    def run(restart: Tensor) -> Result:
        seeds = randomness.example_seeds(tf.random.fold_in(t.seed, restart), t.index)
        x = t.x
        if plan.start == "uniform":
            x = space.start(seeds)
        elif plan.start == "corner":
            corner = tf.sign(randomness.uniform(seeds, tf.shape(t.x)[1:], -1.0, 1.0))
            x = space.project(t.x + (t.eps - t.alpha) * corner)
        x = tf.ensure_shape(x, t.x.shape)
        return search(
            objective, rule, space, x, t.steps, rank=strongest if plan.keep == "best" else None, stop=plan.stop
        )

    best = run(tf.constant(0))
    if plan.restarts:
        _, best = tf.while_loop(
            lambda restart, best: restart < t.restarts,
            lambda restart, best: (restart + 1, merge(run(restart), best)),
            (tf.constant(1), best),
            parallel_iterations=1,
        )
    # Through the projections and the momentum an outer tape would differentiate every step of the attack.
    return tf.stop_gradient(best.x)


def _compile(model: Model, key, function: Callable, signature: list[tf.TensorSpec]) -> Callable:
    """`function(model, ...)` compiled once per model and key, and forgotten with the model."""
    functions = _compiled.setdefault(model, {})
    if key not in functions:
        # A strong reference from the cached function back to the model would keep both alive for ever.
        reference = weakref.ref(model)
        functions[key] = tf.function(
            lambda *tensors: function(reference(), *tensors), input_signature=signature, autograph=False
        )
    return functions[key]


def _check(plan: _Plan, model: Model, t: _Tensors) -> None:
    _check_finite(t.x)
    _check_shapes(plan, t)
    if bool(tf.reduce_any((t.x < t.low) | (t.x > t.high))):
        raise ValueError(
            f"x must lie in [low, high]; received values from {float(tf.reduce_min(t.x)):.4g} to"
            f" {float(tf.reduce_max(t.x)):.4g}. Divide 8-bit images by 255, or pass the box they live in"
        )
    for name in ("eps", "alpha"):
        value = getattr(t, name)
        if not bool(tf.reduce_all((value >= 0) & tf.math.is_finite(value))):
            raise ValueError(f"{name} must be finite and 0 or more; received {value.numpy().min()}")
    if int(t.steps) < 0:
        raise ValueError(f"steps must be 0 or more; received {int(t.steps)}")
    if plan.objective != "cosine_to":
        classes = check_logits(model, t.x)
        if bool(tf.reduce_any((t.y < 0) | (t.y >= classes))):
            raise ValueError(f"labels must be 0 to {classes - 1}; received {t.y.numpy().min()} to {t.y.numpy().max()}")


def _check_shapes(plan: _Plan, t: _Tensors) -> None:
    if plan.norm != "linf" and np.prod(t.eps.shape[1:]) != 1:
        raise ValueError(f"an {plan.norm} budget is one number per example; received shape {tuple(t.eps.shape)}")
    for name in ("eps", "alpha", "mask", "low", "high"):
        shape = getattr(t, name).shape
        if any(size not in (1, wanted) for size, wanted in zip(shape, t.x.shape, strict=True)):
            raise ValueError(f"{name} must broadcast to x of shape {tuple(t.x.shape)}; received shape {tuple(shape)}")
    batch, feature = t.x.shape[0], plan.objective == "cosine_to"
    if t.y.shape[:1] != [batch] or t.y.shape.rank != 1 + feature:
        wanted = f"({batch}, features)" if feature else f"({batch},)"
        raise ValueError(f"one target or label per example, {wanted}, is wanted; received shape {tuple(t.y.shape)}")
    if t.index.shape != [batch]:
        raise ValueError(f"index must be of shape ({batch},); received shape {tuple(t.index.shape)}")


def _float32(x: Array) -> Tensor:
    x = tf.convert_to_tensor(x)
    if not x.dtype.is_floating:
        raise ValueError(
            f"x must be floating point in [low, high]; received {x.dtype.name}. Divide 8-bit images by 255"
        )
    return tf.cast(x, tf.float32)


def _check_finite(x: Tensor) -> None:
    if not bool(tf.reduce_all(tf.math.is_finite(x))):
        raise ValueError("x holds values that are not finite")
