"""Scores, thresholds, intervals by driver and displacements against plain loops."""

import itertools
import time

import numpy as np
import pytest

from common.errors import UserError
from mobility_humid import measures
from mobility_humid.trips import SLOT


def pairs_of(rng, drivers, n):
    """Every other pair of one driver: int (n, 2)."""
    first = rng.integers(drivers, size=n)
    other = (first + rng.integers(1, drivers, size=n)) % drivers
    return np.stack([first, np.where(np.arange(n) % 2 == 0, first, other)], axis=1)


def test_auc_counts_pairs_in_order_and_ties_half():
    rng = np.random.default_rng(0)
    same = rng.integers(0, 2, 80)
    scores = np.round(rng.normal(same, 1.0), 1)
    yes, no = scores[same == 1][:, None], scores[same == 0][None, :]
    expected = np.mean((yes > no) + 0.5 * (yes == no))
    assert measures.auc(scores, same) == pytest.approx(expected)
    assert measures.weighted_auc(scores, same)(np.ones((1, 80)))[0] == pytest.approx(expected)
    assert measures.auc(-scores, same) == pytest.approx(1 - expected)


def test_weights_count_as_repeated_pairs():
    rng = np.random.default_rng(1)
    same, answer = rng.integers(0, 2, 40), rng.random(40) < 0.6
    scores = np.round(rng.normal(same, 1.0), 1)
    weights = rng.integers(0, 4, 40)
    repeated = np.repeat(np.arange(40), weights)
    values, asked = rng.normal(size=40), rng.random(40) < 0.5

    def of(statistic):
        return statistic(weights[None].astype(float))[0]

    assert of(measures.weighted_auc(scores, same)) == pytest.approx(measures.auc(scores[repeated], same[repeated]))
    assert of(measures.weighted_mean(values)) == pytest.approx(values[repeated].mean())
    chosen = repeated[asked[repeated]]
    assert of(measures.weighted_mean(values, asked)) == pytest.approx(values[chosen].mean())
    a, s = answer[repeated], same[repeated].astype(bool)
    assert of(measures.weighted_f1(answer, same)) == pytest.approx(2 * (a & s).sum() / (a.sum() + s.sum()))


def test_statistics_without_a_value_are_not_a_number():
    same = np.array([1, 1, 0])
    weights = np.array([[1.0, 2, 0], [0, 0, 0], [0, 1, 1]])
    assert np.isnan(measures.weighted_auc([0.3, 0.2, 0.1], same)(weights)).tolist() == [True, True, False]
    assert np.isnan(measures.weighted_mean([1, 2, 3])(weights)).tolist() == [False, True, False]
    # A value that nobody asks for may be missing.
    assert measures.weighted_mean([np.nan, 2, 4], np.array([0, 1, 1]))(np.ones((1, 3))).tolist() == [3.0]


@pytest.mark.parametrize("seed", range(20))
def test_best_threshold_is_the_middle_of_the_widest_best_run(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 30))
    same = np.append(rng.integers(0, 2, n - 2), [0, 1])
    scores = np.round(rng.normal(same * 1.0, 1.0), 1)
    values = np.unique(scores)
    candidates = np.concatenate([[values[0]], (values[1:] + values[:-1]) / 2, [np.nextafter(values[-1], np.inf)]])
    right = np.array([((scores >= threshold) == same).mean() for threshold in candidates])
    found = measures.best_threshold(scores, same)
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
    assert measures.best_threshold([0.0, 4.0, 10.0, 12.0], [0, 0, 1, 1]) == 7.0
    # Calling everything the same, or nothing, is best.
    assert (np.array([3.0, 2.0, 1.0]) >= measures.best_threshold([3.0, 2.0, 1.0], [0, 1, 1])).all()
    assert not (np.array([3.0, 2.0, 1.0]) >= measures.best_threshold([3.0, 2.0, 1.0], [0, 0, 1])).any()
    close = np.nextafter(1.0, 2.0)
    assert measures.best_threshold([1.0, close], [0, 1]) == close


def test_one_kind_of_pairs_is_refused():
    for call in (measures.auc, measures.best_threshold, measures.weighted_auc):
        with pytest.raises(UserError, match="one kind only"):
            call(np.array([0.1, 0.2]), np.array([1, 1]))
    with pytest.raises(UserError, match="over 1 drivers"):
        measures.bootstrap(measures.weighted_mean([1.0, 2.0]), np.array([[3, 3], [3, 3]]))
    with pytest.raises(UserError, match="no draw"):
        measures.bootstrap(measures.weighted_mean([1.0, 2.0], [0, 0]), np.array([3, 4]))


def test_a_pair_counts_as_often_as_the_product_of_its_drivers():
    drivers = np.array([[7, 7], [7, 9], [9, 4], [4, 4], [9, 9]])
    seen = []

    def statistic(weights):
        seen.append(weights)
        return weights.sum(axis=1)

    measures.bootstrap(statistic, drivers, repeats=600, seed=3)
    weights = np.concatenate(seen)
    assert len(weights) == 600
    times = weights[:, [3, 0, 4]]
    # Three drivers are drawn each time; a pair of one driver counts once for each time that it was drawn.
    assert (times.sum(axis=1) == 3).all() and set(np.unique(times)) == {0, 1, 2, 3}
    np.testing.assert_array_equal(weights[:, 1], times[:, 1] * times[:, 2])
    np.testing.assert_array_equal(weights[:, 2], times[:, 2] * times[:, 0])
    assert times.mean(axis=0) == pytest.approx([1, 1, 1], abs=0.1)
    single = []
    measures.bootstrap(lambda w: single.append(w) or w.sum(axis=1), np.array([5, 5, 2]), repeats=9, seed=0)
    single = np.concatenate(single)
    np.testing.assert_array_equal(single[:, 0], single[:, 1])
    assert (single[:, 0] + single[:, 2] == 2).all()


def test_intervals_by_driver_cover_the_truth_where_those_by_pair_do_not():
    """Pairs that share drivers are not independent."""
    rng = np.random.default_rng(5)
    covered, too_narrow, widths = 0, 0, []
    for trial in range(80):
        drivers = pairs_of(rng, 20, 300)
        of_driver = rng.normal(size=20)
        values = of_driver[drivers].mean(axis=1) + 0.3 * rng.normal(size=300)
        low, high = measures.bootstrap(measures.weighted_mean(values), drivers, repeats=300, seed=trial)
        covered += low <= 0 <= high
        by_pair = measures.bootstrap(measures.weighted_mean(values), np.arange(300), repeats=300, seed=trial)
        too_narrow += not by_pair[0] <= 0 <= by_pair[1]
        widths.append((high - low) / (by_pair[1] - by_pair[0]))
    assert covered / 80 > 0.87
    assert too_narrow / 80 > 0.3
    assert min(widths) > 1.2


def test_bootstrap_is_seeded_and_paired():
    rng = np.random.default_rng(6)
    drivers = pairs_of(rng, 12, 200)
    hard = rng.normal(size=12)[drivers].mean(axis=1)
    better, worse = hard + 0.1 + 0.01 * rng.normal(size=200), hard
    statistic = measures.weighted_mean(better)
    assert measures.bootstrap(statistic, drivers, seed=1) == measures.bootstrap(statistic, drivers, seed=1)
    assert measures.bootstrap(statistic, drivers, seed=1) != measures.bootstrap(statistic, drivers, seed=2)
    narrow = measures.bootstrap(statistic, drivers, seed=1, confidence=0.5)
    wide = measures.bootstrap(statistic, drivers, seed=1, confidence=0.95)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    # On the same draws the difference is certain although neither mean is.
    other = measures.weighted_mean(worse)
    low, high = measures.bootstrap(lambda weights: statistic(weights) - other(weights), drivers)
    assert 0.09 < low < 0.1 < high < 0.11
    assert wide[1] - wide[0] > 0.3


def test_bootstrap_is_fast():
    """A thousand draws of two thousand pairs."""
    rng = np.random.default_rng(7)
    drivers = pairs_of(rng, 100, 2000)
    scores, same = rng.normal(size=2000), (drivers[:, 0] == drivers[:, 1]).astype(int)
    begun = time.perf_counter()
    measures.bootstrap(measures.weighted_mean(scores), drivers)
    measures.bootstrap(measures.weighted_auc(scores, same), drivers)
    assert time.perf_counter() - begun < 3


def trips_with_padding(rng, n):
    """int16 (n, 4, 9, 3): x, y, slot, with up to a whole trip of padding in front."""
    x = rng.integers(0, 60, (n, 4, 9, 3)).astype(np.int16)
    x[..., SLOT] += 1
    x[np.arange(9) < rng.integers(0, 10, (n, 4, 1))] = 0
    return x


def test_jumps_and_displacements_against_a_loop():
    rng = np.random.default_rng(8)
    n = measures.BLOCK + 7
    before = trips_with_padding(rng, n)
    there = before[..., SLOT] > 0
    shift = rng.integers(-2, 3, (n, 4, 9, 2)) * (there & (rng.random((n, 4, 9)) < 0.2))[..., None]
    after = before.copy()
    after[..., :2] += shift.astype(np.int16)
    jumps, changed, moved = (
        measures.largest_jump(after),
        measures.changed_points(before, after),
        measures.displacement(before, after),
    )
    for i in range(n):
        longest = 0
        for trip in after[i]:
            points = trip[trip[:, SLOT] > 0].astype(int)
            for here, onward in itertools.pairwise(points):
                longest = max(longest, abs(onward[0] - here[0]), abs(onward[1] - here[1]))
        assert jumps[i] == longest
        old, new = before[i].reshape(-1, 3), after[i].reshape(-1, 3)
        assert changed[i] == sum((p[:2] != q[:2]).any() for p, q in zip(old, new, strict=True))
        assert moved[i] == abs(shift[i]).max()
    empty = before[:0]
    assert measures.largest_jump(empty).shape == (0,) and measures.displacement(empty, empty).shape == (0,)
    # The step from padding to the first point is none, wherever that is.
    assert measures.largest_jump(np.array([[[[0, 0, 0], [50, 50, 3], [51, 49, 3]]]], np.int16)).tolist() == [1]
