"""Training by attention: AAD and its variants, and Step-LL adversarial training, for `common.training.loop`.

    way = method("aad", eps=8 / 255)
    train(model, batches(x, y, ...), way.loss, optimizer, epochs=30, adversary=way.adversary)

Letters are those of the paper's algorithms: A is `aad`, B `aad_two_step`, C `aad_iou`, D `step_ll`.
"""

from typing import Literal

import keras
import tensorflow as tf

from attention_defense.attacks.attention import gated_step_ll
from attention_defense.models import losses
from attention_defense.models.grad_cam import Attention, resized, softmax_map
from attention_defense.models.losses import Weights
from common.arrays import label_column
from common.attacks import iter_ll, logits_of, step_ll
from common.training.batches import Batch
from common.training.loop import Adversary, Loss, Terms, logits_and_labels
from common.training.methods import Method

Tensor = tf.Tensor
Name = Literal["step_ll", "aad", "aad_two_step", "aad_iou"]
ATTENTIVE: tuple[Name, ...] = ("aad", "aad_two_step", "aad_iou")
"""Those with terms of attention."""


def method(
    name: Name,
    *,
    eps: float,
    weights: Weights = Weights(),
    layer: str | None = None,
    sharpness: float = 10.0,
    iou_key: float = 0.2,
    iou_steps: int = 5,
) -> Method:
    """Training against Step-LL of `eps` (L-inf, in [0, 1]), always inside that ball.

    `aad` takes one step to the least likely class; `aad_two_step` trains on each batch twice, after one step of `eps`
    and after two of half of it; `aad_iou` takes up to `iou_steps` steps of a quarter, while the areas attended in
    image and attacked image overlap (IoU) by more than `iou_key`. `step_ll` is `aad` without the terms of
    attention. `sharpness` as in `losses.soft_mask`.
    """
    attacks: dict[str, Adversary] = {
        "step_ll": _one_step(eps),
        "aad": _one_step(eps),
        "aad_two_step": _by_turns(eps),
        "aad_iou": _gated(eps, layer, iou_key, iou_steps),
    }
    loss = aad_loss(
        weights if name in ATTENTIVE else weights._replace(rectification=0, preservation=0), layer, sharpness
    )
    return Method(loss, attacks[name], replays=2 if name == "aad_two_step" else 1)


def aad_loss(weights: Weights, layer: str | None, sharpness: float) -> Loss:
    """The loss of a batch (x, y, x'): classification, rectification and preservation, each times its weight, over twice
    that of classification: the first term is then the mean cross-entropy, and a learning rate means what it does for
    any other training."""
    scale = 0.5 / weights.classification
    attentive = bool(weights.rectification or weights.preservation)

    def loss(model: keras.Model, batch: Batch) -> tuple[Terms, Terms]:
        x, y, moved = batch
        images, labels = tf.concat([x, moved], axis=0), label_column(tf.concat([y, y], axis=0))
        if attentive:
            attention = Attention(model, layer)
            # The class is the true one for both, or preservation would compare evidence for different classes.
            answer, cam = attention(images, labels)
            seen = resized(softmax_map(cam), x.shape[1:3])
        terms = {}
        if weights.rectification:
            blank = losses.occlude(images, losses.soft_mask(seen, sharpness))
            unseen = logits_of(model)(blank)
            change = 2.0 * losses.rectification(tf.nn.softmax(answer), tf.nn.softmax(unseen))
            terms["rectification"] = scale * weights.rectification * change
        if weights.preservation:
            terms["preservation"] = scale * weights.preservation * losses.preservation(*tf.split(seen, 2))
        # The pass in training mode comes last: it moves running averages.
        passes = [answer] if attentive else []
        if not attentive or _has_modes(model):
            passes.append(logits_and_labels(model, images, labels)[0])
        logits = passes[-1]
        labels = label_column(labels, logits.shape[1])
        # In inference mode too, where the terms of attention are: they alone would lead that network away, in
        # directions that batch statistics hide from the one in training mode.
        entropies = [tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits) for logits in passes]
        terms["classification"] = tf.reduce_mean(entropies)
        right = keras.metrics.sparse_categorical_accuracy(labels, logits)
        clean, attacked = tf.split(right, 2)
        return terms, {"accuracy": tf.reduce_mean(clean), "attacked_accuracy": tf.reduce_mean(attacked)}

    return loss


def _has_modes(model: keras.Model) -> bool:
    """Whether the model does something else in training than in inference."""
    kinds = (keras.layers.BatchNormalization, keras.layers.Dropout, keras.layers.SpatialDropout2D)
    return any(isinstance(layer, kinds) or (hasattr(layer, "layers") and _has_modes(layer)) for layer in model.layers)


def _one_step(eps: float) -> Adversary:
    def adversary(model: keras.Model, batch: Batch, seed: Tensor) -> Batch:
        x, y = batch
        return x, y, step_ll(model, x, eps=eps)

    return adversary


def _by_turns(eps: float) -> Adversary:
    def adversary(model: keras.Model, batch: Batch, seed: Tensor) -> Batch:
        x, y, turn = batch
        # A batch is at one turn. A second step of eps would only take pixels back.
        steps = turn[0]
        return x, y, iter_ll(model, x, eps=eps, alpha=eps / tf.cast(steps, tf.float32), steps=steps)

    return adversary


def _gated(eps: float, layer: str | None, iou_key: float, iou_steps: int) -> Adversary:
    def adversary(model: keras.Model, batch: Batch, seed: Tensor) -> Batch:
        x, y = batch
        moved = gated_step_ll(model, x, y, eps=eps, alpha=eps / 4, steps=iou_steps, iou_key=iou_key, layer=layer)
        return x, y, moved

    return adversary
