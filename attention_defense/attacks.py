"""The attacks of this app by their names on the command line, each as `evaluation.robustness` wants it."""

from collections.abc import Callable
from functools import partial

import keras
import tensorflow as tf

from attention_defense.attention_attacks import attention_attack
from attention_defense.pictures import AttackName
from common.attacks import bim, corner_noise, fgsm, least_likely, pgd, r_step_ll, step_ll

Tensor = tf.Tensor
Attack = Callable[..., Tensor]


def named(
    name: AttackName,
    model: keras.Model,
    *,
    eps: float,
    layer: str | None = None,
    sharpness: float = 10.0,
    seed: int = 0,
) -> Attack:
    """The attack `name` on `model`, in the L-inf ball of `eps`: a function of x, y and, where it draws, of `index`.

    `iter_ll` is Step-LL in 10 steps; `margin20` raises the difference of logits in place of the cross-entropy; `pgd100`
    has 100 steps and 5 restarts; `noise` is no attack. Steps are an eighth of `eps` in `pgd100`, a quarter elsewhere.
    """
    iterated = {"eps": eps, "alpha": eps / 4, "steps": 20, "seed": seed}
    attacks: dict[str, Attack] = {
        "fgsm": partial(fgsm, model, eps=eps),
        "step_ll": lambda x, y: step_ll(model, x, eps=eps),
        "r_step_ll": lambda x, y, index: r_step_ll(model, x, eps=eps, seed=seed, index=index),
        "iter_ll": lambda x, y: bim(
            model, x, least_likely(model, tf.constant(x)), eps=eps, alpha=eps / 4, steps=10, targeted=True
        ),
        "pgd20": partial(pgd, model, **iterated, stop=True),
        "margin20": partial(pgd, model, **iterated, loss="margin", stop=True),
        "pgd100": partial(pgd, model, eps=eps, alpha=eps / 8, steps=100, restarts=5, stop=True, seed=seed),
        "noise": lambda x, y, index: corner_noise(x, eps=eps, seed=seed, index=index),
    }
    if name in attacks:
        return attacks[name]

    def of_attention(x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        return attention_attack(name, model, x, y, **iterated, layer=layer, sharpness=sharpness, index=index)

    return of_attention
