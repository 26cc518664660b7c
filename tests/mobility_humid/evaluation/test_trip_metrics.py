"""Displacements of trips against plain loops."""

import itertools

import numpy as np

from mobility_humid.data.trips import SLOT
from mobility_humid.evaluation import trip_metrics


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
