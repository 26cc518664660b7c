"""What the attacks are measured against: plain NumPy formulas in double precision, and the checks they share.

Nothing here uses the attacks' own projections, rules or loop. A check is a function that raises `AssertionError`; the
tests call it on the suite, and once more on deliberately broken copies of the suite.
"""

from collections.abc import Callable
from functools import lru_cache

import keras
import numpy as np
import pytest

from common import attacks
from common.attacks import Attack, Result, at_success, bim, fgsm, mi_fgsm, pgd

LIMITS = {"linf": (1e-6, 0.0), "l2": (1e-7, 1e-5), "l1": (1e-6, 1e-4)}
"""Per norm the overshoot that float32 explains: absolute, relative to the budget (A1, A2)."""
SHAPES = {1: (12,), 2: (3, 4), 4: (2, 3, 2, 1)}
"""Shapes of an example by its rank."""
# Each rank is compiled anew: the default tier has that of images and trips.
each_rank = pytest.mark.parametrize(
    "rank", [rank if rank == 4 else pytest.param(rank, marks=pytest.mark.slow) for rank in SHAPES]
)


def search(objective, rule, threat_model, x, steps, *, selection=None, stop=False) -> Result:
    """The loop on parts that are there already, not compiled."""
    attack = Attack(
        objective=lambda model, inputs: objective,
        threat_model=lambda inputs: threat_model,
        update=lambda inputs, threat_model: rule,
        selection=selection,
        stop=at_success if stop else None,
    )
    return attacks.search(attack, None, {"x": x, "steps": steps})


def column(value: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.reshape(value, [-1] + [1] * (x.ndim - 1))


def norms(delta: np.ndarray, norm: str) -> np.ndarray:
    flat = np.abs(delta.reshape(len(delta), -1).astype(np.float64))
    return {"linf": flat.max(1), "l2": np.sqrt((flat**2).sum(1)), "l1": flat.sum(1)}[norm]


def bisect(fits: Callable[[float], bool], inside: float, outside: float) -> float:
    """The last value, coming from `inside`, at which `fits` holds."""
    for _ in range(200):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if fits(middle) else (inside, middle)
    return inside


def project(x: np.ndarray, x0: np.ndarray, eps: float, low: np.ndarray, high: np.ndarray, norm: str) -> np.ndarray:
    """Nearest point to one example `x` in the ball about `x0` and the box, by its KKT conditions and bisection."""
    shift, lower, upper = x - x0, low - x0, high - x0
    if norm == "linf":
        return x0 + np.clip(shift, np.maximum(lower, -eps), np.minimum(upper, eps))
    if norm == "l2":
        candidate, inside, outside = (lambda t: np.clip(t * shift, lower, upper)), 0.0, 1.0
    else:
        room = np.where(shift > 0, upper, -lower)
        candidate, inside, outside = (
            (lambda level: np.sign(shift) * np.clip(np.abs(shift) - level, 0, room)),
            np.abs(shift).max(),
            0.0,
        )
    fits = lambda value: norms(candidate(value)[None], norm)[0] <= eps  # noqa: E731
    return x0 + candidate(outside if fits(outside) else bisect(fits, inside, outside))


def smallest_budget(slope: np.ndarray, gap: float, room: np.ndarray, norm: str) -> float:
    """The least norm of u with slope . u = gap and 0 <= u <= room; `slope` is non-negative, one example, flat.

    Without a box (`room` infinite) this is the gap over the dual norm of the slope.
    """
    if norm == "linf":
        return bisect(lambda eps: slope @ np.minimum(eps, room) < gap, 0.0, 1e3)
    if norm == "l2":
        t = bisect(lambda t: slope @ np.minimum(t * slope, room) < gap, 0.0, 1e6)
        return float(np.linalg.norm(np.minimum(t * slope, room)))
    spent = 0.0
    for j in np.argsort(-slope):
        step = min(room[j], gap / slope[j])
        spent, gap = spent + step, gap - slope[j] * step
        if gap <= 0:
            return spent
    raise ValueError("out of reach inside the box")


class Perceptron:
    """x -> tanh(x W1 + b1) W2 + b2 in NumPy, and the same as a Keras model."""

    def __init__(self, shape: tuple[int, ...], classes: int = 3, hidden: int = 8, seed: int = 0):
        rng = np.random.default_rng(seed)
        size = int(np.prod(shape))
        self.w1, self.b1 = rng.normal(size=(size, hidden)) / np.sqrt(size) * 3, rng.normal(size=hidden)
        self.w2, self.b2 = rng.normal(size=(hidden, classes)), rng.normal(size=classes)
        self.model = keras.Sequential(
            [
                keras.Input(shape),
                keras.layers.Flatten(),
                keras.layers.Dense(hidden, activation="tanh"),
                keras.layers.Dense(classes),
            ]
        )
        self.model.set_weights([self.w1, self.b1, self.w2, self.b2])
        # The reference has the weights that the model has: float32 values.
        self.w1, self.b1, self.w2, self.b2 = (w.astype(np.float64) for w in self.model.get_weights())

    def logits(self, x: np.ndarray) -> np.ndarray:
        return np.tanh(x.reshape(len(x), -1) @ self.w1 + self.b1) @ self.w2 + self.b2

    def gradient(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Of the cross-entropy, by hand."""
        hidden = np.tanh(x.reshape(len(x), -1) @ self.w1 + self.b1)
        z = hidden @ self.w2 + self.b2
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(y)), y] -= 1
        return (((p @ self.w2.T) * (1 - hidden**2)) @ self.w1.T).reshape(x.shape)

    def data(self, batch: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Inputs, some on the ends of the box, with the model's own answers as labels."""
        rng = np.random.default_rng(seed)
        x = rng.random((batch, *self.model.input_shape[1:]), dtype=np.float32)
        x = np.where(rng.random(x.shape) < 0.15, np.round(x), x).astype(np.float32)
        return x, self.logits(x.astype(np.float64)).argmax(1).astype(np.int32)


@lru_cache
def perceptron(rank: int = 1) -> Perceptron:
    """The network for examples of that rank, one for all tests: an attack is compiled once for each model."""
    return Perceptron(SHAPES[rank], seed=rank)


def iterate(
    net: Perceptron, x: np.ndarray, y: np.ndarray, eps: float, alpha: float, steps: int, momentum: float | None = None
) -> np.ndarray:
    """BIM (Kurakin et al. 2017), or with `momentum` MI-FGSM (Dong et al. 2018): L-inf in [0, 1], float64."""
    clean = x.astype(np.float64)
    moved, velocity = clean, np.zeros_like(clean)
    for _ in range(steps):
        gradient = net.gradient(moved, y)
        if momentum is not None:
            velocity = momentum * velocity + gradient / np.abs(gradient).reshape(len(x), -1).mean(1).reshape(
                [-1] + [1] * (x.ndim - 1)
            )
            gradient = velocity
        moved = np.clip(moved + alpha * np.sign(gradient), clean - eps, clean + eps).clip(0, 1)
    return moved


@lru_cache
def linear_model(shape: tuple[int, ...], seed: int) -> tuple[keras.Model, np.ndarray, float]:
    """A two-class linear model, and the slope and offset of the second logit's lead over the first."""
    size = int(np.prod(shape))
    model = keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(2)])
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(size, 2)).astype(np.float32)
    # The border runs near the middle of the box, so that every example can reach it.
    bias = np.array([(weight[:, 1] - weight[:, 0]).sum() / 2, 0], np.float32)
    model.set_weights([weight, bias])
    weight, bias = weight.astype(np.float64), bias.astype(np.float64)
    return model, weight[:, 1] - weight[:, 0], bias[1] - bias[0]


def linear_task(shape: tuple[int, ...], batch: int, norm: str, boxed: bool, seed: int = 0):
    """Model, x, y, box and the exact smallest budget of each example."""
    model, slope, offset = linear_model(shape, seed)
    rng = np.random.default_rng(seed + batch)
    x = rng.random((batch, slope.size)).astype(np.float32)
    # On the ends of the box, where half of all moves are barred.
    x = np.where(rng.random(x.shape) < 0.4, np.round(x), x).astype(np.float32)
    low, high = (0.0, 1.0) if boxed else (-1e3, 1e3)
    lead = x.astype(np.float64) @ slope + offset
    y = (lead > 0).astype(np.int32)
    best = []
    for row, gap in zip(x.astype(np.float64), lead, strict=True):
        room = np.where(-np.sign(gap) * slope > 0, high - row, row - low)
        best.append(smallest_budget(np.abs(slope), abs(gap), room, norm))
    return model, x.reshape(batch, *shape), y, (low, high), np.array(best)


def fooled(model: keras.Model, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.argmax(model(x, training=False), axis=1) != y


def check_inside(found, x, eps, norm: str, mask=None, low=0.0, high=1.0) -> None:
    """A1-A5: finite, in the box, in the ball (`eps` per example or per coordinate), nothing moved under the mask."""
    found = np.asarray(found)
    assert found.shape == x.shape
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert found.min() >= np.float32(low)
    assert found.max() <= np.float32(high)
    absolute, relative = LIMITS[norm]
    delta = found.astype(np.float64) - x
    size = np.abs(delta) if norm == "linf" else norms(delta, norm)
    assert (size <= eps * (1 + relative) + absolute).all()
    if mask is not None:
        unmoved = np.broadcast_to(mask, x.shape) == 0
        assert (found[unmoved] == x[unmoved]).all()


def check_budget() -> None:
    """Steps far larger than the budget still end inside it (A1-A4)."""
    net = perceptron()
    x, y = net.data(6)
    eps = np.linspace(0.05, 0.3, 6, dtype=np.float32)
    for norm in LIMITS:
        found = pgd(net.model, x, y, eps=eps, alpha=1.0, steps=3, norm=norm)
        check_inside(found, x, column(eps, x) if norm == "linf" else eps, norm)


def check_oracle() -> None:
    """A little more than the smallest budget fools a linear model (A8)."""
    model, x, y, (low, high), best = linear_task((12,), 8, "linf", boxed=True)
    found = pgd(model, x, y, eps=1.02 * best, alpha=best / 2, steps=6, random_start=False, low=low, high=high)
    assert fooled(model, found, y).all()


def check_references() -> None:
    """A10: BIM and MI-FGSM are the papers' iterations."""
    net = perceptron()
    x, y = net.data(16)
    budget = {"eps": 0.15, "alpha": 0.02, "steps": 12}
    np.testing.assert_allclose(bim(net.model, x, y, **budget), iterate(net, x, y, **budget), atol=1e-6, rtol=0)
    for momentum in (0.5, 1.0):
        found = mi_fgsm(net.model, x, y, **budget, momentum=momentum)
        np.testing.assert_allclose(found, iterate(net, x, y, **budget, momentum=momentum), atol=1e-6, rtol=0)


def check_last_iterate() -> None:
    """One step that keeps the best is one step: the iterate behind the last gradient is scored."""
    net = perceptron()
    x, y = net.data(8)
    found = pgd(net.model, x, y, eps=0.05, alpha=0.05, steps=1, random_start=False, keep="best")
    np.testing.assert_array_equal(found, fgsm(net.model, x, y, eps=0.05))


def check_alone() -> None:
    """A13: an example's answer does not depend on the batch around it; to the bit, where it depends on signs alone."""
    net = perceptron()
    x, y = net.data(5)
    for norm, eps in (("linf", 0.1), ("l2", 0.3), ("l1", 0.6)):
        attack = {"eps": eps, "alpha": eps / 3, "steps": 5, "norm": norm, "seed": 11}
        together = pgd(net.model, x, y, **attack).numpy()
        for i in range(len(x)):
            alone = pgd(net.model, x[i : i + 1], y[i : i + 1], **attack, index=[i]).numpy()[0]
            np.testing.assert_allclose(alone, together[i], atol=0 if norm == "linf" else 1e-6, rtol=0)


def check_restarts() -> None:
    """More restarts never lose: a success stays one, and among failures the loss does not fall."""
    net = perceptron()
    x, y = net.data(64)
    lost, before, loss = False, None, None
    for restarts in (1, 2, 4, 8):
        found = (
            pgd(net.model, x, y, eps=0.04, alpha=0.02, steps=2, restarts=restarts, seed=5).numpy().astype(np.float64)
        )
        z = net.logits(found)
        done = z.argmax(1) != y
        now = np.log(np.exp(z - z[np.arange(len(y)), y][:, None]).sum(1))
        if before is not None:
            lost |= bool((before & ~done).any() or (now < loss - 1e-5)[before == done].any())
        before, loss = done, now
    assert not lost
