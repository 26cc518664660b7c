"""From any Keras classifier to its logits, so that no attack differentiates through a saturated softmax."""

import weakref
from collections.abc import Callable
from functools import reduce
from typing import Any

import keras
import tensorflow as tf

Tensor = tf.Tensor
Function = Callable[[Tensor], Tensor]

_SQUASHING = ("softmax", "sigmoid")
# The logits' own answer may differ from the model's by the rounding of half precision.
_ROUNDING = 1e-2
_classes: "weakref.WeakKeyDictionary[Any, int]" = weakref.WeakKeyDictionary()


def inference(model: Function) -> Function:
    """`model` as a function of x that uses and leaves batch-norm averages and draws no dropout."""
    return (lambda x: model(x, training=False)) if isinstance(model, keras.Layer) else model


def logits_of(model: Function) -> Function:
    """The function x (B, ...) -> logits (B, classes) behind `model`, in inference mode.

    A Sequential or functional model that ends in softmax or sigmoid, in a layer of its own or as an activation, at any
    depth of nesting, is cut before it. A single output unit is a binary logit z and becomes [0, z]. Other callables are
    taken at their word here; `check_logits` looks at their numbers.

    Errors: `ValueError` for a sigmoid over several units (several labels at once) and for an activation that cannot
    be separated from its layer.
    """
    forward, kind = _cut(model)

    def logits(x: Tensor) -> Tensor:
        z = tf.cast(forward(x), tf.float32)
        if z.shape.rank != 2:
            raise ValueError(f"a classifier must answer with (batch, classes); received shape {tuple(z.shape)}")
        if z.shape[1] == 1:
            return tf.concat([tf.zeros_like(z), z], axis=1)
        if kind == "sigmoid":
            raise ValueError(
                f"the model puts a sigmoid over {z.shape[1]} units: with several labels at once there is no one true"
                " class; give an objective of your own to common.attacks.search"
            )
        return z

    return logits


def check_logits(model: Function, x: Tensor) -> int:
    """The number of classes, after a look at the answers to the first rows of `x`. Eager; looks once per model.

    Errors: `ValueError` with the remedy for a model that answers with probabilities.
    """
    if model in _classes:
        return _classes[model]
    # The model goes first: one that was never called has no weights before.
    answer = tf.cast(inference(model)(x[:8]), tf.float32)
    z = logits_of(model)(x[:8])
    if x.shape[0]:
        _check_answer(model, answer, z)
        _classes[model] = z.shape[1]
    return z.shape[1]


def _check_answer(model: Function, answer: Tensor, z: Tensor) -> None:
    cut = _cut(model)[1] is not None
    expected = tf.nn.softmax(z) if cut else z
    gap = tf.abs(answer - (expected[:, 1:] if answer.shape[1] == 1 else expected))
    if cut and not bool(tf.reduce_all(gap <= _ROUNDING)):
        raise ValueError(
            "the model's answers do not follow from what stands in front of its last activation: it does more than its"
            " layers show. Pass a function of x that returns logits"
        )
    inside = bool(tf.reduce_all((answer > -1e-5) & (answer < 1 + 1e-5)))
    certain = bool(tf.reduce_all(tf.abs(tf.reduce_sum(answer, axis=1) - 1) < 1e-5))
    # One unit that stays between 0 and 1 may yet be a logit, and is known to be one only behind a plain layer.
    likely = (
        answer.shape[1] == 1 and bool(tf.reduce_any(answer != 0)) and not isinstance(_last(model), keras.layers.Dense)
    )
    if not cut and inside and (certain or likely):
        raise ValueError(
            "the model answers with probabilities, and no softmax or sigmoid layer was found that could be cut off:"
            " attacks through one meet vanishing gradients. Return logits (batch, classes), or pass a function of x"
            " that does"
        )


def _cut(model: Function) -> tuple[Function, str | None]:
    """`model` up to its final softmax or sigmoid, and which of the two that is, if any."""
    last = _last(model)
    if isinstance(last, keras.Model):
        inner, kind = _cut(last)
        if kind is None:
            return inference(model), None
        before = _before_last(model)
        return lambda x: inner(before(x)), kind
    kind = _squashing(last)
    if kind is None:
        return inference(model), None
    before = _before_last(model)
    if isinstance(last, keras.layers.Dense):
        return lambda x: _dense(last, before(x)), kind
    if isinstance(last, keras.layers.Activation | keras.layers.Softmax):
        return before, kind
    raise ValueError(
        f"layer {last.name!r} ({type(last).__name__}) ends in {kind} and cannot be cut before it;"
        " build the model with that activation in a layer of its own"
    )


def _last(model: Function) -> Any:
    """The last layer or operation of a Sequential or functional model; `None` for all that hide theirs."""
    if isinstance(model, keras.Sequential):
        return model.layers[-1]
    if not (isinstance(model, keras.Model) and hasattr(model, "operations")):
        return None
    if len(model.outputs) != 1:
        raise ValueError(f"the model has {len(model.outputs)} outputs; pass a function that picks the logits")
    return model.outputs[0]._keras_history.operation


def _before_last(model: keras.Model) -> Function:
    if isinstance(model, keras.Sequential):
        return lambda x: reduce(lambda x, layer: inference(layer)(x), model.layers[:-1], x)
    # A layer may stand in several places, so it is the output's own node that tells what goes into it here.
    operation, node, _ = model.outputs[0]._keras_history
    return inference(keras.Model(model.input, operation._inbound_nodes[node].input_tensors[0]))


def _squashing(layer: Any) -> str | None:
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    name = getattr(getattr(layer, "activation", None), "__name__", None)
    return name if name in _SQUASHING else None


def _dense(layer: keras.layers.Dense, x: Tensor) -> Tensor:
    x = tf.matmul(tf.cast(x, layer.compute_dtype), tf.cast(layer.kernel, layer.compute_dtype))
    return x if layer.bias is None else x + tf.cast(layer.bias, x.dtype)
