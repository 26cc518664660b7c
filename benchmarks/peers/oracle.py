"""What an attack that stops at success would cost if it knew beforehand: counted step by step, never timed."""

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import keras


def gradients_to_success(
    model: "keras.Model",
    x: np.ndarray,
    y: np.ndarray,
    *,
    eps: float,
    alpha: float,
    steps: int,
    norm: Literal["linf", "l2"] = "linf",
    random_start: bool = True,
    seed: int = 0,
    batch_size: int = 256,
) -> np.ndarray:
    """Gradients that PGD of `common.attacks` follows on each of `x` (N, ...) until its first success, int32 (N,).

    0 for what is wrong at its start already, `steps` for what never is. The path is that of
    `pgd(model, x, y, ..., seed=seed, index=range(N))`, walked in plain steps from its random start.
    """
    import tensorflow as tf

    from common.attacks import l2, linf, logits_of, pgd, unit_l2

    logits = logits_of(model)

    @tf.function(reduce_retracing=True)
    def look(images, labels):
        with tf.GradientTape() as tape:
            tape.watch(images)
            answers = logits(images)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=answers)
        return tape.gradient(loss, images), tf.argmax(answers, axis=1, output_type=tf.int32) != labels

    space_of, direction = {"linf": (linf, tf.sign), "l2": (l2, unit_l2)}[norm]
    counts = np.full(len(x), steps, np.int32)
    for first in range(0, len(x), batch_size):
        index = np.arange(first, min(first + batch_size, len(x)), dtype=np.int32)
        images, labels = tf.constant(x[index], tf.float32), tf.constant(y[index], tf.int32)
        space = space_of(images, eps)
        options = {"eps": eps, "alpha": alpha, "norm": norm, "random_start": random_start, "seed": seed}
        point = pgd(model, images, labels, steps=0, index=index, **options)
        reached = np.zeros(len(index), bool)
        for step in range(steps):
            gradient, wrong = look(point, labels)
            counts[index[wrong.numpy() & ~reached]] = step
            reached |= wrong.numpy()
            if reached.all():
                break
            point = space.project(point + alpha * direction(gradient))
    return counts
