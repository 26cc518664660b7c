"""What an attack raises: functions x (B, ...) -> score (B,), done (B,)."""

from collections.abc import Callable

import tensorflow as tf

from common.attacks.logits import inference, logits_of
from common.attacks.loop import Objective

Tensor = tf.Tensor
Model = Callable[[Tensor], Tensor]


def untargeted_ce(model: Model, y: Tensor) -> Objective:
    """Cross-entropy of the true class `y` (B,); done when another class is answered (Goodfellow et al. 2015)."""
    logits = logits_of(model)

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        z = logits(x)
        return _cross_entropy(z, y), _answer(z) != y

    return objective


def targeted_ce(model: Model, target: Tensor) -> Objective:
    """Minus the cross-entropy of the class `target` (B,); done when it is answered (Kurakin et al. 2017)."""
    logits = logits_of(model)

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        z = logits(x)
        return -_cross_entropy(z, target), _answer(z) == target

    return objective


def cosine_to(embed: Model, target: Tensor, threshold: float | Tensor = 1.0) -> Objective:
    """Cosine similarity of `embed(x)` (B, D) to `target` (B, D); done above `threshold` (MTER, feature target)."""
    forward = inference(embed)
    target = tf.math.l2_normalize(tf.cast(target, tf.float32), axis=-1)

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        embedding = tf.cast(forward(x), tf.float32)
        similarity = tf.reduce_sum(tf.math.l2_normalize(embedding, axis=-1) * target, axis=-1)
        return similarity, similarity > threshold

    return objective


def least_likely(model: Model, x: Tensor) -> Tensor:
    """The class of the smallest logit, int32 (B,) (Kurakin et al. 2017, least-likely class)."""
    return tf.argmin(logits_of(model)(x), axis=1, output_type=tf.int32)


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)


def _answer(logits: Tensor) -> Tensor:
    return tf.argmax(logits, axis=1, output_type=tf.int32)
