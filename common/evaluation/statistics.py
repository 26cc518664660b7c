"""Scores of pairs of one identity against those of two, and intervals for samples that share identities."""

import math
import numbers
import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from common.errors import UserError

# Draws of the bootstrap that are weighed at a time.
BLOCK = 250

# Weights (draws, n) of the n samples -> the statistic of each draw (draws,), not a number where it has none.
Statistic = Callable[[np.ndarray], np.ndarray]


def auc(scores: np.ndarray, same: np.ndarray) -> float:
    """Area under the ROC curve: how often a pair of one identity scores above a pair of two; ties count half.

    `scores` (n,), higher for the same identity; `same` (n,) of 0 and 1.

    Errors: `UserError` when only one of them occurs.
    """
    # Here, for it takes seconds that no script's --help should take.
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(_both_kinds(same), scores))


def best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    """The threshold of the highest accuracy of `scores >= threshold` as an answer to `same`, both (n,).

    It lies half-way between two scores. Where several are equally good, it is the middle of the widest run of good
    values. Choose it on validation pairs, never on those that are tested.

    Errors: `UserError` when `same` holds only one kind of pair.
    """
    same = _both_kinds(same)
    values, place = np.unique(np.asarray(scores, np.float64), return_inverse=True)
    change = np.bincount(place, 1 - 2 * same, len(values))
    # Entry k: right answers when the values from number k on are called the same.
    right = same.sum() + np.concatenate([[0], np.cumsum(change)])
    best = np.concatenate([[False], right == right.max(), [False]])
    first, last = np.flatnonzero(best[1:] & ~best[:-1]), np.flatnonzero(best[:-1] & ~best[1:]) - 1
    # A threshold in (values[k - 1], values[k]] makes choice k; outside all values there is nothing to be half-way of.
    low, high = values[np.maximum(first - 1, 0)], values[np.minimum(last, len(values) - 1)]
    widest = np.argmax(high - low)
    if first[widest] == len(values):
        return float(np.nextafter(values[-1], np.inf))
    middle = low[widest] / 2 + high[widest] / 2
    return float(middle if middle > low[widest] else high[widest])


def bootstrap(
    statistic: Statistic, identities: np.ndarray, *, repeats: int = 1000, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of a statistic of pairs that share identities: those are drawn with replacement, not the
    pairs, which are not independent (the pigeonhole bootstrap, Owen 2007).

    `identities` int (n, 2), or (n,) where a sample has one. A sample counts as often as its identity was drawn, a pair
    of two identities as often as the product. `statistic` maps weights (draws, n) to (draws,), as `weighted_mean` and
    `weighted_auc` do; two models are compared on the same pairs by the statistic of their difference. Draws without a
    value are left out.

    Errors: `UserError` when fewer than two identities occur or no draw has a value.
    """
    names, number = np.unique(identities, return_inverse=True)
    number = number.reshape(np.shape(identities)).reshape(len(identities), -1)
    if len(names) < 2:
        raise UserError(f"an interval over {len(names)} identities; expected 2 or more: bring more of them")
    rng = np.random.default_rng(seed)
    other = number[:, 0] != number[:, -1]
    drawn = []
    for first in range(0, repeats, BLOCK):
        count = min(BLOCK, repeats - first)
        block = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), count).astype(np.float64)
        drawn.append(statistic(block[:, number[:, 0]] * np.where(other, block[:, number[:, -1]], 1.0)))
    values = np.concatenate(drawn)
    values = values[np.isfinite(values)]
    if not len(values):
        raise UserError("no draw of identities has a value to report; bring more identities or more pairs")
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


class Estimate(NamedTuple):
    """A figure over `n` samples with its 95 % interval, from a bootstrap by identity where samples share some; without
    bounds where it was not computed."""

    value: float
    n: int
    low: float | None
    high: float | None


def share_of_population(hits: int, drawn: int, population: int, confidence: float = 0.95) -> Estimate:
    """The share of a population of so many that `hits` of `drawn`, sampled without replacement, tell of; with its exact
    interval (Clopper & Pearson's, of the hypergeometric distribution), which is none once all were drawn.

    A population of none has the share 0.
    """
    # Here, for it takes seconds that no script's --help should take.
    from scipy.stats import hypergeom

    if not population:
        return Estimate(0.0, 0, 0.0, 0.0)
    # As many hits in all as were seen, up to all that were not seen.
    totals = np.arange(hits, population - (drawn - hits) + 1)
    tail = (1 - confidence) / 2
    likely = (hypergeom.sf(hits - 1, population, totals, drawn) > tail) & (
        hypergeom.cdf(hits, population, totals, drawn) > tail
    )
    low, high = totals[likely][[0, -1]] / population
    return Estimate(hits / drawn if drawn else 0.0, drawn, float(low), float(high))


def rate(hits: np.ndarray, identities: np.ndarray | None, subset: np.ndarray | None = None) -> Estimate:
    """The share of `hits` bool (n,), with `subset` bool (n,) only of those; `identities` as in `bootstrap`, or None for
    independent samples, whose interval is Wilson's.

    Errors: `UserError` for a subset without samples.
    """
    subset = np.ones(len(hits), bool) if subset is None else subset
    if not subset.any():
        raise UserError("cannot compute a rate over no samples; bring more")
    if identities is not None:
        return mean(hits, identities, subset)
    return independent(float(np.mean(hits[subset])), int(subset.sum()))


def of_row(row: Mapping[str, Any]) -> Estimate:
    """The estimate that a row of a table holds as value, n, low and high."""
    return Estimate(row["value"], int(row["n"]), row["low"], row["high"])


def hundredths(value: float, digits: int) -> str:
    """A fraction as a number of per cent, never "-0.0": what is added turns a negative zero into zero."""
    return f"{round(100 * value, digits) + 0.0:.{digits}f}"


def independent(rate: float, n: int) -> Estimate:
    """A rate in [0, 1] of `n` independent samples, with Wilson's interval."""
    return Estimate(float(rate), n, *wilson(float(rate), n))


def mean(values: np.ndarray, identities: np.ndarray, subset: np.ndarray | None = None, *, seed: int = 0) -> Estimate:
    """The mean of `values` (n,), with `subset` bool (n,) only of those; `identities` as in `bootstrap`.

    Errors: `UserError` for a subset without samples.
    """
    subset = np.ones(len(values), bool) if subset is None else subset
    if not subset.any():
        raise UserError("cannot compute a mean over no samples; bring more")
    interval = bootstrap(weighted_mean(values, subset), identities, seed=seed)
    return Estimate(float(np.mean(values[subset])), int(subset.sum()), *interval)


def contrast(
    values: np.ndarray, first: np.ndarray, second: np.ndarray, identities: np.ndarray, *, seed: int = 0
) -> Estimate:
    """Mean of `values` (n,) over the samples `first` less that over `second`, bool (n,) each; `identities` as in
    `bootstrap`.

    Errors: `UserError` where one of them has no samples.
    """
    if not first.any() or not second.any():
        raise UserError("cannot compare with no samples; bring more")
    means = weighted_mean(values, first), weighted_mean(values, second)
    interval = bootstrap(lambda weights: means[0](weights) - means[1](weights), identities, seed=seed)
    value = float(np.mean(values[first]) - np.mean(values[second]))
    return Estimate(value, int((first | second).sum()), *interval)


def difference(ours: np.ndarray, theirs: np.ndarray, identities: np.ndarray) -> Estimate:
    """Mean of `ours` less `theirs` (n,), two measurements of the same samples, with a paired interval; `identities` as
    in `bootstrap`."""
    return mean(np.asarray(ours, np.float64) - theirs, identities)


def relative(ours: np.ndarray, theirs: np.ndarray, identities: np.ndarray) -> Estimate:
    """Sum of `ours` over that of `theirs` (n,), two measurements of the same samples, with a paired interval, such as
    the share of a model's right answers that another one keeps; `identities` as in `bootstrap`.

    Errors: `UserError` when `theirs` adds up to nothing.
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if not theirs.sum() > 0:
        raise UserError("cannot compute a share: the reference is correct on no sample")
    interval = bootstrap(lambda weights: ratio(weights @ ours, weights @ theirs), identities)
    return Estimate(float(ours.sum() / theirs.sum()), len(ours), *interval)


def unpaired_difference(ours: Estimate, theirs: Estimate) -> Estimate:
    """`ours` less `theirs`, two figures with intervals of their own, by squaring and adding the arms of the intervals
    (Newcombe 1998, method 10; Zou and Donner 2008). Exact only for independent samples; of the same samples, which
    mostly agree, it is the wider for it. `n` is the smaller of the two."""
    low = np.hypot(ours.value - ours.low, theirs.high - theirs.value)
    high = np.hypot(ours.high - ours.value, theirs.value - theirs.low)
    value = ours.value - theirs.value
    return Estimate(value, min(ours.n, theirs.n), float(value - low), float(value + high))


def weighted_mean(values: np.ndarray, subset: np.ndarray | None = None) -> Statistic:
    """The mean of `values` (n,), for `bootstrap`; with `subset` bool (n,) only of those.

    So the rate of a subset, such as of an attack's successes in the pairs that were right before, is drawn with its
    denominator.
    """
    subset = np.ones(len(values)) if subset is None else np.asarray(subset, np.float64)
    counted = np.where(subset > 0, np.asarray(values, np.float64), 0.0)

    def statistic(weights: np.ndarray) -> np.ndarray:
        return ratio(weights @ counted, weights @ subset)

    return statistic


def weighted_f1(answer: np.ndarray, same: np.ndarray) -> Statistic:
    """F1 of the `answer` bool (n,) that a pair is one identity, `same` (n,), for `bootstrap`; without a value where
    neither says so of any."""
    hits = np.asarray(answer, np.float64) * same
    claims = (np.asarray(answer, np.float64) + same) / 2

    def statistic(weights: np.ndarray) -> np.ndarray:
        return ratio(weights @ hits, weights @ claims)

    return statistic


def weighted_auc(scores: np.ndarray, same: np.ndarray) -> Statistic:
    """The area under the ROC curve of `auc`, for `bootstrap`; without a value where the draw has one kind of pair."""
    order = np.argsort(scores, kind="stable")
    same = _both_kinds(same)[order].astype(np.float64)
    ties = np.flatnonzero(np.diff(np.asarray(scores)[order], prepend=-np.inf) > 0)

    def statistic(weights: np.ndarray) -> np.ndarray:
        weights = weights[:, order]
        yes = np.add.reduceat(weights * same, ties, axis=1)
        no = np.add.reduceat(weights * (1 - same), ties, axis=1)
        above = np.einsum("dk,dk->d", yes, np.cumsum(no, axis=1) - no / 2)
        return ratio(above, yes.sum(axis=1) * no.sum(axis=1))

    return statistic


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part` / `whole`, (draws,) both, for a `Statistic`: not a number where there is no whole."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _both_kinds(same: np.ndarray) -> np.ndarray:
    same = np.asarray(same)
    if len(np.unique(same)) != 2:
        raise UserError(f"{len(same)} pairs of one kind only; expected pairs of one identity and pairs of two")
    return same


def wilson(successes_or_rate: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a rate over `n` independent trials, as fractions in [0, 1].

    An integer counts successes, a float is a rate: `wilson(1, 10)` is one of ten, `wilson(1.0, 10)` all ten.

    Errors: `ValueError` for a rate outside [0, 1], more successes than trials, or a confidence outside (0, 1).
    """
    counted = isinstance(successes_or_rate, numbers.Integral)
    if n == 0 and successes_or_rate == 0:
        return 0.0, 1.0
    rate = successes_or_rate / n if counted and n > 0 else float(successes_or_rate)
    if n <= 0 or not 0 <= rate <= 1:
        raise ValueError(f"wilson: {successes_or_rate} of {n} trials is no rate")
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
