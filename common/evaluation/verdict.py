"""A verdict on a classifier: what attacks leave of it, an upper bound on what stands, and whether to believe that.

found = judge(model, x, y, eps=8 / 255)
print(found.sentence)
for check in found.checks:
    print(check)
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from common.attacks import (
    AttackResult,
    apgd,
    attack_dataset,
    autoattack,
    pgd,
    square,
)
from common.attacks.apgd import auto_pgd
from common.attacks.autoattack import Version
from common.attacks.budget import Norm
from common.attacks.dataset import of_rows
from common.errors import UserError
from common.evaluation import checks, read_out, statistics, views
from common.evaluation.checks import Check, Scene
from common.evaluation.detectors import Guarded, past_detector
from common.evaluation.facts import PGD, QUICK, SINGLE, doubts_of, percent, sentence_of
from common.evaluation.pool import Pool, Tried, rejected_by
from common.evaluation.quality import whole_levels
from common.evaluation.shards import Shards
from common.evaluation.statistics import Estimate
from common.evaluation.views import DRAWS, Look, Mechanism, View

Model = Callable[[tf.Tensor], tf.Tensor]

FIRST, SOME, PLANTED = 64, 64, 128
"""Examples of the first bound, of the checks that attack anew, and of the planted points."""
MISLED = 0.08
"""Of PGD-50, this much more than all attacks leave is no chance: the cross-entropy leads elsewhere."""


class Verdict(NamedTuple):
    """What attacks leave of a classifier within a radius, and what speaks against believing it.

    `clean`: answered rightly, and accepted where there is a detector, whose `false_positives` are the clean examples
    that it rejects. `robust`: so too whatever the attacks did, an upper bound on what stands; `first`: the bound of the
    first seconds. `curve`: accuracy among what is right without attack, by radius, of a short attack on a few.

    `x` (N, ...): the examples as they are stored, uint8 for images, else float32; `adversarial`: where `broken` (N,)
    bool, an adversarial one, else the clean one; `broken_by` (N,): the place in `tried` of the attack that found it, -1
    for none. `share` (N,): of the answers to `adversarial` those that are right, of one or of so many `draws`.
    """

    norm: Norm
    eps: float
    clean: Estimate
    robust: Estimate
    first: Estimate
    false_positives: Estimate | None
    tried: tuple[Tried, ...]
    curve: Mapping[float, Estimate]
    checks: tuple[Check, ...]
    mechanism: Mechanism
    layers: tuple[str, ...]
    climbed: tuple[str, ...]
    x: np.ndarray
    y: np.ndarray
    box: tuple[float, float]
    adversarial: np.ndarray
    broken: np.ndarray
    broken_by: np.ndarray
    share: np.ndarray
    draws: int
    seconds: float
    left_out: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the checks that failed."""
        return tuple(check.name for check in self.checks if check.passed is False)

    @property
    def facts(self) -> dict[str, Any]:
        """What was measured, as plain numbers and texts, without the examples."""
        tried = [step._asdict() | {"accuracy": step.accuracy and step.accuracy._asdict()} for step in self.tried]
        return {
            "norm": self.norm,
            "eps": float(self.eps),
            "eight_bit": self.x.dtype == np.uint8,
            "clean": self.clean._asdict(),
            "robust": self.robust._asdict(),
            "first": self.first._asdict(),
            "false_positives": self.false_positives and self.false_positives._asdict(),
            "tried": tried,
            "curve": [[radius, accuracy._asdict()] for radius, accuracy in self.curve.items()],
            "checks": [check._asdict() for check in self.checks],
            "mechanism": self.mechanism,
            "layers": list(self.layers),
            "climbed": list(self.climbed),
            "left_out": list(self.left_out),
            "draws": self.draws,
            "seconds": round(self.seconds, 1),
        }

    @property
    def sentence(self) -> str:
        """What was run and what it left, and how far to believe it."""
        return sentence_of(self.facts)

    @property
    def inconclusive(self) -> bool:
        """Whether the bound may be far above what stands."""
        return bool(doubts_of(self.facts))


def judge(
    model: Model,
    x: np.ndarray,
    y: np.ndarray,
    *,
    eps: float,
    norm: Norm = "linf",
    version: Version = "fast",
    detector: Model | None = None,
    source: Model | None = None,
    eight_bit: bool | None = None,
    planted: int = PLANTED,
    low: float = 0.0,
    high: float = 1.0,
    seed: int = 0,
    batch_size: int = 256,
    state: Path | None = None,
    shards: Shards = Shards(),
    progress: bool = False,
    log: Callable[[str], None] | None = None,
) -> Verdict:
    """Attack the classifier `model`, x (B, ...) -> logits (B, classes), on `x` (N, ...), 8-bit or float in [`low`,
    `high`], with labels `y` (N,), within `eps`, and check whether what is left can be believed.

    A look at the model comes first: what hides its slopes is gone around (`views`), a model that draws is judged over
    20 draws and attacked on their mean. Then a first bound on a few examples, one step, PGD-50, AutoAttack in its
    `version`, and the checks B1 to B16, those that attack anew on the first of the examples, points planted on
    `planted` of them. `detector`, x -> (B,) or (B, 1), rejects where it is above 0: a success is then wrong and
    accepted. `source`: another model of the same classes, for transfer. With `eight_bit`, by default for images in
    [0, 1], adversarial examples are those that a file of 8 bits holds. `state`, an `.npz`, is what an
    interrupted AutoAttack goes on from. Of several workers (`shards`) each attacks its part, and returns the same; the
    checks on few examples, all but B16, each makes for itself. `log` is told what was found so far.

    Errors: `ValueError` as the attacks; `UserError` where nothing is answered rightly.
    """
    started = time.perf_counter()
    say = log or (lambda text: None)
    images = np.ndim(x) == 4 and (low, high) == (0.0, 1.0)
    eight_bit = images if eight_bit is None else eight_bit
    pool = Pool.of(model, detector, x, y, eps, norm, low, high, eight_bit, batch_size)
    right = np.flatnonzero(pool.right)
    if not len(right):
        raise UserError("the model answers no example rightly: there is nothing to attack; check labels and range")
    seen = views.look(model, pool.clean[right], pool.y[right], low=low, high=high)
    say(f"{percent(pool.estimate())} right without attack; mechanism: {seen.mechanism}")
    base = {"norm": norm, "low": low, "high": high, "seed": seed}
    task = _Task(pool, seen, detector, base, eps, version, state, shards, progress, say)
    first = task.first_bound(right[:FIRST], started)
    task.attack()
    scene = Scene(
        *(task.view, pool.clean[right][:SOME], pool.y[right][:SOME]),
        lambda x, rows: pool.failed(x, right[rows]),
        *(eps, norm, low, high, seed, batch_size),
    )
    done, curve, mechanism = task.check(scene, right, source, planted)
    share = pool.left()
    rejected = pool.rejected(pool.clean) if detector is not None else None
    robust = statistics.independent(float(share.mean()), len(pool.y))
    return Verdict(
        norm,
        eps,
        pool.estimate(),
        robust,
        first,
        None if rejected is None else statistics.rate(rejected, None),
        tuple(pool.tried),
        curve,
        tuple(done),
        mechanism,
        seen.layers,
        tuple(view.words for view in seen.views[:1]),
        pool.store(pool.clean),
        pool.y,
        (low, high),
        pool.best,
        pool.by >= 0,
        pool.by,
        share,
        pool.draws,
        time.perf_counter() - started,
        task.left_out,
    )


@dataclasses.dataclass
class _Task:
    """The attacks of a verdict, in their order."""

    pool: Pool
    seen: Look
    detector: Model | None
    base: Mapping[str, Any]
    eps: float
    version: Version
    state: Path | None
    shards: Shards
    progress: bool
    say: Callable[[str], None]
    left_out: tuple[str, ...] = ()
    stood: np.ndarray = dataclasses.field(init=False)
    """Whom AutoAttack has left, (N,)."""

    def __post_init__(self) -> None:
        self.stood = self.pool.right.copy()

    @property
    def view(self) -> View:
        """What attacks climb on; where nothing has a slope, the model itself, for random search."""
        return next(iter(self.seen.views), View(self.pool.model, "as it is"))

    @property
    def budget(self) -> dict[str, Any]:
        # Rounded to 8 bits, an image of 8 bits stays in the ball of the whole grey levels.
        whole = self.pool.eight_bit and self.base["norm"] == "linf"
        return {**self.base, "eps": whole_levels(self.eps) if whole else self.eps}

    def first_bound(self, rows: np.ndarray, started: float) -> Estimate:
        """What a short attack leaves of the first examples."""
        pool, draws = self.pool, 5 if self.pool.draws > 1 else 1
        quick = partial(apgd, self.view.model, loss="margin", steps=10, draws=draws, **self.budget)
        if not self.seen.views:
            quick = partial(square, self.view.model, steps=20, **self.budget)
        self._run(QUICK, quick, rows)
        met = np.arange(rows[-1] + 1)
        found = statistics.rate(pool.right[met] & (pool.worst[met] < 0.5), None)
        self.say(f"first bound: at most {percent(found)} of {found.n} examples, {time.perf_counter() - started:.0f} s")
        return found

    def attack(self) -> None:
        """All attacks, each on what can still be broken."""
        pool, view = self.pool, self.view
        everything = np.flatnonzero(pool.right)
        if self.detector is not None:
            guarded = Guarded(view.model, self.detector)
            for name, targets in (("past the detector", 0), ("past the detector, targeted", 3)):
                self._run(name, partial(past_detector, guarded, targets=targets, **self.budget), everything)
            return
        if self.seen.views and not pool.draws > 1:
            single = partial(pgd, view.model, steps=1, alpha=self.budget["eps"], random_start=False, **self.budget)
            self._run(SINGLE, single, everything)
            # Not stopped where the view errs, if the defence may not.
            stop = view.exact
            iterated = partial(pgd, view.model, steps=50, alpha=self.eps / 10, stop=stop, **self.budget)
            self._run(PGD, iterated, everything)
        if view.exact:
            self._autoattack(everything)
        else:
            for name in ("APGD on an imitation", "APGD on a second", "APGD on a third", "APGD on a fourth"):
                climb = partial(apgd, view.model, loss="margin", stop=False, **self.budget)
                several = partial(climb, targets=min(3, pool.classes - 1))
                found = [
                    self._run(what, attack, everything)
                    for what, attack in ((name, climb), (f"{name}, targeted", several))
                ]
                # What it was wrong about, and what the defence did answer.
                view = view.learn(np.concatenate(found))
            search = partial(square, pool.model, steps=checks.QUERIES, **self.budget)
            if pool.clean.ndim == 4 or self.base["norm"] == "linf":
                self._run("random search", search, everything)

    def check(
        self, scene: Scene, right: np.ndarray, source: Model | None, planted: int
    ) -> tuple[list[Check], dict[float, Estimate], Mechanism]:
        """The checks, accuracy by radius, and the mechanism, as far as attacks tell."""
        pool, seen = self.pool, self.seen
        by_name = {tried.name: tried for tried in pool.tried}
        stands = pool.right & (pool.worst < 0.5)
        done, curve = [], {}
        if SINGLE in by_name:
            others = [stood for name, stood in pool.stood.items() if name != SINGLE]
            iterated, single = float(np.logical_and.reduce(others).mean()), by_name[SINGLE].accuracy
            done.append(checks.iterated(iterated, single.value, single.n))
        climbable = bool(seen.views) and self.detector is None
        if climbable:
            few = scene.first(16) if scene.draws else scene
            found, curve = checks.budgets(few, pool.classes)
            done += [*found, checks.more_steps(few), checks.more_restarts(few)]
            self.say("checks B1 to B5 done")
        left = np.flatnonzero((pool.worst < 0.5)[right[: len(scene.x)]])
        if self.detector is None:
            blind, x = checks.blind_search(scene, left, source)
            pool.offer("random search, noise and transfer", right[left], x, None, 0.0, None)
            done.append(blind)
        done += [checks.slopes(seen), checks.logits(seen), checks.repeats(seen), checks.zero_gradients(seen)]
        if climbable:
            done += [checks.canary(few, self.stood[right[: len(few.x)]]), checks.silent(few)]
        self.say("checks B6 to B12 done")
        done.append(self._stored())
        union = statistics.rate(stands, None)
        said = f"{percent(union)} of {union.n}, by {len(pool.tried)} attacks"
        done.append(Check("B14", "is the bound that of all attacks, example by example?", True, union.value, "", said))
        done.append(self._planted(right[:planted]))
        mechanism = "rejecting" if self.detector is not None else seen.mechanism
        if mechanism == "none":
            gap = by_name[PGD].accuracy.value - float(stands.mean())
            misled = gap >= MISLED or any(check.name == "B6" and check.passed is False for check in done)
            mechanism = "misleading gradients" if misled else "none"
        return done, curve, mechanism

    def _run(self, name: str, attack: Callable, rows: np.ndarray) -> np.ndarray:
        started = time.perf_counter()
        found = self._crafted(name, attack, rows)
        met = int(rows[-1]) + 1 if len(rows) < self.pool.right.sum() else len(self.pool.y)
        self._keep(name, rows, found.x, found.gradients, started, met)
        return found.x

    def _crafted(self, name: str, attack: Callable, rows: np.ndarray) -> AttackResult:
        pool, mine = self.pool, self.shards.mine(rows)
        own = of_rows(attack, mine, len(pool.y))
        options = {"batch_size": pool.batch_size, "progress": self.progress, "name": name}
        found = attack_dataset(own, pool.clean[mine], pool.y[mine], **options)
        return AttackResult(self.shards.joined(rows, found.x), self.shards.total(found.gradients))

    def _keep(
        self, name: str, rows: np.ndarray, x: np.ndarray, gradients: int | None, started: float, met: int
    ) -> None:
        """Keep what an attack has found. Attacks stop where they have just crossed the border, and rounding takes some
        of it back: there it is crossed again, and with all steps."""
        pool = self.pool
        lost = pool.offer(name, rows, x, gradients, time.perf_counter() - started, met)
        if len(lost) and self.seen.views and self.detector is None:
            climb = partial(apgd, self.view.model, loss="margin", stop=False, **self.budget)
            climb = partial(climb, draws=DRAWS if pool.draws > 1 else 1, steps=50)
            classes = pool.classes
            for again in (climb, partial(climb, targets=min(3, classes - 1))):
                lost = lost[pool.worst[lost] < 0.5]
                if len(lost):
                    more = self._crafted(name, again, lost)
                    pool.add(name, lost, more.x, more.gradients, time.perf_counter() - started)
        self._tell()

    def _autoattack(self, rows: np.ndarray) -> None:
        pool, view, version = self.pool, self.view, self.version
        attacks = None
        if pool.draws > 1:
            version = "rand"
        elif not self.seen.views:
            version, attacks = "custom", {"square": partial(square, view.model, steps=checks.QUERIES, **self.budget)}
        started, shards = time.perf_counter(), self.shards
        mine, state = shards.mine(rows), shards.own(self.state)
        options = {"batch_size": pool.batch_size, "progress": self.progress, "version": version, "attacks": attacks}
        found = autoattack(
            view.model, pool.clean[mine], pool.y[mine], index=mine, state=state, **options, **self.budget
        )
        name = "random search" if attacks else f"AutoAttack ({version})"
        x, gradients = shards.joined(rows, found.x), shards.total(found.gradients)
        self._keep(name, rows, x, gradients, started, len(pool.y))
        self.left_out, self.stood[rows] = found.left_out, shards.joined(rows, found.robust)
        if pool.draws > 1:
            # AutoAttack leaves an example once the mean is wrong; of the draws as many as can be are to be.
            climb = partial(apgd, view.model, loss="margin", stop=False, steps=50, draws=DRAWS, **self.budget)
            self._run("APGD on the mean, all steps", climb, rows)

    def _tell(self) -> None:
        last, left = self.pool.tried[-1], self.pool.right & (self.pool.worst < 0.5)
        bound = percent(statistics.rate(left, None))
        self.say(f"{last.name}: {last.new} more broken, at most {bound} right, {last.seconds:.0f} s")

    def _stored(self) -> Check:
        """B13."""
        pool = self.pool
        again = pool.failed(pool.float_of(pool.best), np.arange(len(pool.y)))
        other = int(((again >= 0.5) != (pool.worst >= 0.5))[pool.right].sum())
        asks, close = "do the stored examples do what is reported?", pool.draws > 1
        # A model that draws answers those half of whose draws are wrong now so, now so.
        return Check("B13", asks, other <= (0.1 * len(pool.y) if close else 0), float(other), "0")

    def _planted(self, rows: np.ndarray) -> Check:
        """B16."""
        pool, asks = self.pool, "does the attack find points that were planted?"
        wanted = f">= {read_out.WANTED}"
        features = None if pool.draws > 1 or not self.seen.views else read_out.features_of(pool.model)
        if features is None or not self.view.exact or not len(rows):
            return Check("B16", asks, None, None, wanted, "no last affine layer with slopes before it")
        inputs, mine = {"steps": 100, "restarts": 1}, self.shards.mine(rows)
        accepted = None if self.detector is None else (lambda x: ~rejected_by(self.detector, x))
        part = read_out.find_planted(
            self.view.around(features),
            pool.clean[mine],
            auto_pgd(self.base["norm"], "margin", shrinking=self.base["norm"] == "l1"),
            inputs,
            index=np.flatnonzero(np.isin(rows, mine)),
            accepted=accepted,
            batch_size=pool.batch_size,
            **self.budget,
        )
        found = read_out.Found(*(self.shards.joined(rows, told) for told in part[:3]), part.seconds)
        if not found.planted.any():
            why = "no point could be planted: the features are the same all over the ball of every example"
            return Check("B16", asks, None, None, wanted, why)
        note = (
            f"{percent(found.found)} of {found.found.n}; random search finds {percent(found.random)};"
            f" {found.seconds:.0f} s"
        )
        return Check("B16", asks, found.passed, found.found.value, wanted, note)
