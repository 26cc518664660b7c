"""Scores, thresholds and intervals by identity against plain loops."""

import time

import numpy as np
import pytest

from common.errors import UserError
from common.evaluation import statistics


def pairs_of(rng, identities, n):
    """Every other pair of one identity: int (n, 2)."""
    first = rng.integers(identities, size=n)
    other = (first + rng.integers(1, identities, size=n)) % identities
    return np.stack([first, np.where(np.arange(n) % 2 == 0, first, other)], axis=1)


def test_auc_counts_pairs_in_order_and_ties_half():
    rng = np.random.default_rng(0)
    same = rng.integers(0, 2, 80)
    scores = np.round(rng.normal(same, 1.0), 1)
    yes, no = scores[same == 1][:, None], scores[same == 0][None, :]
    expected = np.mean((yes > no) + 0.5 * (yes == no))
    assert statistics.auc(scores, same) == pytest.approx(expected)
    assert statistics.weighted_auc(scores, same)(np.ones((1, 80)))[0] == pytest.approx(expected)
    assert statistics.auc(-scores, same) == pytest.approx(1 - expected)


def test_weights_count_as_repeated_pairs():
    rng = np.random.default_rng(1)
    same, answer = rng.integers(0, 2, 40), rng.random(40) < 0.6
    scores = np.round(rng.normal(same, 1.0), 1)
    weights = rng.integers(0, 4, 40)
    repeated = np.repeat(np.arange(40), weights)
    values, asked = rng.normal(size=40), rng.random(40) < 0.5

    def of(statistic):
        return statistic(weights[None].astype(float))[0]

    assert of(statistics.weighted_auc(scores, same)) == pytest.approx(statistics.auc(scores[repeated], same[repeated]))
    assert of(statistics.weighted_mean(values)) == pytest.approx(values[repeated].mean())
    chosen = repeated[asked[repeated]]
    assert of(statistics.weighted_mean(values, asked)) == pytest.approx(values[chosen].mean())
    a, s = answer[repeated], same[repeated].astype(bool)
    assert of(statistics.weighted_f1(answer, same)) == pytest.approx(2 * (a & s).sum() / (a.sum() + s.sum()))


def test_statistics_without_a_value_are_not_a_number():
    same = np.array([1, 1, 0])
    weights = np.array([[1.0, 2, 0], [0, 0, 0], [0, 1, 1]])
    assert np.isnan(statistics.weighted_auc([0.3, 0.2, 0.1], same)(weights)).tolist() == [True, True, False]
    assert np.isnan(statistics.weighted_mean([1, 2, 3])(weights)).tolist() == [False, True, False]
    # A value that nobody asks for may be missing.
    assert statistics.weighted_mean([np.nan, 2, 4], np.array([0, 1, 1]))(np.ones((1, 3))).tolist() == [3.0]


@pytest.mark.parametrize("seed", range(20))
def test_best_threshold_is_the_middle_of_the_widest_best_run(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 30))
    same = np.append(rng.integers(0, 2, n - 2), [0, 1])
    scores = np.round(rng.normal(same * 1.0, 1.0), 1)
    values = np.unique(scores)
    candidates = np.concatenate([[values[0]], (values[1:] + values[:-1]) / 2, [np.nextafter(values[-1], np.inf)]])
    right = np.array([((scores >= threshold) == same).mean() for threshold in candidates])
    found = statistics.best_threshold(scores, same)
    assert ((scores >= found) == same).mean() == right.max()
    # Widths of the runs of best choices; the first and the last choice have none of their own.
    edges = np.concatenate([[values[0]], values, [values[-1]]])
    widest, run = 0.0, 0.0
    for choice in range(len(candidates)):
        run = run + edges[choice + 1] - edges[choice] if right[choice] == right.max() else 0.0
        widest = max(widest, run)
    inside = [
        (low, high)
        for low in edges
        for high in edges
        if high - low == pytest.approx(widest) and abs((low + high) / 2 - found) < 1e-9
    ]
    assert inside


def test_best_threshold_at_the_ends():
    assert statistics.best_threshold([0.0, 4.0, 10.0, 12.0], [0, 0, 1, 1]) == 7.0
    # Calling everything the same, or nothing, is best.
    assert (np.array([3.0, 2.0, 1.0]) >= statistics.best_threshold([3.0, 2.0, 1.0], [0, 1, 1])).all()
    assert not (np.array([3.0, 2.0, 1.0]) >= statistics.best_threshold([3.0, 2.0, 1.0], [0, 0, 1])).any()
    close = np.nextafter(1.0, 2.0)
    assert statistics.best_threshold([1.0, close], [0, 1]) == close


def test_one_kind_of_pairs_is_refused():
    for call in (statistics.auc, statistics.best_threshold, statistics.weighted_auc):
        with pytest.raises(UserError, match="one kind only"):
            call(np.array([0.1, 0.2]), np.array([1, 1]))
    with pytest.raises(UserError, match="over 1 identities"):
        statistics.bootstrap(statistics.weighted_mean([1.0, 2.0]), np.array([[3, 3], [3, 3]]))
    with pytest.raises(UserError, match="no draw"):
        statistics.bootstrap(statistics.weighted_mean([1.0, 2.0], [0, 0]), np.array([3, 4]))


def test_a_pair_counts_as_often_as_the_product_of_its_identities():
    identities = np.array([[7, 7], [7, 9], [9, 4], [4, 4], [9, 9]])
    seen = []

    def statistic(weights):
        seen.append(weights)
        return weights.sum(axis=1)

    statistics.bootstrap(statistic, identities, repeats=600, seed=3)
    weights = np.concatenate(seen)
    assert len(weights) == 600
    times = weights[:, [3, 0, 4]]
    # Three identities are drawn each time; a pair of one counts once for each time that it was drawn.
    assert (times.sum(axis=1) == 3).all() and set(np.unique(times)) == {0, 1, 2, 3}
    np.testing.assert_array_equal(weights[:, 1], times[:, 1] * times[:, 2])
    np.testing.assert_array_equal(weights[:, 2], times[:, 2] * times[:, 0])
    assert times.mean(axis=0) == pytest.approx([1, 1, 1], abs=0.1)
    single = []
    statistics.bootstrap(lambda w: single.append(w) or w.sum(axis=1), np.array([5, 5, 2]), repeats=9, seed=0)
    single = np.concatenate(single)
    np.testing.assert_array_equal(single[:, 0], single[:, 1])
    assert (single[:, 0] + single[:, 2] == 2).all()


def test_intervals_by_identity_cover_the_truth_where_those_by_pair_do_not():
    """Pairs that share identities are not independent."""
    rng = np.random.default_rng(5)
    covered, too_narrow, widths = 0, 0, []
    for trial in range(80):
        identities = pairs_of(rng, 20, 300)
        of_identity = rng.normal(size=20)
        values = of_identity[identities].mean(axis=1) + 0.3 * rng.normal(size=300)
        low, high = statistics.bootstrap(statistics.weighted_mean(values), identities, repeats=300, seed=trial)
        covered += low <= 0 <= high
        by_pair = statistics.bootstrap(statistics.weighted_mean(values), np.arange(300), repeats=300, seed=trial)
        too_narrow += not by_pair[0] <= 0 <= by_pair[1]
        widths.append((high - low) / (by_pair[1] - by_pair[0]))
    assert covered / 80 > 0.87
    assert too_narrow / 80 > 0.3
    assert min(widths) > 1.2


def test_bootstrap_is_seeded_and_paired():
    rng = np.random.default_rng(6)
    identities = pairs_of(rng, 12, 200)
    hard = rng.normal(size=12)[identities].mean(axis=1)
    better, worse = hard + 0.1 + 0.01 * rng.normal(size=200), hard
    statistic = statistics.weighted_mean(better)
    assert statistics.bootstrap(statistic, identities, seed=1) == statistics.bootstrap(statistic, identities, seed=1)
    assert statistics.bootstrap(statistic, identities, seed=1) != statistics.bootstrap(statistic, identities, seed=2)
    narrow = statistics.bootstrap(statistic, identities, seed=1, confidence=0.5)
    wide = statistics.bootstrap(statistic, identities, seed=1, confidence=0.95)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    # On the same draws the difference is certain although neither mean is.
    other = statistics.weighted_mean(worse)
    low, high = statistics.bootstrap(lambda weights: statistic(weights) - other(weights), identities)
    assert 0.09 < low < 0.1 < high < 0.11
    assert wide[1] - wide[0] > 0.3


def test_bootstrap_is_fast():
    """A thousand draws of two thousand pairs."""
    rng = np.random.default_rng(7)
    identities = pairs_of(rng, 100, 2000)
    scores, same = rng.normal(size=2000), (identities[:, 0] == identities[:, 1]).astype(int)
    begun = time.perf_counter()
    statistics.bootstrap(statistics.weighted_mean(scores), identities)
    statistics.bootstrap(statistics.weighted_auc(scores, same), identities)
    assert time.perf_counter() - begun < 3


def test_paired_figures_are_those_of_the_samples():
    rng = np.random.default_rng(5)
    theirs = rng.random(400) < 0.8
    ours = theirs & (rng.random(400) < 0.7)
    alone = np.arange(400)
    gain = statistics.difference(ours, theirs, alone)
    assert gain.value == pytest.approx(ours.mean() - theirs.mean()) and gain.n == 400
    assert gain.low < gain.value < gain.high < 0
    # Same draws, so an unchanged model differs by nothing, exactly.
    assert statistics.difference(ours, ours, alone) == (0.0, 400, 0.0, 0.0)
    kept = statistics.relative(ours, theirs, alone)
    assert kept.value == pytest.approx(ours.sum() / theirs.sum())
    # The delta method for a share of those that were right.
    half = 1.96 * np.sqrt(kept.value * (1 - kept.value) / theirs.sum())
    assert (kept.low, kept.high) == pytest.approx((kept.value - half, kept.value + half), abs=0.01)
    with pytest.raises(UserError, match="cannot compute a share"):
        statistics.relative(ours, np.zeros(400), alone)


def test_difference_of_two_rates_is_newcombes():
    """Newcombe 1998, table II, row (a): 56/70 less 48/80, method 10."""
    from common.evaluation.statistics import wilson

    def rate(hits, n):
        return statistics.Estimate(hits / n, n, *wilson(hits, n))

    found = statistics.unpaired_difference(rate(56, 70), rate(48, 80))
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert (found.value, found.n) == (pytest.approx(0.2), 70)
