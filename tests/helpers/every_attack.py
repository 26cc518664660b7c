"""Every attack value of the suite, the apps' included, in one list: each bound to a tiny problem of its own."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from adv_lock.attacks.targeted import TARGETED, Resized, Towards
from attention_defense.attacks.attention import KINDS, attention_attack
from attention_defense.models.networks import NETWORKS
from common import attacks
from common.attacks import Bound
from common.training.methods import APART
from mobility_humid.attacks.trips import ATTACKS as TRIP_ATTACKS
from mobility_humid.attacks.trips import moving_inputs, replace_rows, snap, trip_attack
from mobility_humid.training.fast_st_fgsm import fast_crafting, pgd_crafting
from multimedia_recsys.attacks.images import insa
from multimedia_recsys.models.recommenders import FEATURES, Bpr
from tests.helpers.trip_toys import GRID, MODELS, answers, random_samples, tiny_model

COUNT = 11
EPS = {"linf": 0.1, "l2": 0.4, "l1": 0.8}


class Case(NamedTuple):
    """`bound`: the attack on all examples. `norm`, `eps`: the ball that what it returns is in, None for the box alone.
    `still`: inputs with which nothing moves. `drawn`: whether it begins at random, or is nothing but that. `wrong`:
    what it returns -> who is a success (n,) bool, where it aims at a label. `alone`: whether an example's result is its
    own, whatever is beside it. `fuses`: whether XLA has all of its operations."""

    bound: Bound
    norm: str | None = None
    eps: float = 0.0
    still: Mapping[str, Any] = MappingProxyType({"eps": 0.0, "alpha": 0.0})
    drawn: bool = False
    wrong: Callable[[np.ndarray], np.ndarray] | None = None
    alone: bool = True
    fuses: bool = True

    @property
    def clean(self) -> np.ndarray:
        """What the attack changes a part of."""
        return np.asarray(self.bound.inputs["x" if self.bound.finish is None else "sample"])

    def whole(self, found: np.ndarray) -> np.ndarray:
        """What a caller gets for what the attack has found for all examples."""
        return np.asarray(found if self.bound.finish is None else self.bound.finish(found))


@lru_cache
def classifier() -> keras.Model:
    """Dense, with averages of its own; all of its layers are small."""
    return _dense(4, seed=3)


@lru_cache
def embedding() -> keras.Model:
    return _dense(5, seed=4)


def _dense(units: int, seed: int) -> keras.Model:
    draw = [keras.initializers.GlorotUniform(seed + k) for k in range(2)]
    layers = [
        keras.layers.Flatten(),
        keras.layers.Dense(16, "tanh", kernel_initializer=draw[0]),
        keras.layers.BatchNormalization(),
        keras.layers.Dense(units, kernel_initializer=draw[1]),
    ]
    return keras.Sequential([keras.Input((2, 3, 2)), *layers])


def images(shape: tuple[int, ...] = (2, 3, 2), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.2, 0.8, (COUNT, *shape)).astype(np.float32)


def _labels(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """What the model answers, and of two examples something else."""
    z = np.asarray(model(x, training=False))
    y = z.argmax(axis=1).astype(np.int32)
    y[::6] = (y[::6] + 1) % z.shape[1]
    return y


def _on_classes(attack: Callable, ball: str | None = None, *, drawn: bool = False, still=None, **options) -> Case:
    model, x = classifier(), images()
    y = _labels(model, x)
    given = (model, x, y) if attack.labelled else (model, x)
    bound = attack.bind(*given, **options)
    still = still or dict.fromkeys({"eps", "alpha", "start_eps"} & set(bound.inputs), 0.0)
    wrong = (lambda found: np.asarray(model(found)).argmax(1) != y) if attack.labelled else None
    return Case(bound, ball, options.get("eps", 0.0), still, drawn, wrong)


def _on_embeddings(attack: Callable, *, drawn: bool = False, **options) -> Case:
    model, x = embedding(), images()
    targets = np.asarray(model(images(seed=1), training=False))
    return Case(attack.bind(model, x, targets, **options), "linf", options["eps"], drawn=drawn)


def _of_attention(kind: str) -> Case:
    model = _attended()
    x = images((16, 16, 3))
    y = _labels(model, x)
    options = {"eps": 0.1, "alpha": 0.03, "steps": 4}
    bound = attention_attack.bind(model, x, y, kind=kind, restarts=2 if kind == "adaptive" else 1, **options)
    return Case(
        bound, "linf", 0.1, drawn=kind == "adaptive", wrong=lambda found: np.asarray(model(found)).argmax(1) != y
    )


@lru_cache
def _attended() -> keras.Model:
    return NETWORKS["cifarnet"]((16, 16, 3), 4, width=8, seed=1)


def _lock(shape: tuple[int, ...]) -> Case:
    """On images of the base classifier's own size, or of another, which it sees resized."""
    base, x = _attended(), images(shape)
    own = shape == (16, 16, 3)
    attack = replace(TARGETED, objective=Towards(Resized((16, 16), 3)), fixed_size=own)
    target = np.arange(COUNT, dtype=np.int32) % 4
    bound = Bound(attack, base, {"x": x, "target": target, "eps": 0.5, "alpha": 0.1, "steps": 4})
    # XLA has no gradient of resizing with antialiasing.
    return Case(bound, "l2", 0.5, fuses=own)


def _insider() -> Case:
    model, x = _attended(), images((16, 16, 3))
    width = model.layers[-2].output.shape[-1]
    direction = tf.random.stateless_normal([width], [0, 5])
    return Case(insa.bind(model, x, direction=direction, eps=tf.constant(0.1), steps=4), "linf", 0.1)


def _of_features() -> Case:
    """AMR: rows of features, which triplets share."""
    model = Bpr(users=6, items=COUNT, features=5, factors=3, visual_factors=4, seed=1)
    features = np.random.default_rng(2).normal(size=(COUNT, 5)).astype(np.float32)
    rng = np.random.default_rng(3)
    user, first, second = rng.integers(0, [[6], [COUNT], [COUNT]], (3, COUNT)).astype(np.int32)
    triplets = {"user": user, "positive": first, "negative": second, "first": first, "second": second}
    inputs = {"x": features, "low": -np.inf, "high": np.inf, "eps": 0.7, "alpha": 0.7, "steps": 1}
    return Case(Bound(FEATURES, model, inputs | triplets), "l2", 0.7, alone=False)


def _on_trips(name: str) -> Case:
    layout, model = MODELS["dense"][1], tiny_model("dense")
    x = random_samples(layout, COUNT, 5)
    y = answers(model, x)
    options = {"eta": 2, "steps": 6, "radius": 6.0, "restarts": 2, "search_steps": 3}
    bound = trip_attack.bind(model, x, y, name=name, layout=layout, grid=GRID, **options)
    of = TRIP_ATTACKS[name]
    norm, eps = (of.norm, 6.0) if of.in_radius else ("linf", 2.0)
    still = {"steps": 0} if of.of_cw else {"eps": 0.0, "alpha": 0.0}
    case = Case(bound, norm, eps, still, drawn=name.startswith(("strong", "noise", "apgd")))
    return case._replace(wrong=lambda found: answers(model, case.whole(found)) != y)


def _crafted(make: Callable) -> Case:
    """What trips are trained on."""
    layout, model = MODELS["dense"][1], tiny_model("dense")
    x = random_samples(layout, COUNT, 6)
    y = answers(model, x)
    inputs = moving_inputs(layout, x, y, eps=2.0, alpha=1.0, steps=4, drop=0.2)

    def wrong(found: np.ndarray) -> np.ndarray:
        return answers(model, replace_rows(layout, x, snap(tf.constant(found))).numpy()) != y

    return Case(Bound(make(layout, GRID), model, inputs), "linf", 2.0, drawn=True, wrong=wrong)


def _apart() -> Case:
    return Case(
        Bound(APART, classifier(), {"x": images(), "eps": 0.1, "alpha": 0.03, "steps": 4}), "linf", 0.1, drawn=True
    )


_STEPS = {"alpha": 0.04, "steps": 5}
_SEARCH = {"steps": 8, "search_steps": 3}
CASES: dict[str, Callable[[], Case]] = {
    **{f"fgsm_{n}": partial(_on_classes, attacks.fgsm, n, norm=n, eps=e) for n, e in EPS.items()},
    **{f"bim_{n}": partial(_on_classes, attacks.bim, n, norm=n, eps=e, **_STEPS) for n, e in EPS.items()},
    **{f"mi_fgsm_{n}": partial(_on_classes, attacks.mi_fgsm, n, norm=n, eps=e, **_STEPS) for n, e in EPS.items()},
    **{f"pgd_{n}": partial(_on_classes, attacks.pgd, n, norm=n, eps=e, **_STEPS, drawn=True) for n, e in EPS.items()},
    "bim_stop": partial(_on_classes, attacks.bim, "linf", eps=0.1, **_STEPS, stop=True),
    "pgd_margin": partial(_on_classes, attacks.pgd, "linf", eps=0.1, **_STEPS, loss="margin", keep="best", drawn=True),
    "pgd_restarts": partial(_on_classes, attacks.pgd, "linf", eps=0.1, **_STEPS, restarts=3, stop=True, drawn=True),
    **{f"apgd_{n}": partial(_on_classes, attacks.apgd, n, norm=n, eps=e, steps=8, drawn=True) for n, e in EPS.items()},
    "apgd_t": partial(_on_classes, attacks.apgd, "linf", eps=0.1, steps=5, loss="dlr", targets=2, drawn=True),
    "apgd_mean": partial(_on_classes, attacks.apgd, "linf", eps=0.1, steps=4, draws=3, drawn=True),
    **{f"fab_{n}": partial(_on_classes, attacks.fab, norm=n, steps=6, targets=2, still={"steps": 0}) for n in EPS},
    "fab_nearest": partial(
        _on_classes, attacks.fab, norm="l2", steps=3, targets=2, one_by_one=False, restarts=2, still={"steps": 0}
    ),
    **{f"deepfool_{n}": partial(_on_classes, attacks.deepfool, norm=n, still={"steps": 0}) for n in ("linf", "l2")},
    "ead": partial(_on_classes, attacks.ead, **_SEARCH, constant=1.0, still={"steps": 0}),
    **{
        f"square_{n}": partial(_on_classes, attacks.square, n, norm=n, eps=e, steps=9, drawn=True)
        for n, e in EPS.items()
    },
    "step_ll": partial(_on_classes, attacks.step_ll, "linf", eps=0.1),
    "r_step_ll": partial(_on_classes, attacks.r_step_ll, "linf", eps=0.1, drawn=True),
    "iter_ll": partial(_on_classes, attacks.iter_ll, "linf", eps=0.1, **_STEPS),
    "noise": partial(_on_classes, attacks.random_sign_noise, "linf", eps=0.1, drawn=True),
    "fftgsm": partial(_on_embeddings, attacks.fftgsm, eps=0.1),
    "iftgsm": partial(_on_embeddings, attacks.iftgsm, eps=0.1, **_STEPS),
    "mter": partial(_on_embeddings, attacks.iftgsm, eps=0.1, **_STEPS, threshold=0.9),
    "feature_pgd": partial(_on_embeddings, attacks.feature_pgd, eps=0.1, **_STEPS, restarts=2, drawn=True),
    "trades": _apart,
    "ddn": partial(_on_classes, attacks.ddn, steps=8, still={"steps": 0}),
    **{f"fmn_{n}": partial(_on_classes, attacks.fmn, norm=n, steps=7, alpha=0.3, still={"steps": 0}) for n in EPS},
    "cw_l2": partial(_on_classes, attacks.cw_l2, **_SEARCH, still={"steps": 0}),
    "cw_l0": partial(_on_classes, attacks.cw_l0, **_SEARCH, still={"steps": 0}),
    "sigma_zero": partial(_on_classes, attacks.sigma_zero, steps=8, still={"steps": 0}),
    **{kind: partial(_of_attention, kind) for kind in KINDS},
    "lock": partial(_lock, (16, 16, 3)),
    "lock_resized": partial(_lock, (12, 20, 3)),
    "insa": _insider,
    "amr": _of_features,
    **{f"trips_{name}": partial(_on_trips, name) for name in TRIP_ATTACKS},
    "fast_st_fgsm": partial(_crafted, fast_crafting),
    "pgd_on_trips": partial(_crafted, pgd_crafting),
}


@lru_cache
def case(name: str) -> Case:
    """One for all tests of a process, so that its graph is traced once."""
    return CASES[name]()
