"""How far a changed trip is from one that can be driven."""

from collections.abc import Iterator

import numpy as np

from mobility_humid.data.trips import SLOT, X, Y

# Samples of trips that are measured at a time.
BLOCK = 250


def largest_jump(x: np.ndarray) -> np.ndarray:
    """The longest way between two consecutive points of a trip, in cells along the longer axis, int32 (n,).

    `x` int (n, trips, time, 3 or 4) in grid cells; points of slot 0 are padding, which comes first. A driver cannot
    be made to follow a trip that jumps further than any recorded one.
    """
    out = np.zeros(len(x), np.int32)
    for rows in _blocks(len(x)):
        there = x[rows, :, :, SLOT] > 0
        step = np.abs(np.diff(x[rows][..., [X, Y]].astype(np.int32), axis=2)).max(axis=3)
        step *= there[:, :, 1:] & there[:, :, :-1]
        out[rows] = step.max(axis=(1, 2), initial=0)
    return out


def too_fast(x: np.ndarray, fastest: float) -> np.ndarray:
    """Which trips have two consecutive points further apart than `fastest` cells, as the crow flies: bool (n, trips);
    shapes as above."""
    out = np.zeros(x.shape[:2], bool)
    for rows in _blocks(len(x)):
        there = x[rows, :, :, SLOT] > 0
        step = np.square(np.diff(x[rows][..., [X, Y]].astype(np.float64), axis=2)).sum(axis=3)
        out[rows] = ((step > fastest**2) & there[:, :, 1:] & there[:, :, :-1]).any(axis=2)
    return out


def changed_points(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """How many points lie in another cell `after` than `before`, both int (n, trips, time, 3 or 4): int32 (n,)."""
    out = np.zeros(len(before), np.int32)
    for rows in _blocks(len(before)):
        out[rows] = (before[rows][..., [X, Y]] != after[rows][..., [X, Y]]).any(axis=3).sum(axis=(1, 2))
    return out


def displacement(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The furthest that a point of a sample was moved along either axis, in cells: int32 (n,); shapes as above."""
    out = np.zeros(len(before), np.int32)
    for rows in _blocks(len(before)):
        shift = after[rows][..., [X, Y]].astype(np.int32) - before[rows][..., [X, Y]]
        out[rows] = np.abs(shift).max(axis=(1, 2, 3), initial=0)
    return out


def _blocks(count: int) -> Iterator[slice]:
    return (slice(first, first + BLOCK) for first in range(0, count, BLOCK))
