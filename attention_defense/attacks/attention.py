"""Attacks on the attention map: they shrink it, displace it, or continue until its IoU is below a threshold.

All of them lie in an L-inf ball and in [0, 1].
"""

from dataclasses import dataclass
from typing import Literal

import keras
import tensorflow as tf

from attention_defense.models import losses
from attention_defense.models.grad_cam import Attention, above_mean, overlap, relu_max_map, resized, softmax_map
from common import attacks
from common.attacks import Bound, Inputs, Objective, Restarts, at_success, in_ball, least_likely, named, worst_case

Tensor = tf.Tensor
Kind = Literal["attention", "displace", "gated", "adaptive"]
KINDS: tuple[Kind, ...] = ("attention", "displace", "gated", "adaptive")

# The weight of the map relative to the cross-entropy, as published for both attacks.
_MAP_WEIGHT = 10.0
# What counts as attended when a map is to be moved off it: a fifth of its highest value.
_ATTENDED = 0.2


@named
def attention_attack(
    model: keras.Model,
    x: Tensor,
    y: Tensor,
    *,
    kind: Kind,
    eps: float,
    alpha: float,
    steps: int,
    restarts: int = 1,
    stop: bool = False,
    layer: str | None = None,
    iou_key: float = 0.59513,
    weights: losses.Weights = losses.Weights(),
    sharpness: float = 10.0,
    seed: int = 0,
    index: Tensor | None = None,
) -> Bound:
    """Images `x` (B, H, W, C) in [0, 1] of true classes `y` (B,), changed within `eps` by `steps` of `alpha`.

    - `attention` draws towards the least likely class and shrinks the map of the true one to nothing (the paper's
      "attachment" attack);
    - `displace` makes the map differ from the clean image's attended area, and nothing else;
    - `gated` is Step-LL, iterated while the IoU of the attended areas is above `iou_key` (algorithm E);
    - `adaptive` raises all that AAD lowers: cross-entropy, and its two terms of attention, at the `weights` and the
      `sharpness` of the training, from random starts.

    Of the iterates, and of `restarts`, each image keeps one that is misclassified, if any is; with `stop` the first.
    `gated` keeps the last, and always stops at its own goal.
    """
    inputs = {"x": x, "y": y, "eps": eps, "alpha": alpha, "steps": steps, "seed": seed, "index": index}
    if kind == "gated":
        return gated_step_ll.bind(model, x, y, eps=eps, alpha=alpha, steps=steps, iou_key=iou_key, layer=layer)
    parts = {"attention": Shrinking, "displace": Displacing, "adaptive": RaisingTheLoss}[kind](layer)
    attack = in_ball(
        parts,
        prepare=parts.prepare,
        start=attacks.random_point if kind == "adaptive" or restarts > 1 else attacks.clean,
        selection=worst_case,
        stop=at_success if stop else None,
        rounds=Restarts(until=at_success if stop else None) if restarts > 1 else None,
    )
    own = dict(zip(_WEIGHTS, map(float, weights), strict=True)) | {"sharpness": float(sharpness)}
    return Bound(attack, model, {**inputs, "restarts": restarts, **(own if kind == "adaptive" else {})})


@named
def gated_step_ll(
    model: keras.Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    alpha: float | Tensor,
    steps: int | Tensor,
    iou_key: float | Tensor,
    layer: str | None = None,
) -> Bound:
    """Step-LL in up to `steps` steps of `alpha` in the ball of `eps`, while the attended area of the class `y` (B,)
    overlaps that in the clean image by more than `iou_key` (algorithms C and E, the gate with its bound)."""
    gate = Gated(layer)
    inputs = {"x": x, "y": y, "eps": eps, "alpha": alpha, "steps": steps, "iou_key": tf.cast(iou_key, tf.float32)}
    return Bound(in_ball(gate, prepare=gate.prepare, stop=at_success), model, inputs)


_WEIGHTS = ("of_classification", "of_rectification", "of_preservation")


@dataclass(frozen=True)
class Gated:
    """Towards the least likely class; success once the attended area has moved."""

    layer: str | None

    def prepare(self, model: keras.Model, inputs: Inputs) -> dict[str, Tensor]:
        x, y = inputs["x"], inputs["y"]
        return {"target": least_likely(model, x), "area": above_mean(Attention(model, self.layer)(x, y).cam)}

    def __call__(self, model: keras.Model, inputs: Inputs) -> Objective:
        attention = Attention(model, self.layer)

        def objective(x: Tensor) -> tuple[Tensor, Tensor]:
            logits, cam = attention(x, inputs["y"])
            return -_entropy(logits, inputs["target"]), overlap(inputs["area"], above_mean(cam)) <= inputs["iou_key"]

        return objective


@dataclass(frozen=True)
class Shrinking:
    """Towards the least likely class, and the map of the true one to nothing."""

    layer: str | None

    def prepare(self, model: keras.Model, inputs: Inputs) -> dict[str, Tensor]:
        return {"target": least_likely(model, inputs["x"])}

    def __call__(self, model: keras.Model, inputs: Inputs) -> Objective:
        attention = Attention(model, self.layer)

        def objective(x: Tensor) -> tuple[Tensor, Tensor]:
            logits, cam = attention(x, inputs["y"])
            loss = -_entropy(logits, inputs["target"]) - _MAP_WEIGHT * tf.reduce_mean(relu_max_map(cam), axis=(1, 2))
            return loss, _wrong(logits, inputs["y"])

        return objective


@dataclass(frozen=True)
class Displacing:
    """The map away from what the clean image's map attends."""

    layer: str | None

    def prepare(self, model: keras.Model, inputs: Inputs) -> dict[str, Tensor]:
        cam = Attention(model, self.layer)(inputs["x"], inputs["y"]).cam
        return {"attended": tf.cast(relu_max_map(cam) > _ATTENDED, tf.float32)}

    def __call__(self, model: keras.Model, inputs: Inputs) -> Objective:
        attention = Attention(model, self.layer)

        def objective(x: Tensor) -> tuple[Tensor, Tensor]:
            logits, cam = attention(x, inputs["y"])
            change = tf.abs(inputs["attended"] - relu_max_map(cam))
            return _MAP_WEIGHT * tf.reduce_mean(change, axis=(1, 2)), _wrong(logits, inputs["y"])

        return objective


@dataclass(frozen=True)
class RaisingTheLoss:
    """The part of AAD's loss that an attacked image has a share in."""

    layer: str | None

    def prepare(self, model: keras.Model, inputs: Inputs) -> dict[str, Tensor]:
        x = inputs["x"]
        return {"before": resized(softmax_map(Attention(model, self.layer)(x, inputs["y"]).cam), x.shape[1:3])}

    def __call__(self, model: keras.Model, inputs: Inputs) -> Objective:
        attention, y = Attention(model, self.layer), inputs["y"]
        classification, rectification, preservation = (inputs[name] for name in _WEIGHTS)

        def objective(x: Tensor) -> tuple[Tensor, Tensor]:
            logits, cam = attention(x, y)
            now = resized(softmax_map(cam), x.shape[1:3])
            blank = attention(losses.occlude(x, losses.soft_mask(now, inputs["sharpness"])), y).logits
            change = tf.reduce_mean(tf.square(tf.nn.softmax(logits) - tf.nn.softmax(blank)), axis=1)
            loss = (
                classification * _entropy(logits, y)
                - rectification * change
                + preservation * tf.reduce_mean(tf.square(inputs["before"] - now), axis=(1, 2))
            )
            return loss, _wrong(logits, y)

        return objective


def _entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)


def _wrong(logits: Tensor, y: Tensor) -> Tensor:
    return tf.argmax(logits, axis=1, output_type=tf.int32) != y
