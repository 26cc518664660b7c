"""Attacks that see the attention map: they shrink it, move it off what it attends, or go on until it has moved.

All of them lie in an L-inf ball and in [0, 1]. Called eagerly, they run compiled, once for each model, picture size and
layer; called in a training step they become part of it.
"""

from functools import partial
from typing import Literal

import keras
import tensorflow as tf

from attention_defense.models import losses
from attention_defense.models.grad_cam import Attention, area, overlap, resized, shown, spread
from common.attacks import ascent, linf, search, strongest, tensors
from common.attacks.calls import as_float32, as_labels, check_box, check_labels, compiled
from common.attacks.loop import Objective, Result, merge
from common.attacks.objectives import least_likely

Tensor = tf.Tensor
Kind = Literal["attention", "displace", "gated", "adaptive"]
KINDS: tuple[Kind, ...] = ("attention", "displace", "gated", "adaptive")

# The weight of the map beside the cross-entropy, as published with both of its attacks.
_MAP_WEIGHT = 10.0
# What counts as attended when a map is to be moved off it: a fifth of its highest value.
_ATTENDED = 0.2


def attention_attack(
    kind: Kind,
    model: keras.Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    alpha: float,
    steps: int,
    restarts: int = 1,
    layer: str | None = None,
    iou_key: float = 0.59513,
    weights: losses.Weights = losses.Weights(),
    sharpness: float = 10.0,
    seed: int = 0,
    index: Tensor | None = None,
) -> Tensor:
    """Pictures `x` (B, H, W, C) in [0, 1] of true classes `y` (B,), changed within `eps` by `steps` of `alpha`.

    - `attention` draws towards the least likely class and shrinks the map of the true one to nothing (the paper's
      "attachment" attack);
    - `displace` makes the map differ from the clean picture's attended area, and nothing else;
    - `gated` is Step-LL, iterated while the IoU of the attended areas is above `iou_key` (algorithm E);
    - `adaptive` raises all that AAD lowers: cross-entropy, and its two terms of attention, at the `weights` and the
      `sharpness` of the training, from random starts.

    Of the iterates, and of `restarts`, each picture keeps one that is misclassified, if any is; `gated` keeps the last.
    """
    x, y = as_float32(x), as_labels(y)
    check_box(x, tf.constant(0.0), tf.constant(1.0))
    if not tf.inside_function():
        check_labels(model, x, y)
    static = {"kind": kind, "layer": layer, "many": restarts > 1}
    signature = [
        tf.TensorSpec([None, *x.shape[1:]]),
        tf.TensorSpec([None], tf.int32),
        *[tf.TensorSpec([])] * 7,
        *[tf.TensorSpec([], tf.int32)] * 2,
        tf.TensorSpec([2], tf.int32),
        tf.TensorSpec([None], tf.int32),
    ]
    attack = compiled(model, ("attention", *static.values(), *x.shape[1:]), partial(_attack, **static), signature)
    places = tf.range(len(x)) if index is None else tf.cast(index, tf.int32)
    numbers = [tf.constant(value, tf.float32) for value in (eps, alpha, iou_key, sharpness, *weights)]
    return attack(x, y, *numbers, steps, restarts, tensors.seed_pair(seed), places)


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
) -> Tensor:
    """Step-LL in up to `steps` steps of `alpha` in the ball of `eps`, while the attended area of the class `y` (B,)
    overlaps that in the clean picture by more than `iou_key` (algorithms C and E, the gate with its bound)."""
    check_box(x, tf.constant(0.0), tf.constant(1.0))
    attention = Attention(model, layer)
    target = least_likely(model, x)
    before = area(attention(x, y).cam)

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        logits, cam = attention(x, y)
        score = -tf.nn.sparse_softmax_cross_entropy_with_logits(labels=target, logits=logits)
        return score, overlap(before, area(cam)) <= iou_key

    return tf.stop_gradient(search(objective, ascent(tf.sign, alpha), linf(x, eps), x, steps, stop=True).x)


def _attack(
    model: keras.Model,
    x: Tensor,
    y: Tensor,
    eps: Tensor,
    alpha: Tensor,
    iou_key: Tensor,
    sharpness: Tensor,
    classification: Tensor,
    rectification: Tensor,
    preservation: Tensor,
    steps: Tensor,
    restarts: Tensor,
    seed: Tensor,
    index: Tensor,
    *,
    kind: Kind,
    layer: str | None,
    many: bool,
) -> Tensor:
    if kind == "gated":
        return gated_step_ll(model, x, y, eps=eps, alpha=alpha, steps=steps, iou_key=iou_key, layer=layer)
    attention = Attention(model, layer)
    if kind == "adaptive":
        weights = losses.Weights(classification, rectification, preservation)
        objective = raising_the_loss(attention, x, y, weights, sharpness)
    else:
        objective = {"attention": _shrinking, "displace": _displacing}[kind](attention, model, x, y)
    space = linf(x, eps)

    def run(restart: Tensor) -> Result:
        start = x
        if kind == "adaptive" or many:
            start = space.start(tensors.example_seeds(tf.random.fold_in(seed, restart), index))
            start.set_shape(x.shape)
        return search(objective, ascent(tf.sign, alpha), space, start, steps, rank=strongest)

    best = run(tf.constant(0))
    if many:
        _, best = tf.while_loop(
            lambda restart, best: restart < restarts,
            lambda restart, best: (restart + 1, merge(run(restart), best)),
            (tf.constant(1), best),
            parallel_iterations=1,
        )
    return best.x


def _shrinking(attention: Attention, model: keras.Model, x: Tensor, y: Tensor) -> Objective:
    target = least_likely(model, x)

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        logits, cam = attention(x, y)
        entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=target, logits=logits)
        return -entropy - _MAP_WEIGHT * tf.reduce_mean(shown(cam), axis=(1, 2)), _wrong(logits, y)

    return objective


def _displacing(attention: Attention, model: keras.Model, x: Tensor, y: Tensor) -> Objective:
    attended = tf.cast(shown(attention(x, y).cam) > _ATTENDED, tf.float32)

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        logits, cam = attention(x, y)
        return _MAP_WEIGHT * tf.reduce_mean(tf.abs(attended - shown(cam)), axis=(1, 2)), _wrong(logits, y)

    return objective


def raising_the_loss(
    attention: Attention, x: Tensor, y: Tensor, weights: losses.Weights, sharpness: float | Tensor
) -> Objective:
    """The part of AAD's loss that an attacked picture has a share in, with clean pictures `x` of classes `y` (B,)."""
    size = x.shape[1:3]
    before = resized(spread(attention(x, y).cam), size)

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        logits, cam = attention(x, y)
        now = resized(spread(cam), size)
        blank = attention(losses.hidden(x, losses.hiding(now, sharpness)), y).logits
        change = tf.reduce_mean(tf.square(tf.nn.softmax(logits) - tf.nn.softmax(blank)), axis=1)
        score = (
            weights.classification * tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)
            - weights.rectification * change
            + weights.preservation * tf.reduce_mean(tf.square(before - now), axis=(1, 2))
        )
        return score, _wrong(logits, y)

    return objective


def _wrong(logits: Tensor, y: Tensor) -> Tensor:
    return tf.argmax(logits, axis=1, output_type=tf.int32) != y
