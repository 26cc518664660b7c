"""Displacements of trips against plain loops."""

import itertools
from types import SimpleNamespace

import numpy as np

from mobility_humid.data.layout import Layout
from mobility_humid.data.trips import SEEK, SERVE, SLOT, X
from mobility_humid.evaluation import trip_metrics
from mobility_humid.evaluation.outcomes import within_speed


def trips_with_padding(rng, n):
    """int16 (n, 4, 9, 3): x, y, slot, with up to a whole trip of padding in front."""
    x = rng.integers(0, 60, (n, 4, 9, 3)).astype(np.int16)
    x[..., SLOT] += 1
    x[np.arange(9) < rng.integers(0, 10, (n, 4, 1))] = 0
    return x


def test_jumps_and_displacements_against_a_loop():
    rng = np.random.default_rng(8)
    n = trip_metrics.BLOCK + 7
    before = trips_with_padding(rng, n)
    there = before[..., SLOT] > 0
    shift = rng.integers(-2, 3, (n, 4, 9, 2)) * (there & (rng.random((n, 4, 9)) < 0.2))[..., None]
    after = before.copy()
    after[..., :2] += shift.astype(np.int16)
    jumps, changed, moved = (
        trip_metrics.largest_jump(after),
        trip_metrics.changed_points(before, after),
        trip_metrics.displacement(before, after),
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
    assert trip_metrics.largest_jump(empty).shape == (0,) and trip_metrics.displacement(empty, empty).shape == (0,)
    # The step from padding to the first point is none, wherever that is.
    assert trip_metrics.largest_jump(np.array([[[[0, 0, 0], [50, 50, 3], [51, 49, 3]]]], np.int16)).tolist() == [1]


def test_too_fast_is_the_way_of_the_crow():
    rng = np.random.default_rng(3)
    x = trips_with_padding(rng, trip_metrics.BLOCK + 5)
    found = trip_metrics.too_fast(x, 40.0)
    assert 0.2 < found.mean() < 0.98
    for sample, fast in zip(x, found, strict=True):
        for trip, expected in zip(sample, fast, strict=True):
            points = trip[trip[:, SLOT] > 0, :2].astype(float)
            assert expected == (np.hypot(*np.diff(points, axis=0).T) > 40).any()
    # At the limit is within it.
    assert trip_metrics.too_fast(np.array([[[[0, 0, 1], [3, 4, 1]]]], np.int16), 5.0).tolist() == [[False]]


def test_an_attack_within_the_speed_limit_leaves_other_trips_as_they_were():
    layout = Layout((SEEK, SERVE), 2, 1, 3, 3)
    clean = np.zeros((2, 4, 3, 3), np.float32)
    clean[..., SLOT] = 1
    clean[1, 0, 1, X] = 9
    moved = clean.copy()
    moved[0, 0, :, X] = [0, 4, 0]
    moved[:, 1, :, X] = 1
    seen = []

    def right(x):
        seen.append(x)
        return np.array([True, True])

    outcome = SimpleNamespace(examples=SimpleNamespace(x=clean), x=moved, clean=np.array([True, False]))
    found = within_speed(outcome, layout, 3.0, right)
    # Of four trips that may move one breaks it in the record, and another one after the attack.
    assert (found.before, found.after) == (0.25, 0.5) and found.robust.tolist() == [True, False]
    expected = moved.copy()
    expected[0, 0] = clean[0, 0]
    np.testing.assert_array_equal(seen[0], expected)
    np.testing.assert_array_equal(moved[0, 0, :, X], [0, 4, 0])
