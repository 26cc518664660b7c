"""Robustness evaluation: one model under a set of attacks, on the same examples.

    evaluation = of_classifier(model, x, y)
    evaluation.run(Entry(name="pgd", attack=partial(pgd, model, eps=eps, alpha=alpha, steps=40), eps=eps))
    for row in evaluation.rows():
        print(row)

An app says how an example is judged; attacks, quantisation, unions, comparisons and intervals are done here. What an
attack is limited by, and whether it is one, are fields of its `Entry`.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from common.arrays import to_array, to_labels
from common.attacks import AttackResult, attack_dataset
from common.attacks.dataset import of_rows
from common.errors import UserError
from common.evaluation import input_range, statistics
from common.evaluation.predictions import _blocks, _count_classes, _unit_interval, predict
from common.evaluation.quality import perturbation_sizes, quantize
from common.evaluation.statistics import Estimate

ALL = "all"
"""The name of the union of all attacks."""

Judge = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""x (n, ...), rows int (n,) of the examples that they are of -> whether the model answers them rightly, bool (n,), or
a score (n,) that `Outcome.at` turns into that."""


class Examples(NamedTuple):
    """What a model is evaluated on: `x` (N, ...); `y` (N,) or (N, D), the labels or targets that attacks are given; and
    the `identity` (N,) or (N, 2) that examples share, for intervals, None where they are independent."""

    x: np.ndarray
    y: np.ndarray
    identity: np.ndarray | None = None

    def first(self, count: int) -> "Examples":
        """The first `count` examples."""
        return Examples(*(None if field is None else field[:count] for field in self))


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One attack of an evaluation, with what tables say of it.

    `attack`: as `attack_dataset` takes it, on this model or, for transfer, on another; None for adversarial examples
    that are made elsewhere. `norm`, `eps`: its budget, None for none. `within`: the threat model that it belongs to, if
    that is not (norm, eps), as for an attack that minimises a norm within a ball of another. `control`: a perturbation
    of the same budget that looks at no model, which is no attack; of a union it is a part. `subset`: only so many
    examples, the first, for an attack that costs many gradients.
    """

    name: str
    attack: Callable[..., tf.Tensor] | None = None
    norm: str | None = "linf"
    eps: float | None = 0.0
    within: tuple[str, float] | None = None
    control: bool = False
    subset: int | None = None

    @property
    def threat_model(self) -> tuple[str, float]:
        """The norm and the radius of the ball that its examples are in."""
        return self.within or (self.norm, self.eps)

    @property
    def columns(self) -> dict[str, Any]:
        """What tells its rows in a table."""
        return {"attack": self.name, "norm": self.norm, "eps": self.eps}


class Outcome(NamedTuple):
    """What an attack made of `examples`, one by one (n,).

    `x` (n, ...), adversarial examples as they were judged, None where an evaluation does not keep them. `before`,
    `after`: what the judge says of the clean and of the adversarial examples; `found`: of these before they were
    quantised, None unless kept. `gradients`: how many the attack took, None if not counted.
    """

    entry: Entry
    examples: Examples
    x: np.ndarray | None
    before: np.ndarray
    after: np.ndarray
    found: np.ndarray | None = None
    gradients: int | None = None

    @property
    def clean(self) -> np.ndarray:
        """Answered rightly without an attack, bool (n,)."""
        return self.before

    @property
    def robust(self) -> np.ndarray:
        """Answered rightly before and after, bool (n,)."""
        return self.before & self.after

    @property
    def success(self) -> np.ndarray:
        """Answered rightly before and wrongly after, bool (n,)."""
        return self.before & ~self.after

    def at(self, right: Callable[[np.ndarray], np.ndarray]) -> "Outcome":
        """The outcome where `right` says which scores are right answers."""
        found = None if self.found is None else right(self.found)
        return self._replace(before=right(self.before), after=right(self.after), found=found)

    def first(self, count: int) -> "Outcome":
        """The outcome on the first `count` examples."""
        parts = {"x": self.x, "before": self.before, "after": self.after, "found": self.found}
        cut = {name: None if part is None else part[:count] for name, part in parts.items()}
        # What the attack took was for all of them.
        return self._replace(examples=self.examples.first(count), **cut, gradients=None)

    def rate(self, hits: np.ndarray, subset: np.ndarray | None = None) -> Estimate:
        """The share of `hits` bool (n,), with `subset` bool (n,) only of those, with its interval."""
        return statistics.rate(hits, self.examples.identity, subset)

    def sizes(self, norm: str) -> np.ndarray:
        """The size (n,) of each perturbation: `linf`, `l2`, `l1` or `l0`."""
        sizes = np.empty(len(self.before))
        # Block by block: temporary arrays of the size of the data set would take several times its memory.
        for rows in _blocks(len(sizes), 256):
            sizes[rows] = perturbation_sizes(self.examples.x[rows], self.x[rows])[norm]
        return sizes

    def distances(self, norm: str) -> np.ndarray:
        """How far (n,) this attack had to go: the size of a perturbation that succeeds, infinity for one that does not,
        nothing where the answer was wrong before. Of an attack that minimises it, accuracy at a radius is the share of
        distances above."""
        return np.where(self.success, self.sizes(norm), np.where(self.before, np.inf, 0.0))

    def rows(self, measure: "Measure") -> Iterator[dict[str, Any]]:
        """Rows of a table: metric, value, its n and interval if it has some, attack, norm, eps."""
        for metric, found in measure(self):
            value = found._asdict() if isinstance(found, Estimate) else {"value": found}
            yield {"metric": metric, **value, **self.entry.columns}


Measure = Callable[[Outcome], Iterable[tuple[str, Estimate | float]]]
"""What a table says of an outcome: metric, figure."""


def rates(outcome: Outcome) -> Iterator[tuple[str, Estimate | float]]:
    """Robust `accuracy`; attack `success` among what was right before, if anything was; `gradients` an example."""
    yield "accuracy", outcome.rate(outcome.robust)
    if outcome.clean.any():
        yield "success", outcome.rate(outcome.success, outcome.clean)
    if outcome.gradients is not None:
        yield "gradients", outcome.gradients / len(outcome.before)


class Evaluation:
    """One model on `examples`, under one attack after the other.

    `judge` says what the model makes of them, `keep` whether outcomes hold their adversarial examples, `eight_bit`
    whether these are images in [0, 1], judged as a file would hold them. With `as_found` they are also judged before
    that. `log` is told what begins.
    """

    def __init__(
        self,
        examples: Examples,
        judge: Judge,
        *,
        eight_bit: bool = True,
        keep: bool = True,
        as_found: bool = False,
        batch_size: int = 256,
        progress: bool = False,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.examples, self.judge = examples, judge
        self.eight_bit, self.keep, self.as_found = eight_bit, keep, as_found
        self.batch_size, self.progress, self.log = batch_size, progress, log
        self.before = judge(examples.x, np.arange(len(examples.x)))
        self.outcomes: list[Outcome] = []
        """In the order in which they were run."""

    def run(self, entry: Entry) -> Outcome:
        """Run the attack of `entry`, and judge what it found.

        An attack that stops at success is run again, with all its steps, on examples that quantisation took back over
        the border where they had stopped.

        Errors: `ValueError` for an attack that outputs values that are not finite.
        """
        count = len(self.examples.x) if entry.subset is None else min(entry.subset, len(self.examples.x))
        if self.log is not None:
            self.log(f"{entry.name}, eps {_budget(entry, self.eight_bit)}, {count} examples")
        examples, rows = self.examples.first(count), np.arange(count)
        options = {"batch_size": self.batch_size, "progress": self.progress, "name": entry.name}
        x, gradients, _ = _crafted(entry.attack, examples, **options)
        # Scores have no border yet.
        has_border = self.eight_bit and self.before.dtype == bool
        stops = has_border and bool(getattr(entry.attack, "keywords", {}).get("stop"))
        # A copy: what a judge answers may be a view of what is quantised in its place below.
        found = np.array(self.judge(x, rows)) if self.as_found or stops else None
        if self.eight_bit:
            _quantize(x, self.batch_size)
        after = self.judge(x, rows)
        if stops:
            back = np.flatnonzero(after & ~found & self.before[:count])
            # In blocks, whose copies take the memory of a batch.
            for part in (back[rows] for rows in _blocks(len(back), self.batch_size)):
                all_steps = partial(of_rows(entry.attack, part, count), stop=False)
                again, more, _ = _crafted(all_steps, Examples(examples.x[part], examples.y[part]), **options)
                _quantize(again, self.batch_size)
                x[part], after[part] = again, self.judge(again, part)
                gradients = None if gradients is None else gradients + more
        outcome = Outcome(entry, examples, x, self.before[:count], after, found, gradients)
        return self._remember(outcome)

    def unattacked(self) -> Outcome:
        """The clean examples as an outcome called `clean`, for figures that do not ask who was right before."""
        return self._remember(Outcome(Entry(name="clean"), self.examples, self.examples.x, *[self.before] * 3))

    def show(self, entry: Entry, x: np.ndarray) -> Outcome:
        """Judge adversarial examples `x` (n, ...), of the first of `examples`, that were made elsewhere."""
        count = len(x)
        found = self.judge(x, np.arange(count)) if self.as_found else None
        x = quantize(x) if self.eight_bit else x
        after = self.judge(x, np.arange(count))
        return self._remember(Outcome(entry, self.examples.first(count), x, self.before[:count], after, found))

    def outcome(self, name: str, eps: float | None = None) -> Outcome | None:
        """That of the attack `name`, with several budgets at `eps`; None if there is none."""
        return next((o for o in self.outcomes if o.entry.name == name and eps in (None, o.entry.eps)), None)

    def at(self, right: Callable[[np.ndarray], np.ndarray]) -> "Evaluation":
        """The evaluation, as far as it has come, where `right` says which scores are right answers."""
        other = copy.copy(self)
        other.before, other.outcomes = right(self.before), [outcome.at(right) for outcome in self.outcomes]
        return other

    def union(self, norm: str, eps: float) -> Outcome | None:
        """What all that was tried within a threat model leaves, on the examples that all of it met; None for fewer
        than two attacks."""
        tried = self._within(norm, eps)
        return union(tried) if sum(not outcome.entry.control for outcome in tried) > 1 else None

    def rows(self, measure: Measure = rates, *, common: str = "accuracy_common") -> Iterator[dict[str, Any]]:
        """Rows of a table: each outcome's, then its threat model's union; and, where attacks met different numbers of
        examples, the accuracy of each on those that all have met, called `common`."""
        for threat_model in dict.fromkeys(outcome.entry.threat_model for outcome in self.outcomes):
            tried, left = self._within(*threat_model), self.union(*threat_model)
            for outcome in (*tried, *([] if left is None else [left])):
                yield from outcome.rows(measure)
            if left is not None and max(len(outcome.before) for outcome in tried) > len(left.before):
                for outcome in tried:
                    yield from outcome.first(len(left.before)).rows(lambda o: [(common, o.rate(o.robust))])

    def curve(self, name: str) -> dict[float, Estimate]:
        """Robust accuracy against the budget of the attack `name`, from none on, by eps; each attack at its own number
        of examples."""
        found = {o.entry.eps: o.rate(o.robust) for o in self.outcomes if o.entry.name == name}
        clean = statistics.rate(self.before, self.examples.identity)
        return {0.0: clean, **dict(sorted(found.items()))}

    def _within(self, norm: str, eps: float) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.entry.threat_model == (norm, eps)]

    def _remember(self, outcome: Outcome) -> Outcome:
        outcome = outcome if self.keep else outcome._replace(x=None)
        self.outcomes.append(outcome)
        return outcome


def of_classifier(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    *,
    batch_size: int = 256,
    eight_bit: bool = True,
    keep: bool = True,
    progress: bool = False,
    log: Callable[[str], None] | None = None,
) -> Evaluation:
    """The evaluation of a classifier on `x` (N, ...) in [0, 1], 8-bit or float, with labels `y` (N,): right is what
    `model` answers with the label. Images are judged as a file would hold them: rounded to 8 bits, unless `eight_bit`
    is False.

    Errors: `UserError` for a model that brings its images down from 0..255 and is right on those alone; `ValueError` as
    `accuracy`, and for a model that answers with probabilities and cannot be cut before its last activation.
    """
    x = _unit_interval(to_array(x))
    y = to_labels(y, len(x), _count_classes(model, x, order_only=False))
    if input_range.takes_bytes(model):
        better = input_range.better_reading(model, x, y)
        if better is not None and better.sure:
            raise UserError(f"{model.name}: {better}, so that is what it takes; {better.remedy}")
    return Evaluation(
        Examples(x, y),
        lambda images, rows: predict(model, images, batch_size=batch_size, progress=progress) == y[rows],
        eight_bit=eight_bit,
        keep=keep,
        batch_size=batch_size,
        progress=progress,
        log=log,
    )


def robustness(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    attack: Callable[..., tf.Tensor],
    *,
    batch_size: int = 256,
    eight_bit: bool = True,
    progress: bool = False,
) -> Outcome:
    """What the one `attack` leaves of a classifier; arguments and errors as in `of_classifier`."""
    evaluation = of_classifier(model, x, y, batch_size=batch_size, eight_bit=eight_bit, progress=progress)
    return evaluation.run(Entry(name="attack", attack=attack))


def adversarial_examples(
    attack: Callable[..., tf.Tensor],
    x: np.ndarray,
    y: np.ndarray,
    *,
    batch_size: int = 256,
    progress: bool = False,
) -> np.ndarray:
    """What `attack(x, y, index=...)` makes of images `x` (N, ...) float in [0, 1], quantised to 8 bits: float32.

    Errors: `ValueError` for an attack that outputs values that are not finite.
    """
    found = _crafted(attack, Examples(x, y), batch_size=batch_size, progress=progress).x
    _quantize(found, batch_size)
    return found


def union(outcomes: Sequence[Outcome]) -> Outcome:
    """Of several outcomes, example by example, the first attack that succeeds; on the examples that all have met."""
    count = min(len(outcome.before) for outcome in outcomes)
    first, *others = (outcome.first(count) for outcome in outcomes)
    after, x = first.after, first.x
    for other in others:
        if x is not None:
            taken = after & ~other.after & first.before
            x = np.where(taken.reshape(-1, *[1] * (x.ndim - 1)), other.x, x)
        after = after & other.after
    norm, eps = first.entry.threat_model
    return Outcome(Entry(name=ALL, norm=norm, eps=eps), first.examples, x, first.before, after)


def join(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcomes of one attack on several sets of examples, as one."""

    def joined(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
        return None if any(part is None for part in parts) else np.concatenate(parts)

    examples = Examples(*(joined(fields) for fields in zip(*(o.examples for o in outcomes), strict=True)))
    columns = {name: joined([getattr(o, name) for o in outcomes]) for name in ("x", "before", "after", "found")}
    return Outcome(outcomes[0].entry, examples, **columns)


def difference(ours: Outcome, theirs: Outcome, of: Callable[[Outcome], np.ndarray] | None = None) -> Estimate:
    """Robust accuracy of `ours` less that of `theirs`, or another figure `of` an outcome (n,), paired: on the examples
    that both have met, with an interval by identity."""
    count = min(len(ours.before), len(theirs.before))
    identity = theirs.examples.identity
    identity = np.arange(count) if identity is None else identity[:count]
    ours, theirs = (outcome.robust if of is None else of(outcome) for outcome in (ours, theirs))
    return statistics.difference(ours[:count], theirs[:count], identity)


def constant_answer(y: np.ndarray) -> np.ndarray:
    """Who of labels `y` (N,) is answered rightly by the most frequent of them, always: a bound that no attack lowers,
    so that a defence has to be better, bool (N,)."""
    return y == np.bincount(y).argmax()


def _crafted(attack: Callable, examples: Examples, *, batch_size: int, **options: Any) -> AttackResult:
    result = attack_dataset(attack, examples.x, examples.y, batch_size=batch_size, **options)
    for rows in _blocks(len(result.x), batch_size):
        if not np.isfinite(result.x[rows]).all():
            raise ValueError(f"the attack outputs values that are not finite, in examples {rows.start} and on")
    return result


def _budget(entry: Entry, images: bool) -> str:
    return f"{255 * entry.eps:.5g}/255" if images and entry.norm == "linf" else f"{entry.eps:.5g}"


def _quantize(x: np.ndarray, batch_size: int) -> None:
    for rows in _blocks(len(x), batch_size):
        x[rows] = quantize(x[rows])
