"""The range in which a model takes images: this suite's take [0, 1]; others 0..255 or [-1, 1], which no file states.

Given images in another range, a model answers all the same, at chance, and an attack on it finds nothing. Labelled
clean images tell: a model that is right far more often in another reading of them takes that one.
"""

import math
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from common.arrays import as_float
from common.attacks import logits_of
from common.attacks.compile import compiled
from common.errors import UserError
from common.models import flat, has_graph, places, rewired

# So many images settle it, and cost little even with a large network.
_LOOKED_AT = 128
# A gain of this much, that chance brings once in a thousand times at most.
_GAIN, _RISK = 0.2, 1e-3
# Beyond this no other reading can gain so much.
_GOOD = 1 - _GAIN
# Without labels: the images are all alike, or not at all.
_ONE_ANSWER, _SPREAD = 0.9, 0.6


# Layers that leave images as they are, outside of training: augmentation, noise, another axis.
_PASSING = ("Random", "Dropout", "GaussianNoise", "Identity", "Reshape")


class Reading(NamedTuple):
    """Images in [0, 1] times `scale` plus `offset`, as `keras.layers.Rescaling` has them."""

    scale: float
    offset: float

    def __str__(self) -> str:
        return {UNIT: "[0, 1]", BYTES: "0..255", SIGNED: "[-1, 1]"}.get(
            self, f"[{self.offset:g}, {self.scale + self.offset:g}]"
        )

    @property
    def options(self) -> str:
        """What asks for it on a command line; from Python these are arguments of the same names."""
        if self == UNIT:
            return "no --input-scale and no --input-offset"
        offset = f" --input-offset {self.offset:g}" if self.offset else ""
        return f"--input-scale {self.scale:g}{offset}"


class Better(NamedTuple):
    """A `reading` in which a model is right more often than in the `given` one: the mean accuracies over the classes,
    and whether the gain leaves no doubt."""

    reading: Reading
    given: Reading
    before: float
    after: float
    sure: bool

    def __str__(self) -> str:
        return (
            f"is right on {self.before:.0%} of the images in {self.given} and on {self.after:.0%} of the same in"
            f" {self.reading}"
        )

    @property
    def remedy(self) -> str:
        """What to do in Python."""
        offset = f", {self.reading.offset:g}" if self.reading.offset else ""
        return f"give it to common.evaluation.input_range.rescaled(model, {self.reading.scale:g}{offset}) first"


UNIT, BYTES, SIGNED = READINGS = Reading(1.0, 0.0), Reading(255.0, 0.0), Reading(2.0, -1.0)


def rescaled(model: keras.Model, scale: float, offset: float = 0.0) -> keras.Model:
    """`model` for images float32 in [0, 1], which it is given times `scale` plus `offset`; layers are shared.

    `rescaled(model, 255)` is for one that takes 0..255, `rescaled(model, 2, -1)` for one that takes [-1, 1]. A model of
    one input and one output; what wants whole numbers or batches of one size is given floats in batches of any.

    Errors: `UserError` for a model that hides its layers, and a scale that is not above 0.
    """
    if not scale > 0 or not math.isfinite(scale) or not math.isfinite(offset):
        raise UserError(f"input_scale, input_offset: expected a scale above 0, received {scale:g} and {offset:g}")
    if not has_graph(model) or len(model.inputs) != 1 or len(model.outputs) != 1:
        raise UserError(f"{model.name}: expected a Sequential or functional model with one input and one output")
    images = keras.Input(model.inputs[0].shape[1:], dtype="float32", name="images_in_unit_range")
    name, taken = "input_range", {layer.name for layer in model.layers}
    while name in taken:
        name += "_again"
    # In half precision grey levels would run together before the model sees them.
    layer = keras.layers.Rescaling(scale, offset, dtype="float32", name=name)
    given = images if (scale, offset) == UNIT else layer(images)
    (answer,) = keras.tree.flatten(rewired(model, given))
    return keras.Model(images, answer, name=model.name)


def takes_bytes(model: Any) -> bool:
    """Whether the first thing that `model` does with its images is to bring them down from 0..255, or its input is of
    whole numbers."""
    if not has_graph(model) or len(model.inputs) != 1:
        return False
    first = model.inputs[0]
    if not str(first.dtype).startswith(("float", "bfloat")):
        return True
    whole = flat(model)
    tensor = whole.inputs[0]
    for place in places(whole):
        layer = place.layer
        if not place.inputs or place.inputs[0] is not tensor:
            continue
        if isinstance(layer, keras.layers.Rescaling):
            return bool(np.max(np.abs(layer.scale)) <= 1 / 64)
        if isinstance(layer, keras.layers.Normalization):
            # The mean of images in [0, 1] or [-1, 1] lies there too.
            return layer.built and bool(np.max(np.abs(np.asarray(layer.mean))) > 2)
        if not type(layer).__name__.startswith(_PASSING):
            return False
        tensor = place.output
    return False


def better_reading(model: keras.Model, images: np.ndarray, labels: np.ndarray, given: Reading = UNIT) -> Better | None:
    """A reading of clean `images` (N, H, W, C), uint8 or float in [0, 1], of the classes `labels` (N,), in which the
    classifier `model` is right more often than in the one it was `given`, where there is one.

    `given` is what the model makes of its images before its first own layer (see `rescaled`). No doubt is left by 20
    points more, above a constant answer too, which chance would bring once in a thousand times.
    """
    if not len(labels):
        return None
    rows = _spaced(len(labels))
    images, labels = images[rows], np.asarray(labels)[rows]
    before = _answers(model, images, given, given) == labels
    accuracy = _mean_over_classes(before, labels)
    if accuracy > _GOOD:
        return None
    found = None
    for reading in READINGS:
        if reading == given:
            continue
        after = _answers(model, images, given, reading) == labels
        gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
        reached, risk = _mean_over_classes(after, labels), _sign_test(gained, lost)
        constant = 1 / len(np.unique(labels))
        if risk <= 10 * _RISK and (found is None or reached > found.after):
            sure = risk <= _RISK and reached >= _GAIN + max(accuracy, constant)
            found = Better(reading, given, accuracy, reached, sure)
    return found


def check_range(
    where: object, model: keras.Model, images: np.ndarray, labels: np.ndarray | None, given: Reading = UNIT
) -> str | None:
    """What there is to say of the range in which `model` takes its images, where there is doubt; arguments as in
    `better_reading`.

    Without `labels` it is known only of a model that brings 0..255 down itself: it takes those if nearly all images in
    [0, 1] get one answer, and in 0..255 they do not.

    Errors: `UserError` naming `where` and the remedy for a model that takes another range.
    """
    if labels is None:
        return _check_spread(where, model, images, given)
    found = better_reading(model, images, labels, given)
    if found is None:
        return None
    if found.sure:
        raise UserError(f"{where}: {found}, so that is what it takes: give {found.reading.options}")
    return f"{where}: {found}; if that is what it takes, give {found.reading.options}"


def _check_spread(where: object, model: keras.Model, images: np.ndarray, given: Reading) -> str | None:
    if given != UNIT or not len(images) or not takes_bytes(model):
        return None
    images = images[_spaced(len(images))]
    unit, whole = (
        np.bincount(_answers(model, images, given, reading)).max() / len(images) for reading in (UNIT, BYTES)
    )
    text = f"{where}: brings its images down from 0..255 in its first layer"
    if unit >= _ONE_ANSWER and whole <= _SPREAD:
        raise UserError(f"{text}, and has one answer to {unit:.0%} of them in [0, 1]: give {BYTES.options}")
    return f"{text}; if it takes those, give {BYTES.options}"


def _spaced(count: int) -> np.ndarray:
    """Some of `count` rows, evenly spaced, for data may be sorted by class."""
    return np.unique(np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(int))


def _answers(model: keras.Model, images: np.ndarray, given: Reading, reading: Reading) -> np.ndarray:
    """The classes, int32 (N,), that `model` answers with if it sees `images` in `reading`."""
    scale = reading.scale / given.scale
    offset = (reading.offset - given.offset) / given.scale
    signature = [tf.TensorSpec([None, *images.shape[1:]], images.dtype), tf.TensorSpec([]), tf.TensorSpec([])]
    answer = compiled(model, ("reading", images.shape[1:], images.dtype.str), _answer, signature)
    blocks = [images[first : first + 32] for first in range(0, len(images), 32)]
    return np.concatenate([answer(block, scale, offset).numpy() for block in blocks])


def _answer(model: keras.Model, images: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    return tf.argmax(logits_of(model)(as_float(images) * scale + offset), axis=1, output_type=tf.int32)


def _mean_over_classes(right: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes that there are of the share that is right: a constant answer gains nothing by a class that
    most are of."""
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def _sign_test(gained: int, lost: int) -> float:
    """The probability of `gained` of all or more where either side is as likely."""
    total = gained + lost
    return sum(math.comb(total, count) for count in range(gained, total + 1)) / 2**total
