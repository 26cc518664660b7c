"""Adversarial training for any Keras classifier: what `training.train` is given as loss and adversary.

    method = pgd_training(eps=8 / 255, alpha=2 / 255, steps=7)
    train(model, epoch_batches, method.loss, optimizer, epochs=30, adversary=method.adversary)

Budgets are L-inf, in the units of the images, which lie in [0, 1]: others are refused as the training meets them.
Examples are crafted with the model in inference mode: batch norm uses its running averages and does not move them.
"""

from typing import NamedTuple

import keras
import tensorflow as tf

from common.attacks import Inputs, Objective, ThreatModel, in_ball, logits_of, pgd, run, tensors
from common.attacks.objectives import divergence, divergence_from
from common.errors import UserError
from common.training.batches import Batch
from common.training.loop import Adversary, Loss, Terms, cross_entropy, logits_and_labels

Tensor = tf.Tensor


class Method(NamedTuple):
    """Arguments for `loop.train`, to be used together, with `batches.minibatch_replay` for several `replays`: steps of
    the optimiser on each batch."""

    loss: Loss
    adversary: Adversary | None = None
    replays: int = 1


def make_method(name: str, *, eps: float, steps: int, alpha: float | None = None, beta: float = 6.0) -> Method:
    """`standard`, `fast`, `pgd` or `trades`: PGD and TRADES take `steps` of `alpha`, by default 2 `eps` / `steps`, and
    TRADES weighs its divergence by `beta`.

    Errors: `UserError` for another name.
    """
    inner = {"eps": eps, "alpha": 2 * eps / steps if alpha is None else alpha, "steps": steps}
    makers = {
        "standard": standard_training,
        "fast": lambda: fast_training(eps=eps),
        "pgd": lambda: pgd_training(**inner),
        "trades": lambda: trades_training(**inner, beta=beta),
    }
    if name not in makers:
        raise UserError(f"{name}: unknown training method; expected one of {', '.join(makers)}")
    return makers[name]()


def standard_training() -> Method:
    """Cross-entropy on the images as they are."""
    return Method(cross_entropy)


def pgd_training(*, eps: float, alpha: float, steps: int) -> Method:
    """Cross-entropy on PGD examples alone (Madry et al. 2018, equation 2.1)."""

    def adversary(model: keras.Model, batch: Batch, seed: Tensor) -> Batch:
        x, y = batch
        return pgd(model, x, y, eps=eps, alpha=alpha, steps=steps, seed=seed), y

    return Method(cross_entropy, adversary)


def fast_training(*, eps: float, alpha: float | None = None) -> Method:
    """One step from a random start, by default of 1.25 `eps` (Wong et al. 2020, algorithm 3).

    May overfit to its single step all at once: watch the accuracy under PGD while it trains.
    """
    return pgd_training(eps=eps, alpha=1.25 * eps if alpha is None else alpha, steps=1)


def _clean_logits(model: keras.Model, inputs: Inputs) -> dict[str, Tensor]:
    return {"logits": logits_of(model)(inputs["x"])}


def _apart(model: keras.Model, inputs: Inputs) -> Objective:
    """The divergence of the answer from that to the clean input."""
    apart = divergence_from(model, inputs)

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        value, success = apart(x)
        # Only the gradient's sign counts, and half precision loses that of an answer that hardly changes. Over the
        # root of the divergence its length can be held (Pinsker's inequality).
        return value * tf.stop_gradient(tf.math.rsqrt(tf.maximum(value, 1e-10))), success

    return objective


def _beside(inputs: Inputs, threat_model: ThreatModel) -> Tensor:
    # At the clean image itself the divergence is least and its gradient zero.
    x = inputs["x"]
    noise = tensors.normal(tensors.example_seeds(inputs["seed"], inputs["index"]), tf.shape(x)[1:])
    return threat_model.project(x + 1e-3 * noise)


APART = in_ball(_apart, classes=False, prepare=_clean_logits, start=_beside)
"""TRADES' adversary: answers as far apart from the clean ones as they get."""


def trades_training(*, eps: float, alpha: float, steps: int, beta: float = 6.0) -> Method:
    """Cross-entropy of the clean image plus `beta` times the Kullback-Leibler divergence between the answers to it and
    to the nearby image that makes it largest (Zhang et al. 2019, equation 5 and algorithm 1)."""

    def adversary(model: keras.Model, batch: Batch, seed: Tensor) -> Batch:
        x, y = batch
        return x, y, run(APART, model, {"x": x, "eps": eps, "alpha": alpha, "steps": steps, "seed": seed})

    def loss(model: keras.Model, batch: Batch) -> tuple[Terms, Terms]:
        x, y, moved = batch
        (clean, y), (attacked, _) = (logits_and_labels(model, images, y) for images in (x, moved))
        terms = {
            "cross_entropy": tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=clean)),
            "divergence": beta * tf.reduce_mean(divergence(clean, attacked)),
        }
        return terms, {"accuracy": keras.ops.mean(keras.metrics.sparse_categorical_accuracy(y, clean))}

    return Method(loss, adversary)
