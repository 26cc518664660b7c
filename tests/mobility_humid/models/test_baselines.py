"""Baselines: they see what there is to see, and nothing where there is nothing."""

import dataclasses

import numpy as np
import pytest

from common.evaluation.statistics import auc
from mobility_humid.data.pairs import Pairs, Sampler
from mobility_humid.data.trips import SEEK, SERVE, Grid, TripSet
from mobility_humid.models import baselines

DRIVERS, KNOWN, DAYS, OWN = 24, 14, 8, 6
TRAIN, TEST = np.arange(4), np.arange(4, DAYS)
SCORES = (baselines.heat_map_scores, baselines.whole_day_scores)
NAMES = (baselines.heat_map_names, baselines.whole_day_names)


def fleet(share: float, seed: int = 0) -> TripSet:
    """Drivers who spend `share` of their trips around a home of their own and the others anywhere."""
    rng = np.random.default_rng(seed)
    grid = Grid(south=0.0, west=0.0, cell_size=250.0, width=40, height=30)
    size = np.array([grid.width, grid.height])
    driver, day, kind = (column.ravel() for column in np.mgrid[:DRIVERS, :DAYS, : 2 * OWN].astype(np.int32))
    kind = (kind % 2).astype(np.int8)
    count = len(driver)
    own = rng.random((count, 1)) < share
    middle = np.where(own, rng.integers(5, size - 5, (DRIVERS, 2))[driver], rng.integers(0, size, (count, 2)))
    lengths = rng.integers(3, 9, count)
    trip = np.repeat(np.arange(count), lengths)
    place = np.clip(middle[trip] + rng.integers(-2, 3, (len(trip), 2)), 0, size - 1)
    slot = 20 * (np.arange(count) % (2 * OWN))[trip] + 1 + rng.integers(0, 5, count)[trip]
    points = np.column_stack([place, slot, rng.integers(0, 50, len(trip))]).astype(np.int16)
    return TripSet(
        points=points,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        driver=driver,
        day=day,
        kind=kind,
        profiles=np.zeros((DRIVERS, DAYS, 11), np.float32),
        drivers=tuple(f"d{i}" for i in range(DRIVERS)),
        days=tuple(f"2030-01-{i + 1:02}" for i in range(DAYS)),
        grid=grid,
        filters={},
    )


def drawn(trips: TripSet, kinds=(SEEK, SERVE), **options) -> tuple[Pairs, Pairs]:
    """Pairs of the first drivers to train on, and of the others on other days."""
    train = Sampler(trips, np.arange(KNOWN), TRAIN, kinds=kinds, per_kind=3, **options).pairs(400, 1)
    return train, Sampler(trips, np.arange(KNOWN, DRIVERS), TEST, kinds=kinds, per_kind=3, **options).pairs(300, 2)


def swapped(pairs: Pairs) -> Pairs:
    return Pairs(pairs.trips[:, ::-1], pairs.same, pairs.driver[:, ::-1], pairs.days[:, ::-1])


@pytest.fixture(scope="module")
def homes() -> TripSet:
    return fleet(0.8)


@pytest.mark.parametrize("scores", SCORES)
def test_homes_are_seen_of_drivers_who_were_not_trained_on(scores, homes):
    before = homes.offsets.copy(), homes.points.copy()
    train, test = drawn(homes)
    seen, unseen, back = scores(homes, train, [train, test, swapped(test)])
    assert seen.shape == (400,) and unseen.shape == (300,) and unseen.min() >= 0 and unseen.max() <= 1
    assert auc(unseen, test.same) > 0.85
    # The order of the sides does not matter.
    np.testing.assert_allclose(unseen, back, atol=1e-6)
    np.testing.assert_array_equal(homes.offsets, before[0])
    np.testing.assert_array_equal(homes.points, before[1])


@pytest.mark.parametrize("scores", SCORES)
def test_without_homes_or_with_drivers_shuffled_it_is_chance(scores, homes):
    # Who made the first trip of a day, the second, ... is drawn anew for each, so that no trip is its driver's.
    number = np.arange(len(homes.driver)).reshape(DRIVERS, -1)
    order = np.random.default_rng(3).permuted(number, axis=0).ravel()
    points = [homes.points[homes.offsets[trip] : homes.offsets[trip + 1]] for trip in order]
    offsets = np.concatenate([[0], np.cumsum([len(trip) for trip in points])])
    shuffled = dataclasses.replace(homes, points=np.concatenate(points), offsets=offsets)
    for trips in (fleet(0.0), shuffled):
        train, test = drawn(trips)
        assert auc(scores(trips, train, [test])[0], test.same) == pytest.approx(0.5, abs=0.1)


def test_more_days_help():
    trips = fleet(0.3)
    found = []
    for days in (1, 2):
        options = {"kinds": (SEEK, SERVE), "per_kind": 2 * OWN, "least": 1, "days_per_side": days}
        train = Sampler(trips, np.arange(KNOWN), TRAIN, **options).pairs(400, 1)
        test = Sampler(trips, np.arange(KNOWN, DRIVERS), TEST, **options).pairs(400, 2)
        # A day has fewer trips than a side has room for.
        assert (test.trips < 0).any() == (days == 1)
        found.append(auc(baselines.heat_map_scores(trips, train, [test])[0], test.same))
    assert 0.5 < found[0] < found[1] - 0.03


def test_one_kind_of_trips_and_empty_sides(homes):
    train, test = drawn(homes, kinds=(SERVE,))
    test.trips[:5, 1] = -1
    for scores in SCORES:
        assert np.isfinite(scores(homes, train, [test])[0]).all()


@pytest.mark.parametrize("names", NAMES)
def test_drivers_are_named_by_their_homes(names, homes):
    def singles(trips, drivers, days, seed):
        sampler = Sampler(trips, drivers, days, kinds=(SEEK, SERVE), per_kind=4, sides=1)
        return sampler.singles(3 * len(sampler.drivers) * len(days), seed)

    train, test = singles(homes, [1, 3, 4, 9], TRAIN, 1), singles(homes, [1, 3, 4, 9], TEST, 2)
    (found,) = names(homes, train, [test])
    assert found.dtype == np.int32 and found.shape == test.driver.shape and set(found) <= {1, 3, 4, 9}
    assert (found == test.driver).mean() > 0.8
    nowhere, everybody = fleet(0.0), np.arange(DRIVERS)
    train, test = singles(nowhere, everybody, TRAIN, 1), singles(nowhere, everybody, TEST, 2)
    assert (names(nowhere, train, [test])[0] == test.driver).mean() < 0.25


def test_likeness_against_plain_maps(homes):
    train, test = drawn(homes)
    chart = baselines._Charts(homes, train.trips, 4)
    found = baselines._likeness([chart], test.trips[:20]).reshape(20, 2, 4)

    def heat_map(numbers):
        counts = np.zeros((8, 10))
        for number in numbers:
            for x, y, *_ in homes.points[homes.offsets[number] : homes.offsets[number + 1]]:
                counts[y // 4, x // 4] += 1
        return counts.ravel() / counts.sum()

    for kind in range(2):
        known = np.unique(train.trips[:, :, kind])
        fleet_map = np.mean([heat_map(known[homes.driver[known] == driver]) for driver in range(KNOWN)], axis=0)
        np.testing.assert_allclose(chart.fleet[kind], fleet_map, atol=1e-6)
        for i in range(20):
            a, b = heat_map(test.trips[i, 0, kind]), heat_map(test.trips[i, 1, kind])

            def cosine(a, b):
                return a @ b / np.sqrt((a @ a) * (b @ b))

            root, rarity = np.sqrt(fleet_map), 1 / np.sqrt(fleet_map + baselines.RARE)
            expected = [
                np.minimum(a, b).sum(),
                np.sqrt(a * b).sum(),
                cosine(np.sqrt(a) - root, np.sqrt(b) - root),
                cosine((a - fleet_map) * rarity, (b - fleet_map) * rarity),
            ]
            np.testing.assert_allclose(found[i, kind], expected, atol=1e-4)


def test_day_statistics_against_a_loop(homes):
    table = baselines.day_statistics(homes)
    assert table.shape[:2] == (DRIVERS, DAYS) and table.dtype == np.float32
    # Seek trips come first: their number, then seven figures of what they take, how far they reach, ...
    chosen = np.flatnonzero((homes.driver == 2) & (homes.day == 3) & (homes.kind == SEEK))
    trips = [homes.points[homes.offsets[i] : homes.offsets[i + 1]].astype(float) for i in chosen]
    reach = np.array([np.hypot(*(trip[-1, :2] - trip[0, :2])) for trip in trips])
    x = np.concatenate(trips)[:, 0]
    own = table[2, 3]
    assert own[0] == OWN
    assert own[8:10] == pytest.approx([reach.mean(), reach.std()], rel=1e-5)
    assert own[8 + 7 * 3 : 8 + 7 * 3 + 2] == pytest.approx([x.mean(), x.std()], rel=1e-5)
    middle = np.sort(x)[np.rint(0.5 * (len(x) - 1)).astype(int)]
    assert own[8 + 7 * 3 + 4] == middle
    # Days without trips know nothing.
    there = (homes.driver != 2) | (homes.day != 3)
    rows = np.repeat(there, np.diff(homes.offsets))
    without = dataclasses.replace(
        homes,
        points=homes.points[rows],
        offsets=np.concatenate([[0], np.cumsum(np.diff(homes.offsets)[there])]),
        driver=homes.driver[there],
        day=homes.day[there],
        kind=homes.kind[there],
    )
    missing = baselines.day_statistics(without)
    assert np.isnan(missing[2, 3]).all()
    table[2, 3] = np.nan
    np.testing.assert_array_equal(missing, table)
