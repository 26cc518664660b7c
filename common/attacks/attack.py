"""Attacks as users call them: input that is checked, one compiled function per attack and model, a name.

    ATTACK = Attack(objective=..., threat_model=Ball("linf"), update=Ascent("linf"))

    @named
    def my_attack(model, x, y, *, eps, steps=10):
        return Bound(ATTACK, model, {"x": x, "y": y, "eps": eps, "alpha": eps / 4, "steps": steps})

`my_attack(model, x, y, eps=8 / 255)` then answers with adversarial examples, `dataset.attack_dataset` takes it with
refill for data sets of any size, and `common.evaluation.robustness.Evaluation` puts it into a table.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from common.arrays import to_array
from common.attacks.compile import (
    Array,
    as_float32,
    as_labels,
    as_targets,
    check_box,
    check_broadcast,
    check_labels,
    compiled,
    marked,
)
from common.attacks.loop import Attack, Inputs, Model, search_counted
from common.attacks.tensors import broadcast_like, seed_pair

Tensor = tf.Tensor

BUDGETS = ("eps", "alpha", "start_eps", "mask", "low", "high")
"""Inputs that may differ per example and per coordinate: scalars, (B,), or of the rank of `x`, to broadcast to it."""
_LABELS = ("y", "target")
_SIZES = ("eps", "alpha", "start_eps")


class Bound(NamedTuple):
    """An attack on a model and its inputs, as they came: not converted, not checked, not run. `finish` makes of what
    the attack finds (B, ...) what the caller gets, where the attack moves a part of that only."""

    attack: Attack
    model: Model
    inputs: Mapping[str, Any]
    finish: Callable[[Any], Any] | None = None


class NamedAttack:
    """An attack that is called by its paper's name. `bind` takes the same arguments and runs nothing."""

    def __init__(self, bind: Callable[..., Bound]) -> None:
        functools.update_wrapper(self, bind)
        self.bind = bind
        self.__signature__ = inspect.signature(bind).replace(return_annotation=Tensor)
        self.labelled = not {"y", "target"}.isdisjoint(self.__signature__.parameters)
        """Whether it takes labels or targets."""

    def __call__(self, *args: Any, **options: Any) -> Tensor:
        *bound, finish = self.bind(*args, **options)
        found = run(*bound)
        return found if finish is None else finish(found)


named = NamedAttack


def run(attack: Attack, model: Model, inputs: Mapping[str, Any]) -> Tensor:
    """The adversarial examples that `attack` finds for `inputs`, float32 (B, ...).

    `inputs` by name, None for none: `x` (B, ...) in [`low`, `high`], by default [0, 1]; `steps`; `seed`, and `index`
    (B,), the examples' places in the data set, to which draws are tied; `y` and `target`, labels (B,); `embedding`
    (B, D); those in `BUDGETS`; any other is taken as a tensor, a scalar or with one row per example or for all of them.

    Eager: checked, and compiled once per attack, model and shape of an example, whatever the batch, the budgets and
    the number of steps. Inside a `tf.function`: part of that graph, of whose input only the box is checked; with
    `jit_compile=True`, where nothing can be raised, examples outside the box or not finite are answered with NaN.

    Errors: `ValueError` for input outside the box, not finite or not floating, a budget that is negative or not finite,
    a label out of range, a shape that does not fit, and what the attack's own check raises.
    """
    if not tf.inside_function():
        return run_counted(attack, model, inputs)[0]
    tensors = as_tensors(inputs)
    check_box(tensors["x"], tensors["low"], tensors["high"])
    found, _ = _found(attack, model, tensors)
    return marked(found, tensors["x"], tensors["low"], tensors["high"])


def run_counted(attack: Attack, model: Model, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """As `run`, eagerly, and how many gradients of the batch it took: int32 scalar."""
    tensors = as_tensors(inputs)
    check(attack, model, tensors)
    return call(_found, attack, model, tensors)


def as_tensors(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """`inputs` as tensors of the loop's dtypes, with the default box, seed and index."""
    x = as_float32(inputs["x"])
    given = {name: value for name, value in inputs.items() if value is not None and name != "x"}
    found = {"x": x, "index": None}
    for name, value in {"low": 0.0, "high": 1.0, "seed": 0, **given}.items():
        eager = type(value) in (int, float) and not tf.inside_function()
        found[name] = _number(name, value, type(value), x.shape.rank) if eager else _tensor(name, value, x)
    if found["index"] is None:
        # The shape as a tensor would cost an eager call more than all other arguments together.
        found["index"] = tf.range(tf.shape(x)[0] if x.shape[0] is None else x.shape[0])
    return found


def check(attack: Attack, model: Model, inputs: Inputs) -> None:
    """Errors: `ValueError` for inputs that `attack` cannot be run on; eager."""
    _check_shapes(inputs)
    check_box(inputs["x"], inputs["low"], inputs["high"])
    check_not_negative(inputs, [name for name in _SIZES if name in inputs])
    if (least := inputs["steps"].numpy().min(initial=0)) < 0:
        raise ValueError(f"steps must be 0 or more; received {least}")
    if "restarts" in inputs and int(inputs["restarts"]) < 1:
        raise ValueError(f"restarts must be at least 1; received {int(inputs['restarts'])}")
    if attack.check is not None:
        attack.check(model, inputs)


def check_not_negative(inputs: Inputs, names: Iterable[str]) -> None:
    """Errors: `ValueError` for one of the inputs called `names` that is not finite or below 0."""
    for name in names:
        value = inputs[name].numpy()
        if not (sound := np.isfinite(value) & (value >= 0)).all():
            raise ValueError(f"{name} must be finite and 0 or more; received {value[~sound][0]}")


def check_classes(model: Model, inputs: Inputs) -> None:
    """Errors: `ValueError` for a model that answers with probabilities, and for labels that are none of its classes."""
    for name in _LABELS:
        if name in inputs:
            check_labels(model, inputs["x"], inputs[name])


def call(function: Callable, attack: Attack, model: Model, inputs: Inputs, *more: Any, **static: Any) -> Any:
    """`function(attack, model, inputs, *more, **static)`, compiled once for all but tensors' values and numbers of
    examples. `more`: nests of tensors with one row per example, or scalars."""
    names, values = tuple(inputs), (*inputs.values(), *tf.nest.flatten(more))
    own = len(names)
    shapes = tuple(
        (name, value.shape.rank if _open(name) else _sides(attack, name, value.shape), value.dtype)
        for name, value in zip(names, values, strict=False)
    )
    shapes += tuple((value.shape[1:] if value.shape.rank else None, value.dtype) for value in values[own:])
    key = (function, attack, shapes, tuple(static.items()))

    def whole(model: Model, *flat: Tensor) -> Any:
        return function(
            attack,
            model,
            dict(zip(names, flat[:own], strict=True)),
            *tf.nest.pack_sequence_as(more, flat[own:]),
            **static,
        )

    def signature() -> list[tf.TensorSpec]:
        specs = [
            tf.TensorSpec(
                [None] * value.shape.rank
                if _open(name)
                else [None, *_sides(attack, name, value.shape)][: value.shape.rank],
                value.dtype,
            )
            for name, value in zip(names, values, strict=False)
        ]
        return specs + [
            tf.TensorSpec([None, *value.shape[1:]] if value.shape.rank else [], value.dtype) for value in values[own:]
        ]

    return compiled(model, key, whole, signature)(*values)


def _found(attack: Attack, model: Model, inputs: Inputs) -> tuple[Tensor, Tensor]:
    result, gradients = search_counted(attack, model, inputs)
    return result.x, gradients


def _open(name: str) -> bool:
    """Whether all sides of an input are open in a graph: one graph for scalars, per example and per coordinate."""
    return name in BUDGETS or name == "seed"


def _sides(attack: Attack, name: str, shape: tf.TensorShape) -> tuple[int | None, ...]:
    """The sides of one example that a graph is made for."""
    sides = tuple(shape[1:])
    return sides if attack.fixed_size or name != "x" else (None,) * (len(sides) - 1) + sides[-1:]


@functools.lru_cache(1024)
def _number(name: str, value: float, kind: type, rank: int) -> Tensor:
    """The tensor of a Python number: making it again would cost an eager call some 40 microseconds, for each number."""
    return _tensor(name, value, tf.zeros([0] * rank))


def _tensor(name: str, value: Any, x: Tensor) -> Tensor:
    if name in BUDGETS:
        return broadcast_like(value, x)
    if name in _LABELS:
        return as_labels(value)
    if name == "seed":
        return seed_pair(value)
    if name == "embedding":
        return as_targets(value)
    if not tf.is_tensor(value):
        value = np.asarray(value) if np.ndim(value) == 0 else to_array(value, name)
    value = tf.convert_to_tensor(value)
    if name == "index" or value.dtype in (tf.int64, tf.uint8):
        return tf.cast(value, tf.int32)
    return tf.cast(value, tf.float32) if value.dtype.is_floating else value


def _check_shapes(inputs: Inputs) -> None:
    x = inputs["x"]
    batch = x.shape[0]
    check_broadcast(x, **{name: inputs[name] for name in BUDGETS if name in inputs})
    for name, value in inputs.items():
        shape = tuple(value.shape)
        if name in _LABELS and shape != (batch,):
            raise ValueError(f"one target or label per example, ({batch},), is wanted; received shape {shape}")
        if name == "embedding" and (len(shape) != 2 or shape[0] != batch):
            raise ValueError(f"one target or label per example, ({batch}, features), is wanted; received shape {shape}")
        if name == "index" and shape != (batch,):
            raise ValueError(f"index must be of shape ({batch},); received shape {shape}")
        if shape and shape[0] not in (1, batch) and name != "seed":
            raise ValueError(f"{name} must have one row per example, {batch}, or one for all; received shape {shape}")


__all__ = [
    "BUDGETS",
    "Array",
    "Bound",
    "NamedAttack",
    "as_tensors",
    "call",
    "check",
    "check_classes",
    "check_not_negative",
    "named",
    "run",
    "run_counted",
]
