"""Where a classifier looks: Grad-CAM (Selvaraju et al. 2017), of each image by itself, and itself differentiable.

    attention = Attention(model)
    logits, cam = attention(x, y)
    where = resized(spread(cam), x.shape[1:3])

A map `cam` (B, h, w) has no unit; `softmax_map`, `area` and `shown` are three readings of it.
"""

import contextlib
from typing import NamedTuple

import keras
import tensorflow as tf

from common.attacks import logits_of
from common.attacks.tensors import finite
from common.errors import UserError
from common.models import flat, places, split_at

Tensor = tf.Tensor

# A map of fewer cells a side says little about where; the paper's have 8.
_CELLS = 7


class Seen(NamedTuple):
    """`logits` (B, classes) and the map `cam` (B, h, w) of the layer's evidence for one class."""

    logits: Tensor
    cam: Tensor


class Attention:
    """Grad-CAM of one layer of a convolutional classifier.

    `layer`: its name; by default the last that nothing passes by, of those with a map of at least 7 x 7 cells or, where
    there is none, of all.

    Errors: `UserError` for a model without such a layer, or where something passes the chosen one by.
    """

    def __init__(self, model: keras.Model, layer: str | None = None) -> None:
        self.layer, self.trunk, head = _cut(model, layer)
        self._logits = logits_of(head)

    def __call__(self, x: Tensor, y: Tensor | None = None) -> Seen:
        """Answers and maps for images `x` (B, H, W, C) and classes `y` (B,), by default the ones answered.

        Always in inference mode, in a training step too: each image's map is its own. (The original divides gradients
        by the root mean square of the whole batch; batch statistics would mix images as well.)
        """
        activation = tf.cast(self.trunk(x, training=False), tf.float32)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(activation)
            logits = self._logits(activation)
            of_class = tf.argmax(logits, axis=1, output_type=tf.int32) if y is None else y
            # The answer to one image depends on its own activation, so one sum serves all.
            evidence = tf.reduce_sum(tf.gather(logits, of_class, axis=1, batch_dims=1))
        slope = finite(tape.gradient(evidence, activation))
        size = tf.sqrt(tf.reduce_mean(tf.square(slope), axis=(1, 2, 3), keepdims=True) + 1e-20)
        weight = tf.reduce_mean(slope / size, axis=(1, 2), keepdims=True)
        return Seen(logits, tf.reduce_sum(weight * activation, axis=-1))


def softmax_map(cam: Tensor) -> Tensor:
    """Attention (B, h, w), positive, mean 1 over the cells: the softmax of the map at mean 0 and deviation 1.

    Without the latter it would be flat or a single cell, as the scale of the logits would have it.
    """
    centred = cam - tf.reduce_mean(cam, axis=(1, 2), keepdims=True)
    stddev = tf.sqrt(tf.reduce_mean(tf.square(centred), axis=(1, 2), keepdims=True) + 1e-8)
    cells = tf.cast(tf.reduce_prod(tf.shape(cam)[1:]), cam.dtype)
    flat = tf.reshape(centred / stddev, [tf.shape(cam)[0], -1])
    return tf.reshape(cells * tf.nn.softmax(flat), tf.shape(cam))


def above_mean(cam: Tensor) -> Tensor:
    """The cells above the mean of their map, bool (B, h, w)."""
    return cam > tf.reduce_mean(cam, axis=(1, 2), keepdims=True)


def relu_max_map(cam: Tensor) -> Tensor:
    """The map as it is drawn: what speaks for the class, the highest at 1, (B, h, w) in [0, 1]."""
    positive = tf.nn.relu(cam)
    return tf.math.divide_no_nan(positive, tf.reduce_max(positive, axis=(1, 2), keepdims=True))


def resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, h, w) over images of `size` (H, W), bilinear: (B, H, W)."""
    return tf.image.resize(values[..., None], size)[..., 0]


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """IoU of the areas `a` and `b`, bool (B, h, w): intersection over union, 1 where both are empty; (B,)."""
    axes = list(range(1, a.shape.rank))
    both = tf.reduce_sum(tf.cast(a & b, tf.float32), axis=axes)
    either = tf.reduce_sum(tf.cast(a | b, tf.float32), axis=axes)
    return tf.where(either > 0, both / tf.maximum(either, 1.0), 1.0)


def _cut(model: keras.Model, name: str | None) -> tuple[str, keras.Model, keras.Model]:
    """Name of the layer to look at, the model up to its map, and from there on."""
    # Subclassed models do not know what goes from layer to layer; nested ones are taken apart.
    model = flat(model)
    spatial = {
        place.layer.name: place.output
        for place in places(model)
        if len(place.output.shape) == 4 and None not in place.output.shape[1:3]
    }
    if not spatial:
        raise UserError(
            f"{model.name}: no layer with a map of fixed size; expected a Sequential or functional convolutional"
            " model for images of one size"
        )
    if name is None:
        large = [each for each, tensor in spatial.items() if min(tensor.shape[1:3]) >= _CELLS]
        for each in reversed(large or list(spatial)):
            # Inside a block with a shortcut there is no place to cut.
            with contextlib.suppress(UserError):
                return each, *split_at(model, spatial[each])
        raise UserError(f"{model.name}: a path bypasses every layer with a map; expected a simpler model")
    if name not in spatial:
        raise UserError(f"--layer: {name}: no such layer with a map; there are {', '.join(list(spatial)[-8:])}")
    return name, *split_at(model, spatial[name])
