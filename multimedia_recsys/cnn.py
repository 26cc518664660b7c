"""The network that looks at pictures: classes for the attack, features for the recommender."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from common.attacks import inference, logits_of
from common.attacks.calls import compiled
from common.errors import UserError, one_line
from common.training import as_float

_PACKAGE = "multimedia_recsys"
Tensor = tf.Tensor

_parts: "weakref.WeakKeyDictionary[Any, tuple[keras.Model, keras.Model]]" = weakref.WeakKeyDictionary()


class Seen(NamedTuple):
    """What a network makes of pictures: `label` int32 (N,), its probability `prob` float32 (N,), `features` (N, D)."""

    label: np.ndarray
    prob: np.ndarray
    features: np.ndarray


@keras.saving.register_keras_serializable(_PACKAGE)
class CaffePreprocessing(keras.layers.Layer):
    """Pictures (B, H, W, 3), RGB in [0, 1], as the ImageNet weights of ResNet50 want them: BGR in 0..255, less the mean
    of ImageNet."""

    def call(self, images):
        return keras.ops.flip(images * 255.0, axis=-1) - keras.ops.convert_to_tensor((103.939, 116.779, 123.68))

    def compute_output_shape(self, shape):
        return shape


def resnet50(weights: Path | str | None = "imagenet", *, size: int = 224) -> keras.Model:
    """Keras's ResNet50 with its preprocessing inside: pictures (B, size, size, 3) in [0, 1] -> 1000 logits.

    `weights`: "imagenet", which Keras downloads once, or a file of weights, or None.

    Errors: `UserError` when weights cannot be had.
    """
    images = keras.Input((size, size, 3), name="images")
    try:
        network = keras.applications.ResNet50(
            weights=weights, input_tensor=CaffePreprocessing(name="preprocessing")(images), classifier_activation=None
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"ResNet50: weights {weights} cannot be had ({one_line(error)}); download them where there is a network, or"
            " name a .keras file by --model"
        ) from error
    return keras.Model(images, network.output, name="resnet50")


def imagenet_names() -> tuple[str, ...]:
    """The 1000 classes of ImageNet; their numbers where Keras cannot get its list of names."""
    try:
        decoded = keras.applications.resnet50.decode_predictions(np.eye(1000, dtype=np.float32), top=1)
    except (OSError, ValueError):
        return tuple(map(str, range(1000)))
    return tuple(name for ((_, name, _),) in decoded)


def feature_model(model: keras.Model) -> keras.Model:
    """`model` up to what its last dense layer reads: for common classifiers the pooled last layer, (B, D).

    Errors: `UserError` for a model without a dense layer that reads vectors.
    """
    return _halves(model)[0]


def features_at(model: keras.Model) -> Callable[[Tensor], Tensor]:
    """Pictures (B, H, W, C) in [0, 1] -> features (B, D), in inference mode."""
    forward = inference(feature_model(model))
    return lambda x: tf.cast(forward(x), tf.float32)


def look(model: keras.Model, pictures: np.ndarray, *, batch_size: int = 64) -> Seen:
    """Class, probability and features of `pictures` uint8 (N, H, W, C)."""
    signature = [tf.TensorSpec([None, *pictures.shape[1:]], tf.uint8)]
    answer = compiled(model, ("look", pictures.shape[1:]), _look, signature)
    blocks = [answer(pictures[first : first + batch_size]) for first in range(0, len(pictures), batch_size)]
    return Seen(*(np.concatenate([block[place].numpy() for block in blocks]) for place in range(3)))


def _look(model: keras.Model, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    features = features_at(model)(as_float(images))
    probabilities = tf.nn.softmax(logits_of(_halves(model)[1])(features))
    return tf.argmax(probabilities, axis=1, output_type=tf.int32), tf.reduce_max(probabilities, axis=1), features


def _halves(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """`model` up to the features, and from there on: one pass serves both answers."""
    if model not in _parts:
        dense = [
            layer for layer in model.layers if isinstance(layer, keras.layers.Dense) and len(layer.input.shape) == 2
        ]
        if not dense:
            raise UserError(f"{model.name}: no dense layer that reads a vector; give a classifier with pooled features")
        features = dense[-1].input
        _parts[model] = keras.Model(model.inputs[0], features), keras.Model(features, model.outputs[0])
    return _parts[model]
