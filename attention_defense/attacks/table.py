"""The attacks of this app by their names on the command line, each as `evaluation.robustness` wants it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from attention_defense.attacks.attention import Kind, attention_attack
from attention_defense.attacks.names import AttackName
from attention_defense.models.losses import Weights
from common.attacks import autoattacked, fgsm, iter_ll, pgd, r_step_ll, random_sign_noise, step_ll
from common.attacks.autoattack import Version
from common.evaluation.quality import whole_levels
from common.evaluation.robustness import Entry

Tensor = tf.Tensor
Attack = Callable[..., Tensor]


class Training(NamedTuple):
    """What the adaptive attack knows of how its model was trained."""

    layer: str | None = None
    weights: Weights = Weights()
    sharpness: float = 10.0


class Listed(NamedTuple):
    """An attack by its name on the command line: `make`, of a model, a radius and settings; `dear`: it takes many times
    the gradients of the others; `control`: it looks at no model."""

    make: Callable[[keras.Model, float, "Settings"], Attack]
    dear: bool = False
    control: bool = False


class Settings(NamedTuple):
    """What attacks share: where they `stop`, the `layer` whose map they see, what is known of the model's `training`,
    the overlap at which `gated` ends, and the seed."""

    stop: bool = False
    layer: str | None = None
    training: Training = Training()
    iou_key: float = 0.59513
    seed: int = 0


def entry(name: AttackName, model: keras.Model, *, eps: float, n_dear: int | None = None, **settings: Any) -> Entry:
    """The attack `name` for an evaluation, on the first `n_dear` images if it is dear; arguments as of
    `make_attack`."""
    listed = ATTACKS[name]
    attack = make_attack(name, model, eps=eps, **settings)
    return Entry(name=name, attack=attack, eps=eps, control=listed.control, subset=n_dear if listed.dear else None)


def make_attack(name: AttackName, model: keras.Model, *, eps: float, **settings: Any) -> Attack:
    """The attack `name` on `model`, in the L-inf ball of `eps`, with `Settings` by name: for `attack_dataset`.

    The ball is that of the whole grey levels in `eps`: rounded to 8 bits, an image of 8 bits stays in it. `layer` is
    where attacks on attention aim; the adaptive one aims where the `training` did.
    `iter_ll` is Step-LL in 10 steps; `margin20` raises the difference of logits in place of the cross-entropy; `pgd100`
    has 100 steps and 5 restarts, `adaptive` 40 and 3; `noise` is no attack. Steps are a quarter of `eps`, and an eighth
    in the last two; `autoattack` and `autoattack_fast` find their own, and always stop. With `stop` an attack of
    several steps leaves an image where it is first misclassified: cheaper where only success counts, but such images
    have hardly crossed the border, and compare badly with those that took all steps.

    Errors: `UserError` for less than one grey level.
    """
    return ATTACKS[name].make(model, whole_levels(eps), Settings(**settings))


def _pgd(steps: int, quarters: float = 1.0, restarts: int = 1, loss: str = "ce") -> Callable:
    def make(model: keras.Model, eps: float, of: Settings) -> Attack:
        budget = {"eps": eps, "alpha": quarters * eps / 4, "steps": steps, "restarts": restarts}
        return partial(pgd, model, **budget, loss=loss, stop=of.stop, seed=of.seed)

    return make


def _on_attention(kind: Kind) -> Callable:
    def make(model: keras.Model, eps: float, of: Settings) -> Attack:
        budget = {"eps": eps, "alpha": eps / 4, "steps": 20}
        return _aimed(kind, model, budget, of.training._replace(layer=of.layer), of)

    return make


def _autoattack(version: Version) -> Callable:
    def make(model: keras.Model, eps: float, of: Settings) -> Attack:
        return partial(autoattacked, model, eps=eps, version=version, stop=True, seed=of.seed)

    return make


def _adaptive(model: keras.Model, eps: float, of: Settings) -> Attack:
    return _aimed("adaptive", model, {"eps": eps, "alpha": eps / 8, "steps": 40, "restarts": 3}, of.training, of)


def _aimed(kind: Kind, model: keras.Model, budget: dict[str, float], aim: Training, of: Settings) -> Attack:
    options = {**budget, **aim._asdict(), "iou_key": of.iou_key, "seed": of.seed, "stop": of.stop}
    return partial(attention_attack, model, kind=kind, **options)


ATTACKS: dict[AttackName, Listed] = {
    "fgsm": Listed(lambda model, eps, of: partial(fgsm, model, eps=eps)),
    "step_ll": Listed(lambda model, eps, of: partial(step_ll, model, eps=eps)),
    "r_step_ll": Listed(lambda model, eps, of: partial(r_step_ll, model, eps=eps, seed=of.seed)),
    "iter_ll": Listed(lambda model, eps, of: partial(iter_ll, model, eps=eps, alpha=eps / 4, steps=10)),
    "pgd20": Listed(_pgd(20)),
    "margin20": Listed(_pgd(20, loss="margin")),
    "pgd100": Listed(_pgd(100, quarters=0.5, restarts=5), dear=True),
    "attention": Listed(_on_attention("attention")),
    "displace": Listed(_on_attention("displace")),
    "gated": Listed(_on_attention("gated")),
    "adaptive": Listed(_adaptive, dear=True),
    "autoattack_fast": Listed(_autoattack("fast"), dear=True),
    "autoattack": Listed(_autoattack("standard"), dear=True),
    "noise": Listed(lambda model, eps, of: partial(random_sign_noise, model, eps=eps, seed=of.seed), control=True),
}
