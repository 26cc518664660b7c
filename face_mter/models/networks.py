"""Networks that map an image to an embedding (layer `embedding`) and, on top of it, to class logits.

Each takes images float32 (batch, height, width, channels) in [0, 1] and answers logits float32 (batch, classes). Two
images are compared by the cosine of their embeddings; the logits serve the training, and the attack on labels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from common.errors import UserError, one_line
from common.models import Assembly, flat, places, preactivation_block
from common.per_model import PerModel

EMBEDDING = "embedding"
LossType = Literal["softmax", "arcface"]
_PACKAGE = "face_mter"
# What this suite, and Keras's own networks, call the layer that tells classes apart.
_HEADS = ("logits", "predictions")

_parts = PerModel()


@keras.saving.register_keras_serializable(_PACKAGE)
class CosineLogits(keras.layers.Layer):
    """`scale` times the cosine of an embedding (B, D) to the direction of each class: float32 (B, classes)."""

    def __init__(self, classes: int, scale: float, seed: int, **arguments: Any) -> None:
        # Cosines near 1 and a scale of 64 leave half precision nothing to tell classes apart.
        super().__init__(**{"dtype": "float32", **arguments})
        self.classes, self.scale, self.seed = classes, float(scale), seed

    def build(self, shape) -> None:
        initializer = keras.initializers.RandomNormal(stddev=0.01, seed=self.seed)
        self.directions = self.add_weight((shape[-1], self.classes), initializer=initializer, name="directions")

    def call(self, embedding):
        return self.scale * ops.matmul(unit(embedding), unit(self.directions, axis=0))

    def compute_output_shape(self, shape):
        return (shape[0], self.classes)

    def get_config(self):
        return {**super().get_config(), "classes": self.classes, "scale": self.scale, "seed": self.seed}


def unit(vectors, axis: int = -1):
    """`vectors` of length 1 along `axis`; zero stays zero, and has a slope."""
    return vectors / ops.sqrt(ops.sum(ops.square(vectors), axis=axis, keepdims=True) + 1e-12)


def arcface_logits(logits, y, *, scale: float, margin: float):
    """ArcFace's logits in training (Deng et al. 2019, equation 3) from those of `CosineLogits`: (B, classes).

    The angle theta of the true class `y` (B,) grows by `margin`: scale * cos(theta + margin), or, where that would
    rise again with theta (theta > pi - margin), scale * (cos(theta) - margin * sin(pi - margin)).
    """
    cosine = logits / scale
    # Beyond the bound the slope of the root is infinite.
    sine = ops.sqrt(ops.maximum(1.0 - ops.square(cosine), 1e-7))
    turned = cosine * np.cos(margin) - sine * np.sin(margin)
    own = ops.where(cosine > np.cos(np.pi - margin), turned, cosine - margin * np.sin(np.pi - margin))
    true = ops.cast(ops.one_hot(y, logits.shape[-1]), "bool")
    return scale * ops.where(true, own, cosine)


def embedder(model: keras.Model) -> keras.Model:
    """The part of `model` up to its embedding: its layer `embedding`, or else what its head reads, the last dense layer
    of a model that ends in softmax or sigmoid, in `CosineLogits`, or in a layer called `logits` or `predictions`. A
    model that ends otherwise answers with embeddings itself.

    Errors: `UserError` when what it answers with is no vector an image.
    """

    def cut() -> keras.Model | None:
        tensor, images = _embedding(model)
        return None if tensor is None else keras.Model(images, tensor)

    # Always the same part: what was compiled for it stays good.
    part = _parts.get(model, EMBEDDING, cut)
    part = model if part is None else part
    if len(part.output_shape) != 2:
        raise UserError(f"a model whose output is {part.output_shape[1:]}; expected one vector an image")
    return part


def embedder_at(model: keras.Model, layer: str) -> keras.Model:
    """The part of `model` up to the answer of its layer called `layer`, a vector.

    Errors: `UserError` where there is no such layer.
    """
    for whole in (model, flat(model)):
        vectors = {place.layer.name: place.output for place in places(whole) if len(place.output.shape) == 2}
        if layer in vectors:
            return keras.Model(whole.inputs[0], vectors[layer], name=model.name)
    raise UserError(f"--embedding: {layer}: no such layer with a vector as output; there are {', '.join(vectors)}")


def with_head(
    model: keras.Model, classes: int, *, loss_type: LossType = "arcface", scale: float = 30.0, seed: int = 0
) -> keras.Model:
    """The embedding of `model` with a new head for `classes`, as `build` has it; all layers are trained.

    Errors: `UserError` as `embedder`.
    """
    part = embedder(model)
    embedding = part.outputs[0]
    if embedding._keras_history.operation.name != EMBEDDING:
        embedding = keras.layers.Identity(name=EMBEDDING, dtype="float32")(embedding)
    if loss_type == "arcface":
        head: keras.Layer = CosineLogits(classes, scale, seed, name="logits")
    else:
        initializer = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform", seed=seed)
        head = keras.layers.Dense(classes, kernel_initializer=initializer, name="logits", dtype="float32")
    try:
        whole = keras.Model(part.inputs[0], head(embedding), name=model.name)
    except ValueError as error:
        raise UserError(f"a model that takes no new head ({one_line(error, 200)})") from error
    for layer in _all_layers(whole):
        layer.trainable = True
    return whole


def frozen_layers(model: keras.Model) -> int:
    """Layers of `model` with weights that are not to be trained, those in nested models too."""
    return sum(1 for layer in _all_layers(model) if layer.weights and not layer.trainable and not _inner(layer))


def _all_layers(model: keras.Model) -> Iterator[keras.Layer]:
    for layer in model.layers:
        yield layer
        yield from _all_layers(layer) if _inner(layer) else ()


def _inner(layer: keras.Layer) -> bool:
    return bool(getattr(layer, "layers", ()))


def head_of(model: keras.Model) -> keras.Layer | None:
    """The layer on top of the embedding that answers with logits, by which training can continue; None where `model`
    has another one, or none."""
    last = [place.layer for place in places(model) if place.output is model.outputs[0]]
    if not last or embedder(model) is model:
        return None
    plain = isinstance(last[0], keras.layers.Dense) and last[0].activation is keras.activations.linear
    return last[0] if plain or isinstance(last[0], CosineLogits) else None


def _embedding(model: keras.Model) -> tuple[keras.KerasTensor | None, keras.KerasTensor | None]:
    """The embedding of `model` and the images that lead to it; None for a model that answers with it."""
    wholes = [(whole, places(whole)) for whole in (model, flat(model))]
    for whole, found in wholes:
        for place in found:
            if place.layer.name == EMBEDDING and place.output is not whole.outputs[0]:
                return place.output, whole.inputs[0]
    whole, found = wholes[-1]
    answers = {id(place.output): place for place in found}
    last = answers.get(id(whole.outputs[0]))
    if last is None or last.layer.name == EMBEDDING:
        return None, None
    head = last
    if _squashes(last.layer) and not isinstance(last.layer, keras.layers.Dense):
        head = answers.get(id(last.inputs[0]))
        if head is None or not isinstance(head.layer, keras.layers.Dense):
            raise UserError("a classifier without a dense layer before its last activation; name its --embedding")
    # Elsewhere a dense layer without an activation may well be the embedding.
    plain = head is last and not _squashes(last.layer) and last.layer.name not in _HEADS
    if not isinstance(head.layer, CosineLogits) and (plain or not isinstance(head.layer, keras.layers.Dense)):
        return None, None
    for whole, found in wholes:
        for place in found:
            # In the model itself, if it is not within a nested one: that remembers how those were called.
            if place.layer is head.layer:
                return place.inputs[0], whole.inputs[0]
    return None, None


def _squashes(layer: Any) -> bool:
    if isinstance(layer, keras.layers.Softmax):
        return True
    return getattr(getattr(layer, "activation", None), "__name__", None) in ("softmax", "sigmoid")


def build(
    name: str,
    input_shape: Sequence[int],
    classes: int,
    *,
    emb_size: int,
    loss_type: LossType,
    scale: float,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
) -> keras.Model:
    """The network called `name` with a head for `classes`: dense logits (softmax) or scaled cosines (arcface).

    Errors: `UserError` for an unknown name, and for a shape that the network cannot take.
    """
    check_name(name)
    smallest = {"small": 8, "o18": 8, "r50": 16}[name]
    net = Assembly(name, input_shape, classes, mean=mean, std=std, seed=seed, smallest=smallest)
    embedding = NETWORKS[name](net, emb_size)
    if loss_type == "arcface":
        logits = CosineLogits(classes, scale, net.seed(), name="logits")(embedding)
    else:
        logits = net.dense(embedding, classes, name="logits", dtype="float32")
    return keras.Model(net.images, logits, name=name)


def check_name(name: str) -> None:
    """Errors: `UserError` for a network that there is not."""
    if name not in NETWORKS:
        raise UserError(f"--network: {name!r} is unknown; choose one of {', '.join(NETWORKS)}")


def small(net: Assembly, emb_size: int) -> Any:
    """The demos' network: a 3x3 convolution and a pool until at most 6 pixels a side are left, two more convolutions
    on the way from 16 pixels on, and output block E. 16 channels at first, twice as many after each pool."""
    x, filters, level = net.start, 16, 0
    while x.shape[1] > 6 or not level:
        level += 1
        x = prelu(net, net.convolution(x, filters, 3, name=f"conv{level}_1"), name=f"conv{level}_1")
        if x.shape[1] <= 16:
            x = prelu(net, net.convolution(x, filters, 3, name=f"conv{level}_2"), name=f"conv{level}_2")
        x = keras.layers.MaxPooling2D(name=f"pool{level}")(x)
        filters = min(2 * filters, 128)
    return output_e(net, x, emb_size)


def o18(net: Assembly, emb_size: int) -> Any:
    """The paper's network for MNIST: a pre-activation ResNet of four stages of two blocks (He et al. 2016, "Identity
    Mappings", figure 4e) with 64 to 512 channels, averaged; a dense layer only if the embedding is not of 512."""
    x = net.convolution(net.normalise(net.start, name="input_bn"), 64, 3, name="stem_conv")
    for stage, filters in enumerate((64, 128, 256, 512), start=1):
        for block in (1, 2):
            strides = 2 if stage > 1 and block == 1 else 1
            x = preactivation_block(net, x, filters, strides, name=f"stage{stage}_block{block}")
    x = net.bn_relu(x, name="final")
    if emb_size == x.shape[-1]:
        return keras.layers.GlobalAveragePooling2D(name=EMBEDDING)(x)
    return net.dense(keras.layers.GlobalAveragePooling2D(name="features")(x), emb_size, name=EMBEDDING)


def r50(net: Assembly, emb_size: int) -> Any:
    """The paper's network for faces: InsightFace's ResNet-50 of 3, 4, 14 and 3 units without bottleneck, output E."""
    x = prelu(net, net.convolution(net.start, 64, 3, name="stem_conv"), name="stem")
    for stage, (filters, count) in enumerate(zip((64, 128, 256, 512), (3, 4, 14, 3), strict=True), start=1):
        for place in range(1, count + 1):
            x = _unit3(net, x, filters, 2 if place == 1 else 1, name=f"stage{stage}_unit{place}")
    return output_e(net, x, emb_size)


def _unit3(net: Assembly, x: Any, filters: int, strides: int, *, name: str) -> Any:
    """BN, conv3, BN, PReLU, conv3 (strides), BN, plus the shortcut: 1x1 and BN where the shape changes."""
    y = net.convolution(net.normalise(x, name=f"{name}_1_bn"), filters, 3, name=f"{name}_conv1")
    y = net.convolution(prelu(net, y, name=f"{name}_2"), filters, 3, strides=strides, name=f"{name}_conv2")
    y = net.normalise(y, name=f"{name}_3_bn")
    if strides > 1 or x.shape[-1] != filters:
        x = net.convolution(x, filters, 1, strides=strides, name=f"{name}_shortcut_conv")
        x = net.normalise(x, name=f"{name}_shortcut_bn")
    return keras.layers.Add(name=f"{name}_add")([y, x])


def prelu(net: Assembly, x: Any, *, name: str) -> Any:
    """Batch normalisation, then a rectifier with one learnt slope a channel, 0.25 at first."""
    x = net.normalise(x, name=f"{name}_bn")
    slopes = keras.initializers.Constant(0.25)
    return keras.layers.PReLU(slopes, shared_axes=(1, 2), name=f"{name}_prelu")(x)


def output_e(net: Assembly, x: Any, emb_size: int) -> Any:
    """Output block E: BN, dropout 0.4, dense, BN without a scale of its own."""
    x = keras.layers.Dropout(0.4, seed=net.seed(), name="dropout")(net.normalise(x, name="output_bn"))
    x = net.dense(keras.layers.Flatten(name="flatten")(x), emb_size, name="output_dense")
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=2e-5, scale=False, name=EMBEDDING)(x)


NETWORKS: Mapping[str, Callable[[Assembly, int], Any]] = {"small": small, "o18": o18, "r50": r50}
