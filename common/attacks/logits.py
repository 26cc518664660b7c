"""From any Keras classifier to its logits, so that no attack differentiates through a saturated softmax."""

import weakref
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

Tensor = tf.Tensor
_SQUASHING = ("softmax", "sigmoid")
_classes: "weakref.WeakKeyDictionary[Any, int]" = weakref.WeakKeyDictionary()


def inference(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`model` as a function of x that uses and leaves batch-norm averages and draws no dropout."""
    return (lambda x: model(x, training=False)) if isinstance(model, keras.Layer) else model


def logits_of(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function x (B, ...) -> logits (B, classes) behind `model`, in inference mode.

    A Sequential or functional model that ends in softmax or sigmoid, in a layer of its own or as an activation, at any
    depth of nesting, is cut before it. A single output unit is a binary logit z and becomes [0, z]. Other callables are
    taken at their word here; `check_logits` looks at their numbers.

    Errors: `ValueError` for a sigmoid over several units (several labels at once) and for an activation that cannot
    be separated from its layer.
    """
    forward = _before_activation(model) if isinstance(model, keras.Model) else inference(model)

    def logits(x: Tensor) -> Tensor:
        z = tf.cast(forward(x), tf.float32)
        if z.shape.rank != 2:
            raise ValueError(f"a classifier must answer with (batch, classes); received shape {tuple(z.shape)}")
        return tf.concat([tf.zeros_like(z), z], axis=1) if z.shape[1] == 1 else z

    return logits


def check_logits(model: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """The number of classes, after a look at the outputs on `x`. Eager; looks once per model.

    Errors: `ValueError` with the remedy for a model that answers with probabilities.
    """
    if model not in _classes:
        z = logits_of(model)(x[:8])
        inside = tf.reduce_all((z > -1e-5) & (z < 1 + 1e-5))
        if bool(inside & tf.reduce_all(tf.abs(tf.reduce_sum(z, axis=1) - 1) < 1e-5)):
            raise ValueError(
                "the model answers with probabilities, and no softmax layer was found that could be cut off: attacks"
                " through a softmax meet vanishing gradients. Return logits, or pass a function of x that does"
            )
        _classes[model] = z.shape[1]
    return _classes[model]


def _before_activation(model: keras.Model) -> Callable[[Tensor], Tensor]:
    if not isinstance(model, keras.Sequential) and not hasattr(model, "operations"):
        return inference(model)
    last = _last_layer(model)
    kind = _squashing(last)
    if kind is None and not isinstance(last, keras.Model):
        return inference(model)
    if kind == "sigmoid" and model.output_shape[-1] != 1:
        raise ValueError(
            f"layer {last.name!r} puts a sigmoid over {model.output_shape[-1]} units: with several labels at once there"
            " is no one true class; give an objective of your own to common.attacks.search"
        )
    body = inference(keras.Model(model.input, last.input))
    if isinstance(last, keras.Model):
        inner = _before_activation(last)
        return lambda x: inner(body(x))
    if isinstance(last, keras.layers.Dense):
        return lambda x: _dense(last, body(x))
    if isinstance(last, keras.layers.Activation | keras.layers.Softmax):
        return body
    raise ValueError(
        f"layer {last.name!r} ({type(last).__name__}) ends in {kind} and cannot be cut before it;"
        " build the model with that activation in a layer of its own"
    )


def _last_layer(model: keras.Model) -> keras.layers.Layer:
    if isinstance(model, keras.Sequential):
        return model.layers[-1]
    if len(model.outputs) != 1:
        raise ValueError(f"the model has {len(model.outputs)} outputs; pass a function that picks the logits")
    return model.outputs[0]._keras_history.operation


def _squashing(layer: keras.layers.Layer) -> str | None:
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    name = getattr(getattr(layer, "activation", None), "__name__", None)
    return name if name in _SQUASHING else None


def _dense(layer: keras.layers.Dense, x: Tensor) -> Tensor:
    x = tf.matmul(tf.cast(x, layer.compute_dtype), tf.cast(layer.kernel, layer.compute_dtype))
    return x if layer.bias is None else x + tf.cast(layer.bias, x.dtype)
