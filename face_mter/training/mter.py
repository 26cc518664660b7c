"""Margin-based triplet embedding regularisation: search for impersonations in feature space, and penalise them.

    search = exploit(radius=10 / 255, sigma=1 / 255, rounds=10, threshold=0.1)
    way = method("mter", loss_type="arcface", adversary=search)
    train(model, pair_epochs, way.loss, optimizer, epochs=30, adversary=way.adversary)

A batch is (source, target, their labels), people that differ pair by pair; the adversary adds the sources as an
attacker would change them. Section numbers are those of the method as the original code has it.
"""

from collections.abc import Callable

import keras
import tensorflow as tf
from keras import ops

from common.attacks import iftgsm
from common.attacks.logits import training_logits
from common.per_model import PerModel
from common.training.batches import Batch
from common.training.loop import Adversary, Terms, logits_and_labels
from common.training.methods import Method
from face_mter.models.networks import LossType, arcface_logits, embedder, unit

Tensor = tf.Tensor

_both = PerModel()


def feature_target_search(*, radius: float, sigma: float, rounds: int, threshold: float) -> Adversary:
    """The search (step 1): each source moves along the sign of the gradient of its cosine distance to the target's
    embedding, up to `rounds` steps of `sigma` within `radius` (L-inf, in [0, 1]).

    A source stops once its own cosine distance is below `threshold`. (The original continues until the farthest of the
    batch is there, and its ball holds nothing back.) The model is in inference mode.
    """

    def adversary(model: keras.Model, batch: Batch, seed: Tensor) -> Batch:
        source, target, *labels = batch
        embed = embedder(model)
        wanted = embed(target, training=False)
        moved = iftgsm(embed, source, wanted, eps=radius, alpha=sigma, steps=rounds, threshold=1.0 - threshold)
        return source, target, *labels, moved

    return adversary


def triplet(moved: Tensor, source: Tensor, target: Tensor, alpha: float) -> Tensor:
    """The regulariser (step 2): mean over the batch of max(0, d(moved, source) - d(moved, target) + `alpha`).

    Embeddings (B, D); d is the Euclidean distance, not squared, of embeddings of length 1.
    """
    moved, source, target = (unit(ops.cast(v, "float32")) for v in (moved, source, target))
    gap = distance(moved, source) - distance(moved, target) + alpha
    return ops.mean(ops.maximum(gap, 0.0))


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance of the rows of `a` and `b`, (B, D) each; its slope is finite where they coincide."""
    return ops.sqrt(ops.sum(ops.square(a - b), axis=-1) + 1e-12)


def method(
    name: str,
    *,
    loss_type: LossType,
    scale: float = 64.0,
    margin: float = 0.5,
    alpha: float = 0.2,
    weight: float = 1.0,
    adversary: Adversary | None = None,
) -> Method:
    """How a network is trained on pairs: "none" on the images as they are, "adv" also on the moved sources with their
    true labels, "mter" with the regulariser of `alpha` times `weight` on the moved sources, which then take no part in
    the classification.

    All terms are true means. (The original's sums make its classification weigh a third of ours on faces with four
    devices, 4/9 on MNIST with one: `weight` 3 and 2.25 are the same balance.)
    """
    classified = 3 if name == "adv" else 2
    entropy = _entropy(loss_type, scale, margin)

    def loss(model: keras.Model, batch: Batch) -> tuple[Terms, Terms]:
        source, target, y_source, y_target, *moved = batch
        # One pass over all of them, as in the original: batch normalisation sees moved images too.
        embeddings, logits = _parts(model)(tf.concat([source, target, *moved], axis=0), training=True)
        y = tf.concat([y_source, y_target, y_source][:classified], axis=0)
        z = tf.cast(logits, tf.float32)[: tf.shape(y)[0]]
        terms = {"cross_entropy": entropy(z, y)}
        if name == "mter":
            of_source, of_target, of_moved = tf.split(embeddings, 3)
            terms["triplet"] = weight * triplet(of_moved, of_source, of_target, alpha)
        clean = tf.shape(source)[0] * 2
        return terms, {"accuracy": ops.mean(keras.metrics.sparse_categorical_accuracy(y[:clean], z[:clean]))}

    return Method(loss, adversary if name != "none" else None)


def classification(loss_type: LossType, *, scale: float, margin: float) -> Method:
    """Training on images (x, y) alone, without pairs: what base models are trained by."""
    entropy = _entropy(loss_type, scale, margin)

    def loss(model: keras.Model, batch: Batch) -> tuple[Terms, Terms]:
        z, y = logits_and_labels(model, *batch)
        return {"cross_entropy": entropy(z, y)}, {"accuracy": ops.mean(keras.metrics.sparse_categorical_accuracy(y, z))}

    return Method(loss)


def _entropy(loss_type: LossType, scale: float, margin: float) -> Callable[[Tensor, Tensor], Tensor]:
    """logits (B, classes), labels (B,) -> mean cross-entropy, of ArcFace with its margin."""

    def entropy(z: Tensor, y: Tensor) -> Tensor:
        raised = arcface_logits(z, y, scale=scale, margin=margin) if loss_type == "arcface" else z
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=raised))

    return entropy


def _parts(model: keras.Model) -> keras.Model:
    """`model` answering with its embeddings and its logits. Errors: `UserError` for one that ends in softmax."""

    def join() -> keras.Model:
        training_logits(model)
        return keras.Model(model.inputs[0], [embedder(model).output, model.output])

    return _both.get(model, "both", join)
