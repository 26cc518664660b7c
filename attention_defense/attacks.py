"""The attacks of this app by their names on the command line, each as `evaluation.robustness` wants it."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import keras
import tensorflow as tf

from attention_defense.attention_attacks import attention_attack
from attention_defense.losses import Weights
from attention_defense.pictures import AttackName
from common.attacks import bim, corner_noise, fgsm, least_likely, pgd, r_step_ll, step_ll

Tensor = tf.Tensor
Attack = Callable[..., Tensor]


class Training(NamedTuple):
    """What the adaptive attack knows of how its model was trained, and where it looks."""

    layer: str | None = None
    weights: Weights = Weights()
    sharpness: float = 10.0


def named(
    name: AttackName,
    model: keras.Model,
    *,
    eps: float,
    stop: bool = False,
    training: Training = Training(),
    iou_key: float = 0.59513,
    seed: int = 0,
) -> Attack:
    """The attack `name` on `model`, in the L-inf ball of `eps`: a function of x, y and, where it draws, of `index`.

    `iter_ll` is Step-LL in 10 steps; `margin20` raises the difference of logits in place of the cross-entropy; `pgd100`
    has 100 steps and 5 restarts, `adaptive` 40 and 3; `noise` is no attack. Steps are a quarter of `eps`, and an eighth
    in the last two. With `stop` PGD leaves a picture where it first succeeds: cheaper where only success counts, but
    such pictures have hardly crossed the border, and compare badly with those that took all steps.
    """
    twenty = {"eps": eps, "alpha": eps / 4, "steps": 20}
    attacks: dict[str, Attack] = {
        "fgsm": partial(fgsm, model, eps=eps),
        "step_ll": lambda x, y: step_ll(model, x, eps=eps),
        "r_step_ll": lambda x, y, index: r_step_ll(model, x, eps=eps, seed=seed, index=index),
        "iter_ll": lambda x, y: bim(
            model, x, least_likely(model, tf.constant(x)), eps=eps, alpha=eps / 4, steps=10, targeted=True
        ),
        "pgd20": partial(pgd, model, **twenty, stop=stop, seed=seed),
        "margin20": partial(pgd, model, **twenty, loss="margin", stop=stop, seed=seed),
        "pgd100": partial(pgd, model, eps=eps, alpha=eps / 8, steps=100, restarts=5, stop=stop, seed=seed),
        "noise": lambda x, y, index: corner_noise(x, eps=eps, seed=seed, index=index),
    }
    if name in attacks:
        return attacks[name]
    budget = {"eps": eps, "alpha": eps / 8, "steps": 40, "restarts": 3} if name == "adaptive" else twenty

    def of_attention(x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        return attention_attack(
            name, model, x, y, **budget, **training._asdict(), iou_key=iou_key, seed=seed, index=index
        )

    return of_attention
