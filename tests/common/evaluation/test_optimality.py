"""The optimality of attacks, against the area by hand, and AttackBench's own figure with its faults."""

import itertools

import numpy as np
import pytest

from common.evaluation.optimality import as_published, nearest_by_radii, optimality


def area_by_hand(sizes, end):
    """Of the step function share(d > e) from 0 to `end`."""
    edges = np.unique(np.concatenate([[0.0], np.minimum(sizes, end), [end]]))
    return sum((sizes > low).mean() * (high - low) for low, high in itertools.pairwise(edges))


@pytest.mark.parametrize("quantile", [1.0, 0.99, 0.5])
@pytest.mark.parametrize("errors", [0, 10])
def test_it_is_the_area_under_the_curve(quantile, errors):
    rng = np.random.default_rng(0)
    best, right = rng.gamma(2.0, size=60), np.arange(60) >= errors
    best[~right] = 0
    best[-1] = np.inf
    worse = best * rng.uniform(1, 2, 60)
    worse[20:25] = np.inf
    end = np.quantile(best[right & np.isfinite(best)], quantile)
    whole = right.mean() * end
    wanted = (whole - area_by_hand(worse, end)) / (whole - area_by_hand(best, end))
    assert optimality(worse, best, right, quantile=quantile) == pytest.approx(wanted)
    assert optimality(best, best, right, quantile=quantile) == 1
    assert optimality(np.full(60, np.inf), best, right, quantile=quantile) == pytest.approx(0, abs=1e-12)


def test_what_misclassified_examples_are_given_does_not_count():
    best, right = np.array([3.0, 1.0, 2.0]), np.array([False, True, True])
    assert optimality(np.array([9.0, 2.0, 2.0]), best, right) == optimality(np.array([3.0, 2.0, 2.0]), best, right)


@pytest.mark.parametrize(("count", "errors", "least"), [(1000, 0.1, 0.6), (1000, 0.0, 1.0), (20, 0.0, 1.1)])
def test_as_published_a_useless_attack_scores_high(count, errors, least):
    """Fifty times as far as the best: 0 or hardly more, and by the published code far more, the more so the fewer
    examples and the fewer errors there are."""
    best = np.random.default_rng(1).gamma(20.0, size=count)
    right = np.arange(count) >= errors * count
    best[~right] = 0
    assert optimality(50 * best, best, right) < 0.05
    assert as_published(50 * best, best, right) > least
    assert as_published(best, best, right) == pytest.approx(1)
    # Ordinary attacks are hardly touched.
    if errors:
        assert as_published(1.5 * best, best, right) == pytest.approx(optimality(1.5 * best, best, right), abs=0.05)


def test_radii_are_searched_for_each_example():
    """An attack that succeeds from a radius on, and goes as far as it may."""
    least = np.array([0.003, 0.3, 5.0, np.inf])
    found = nearest_by_radii(
        lambda radii: radii[:, None], lambda x: np.where(x[:, 0] >= least, x[:, 0], np.inf), 4, first=0.1, looks=14
    )
    assert (found[:3] >= least[:3]).all() and (found[:3] <= least[:3] * 1.05).all() and np.isinf(found[3])


def test_refusals():
    right = np.ones(2, bool)
    for arguments, message in (
        ((np.ones(2), np.full(2, np.inf), right), "below the smallest"),
        ((np.full(2, np.inf), np.full(2, np.inf), right), "no example"),
        ((np.ones(3), np.ones(2), right), "one distance for each"),
        ((np.ones(2), np.ones(2), right), "no area to compare"),
    ):
        with pytest.raises(ValueError, match=message):
            optimality(*arguments)
