"""Whether to believe what attacks leave: questions with a number and a limit each (Carlini et al. 2019, "On evaluating
adversarial robustness"; Pintor et al. 2022, "Indicators of attack failure").
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from common.attacks import RandomModel, apgd, attack_dataset, autoattack, logits_of, pgd, square
from common.attacks.budget import Norm
from common.attacks.dataset import of_rows
from common.evaluation import statistics
from common.evaluation.statistics import Estimate
from common.evaluation.views import DRAWS, Look, View

Model = Callable[[tf.Tensor], tf.Tensor]

CURVE = (0.125, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0)
"""Shares of the budget at which accuracy is looked at."""
FEW = 5
"""Draws over which the checks climb on the mean of a model that draws."""

QUERIES, NOISES = 1000, 1000
"""Steps of random search, and draws of noise, that gradients must not be behind."""

# Differences of shares that are as large as what is allowed.
_ROUNDING = 1e-9
# So many examples are shown noise.
_NOISY = 16


class Check(NamedTuple):
    """A question to an evaluation: whether it `passed`, None where it does not apply, the number and what was wanted of
    it. `note`: why it does not apply, or what else there is to say."""

    name: str
    asks: str
    passed: bool | None
    value: float | None = None
    wanted: str = ""
    note: str = ""


class Scene(NamedTuple):
    """What the checks that attack share: the `view` of the model, examples `x` (n, ...) that it answers rightly, their
    labels, and the threat model. `failed`, x, rows -> (n,) the share of wrong answers of the defence itself."""

    view: View
    x: np.ndarray
    y: np.ndarray
    failed: Callable[[np.ndarray, np.ndarray], np.ndarray]
    eps: float
    norm: Norm
    low: float
    high: float
    seed: int
    batch_size: int

    @property
    def draws(self) -> bool:
        """Whether the model draws."""
        return isinstance(self.view.model, RandomModel)

    def first(self, count: int) -> "Scene":
        """The scene with its first `count` examples."""
        return self._replace(x=self.x[:count], y=self.y[:count])

    @property
    def shared(self) -> dict[str, Any]:
        """What attacks are told of the threat model."""
        return {"norm": self.norm, "low": self.low, "high": self.high, "seed": self.seed}

    def stands(self, attack: Callable) -> np.ndarray:
        """Which examples an attack leaves, bool (n,), without rounding to 8 bits."""
        return self.failed(self.found(attack), np.arange(len(self.x))) < 0.5

    def found(self, attack: Callable) -> np.ndarray:
        """What an attack finds, (n, ...)."""
        return attack_dataset(attack, self.x, self.y, batch_size=self.batch_size).x

    def climb(self, **options: Any) -> Callable:
        """APGD on the margin of logits, on the mean of draws where the model draws."""
        options = {"eps": self.eps, "loss": "margin", "steps": 20} | options
        return partial(apgd, self.view.model, draws=FEW if self.draws else 1, **self.shared, **options)

    @property
    def whole_box(self) -> float:
        """A radius in which everything is."""
        size = self.high - self.low
        order = {"linf": 0.0, "l2": 0.5, "l1": 1.0}[self.norm]
        return float(size * np.prod(self.x.shape[1:]) ** order)


def iterated(union: float, single: float, count: int) -> Check:
    """B1, of the accuracies that iterated attacks together, and that a single step, leave of `count` examples."""
    return Check(
        "B1",
        "do iterated attacks find what one step finds?",
        union <= single + 1 / count + _ROUNDING,
        union - single,
        "<= 1/n",
    )


def budgets(scene: Scene, classes: int) -> tuple[list[Check], dict[float, Estimate]]:
    """B2 and B3, and accuracy among the examples by radius."""
    stands = {scene.eps * share: scene.stands(scene.climb(eps=scene.eps * share)) for share in CURVE}
    at = {radius: statistics.rate(stood, None) for radius, stood in stands.items()}
    radii = sorted(at)
    rises = [at[b].value - at[a].value for a, b in itertools.pairwise(radii)]
    step = 1 / len(scene.x)
    # Twice: APGD steps of an eighth of the box may jump over what is near.
    whole = {steps: scene.stands(scene.climb(eps=scene.whole_box, steps=steps)) for steps in (20, 100)}
    unbounded = statistics.rate(whole[20] & whole[100], None)
    left = unbounded.value
    chance = 1 / classes
    return [
        Check("B2", "does accuracy fall with the budget?", max(rises) <= step + _ROUNDING, max(rises), "<= 1/n"),
        Check("B3", "does nothing stand without a bound?", left <= chance, left, f"<= {chance:.3g}, chance"),
    ], at | {scene.whole_box: unbounded}


def more_steps(scene: Scene) -> Check:
    """B4."""
    asks = "do twice the steps change nothing?"
    if scene.draws:
        # Paths of two lengths differ by their draws alone.
        few, many = (float(scene.stands(scene.climb(steps=steps)).mean()) for steps in (10, 20))
        return Check("B4", asks, few - many <= 0.05 + _ROUNDING, few - many, "<= 0.05, a model that draws")
    run = {"eps": scene.eps, "alpha": scene.eps / 10, "loss": "margin", "keep": "best", "random_start": False}
    run |= {"norm": scene.norm, "low": scene.low, "high": scene.high}
    found = {steps: scene.found(partial(pgd, scene.view.model, steps=steps, **run)) for steps in (40, 50, 100)}
    stood = {steps: float((scene.failed(x, np.arange(len(x))) < 0.5).mean()) for steps, x in found.items()}
    before, late, last = (_margins(scene, x).mean() for x in (scene.x, found[40], found[50]))
    moves = float((last - late) / (last - before)) if last > before else 0.0
    change = stood[50] - stood[100]
    # One example of few is more than a point.
    limit = max(0.01, 1 / len(scene.x))
    return Check(
        "B4", asks, change <= limit + _ROUNDING and moves <= 0.05, change, f"<= {limit:.3g}",
        f"the last 10 of 50 steps make {moves:.1%} of the gain (wanted: at most 5 %)",
    )  # fmt: skip


def more_restarts(scene: Scene) -> Check:
    """B5."""
    stood = np.ones(len(scene.x), bool)
    for restarts in (3, 5):
        # The first three of five are those three, so who fell to them need not be met again.
        some = np.flatnonzero(stood)
        part = scene._replace(x=scene.x[some], y=scene.y[some], failed=lambda x, rows: scene.failed(x, some[rows]))  # noqa: B023
        attack = of_rows(scene.climb(restarts=restarts, steps=50), some, len(stood))
        stood[some] &= part.stands(attack) if len(some) else stood[some]
        if restarts == 3:
            three = float(stood.mean())
    five, limit = float(stood.mean()), max(0.005, 1 / len(scene.x))
    return Check(
        "B5",
        "do the last two of five restarts add nothing?",
        three - five <= limit + _ROUNDING,
        three - five,
        f"<= {limit:.3g}",
    )


def blind_search(scene: Scene, left: np.ndarray, source: Model | None = None) -> tuple[Check, np.ndarray]:
    """B6: what random search, noise and the examples of another model, `source`, break of the rows `left` (m,) that
    white-box attacks leave; and the best that they find for those, (m, ...)."""
    asks, total = "do random search, noise and transfer find nothing that gradients miss?", len(scene.x)
    rows = scene._replace(x=scene.x[left], y=scene.y[left])
    best, broken, noisy, said = rows.x.copy(), np.zeros(len(left), bool), 0, []
    if not len(left):
        return Check("B6", asks, True, 0.0, "<= 0.002", "nothing was left"), best
    tried: dict[str, Callable] = {}
    if scene.norm == "linf" or scene.x.ndim == 4:
        tried["random search"] = partial(square, scene.view.model, eps=scene.eps, steps=QUERIES, **scene.shared)
    if source is not None:
        tried["transfer"] = partial(apgd, source, eps=scene.eps, loss="margin", stop=False, **scene.shared)
    for name, attack in tried.items():
        x = rows.found(attack)
        hit = scene.failed(x, left) >= 0.5
        best[hit & ~broken], broken = x[hit & ~broken], broken | hit
        said.append(f"{name}: {int(hit.sum())}")
    some = left[:_NOISY]
    for place, row in enumerate(some):
        x = _noise(scene, scene.x[row], int(row))
        lucky = np.flatnonzero(scene.failed(x, np.full(len(x), row)) >= 0.5)
        if len(lucky) and not broken[place]:
            best[place], broken[place] = x[lucky[0]], True
        noisy += bool(len(lucky))
    said.append(f"noise, {NOISES} draws on {len(some)}: {noisy}")
    if source is None:
        said.append("no other model was given for transfer")
    value = float(broken.sum() / total)
    # Of a model that draws some are now right, now wrong.
    limit = 0.05 if scene.draws else 0.002
    return Check("B6", asks, value <= limit, value, f"<= {limit}", "; ".join(said)), best


def slopes(look: Look) -> Check:
    """B7."""
    found, asks = look.slopes, "do finite differences agree with the gradient?"
    if found.missing:
        return Check("B7", asks, False, 0.0, "correlation >= 0.99", "there is no gradient")
    if found.correlation is None:
        why = "the model draws" if look.differ else "half precision rounds them" if found.half else "nothing moves"
        passed = None if look.differ or found.half else False
        return Check("B7", asks, passed, None, "correlation >= 0.99", why)
    good = found.correlation >= 0.99 and found.error <= 0.1
    note = f"relative error {found.error:.3f} (wanted: at most 0.1)"
    return Check("B7", asks, good, found.correlation, "correlation >= 0.99", note)


def logits(look: Look) -> Check:
    """B8."""
    return Check("B8", "does the model show logits?", not look.probabilities, float(look.probabilities), "0")


def repeats(look: Look) -> Check:
    """B9."""
    note = f"judged over {DRAWS} draws, attacked on their mean" if look.differ else ""
    return Check("B9", "are two forward passes equal in every bit?", not look.differ, float(look.differ), "0", note)


def zero_gradients(look: Look) -> Check:
    """B10."""
    value = look.slopes.zero
    note = "" if value <= 0.01 else f"of the margin of logits: {look.slopes.flat:.3f}"
    return Check("B10", "has the cross-entropy a gradient?", value < 0.01, value, "< 0.01 of rows are zero", note)


def canary(scene: Scene, left: np.ndarray) -> Check:
    """B11: a model that only has its logits times 100 is as weak as before, when `left` (n,) bool stood."""
    asks, wanted = "does a model with logits times 100 look no better?", "<= 0.01"
    if not scene.view.exact or scene.draws:
        return Check("B11", asks, None, None, wanted, "the model draws, or is imitated")
    shown = logits_of(scene.view.model)
    options = {"norm": scene.norm, "low": scene.low, "high": scene.high, "seed": scene.seed}
    found = autoattack(lambda x: 100.0 * shown(x), scene.x, scene.y, eps=scene.eps, version="fast", **options)
    rise, limit = float(found.robust.mean() - left.mean()), max(0.01, 1 / len(scene.x))
    return Check("B11", asks, rise <= limit + _ROUNDING, rise, f"<= {limit:.3g}")


def silent(scene: Scene) -> Check:
    """B12: an iterate that succeeded is what the attack returns."""
    asks = "is every success on the way returned?"
    if scene.draws:
        return Check("B12", asks, None, None, "0", "the model draws")
    first, last = (scene.stands(scene.climb(stop=stop)) for stop in (True, False))
    value = int((~first & last).sum())
    return Check("B12", asks, value == 0, float(value), "0")


def _noise(scene: Scene, x: np.ndarray, row: int) -> np.ndarray:
    """Points on the surface of the ball of one example, in random directions, clipped to the box: (NOISES, ...)."""
    rng = np.random.default_rng([scene.seed, row])
    shape = (NOISES, *x.shape)
    if scene.norm == "linf":
        shift = rng.choice(np.float32([-1, 1]), shape)
    else:
        shift = rng.normal(size=shape) if scene.norm == "l2" else rng.laplace(size=shape)
        order = 2 if scene.norm == "l2" else 1
        size = np.linalg.norm(shift.reshape(NOISES, -1), ord=order, axis=1)
        shift /= size.reshape(-1, *[1] * x.ndim)
    return np.clip(x + scene.eps * shift, scene.low, scene.high).astype(np.float32)


def _margins(scene: Scene, x: np.ndarray) -> np.ndarray:
    """By how much another class leads, (n,)."""
    z = np.concatenate(
        [
            logits_of(scene.view.model)(tf.constant(x[i : i + scene.batch_size]))
            for i in range(0, len(x), scene.batch_size)
        ]
    )
    own = z[np.arange(len(z)), scene.y]
    others = np.where(np.arange(z.shape[1]) == scene.y[:, None], -np.inf, z)
    return others.max(axis=1) - own
