"""Samples of trips, drawn on the fly: pairs of drivers to verify, and single drivers to identify.

A side of a sample is one driver on one or several days, with a fixed number of trips of each kind. Only trip numbers
are drawn; the points are looked up when a batch is made (`samples`), so half a million pairs take a few tens of
megabytes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from common.errors import UserError
from mobility_humid.data.trips import TripSet


class Split(NamedTuple):
    """Who and when: drivers `seen` in training and `unseen`, and days of each part, all int32; no two parts share a
    day, and the unseen drivers are in none but the test part."""

    seen: np.ndarray
    unseen: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


class Pairs(NamedTuple):
    """n pairs of sides. `trips` int32 (n, 2, kinds, K): trip numbers in order of time, -1 for none; `same` int32 (n,),
    1 where both sides are one driver; `driver` int32 (n, 2); `days` int32 (n, 2, days per side)."""

    trips: np.ndarray
    same: np.ndarray
    driver: np.ndarray
    days: np.ndarray


class Singles(NamedTuple):
    """n drivers to be named. `trips` int32 (n, kinds, K); `driver` int32 (n,); `days` int32 (n, days per sample)."""

    trips: np.ndarray
    driver: np.ndarray
    days: np.ndarray


def split_drivers(
    trips: TripSet,
    *,
    seed: int,
    unseen_share: float,
    test_days: int,
    validation_days: int,
    num_days: int | None = None,
    fold: int = 0,
) -> Split:
    """Unseen drivers drawn by `seed`, none for a share of 0, others for each `fold`; of the days in their order the
    last `test_days` for testing, `validation_days` before them, and of those before the first `num_days` (all for None)
    for training.

    Errors: `UserError` when too few drivers or days are left for any part, or no drivers for such a fold.
    """
    drivers, days = len(trips.drivers), len(trips.days)
    order = np.random.default_rng([seed, 0xD121]).permutation(drivers).astype(np.int32)
    unseen = round(drivers * unseen_share)
    if (unseen_share and unseen < 2) or drivers - unseen < 2:
        held_back = " and 2 to hold out; bring more drivers or another --unseen-share" if unseen_share else ""
        raise UserError(f"{drivers} drivers: expected at least 2 to train on{held_back}")
    if (fold + 1) * unseen > drivers:
        raise UserError(
            f"--fold: {fold}, but {drivers} drivers make {drivers // unseen} disjoint folds of {unseen} unseen"
        )
    left = days - test_days - validation_days
    if left < 1:
        raise UserError(
            f"{days} days: {validation_days} for validation and {test_days} for testing leave none to train on; lower"
            " --validation-days and --test-days"
        )
    every = np.arange(days, dtype=np.int32)
    return Split(
        seen=np.sort(np.delete(order, np.s_[fold * unseen : (fold + 1) * unseen])),
        unseen=np.sort(order[fold * unseen : (fold + 1) * unseen]),
        train=every[: min(left, num_days or left)],
        validation=every[left : left + validation_days],
        test=every[left + validation_days :],
    )


class Sampler:
    """Draws sides from the trips of some drivers on some days.

    `kinds`: the kinds of trips of a side, in their order; `per_kind`: trips of each kind; `days_per_side`: how many
    days a side takes its trips from. A day with fewer than `least` trips (by default `per_kind`) of a kind is left out;
    where a side then still has fewer than `per_kind`, it has them all, and -1 in the other places.

    Errors: `UserError` when fewer than two drivers have the days that are needed.
    """

    def __init__(
        self,
        trips: TripSet,
        drivers: Sequence[int] | np.ndarray,
        days: Sequence[int] | np.ndarray,
        *,
        kinds: Sequence[int],
        per_kind: int,
        days_per_side: int = 1,
        least: int | None = None,
        sides: int = 2,
    ) -> None:
        self.kinds, self.per_kind, self.days_per_side, self.sides = tuple(kinds), per_kind, days_per_side, sides
        shape = (len(trips.drivers), len(trips.days), len(kinds))
        # Trips are sorted by driver, day and time, so those of one kind, in order, are too: a side's trips of a day are
        # a run of this list.
        self._order = [np.flatnonzero(trips.kind == kind).astype(np.int32) for kind in kinds]
        self._first, self._count = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for column, order in enumerate(self._order):
            places = trips.driver[order] * shape[1] + trips.day[order]
            count = np.bincount(places, minlength=shape[0] * shape[1])
            self._count[..., column] = count.reshape(shape[:2])
            self._first[..., column] = (np.cumsum(count) - count).reshape(shape[:2])
        enough = (self._count >= (per_kind if least is None else least)).all(axis=2)
        days = np.asarray(days)
        self._days = {int(driver): days[enough[driver, days]] for driver in drivers}
        # Disjoint days for both sides of a pair of the same driver.
        self._days = {driver: kept for driver, kept in self._days.items() if len(kept) >= sides * days_per_side}
        self.drivers = np.array(sorted(self._days), np.int32)
        if len(self.drivers) < 2:
            needed, wanted = sides * days_per_side, per_kind if least is None else least
            raise UserError(
                f"only {len(self.drivers)} of {len(drivers)} drivers have {needed} of {len(days)} days with"
                f" {wanted} trips of each kind; bring more days, or lower --num-trajs or --days-per-sample"
            )

    def pairs(self, count: int, seed: int | Sequence[int]) -> Pairs:
        """`count` pairs, every other one of the same driver on two disjoint sets of days; the days of different drivers
        are drawn independently."""
        rng = np.random.default_rng(seed)
        same = (np.arange(count) % 2 == 0).astype(np.int32)
        first = rng.integers(len(self.drivers), size=count)
        other = (first + rng.integers(1, len(self.drivers), size=count)) % len(self.drivers)
        driver = self.drivers[np.stack([first, np.where(same, first, other)], axis=1)]
        days = self._draw_days(driver, same.astype(bool), rng)
        return Pairs(self._draw_trips(driver, days, rng), same, driver, days)

    def singles(self, count: int, seed: int | Sequence[int]) -> Singles:
        """`count` sides, the drivers in turn."""
        rng = np.random.default_rng(seed)
        driver = np.resize(self.drivers, count)[:, None]
        days = self._draw_days(driver, np.zeros(count, bool), rng)
        return Singles(self._draw_trips(driver, days, rng)[:, 0], driver[:, 0], days[:, 0])

    def _draw_days(self, driver: np.ndarray, same: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """int32 (n, sides, days_per_side), in order within a side; disjoint where `same`."""
        most = max(map(len, self._days.values()))
        table = np.zeros((int(self.drivers.max()) + 1, most), np.int32)
        counts = np.zeros(len(table), np.int64)
        for number, days in self._days.items():
            table[number, : len(days)], counts[number] = days, len(days)
        wide = _without_repeats(counts[driver[:, 0]], self.sides * self.days_per_side, rng)
        # All subsets are equally likely, all orders are not: unmixed, the first side would never have the last days.
        wide = rng.permuted(wide, axis=1)
        days = table[driver[:, :1], wide].reshape(len(driver), self.sides, self.days_per_side)
        for side in range(1, self.sides):
            own = _without_repeats(counts[driver[:, side]], self.days_per_side, rng)
            days[:, side] = np.where(same[:, None], days[:, side], table[driver[:, [side]], own])
        return np.sort(days, axis=2)

    def _draw_trips(self, driver: np.ndarray, days: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """int32 (n, sides, kinds, per_kind)."""
        n, sides = driver.shape
        out = np.full((n, sides, len(self.kinds), self.per_kind), -1, np.int32)
        for side in range(sides):
            for column, order in enumerate(self._order):
                count = self._count[driver[:, [side]], days[:, side], column]
                first = self._first[driver[:, [side]], days[:, side], column]
                total = count.sum(axis=1)
                picked = np.sort(_without_repeats(total, self.per_kind, rng), axis=1)
                # The days of a side laid end to end: which of them a number falls into, and where in it.
                ends = np.cumsum(count, axis=1)
                place = (picked[:, :, None] >= ends[:, None, :]).sum(axis=2)
                place = np.minimum(place, count.shape[1] - 1)
                inside = picked - np.take_along_axis(ends - count, place, axis=1)
                number = np.take_along_axis(first, place, axis=1) + inside
                there = np.arange(self.per_kind) < total[:, None]
                out[:, side, column] = np.where(there, order[np.minimum(number, max(len(order) - 1, 0))], -1)
        return out


def _without_repeats(counts: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """For each of `counts` (n,) `size` different numbers below it, int64 (n, size), all subsets equally likely (Floyd's
    algorithm, F2 in Bentley & Floyd 1987); where there are fewer than `size`, first all of them in order."""
    chosen = np.full((len(counts), size), -1, np.int64)
    for k in range(size):
        top = np.maximum(counts - size + k, k)
        draw = (rng.random(len(counts)) * (top + 1)).astype(np.int64)
        taken = (chosen[:, :k] == draw[:, None]).any(axis=1)
        chosen[:, k] = np.where(taken, top, draw)
    return np.where(counts[:, None] > size, chosen, np.arange(size))
