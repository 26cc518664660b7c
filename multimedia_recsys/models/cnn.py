"""The network that looks at images: classes for the attack, features for the recommender."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from common.arrays import as_float
from common.attacks import inference, logits_of
from common.attacks.compile import compiled
from common.errors import UserError
from common.models import flat, places, split_at
from common.progress import blocks
from multimedia_recsys.data.catalog import Images
from multimedia_recsys.data.visual_features import Extracted

Tensor = tf.Tensor
# Images that are read and looked at together.
_BLOCK = 256


def feature_model(model: keras.Model) -> keras.Model:
    """`model` up to what its last dense layer reads: for common classifiers the pooled last layer, (B, D).

    Errors: `UserError` for a model without a dense layer that reads vectors.
    """
    return _halves(model)[0]


def features_at(model: keras.Model) -> Callable[[Tensor], Tensor]:
    """Images (B, H, W, C) in [0, 1] -> features (B, D), in inference mode."""
    forward = inference(feature_model(model))
    return lambda x: tf.cast(forward(x), tf.float32)


def extract(model: keras.Model, images: np.ndarray, *, batch_size: int = 64, progress: bool = False) -> Extracted:
    """Class, probability and features of `images` uint8 (N, H, W, C); `progress` is shown if it takes long."""
    signature = [tf.TensorSpec([None, *images.shape[1:]], tf.uint8)]
    answer = compiled(model, ("look", images.shape[1:]), _extract, signature)
    found = [answer(images[rows]) for rows in blocks(len(images), batch_size, "features", shown=progress)]
    return Extracted(*(np.concatenate([block[place].numpy() for block in found]) for place in range(3)))


def extract_all(model: keras.Model, images: Images) -> Extracted:
    """What `model` makes of all `images`, a block in memory at a time."""
    found = [
        extract(model, images.read(np.arange(rows.start, rows.stop)))
        for rows in blocks(len(images), _BLOCK, "features")
    ]
    return Extracted(*map(np.concatenate, zip(*found, strict=True)))


def _extract(model: keras.Model, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    features = features_at(model)(as_float(images))
    probabilities = tf.nn.softmax(logits_of(_halves(model)[1])(features))
    return tf.argmax(probabilities, axis=1, output_type=tf.int32), tf.reduce_max(probabilities, axis=1), features


def _halves(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """`model` up to the features, and from there on: one pass serves both answers."""
    model = flat(model)
    dense = [
        place
        for place in places(model)
        if isinstance(place.layer, keras.layers.Dense) and len(place.inputs[0].shape) == 2
    ]
    if not dense:
        raise UserError(f"{model.name}: no dense layer that reads a vector; give a classifier with pooled features")
    return split_at(model, dense[-1].inputs[0])
