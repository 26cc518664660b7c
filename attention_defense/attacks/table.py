"""The attacks of this app by their names on the command line, each as `evaluation.robustness` wants it."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import keras
import tensorflow as tf

from attention_defense.attacks.attention import attention_attack
from attention_defense.attacks.names import AttackName
from attention_defense.models.losses import Weights
from common.attacks import bim, corner_noise, fgsm, least_likely, pgd, r_step_ll, step_ll
from common.errors import UserError

Tensor = tf.Tensor
Attack = Callable[..., Tensor]
STOPPING: tuple[AttackName, ...] = ("pgd20", "margin20", "pgd100")
"""Those that may leave a picture where it first succeeds."""


class Training(NamedTuple):
    """What the adaptive attack knows of how its model was trained."""

    layer: str | None = None
    weights: Weights = Weights()
    sharpness: float = 10.0


def named(
    name: AttackName,
    model: keras.Model,
    *,
    eps: float,
    stop: bool = False,
    layer: str | None = None,
    training: Training = Training(),
    iou_key: float = 0.59513,
    seed: int = 0,
) -> Attack:
    """The attack `name` on `model`, in the L-inf ball of `eps`: a function of x, y and, where it draws, of `index`.

    The ball is that of the whole grey levels in `eps`: rounded to 8 bits, a picture of 8 bits stays in it. `layer` is
    where attacks on attention aim; the adaptive one aims where the `training` did.
    `iter_ll` is Step-LL in 10 steps; `margin20` raises the difference of logits in place of the cross-entropy; `pgd100`
    has 100 steps and 5 restarts, `adaptive` 40 and 3; `noise` is no attack. Steps are a quarter of `eps`, and an eighth
    in the last two. With `stop` PGD leaves a picture where it first succeeds: cheaper where only success counts, but
    such pictures have hardly crossed the border, and compare badly with those that took all steps.

    Errors: `UserError` for less than one grey level.
    """
    eps = whole_levels(eps)
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
    budget = twenty
    if name == "adaptive":
        budget, layer = {"eps": eps, "alpha": eps / 8, "steps": 40, "restarts": 3}, training.layer
    aim = training._replace(layer=layer)

    def of_attention(x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        return attention_attack(name, model, x, y, **budget, **aim._asdict(), iou_key=iou_key, seed=seed, index=index)

    return of_attention


def whole_levels(eps: float) -> float:
    """The largest radius of whole grey levels, in [0, 1], that is not above `eps`."""
    levels = math.floor(255 * eps + 1e-6)
    if levels < 1:
        raise UserError(f"eps: {255 * eps:.3g}/255 is less than one grey level, and changes no picture of 8 bits")
    return levels / 255
