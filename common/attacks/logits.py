"""From any Keras classifier to its logits, so that no attack differentiates through a saturated softmax."""

from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from common.arrays import require
from common.errors import UserError
from common.per_model import PerModel, layers_of

Tensor = tf.Tensor
Function = Callable[[Tensor], Tensor]

_SQUASHING = ("softmax", "sigmoid")
# The logits' own answer may differ from the model's by the rounding of half precision.
_ROUNDING = 1e-2
# By how much probabilities may miss their sum of 1, by what they were computed in: twice to three times what a softmax
# over 2 to 1000 classes was seen to miss.
_GAPS = {"bfloat16": 2.0**-5, "float16": 2.0**-8, "float32": 1e-5}
_PROBABILITIES = (
    "the model answers with probabilities, and no softmax or sigmoid layer was found that could be cut off: attacks"
    " through one meet vanishing gradients. Return logits (batch, classes), or pass a function of x that does"
)
_SEVERAL = (
    "the model puts a sigmoid over {} units: with several labels at once there is no one true class; give an objective"
    " of your own to common.attacks.search"
)


def inference(model: Function) -> Function:
    """`model` as a function of x that uses and leaves batch-norm averages and draws no dropout."""
    return (lambda x: model(x, training=False)) if isinstance(model, keras.Layer) else model


def logits_of(model: Function) -> Function:
    """The function x (B, ...) -> logits (B, classes) behind `model`, in inference mode.

    A Sequential or functional model that ends in softmax or sigmoid, in a layer of its own or as an activation, at any
    depth of nesting, is cut before it. A single output unit is a binary logit z and becomes [0, z]. Other callables are
    taken at their word here; `check_logits` looks at their numbers.

    Errors: `ValueError` for a sigmoid over several units (several labels at once) and for an
    activation that cannot be separated from its layer.
    """
    forward, kind = _cut(model)
    return lambda x: _two_or_more(forward(x), kind)


def training_logits(model: Function) -> Function:
    """The function x (B, ...) -> logits (B, classes) that `model` answers with in training mode; a single output unit z
    becomes [0, z].

    Errors: `UserError` for a model that ends in softmax or sigmoid, for one of a single unit that hides its layers and
    for one that answers with anything but a vector; for a batch of probabilities what `common.arrays.require` raises.
    """
    kind = _ending(model) if _plain_call(model) else None
    if kind is not None:
        raise UserError(
            f"the model ends in {kind}, and the loss would apply a second one: leave the last activation out;"
            " predictions and attacks need none"
        )
    plain, kinds = _is_plain(_last(model)), compute_dtypes(model)

    def logits(x: Tensor) -> Tensor:
        z = model(x, training=True) if isinstance(model, keras.Layer) else model(x)
        if not tf.is_tensor(z):
            raise UserError("the model has several outputs; pass a function that picks the logits")
        if not plain and z.shape.rank == 2:
            if z.shape[1] == 1:
                raise UserError(
                    "the model has a single output unit, which may be a logit or a probability: end it with a plain"
                    " Dense layer, or with two logits"
                )
            require(~probabilities(z, kinds), _PROBABILITIES)
        return _two_or_more(z, error=UserError)

    return logits


def _two_or_more(z: Tensor, kind: str | None = None, error: type[ValueError] = ValueError) -> Tensor:
    """Logits `z` (B, units), cut before an activation of `kind` if any, as those of exclusive classes."""
    if isinstance(z, dict):
        raise error("the model answers with a dictionary; pass a function that picks the logits")
    z = tf.cast(z, tf.float32)
    if z.shape.rank != 2:
        raise error(f"a classifier must answer with (batch, classes); received shape {tuple(z.shape)}")
    if z.shape[1] == 1:
        return tf.concat([tf.zeros_like(z), z], axis=1)
    if kind == "sigmoid":
        raise error(_SEVERAL.format(z.shape[1]))
    return z


class _Looked(NamedTuple):
    """What the first answers of a model tell: the number of classes, why not to attack it, and whether the order of
    its answers is that of its logits for all that."""

    classes: int
    refusal: str | None
    in_order: bool


_looked = PerModel()


def check_logits(model: Function, x: Tensor, *, order_only: bool = False) -> int:
    """The number of classes, after a look at the answers to the first rows of `x`. Eager; looks once at a model that
    stays what it is. With `order_only` nothing but the order of the classes is to be used.

    Errors: `ValueError` with the remedy for a model that answers with probabilities; with
    `order_only` for one that answers with a single one.
    """
    if not x.shape[0]:
        inference(model)(x)
        return logits_of(model)(x).shape[1]
    looked = _looked.get(model, "answers", lambda: _look(model, x[:8]))
    if looked.refusal and not (order_only and looked.in_order):
        raise ValueError(looked.refusal)
    return looked.classes


def probabilities(answer: Tensor, kinds: tuple[str, ...] = ("float32",)) -> Tensor:
    """Whether all rows of `answer` (B, units) are probabilities of exclusive classes, as far as numbers tell: a bool.
    `kinds`: the dtypes that the model computes in."""
    answer = tf.cast(answer, tf.float32)
    gap = tf.constant(max(_GAPS.get(kind, _GAPS["float32"]) for kind in kinds))
    for kind in ("float16", "bfloat16"):
        # Numbers with the digits of half precision come from there, whatever they were cast to.
        short = tf.reduce_all(answer == tf.cast(tf.cast(answer, kind), tf.float32))
        gap = tf.where(short, tf.maximum(gap, _GAPS[kind]), gap)
    inside = tf.reduce_all((answer > -gap) & (answer < 1 + gap))
    return inside & tf.reduce_all(tf.abs(tf.reduce_sum(answer, axis=1) - 1) < gap)


def compute_dtypes(model: Function) -> tuple[str, ...]:
    """What the layers of `model` compute in."""
    return tuple({"float32", *(layer.compute_dtype for layer in layers_of(model))})


def _look(model: Function, x: Tensor) -> _Looked:
    # The model goes first: one that was never called has no weights before.
    answer = inference(model)(x)
    # Refuses what is no tensor.
    z = logits_of(model)(x)
    answer = tf.cast(answer, tf.float32)
    return _Looked(z.shape[1], _refusal(model, answer, z), answer.shape[1] > 1 and _cut(model)[1] is None)


def _refusal(model: Function, answer: Tensor, z: Tensor) -> str | None:
    cut, kinds = _cut(model)[1] is not None, compute_dtypes(model)
    if cut:
        expected = tf.nn.softmax(z)
        gap = tf.abs(answer - (expected[:, 1:] if answer.shape[1] == 1 else expected))
        # One digit more or less of a logit is a change of so much.
        digit = max(_GAPS.get(kind, 0.0) for kind in kinds) * tf.reduce_max(tf.abs(z))
        if bool(tf.reduce_any(gap > _ROUNDING + tf.minimum(digit, 0.5))):
            return (
                "the model's outputs do not follow from the inputs of its last activation: it does more than"
                " its layers show. Pass a function of x that returns logits"
            )
        return None
    if (kind := _ending(model)) is not None:
        return _SEVERAL.format(answer.shape[1]) if kind == "sigmoid" and answer.shape[1] > 1 else _PROBABILITIES
    if answer.shape[1] == 1:
        # One unit that stays between 0 and 1 may yet be a logit, and is known to be one only behind a plain layer.
        inside = bool(tf.reduce_all((answer >= 0) & (answer <= 1))) and bool(tf.reduce_any(answer != 0))
        refused = inside and not _is_plain(_last(model))
    else:
        refused = bool(probabilities(answer, kinds))
    if refused:
        return _PROBABILITIES
    return None


def _cut(model: Function) -> tuple[Function, str | None]:
    """`model` up to its final softmax or sigmoid, and which of the two that is, if any."""
    last = _last(model)
    if len(getattr(model, "outputs", None) or [None]) != 1:
        raise ValueError(f"the model has {len(model.outputs)} outputs; pass a function that picks the logits")
    if isinstance(last, keras.Model):
        inner, kind = _cut(last)
        if kind is None:
            return inference(model), None
        before = _before_last(model)
        return lambda x: inner(before(x)), kind
    kind = _squashing(last) if isinstance(last, keras.Layer) else None
    if kind is None:
        return inference(model), None
    before = _before_last(model)
    if isinstance(last, keras.layers.Dense):
        return lambda x: _dense(last, before(x)), kind
    if isinstance(last, keras.layers.Activation | keras.layers.Softmax):
        return before, kind
    raise ValueError(
        f"layer {last.name!r} ({type(last).__name__}) ends in {kind} and cannot be cut before it;"
        " build the model with that activation as a separate layer"
    )


def _last(model: Function) -> Any:
    """The last layer or operation of a Sequential or functional model; `None` for all that hide theirs."""
    return next(_backwards(model), None)


def _backwards(model: Function) -> Iterator[Any]:
    """The layers or operations that `model` ends with, the last one first, as far as each has one input."""
    if isinstance(model, keras.Sequential):
        yield from reversed(model.layers)
        return
    if not (isinstance(model, keras.Model) and hasattr(model, "operations")):
        return
    if len(model.outputs) != 1:
        return
    tensor = model.outputs[0]
    while True:
        operation, node, _ = tensor._keras_history
        yield operation
        inputs = operation._inbound_nodes[node].input_tensors
        if len(inputs) != 1:
            return
        tensor = inputs[0]


def _before_last(model: keras.Model) -> Function:
    if isinstance(model, keras.Sequential):
        return lambda x: reduce(lambda x, layer: inference(layer)(x), model.layers[:-1], x)
    # A layer may be used several times; the output's own node tells its inputs here.
    operation, node, _ = model.outputs[0]._keras_history
    return inference(keras.Model(model.input, operation._inbound_nodes[node].input_tensors[0]))


def _ending(model: Function) -> str | None:
    """Softmax or sigmoid, if `model` ends in one and in nothing else but what hands it on."""
    for operation in _backwards(model):
        if isinstance(operation, keras.Model):
            return _ending(operation)
        if not _hands_on(operation):
            return _squashing(operation)
    return None


def _plain_call(model: Function) -> bool:
    """Whether calling `model` is Keras's own way through its layers."""
    return isinstance(model, keras.Model) and type(model).call.__module__.partition(".")[0] == "keras"


def _is_plain(layer: Any) -> bool:
    """Whether it is a dense layer without an activation, which may be of any name, such as `tf.nn.softmax`."""
    return isinstance(layer, keras.layers.Dense) and layer.activation is keras.activations.linear


def _hands_on(operation: Any) -> bool:
    """Whether it passes on what it is given, in another dtype or shape perhaps."""
    if not isinstance(operation, keras.Layer):
        return type(operation).__name__ == "Cast"
    if isinstance(operation, keras.layers.Activation):
        return getattr(operation.activation, "__name__", None) == "linear"
    return isinstance(operation, keras.layers.Identity | keras.layers.Dropout | keras.layers.Reshape)


def _squashing(layer: Any) -> str | None:
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    if isinstance(layer, keras.Operation) and not isinstance(layer, keras.Layer):
        name = type(layer).__name__.lower()
    else:
        name = getattr(getattr(layer, "activation", None), "__name__", None)
    return name if name in _SQUASHING else None


def _dense(layer: keras.layers.Dense, x: Tensor) -> Tensor:
    x = tf.matmul(tf.cast(x, layer.compute_dtype), tf.cast(layer.kernel, layer.compute_dtype))
    return x if layer.bias is None else x + tf.cast(layer.bias, x.dtype)
