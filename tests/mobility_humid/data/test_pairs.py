"""Pairs and single drivers: nobody is tested on days or trips that were trained on, and every draw is fair."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from common.errors import UserError
from mobility_humid.data.pairs import Sampler, _without_repeats, split_drivers
from mobility_humid.data.samples import SEEN, TRAIN, UNSEEN, VALIDATION
from mobility_humid.data.trips import SEEK, SERVE, SLOT

PARTS = (TRAIN, VALIDATION, SEEN, UNSEEN)
KINDS = (SEEK, SERVE)


def sampler(trips, drivers=range(8), days=range(8), **options):
    return Sampler(trips, drivers, days, **{"kinds": KINDS, "per_kind": 3} | options)


def check_trips(trips, numbers, driver, days, kinds):
    """`numbers` (n, sides, kinds, K) belong to `driver` (n, sides) and `days` (n, sides, d), in time order, once."""
    there = numbers >= 0
    assert (np.diff(there.astype(int), axis=3) <= 0).all(), "an empty place stands before a trip"
    safe = np.maximum(numbers, 0)
    assert ((trips.driver[safe] == driver[:, :, None, None]) | ~there).all()
    of_day = (trips.day[safe][..., None] == days[:, :, None, None, :]).any(axis=-1)
    assert (of_day | ~there).all()
    assert ((trips.kind[safe] == np.array(kinds)[:, None]) | ~there).all()
    # The trips of a data set are in order of time: rising numbers are that and without repeats.
    assert ((np.diff(numbers, axis=3) > 0) | ~there[..., 1:]).all()


def test_no_two_parts_share_a_day_and_the_unseen_are_in_the_last_only(tiny_fleet):
    fleet = tiny_fleet()
    split = fleet.split
    assert sorted([*split.train, *split.validation, *split.test]) == list(range(8))
    assert max(split.train) < min(split.validation) and max(split.validation) < min(split.test)
    assert sorted([*split.seen, *split.unseen]) == list(range(8)) and len(split.unseen) == 2
    wanted = {TRAIN: split.train, VALIDATION: split.validation, SEEN: split.test, UNSEEN: split.test}
    drawn = {part: fleet.pairs(part, 300) for part in PARTS}
    for part, pairs in drawn.items():
        assert set(np.unique(pairs.days)) <= set(wanted[part])
        assert set(np.unique(pairs.driver)) <= set(split.unseen if part == UNSEEN else split.seen)
        check_trips(fleet.trips, pairs.trips, pairs.driver, pairs.days, KINDS)
    trips = [set(pairs.trips.ravel()) for pairs in drawn.values()]
    assert all(not a & b for i, a in enumerate(trips) for b in trips[:i])


def test_num_days_takes_the_first_days_and_no_unseen_driver_leaks_by_the_seed(tiny_trips):
    kept = {"unseen_share": 0.25, "test_days": 2, "validation_days": 1}
    split = split_drivers(tiny_trips, seed=0, num_days=3, **kept)
    assert split.train.tolist() == [0, 1, 2] and split.validation.tolist() == [5] and split.test.tolist() == [6, 7]
    again = split_drivers(tiny_trips, seed=0, num_days=2, **kept)
    # Whoever is unseen stays so, however many days are trained on.
    assert again.unseen.tolist() == split.unseen.tolist()
    assert len({tuple(split_drivers(tiny_trips, seed=seed, **kept).unseen) for seed in range(20)}) > 5
    with pytest.raises(UserError, match="leave none to train on"):
        split_drivers(tiny_trips, seed=0, unseen_share=0.25, test_days=5, validation_days=3)
    with pytest.raises(UserError, match="at least 2 to train on and 2 to hold out"):
        split_drivers(tiny_trips, seed=0, unseen_share=0.1, test_days=2, validation_days=2)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    days=st.lists(st.integers(0, 7), min_size=4, max_size=8, unique=True).map(sorted),
    drivers=st.lists(st.integers(0, 7), min_size=2, max_size=8, unique=True),
    per_kind=st.integers(1, 9),
    days_per_side=st.integers(1, 2),
    kinds=st.sampled_from([KINDS, (SEEK,), (SERVE,)]),
)
def test_pairs_are_what_they_claim(tiny_trips, seed, days, drivers, per_kind, days_per_side, kinds):
    """Labels, drivers, days and trips, also where a day has fewer trips than a sample."""
    draw = sampler(tiny_trips, drivers, days, kinds=kinds, per_kind=per_kind, days_per_side=days_per_side, least=1)
    pairs = draw.pairs(41, seed)
    assert pairs.trips.shape == (41, 2, len(kinds), per_kind) and pairs.trips.dtype == np.int32
    assert (pairs.same == (pairs.driver[:, 0] == pairs.driver[:, 1])).all()
    assert pairs.same.sum() == 21 and set(np.unique(pairs.driver)) <= set(drivers)
    assert np.isin(pairs.days, days).all() and (np.diff(pairs.days, axis=2) > 0).all()
    shared = (pairs.days[:, 0, :, None] == pairs.days[:, 1, None, :]).any(axis=(1, 2))
    assert not shared[pairs.same == 1].any()
    check_trips(tiny_trips, pairs.trips, pairs.driver, pairs.days, kinds)
    # A place is empty only where the days have no more trips of that kind.
    for i, side, kind in np.argwhere((pairs.trips < 0).any(axis=3)):
        own = tiny_trips.driver == pairs.driver[i, side]
        own &= np.isin(tiny_trips.day, pairs.days[i, side]) & (tiny_trips.kind == kinds[kind])
        assert (pairs.trips[i, side, kind] >= 0).sum() == own.sum() < per_kind


def test_singles_take_the_drivers_in_turn(tiny_trips):
    draw = sampler(tiny_trips, days=[2, 3, 4], sides=1)
    singles = draw.singles(17, 3)
    assert singles.driver.tolist() == [i % 8 for i in range(17)]
    check_trips(tiny_trips, singles.trips[:, None], singles.driver[:, None], singles.days[:, None], KINDS)


def test_days_with_too_few_trips_are_left_out(tiny_trips):
    counts = np.zeros((8, 8, 2), int)
    np.add.at(counts, (tiny_trips.driver, tiny_trips.day, tiny_trips.kind), 1)
    draw = sampler(tiny_trips, per_kind=4)
    pairs = draw.pairs(500, 0)
    assert (pairs.trips >= 0).all() and (counts[pairs.driver[..., None], pairs.days] >= 4).all()
    missing = sampler(tiny_trips, per_kind=5, least=1).pairs(500, 0).trips
    assert (missing < 0).any()
    with pytest.raises(UserError, match="bring more days, or lower --num-trajs"):
        sampler(tiny_trips, per_kind=6)


@pytest.mark.parametrize(("count", "size"), [(5, 2), (5, 4), (6, 3), (4, 4), (3, 1)])
def test_without_repeats_is_uniform_over_subsets(count, size):
    """Chi-square over all subsets; alone in its column as beside other counts."""
    rng = np.random.default_rng(0)
    counts = np.resize([count, 2, 9], 60000)
    drawn = _without_repeats(counts, size, rng)[::3]
    assert drawn.min() >= 0 and drawn.max() < count
    found, seen = np.unique(np.sort(drawn, axis=1), axis=0, return_counts=True)
    assert (np.diff(found, axis=1) > 0).all()
    assert len(found) == math.comb(count, size)
    assert len(found) == 1 or chisquare(seen).pvalue > 1e-3


def test_without_repeats_takes_all_where_there_are_too_few():
    drawn = _without_repeats(np.array([0, 1, 2, 3, 4]), 3, np.random.default_rng(0))
    assert drawn[:4].tolist() == [[0, 1, 2]] * 4 and len(set(drawn[4])) == 3


@pytest.mark.parametrize("days_per_side", [1, 2])
def test_days_are_drawn_fairly_for_both_sides_and_labels(tiny_trips, days_per_side):
    """Neither which side it is nor whether the drivers are the same shows in the days of a pair."""
    pairs = sampler(tiny_trips, days=range(3, 8), days_per_side=days_per_side).pairs(20000, 5)
    for same in (0, 1):
        for side in (0, 1):
            days = pairs.days[pairs.same == same, side].ravel()
            assert chisquare(np.bincount(days, minlength=8)[3:]).pvalue > 1e-3, (same, side)
    drivers = np.bincount(pairs.driver.ravel(), minlength=8)
    assert drivers.min() > 0.9 * drivers.mean()


def test_trips_of_a_day_are_drawn_fairly(tiny_trips):
    """Every trip of a kind and day of a driver is drawn as often as any other of them."""
    pairs = sampler(tiny_trips, per_kind=2).pairs(30000, 6)
    times = np.bincount(pairs.trips.ravel(), minlength=len(tiny_trips.driver))
    days = np.stack([tiny_trips.driver, tiny_trips.day, tiny_trips.kind], axis=1)
    _, group = np.unique(days, axis=0, return_inverse=True)
    pvalues = [chisquare(times[group.ravel() == g]).pvalue for g in range(group.max() + 1)]
    # A hundred and twenty-eight draws of a uniform number: one below 1e-5 is no accident.
    assert min(pvalues) > 1e-5 and 0.35 < np.mean(np.array(pvalues) > 0.5) < 0.8


def test_c1_c2_the_seed_decides(tiny_fleet):
    fleet, again = tiny_fleet(), tiny_fleet()
    for part in PARTS:
        for a, b in zip(fleet.pairs(part, 50), again.pairs(part, 50), strict=True):
            np.testing.assert_array_equal(a, b)
    draw = fleet.sampler(TRAIN)
    assert (draw.pairs(50, 1).trips != draw.pairs(50, 2).trips).any()
    # The parts of one seed do not repeat one another's draws.
    assert (fleet.pairs(TRAIN, 50).same == fleet.pairs(VALIDATION, 50).same).all()
    assert (fleet.pairs(SEEN, 50).driver != fleet.pairs(VALIDATION, 50).driver).any()


@pytest.mark.parametrize("profile", [False, True])
@pytest.mark.parametrize("sides", [1, 2])
def test_c8_epochs_differ_and_repeat_under_one_seed(tiny_fleet, sides, profile):
    """C8; and a batch of the stream holds what `samples` makes of the same draws, in another order."""
    fleet = tiny_fleet(sides=sides, with_profile=profile)
    epochs = fleet.epochs(24, 8, lambda drawn: drawn.same if sides == 2 else drawn.driver)

    def read(epoch):
        batches = [(x.numpy(), y.numpy()) for x, y in epochs(epoch)]
        assert len(batches) == 3
        return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])

    (x, y), (x_again, y_again), (other, _) = read(0), read(0), read(1)
    np.testing.assert_array_equal(x, x_again)
    np.testing.assert_array_equal(y, y_again)
    assert x.dtype == np.float32 and x.shape == (24, *fleet.layout.shape) and y.dtype == np.int32
    # Few trips make few different samples: some of those of one driver may come again.
    assert np.mean([any((a == b).all() for b in other) for a in x]) < 0.2
    draw = fleet.sampler(TRAIN)
    drawn = (draw.pairs if sides == 2 else draw.singles)(24, [fleet.sampling.seed, 0, 0])
    wanted, label = fleet.samples(drawn), drawn.same if sides == 2 else drawn.driver
    key = lambda rows: np.lexsort(rows.reshape(len(rows), -1).T)  # noqa: E731
    np.testing.assert_array_equal(x[key(x)], wanted[key(wanted)])
    np.testing.assert_array_equal(y[key(x)], label[key(wanted)])


def test_samples_hold_the_points_and_profiles_of_their_drivers(tiny_fleet):
    fleet = tiny_fleet(with_profile=True, with_speed=True)
    pairs = fleet.pairs(UNSEEN, 20)
    x, layout, trips = fleet.samples(pairs), fleet.layout, fleet.trips
    assert x.shape == (20, 10, 12, 4)
    rows = layout.rows(pairs.trips)
    for i in range(20):
        for row, trip in enumerate(rows[i]):
            points = trips.points[trips.offsets[trip] : trips.offsets[trip + 1]][-12:]
            np.testing.assert_array_equal(x[i, row, 12 - len(points) :], points)
            assert (x[i, row, : 12 - len(points)] == 0).all()
        for side in (0, 1):
            own = trips.profiles[pairs.driver[i, side], pairs.days[i, side, 0]]
            np.testing.assert_array_equal(x[i, layout.trip_rows + side, :11, 0], own)
    assert (x[:, layout.trip_rows :, :, 1:] == 0).all() and (x[:, layout.trip_rows :, :, SLOT] == 0).all()


@pytest.mark.slow
def test_half_a_million_pairs_take_less_than_a_gigabyte(tiny_trips):
    draw = sampler(tiny_trips, per_kind=3)
    tracemalloc.start()
    try:
        pairs = draw.pairs(500_000, 0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(pairs.trips) == 500_000
    assert peak < 2**30 and sum(field.nbytes for field in pairs) < 50 * 2**20
