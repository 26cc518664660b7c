"""The simulated fleet: what a GPS file may look like, repeatable, and with drivers who differ."""

import numpy as np
import pytest

from common.errors import UserError
from mobility_humid.data import city as simulator
from mobility_humid.data.city import city

DRIVERS, DAYS = 10, 8


@pytest.fixture(scope="module")
def tracks():
    return list(city(1, drivers=DRIVERS, days=DAYS))


def metres(track):
    across = simulator.METRES_PER_DEGREE * np.cos(np.radians(simulator.SOUTH))
    return (track.lon - simulator.WEST) * across, (track.lat - simulator.SOUTH) * simulator.METRES_PER_DEGREE


def day_of(track):
    return (track.time - simulator.FIRST_DAY - 4 * 3600) // 86_400


def test_shapes_types_and_names(tracks):
    assert [track.driver for track in tracks] == [f"driver{i:04d}" for i in range(DRIVERS)]
    for track in tracks:
        n = len(track.time)
        assert track.time.dtype == np.int64 and track.occupied.dtype == bool
        assert track.lat.dtype == track.lon.dtype == np.float64
        assert {len(column) for column in track[1:]} == {n} and n > 400 * (DAYS - 2)
        assert np.isfinite(track.lat).all() and np.isfinite(track.lon).all()


def test_same_seed_same_bits_and_another_seed_others(tracks):
    for track, again in zip(tracks, city(1, drivers=DRIVERS, days=DAYS), strict=True):
        for first, second in zip(track[1:], again[1:], strict=True):
            np.testing.assert_array_equal(first, second)
    other = next(city(2, drivers=DRIVERS, days=DAYS))
    assert not np.array_equal(other.time, tracks[0].time)


def test_more_drivers_only_append(tracks):
    for track, alone in zip(tracks[:3], city(1, drivers=3, days=DAYS), strict=True):
        np.testing.assert_array_equal(track.time, alone.time)
        np.testing.assert_array_equal(track.lat, alone.lat)


def test_points_are_what_gps_sends(tracks):
    for track in tracks:
        steps = np.diff(track.time)
        assert (steps >= 0).all()
        assert np.median(steps[steps > 0]) == pytest.approx(60, abs=3)
        assert 0 < (steps == 0).mean() < 0.03
        assert 0 < ((steps > 120) & (steps < 900)).mean() < 0.03
        x, y = metres(track)
        margin = 8 * simulator.ERROR
        assert min(x.min(), y.min()) > -margin
        assert (np.array([x.max(), y.max()]) < simulator.SIZE + margin).all()
        moved = np.flatnonzero((steps > 30) & (steps < 900))
        speed = np.hypot(np.diff(x)[moved], np.diff(y)[moved]) / steps[moved] * 3.6
        assert speed.max() < 110 and 10 < np.median(speed) < 40
        # At 60 seconds, neighbouring cells of 250 m.
        usual = np.flatnonzero(abs(steps - 60) < 15)
        assert np.quantile(np.hypot(np.diff(x)[usual], np.diff(y)[usual]), 0.99) < 3 * 250


def test_a_day_of_work(tracks):
    for track in tracks:
        days, count = np.unique(day_of(track), return_counts=True)
        days = days[count > 100]
        # One day of the week is off, and never the first.
        assert len(days) in (DAYS - 1, DAYS) and days[0] == 0 and days[-1] == DAYS - 1
        for day in days:
            own = day_of(track) == day
            time, occupied = track.time[own], track.occupied[own]
            assert 6 < (time[-1] - time[0]) / 3600 < 14
            change = np.flatnonzero(np.diff(occupied.astype(int)))
            assert 24 <= len(change) <= 90
            minutes = np.diff(time[change]) / 60
            assert np.quantile(minutes, 0.1) > 4 and minutes.max() < 36
            # A shift begins and ends without a passenger.
            assert not occupied[0] and not occupied[-1]
    week = [set(range(DAYS)) - set(np.unique(day_of(track))) for track in tracks]
    assert len({min(off) for off in week if off}) > 2


def heat_map(track, days, occupied):
    x, y = metres(track)
    own = np.isin(day_of(track), days) & (track.occupied == occupied)
    size = simulator.SIZE
    counts = np.histogram2d(x[own], y[own], bins=(12, 18), range=[[0, size[0]], [0, size[1]]])[0].ravel()
    return np.sqrt(counts / counts.sum())


def test_drivers_repeat_themselves_and_share_the_city(tracks):
    likeness = {}
    for occupied in (False, True):
        before = np.stack([heat_map(track, range(DAYS // 2), occupied) for track in tracks])
        after = np.stack([heat_map(track, range(DAYS // 2, DAYS), occupied) for track in tracks])
        likeness[occupied] = before @ after.T
    for table in likeness.values():
        own, others = np.diag(table), table[~np.eye(DRIVERS, dtype=bool)]
        assert np.median(own) > np.quantile(others, 0.9)
        # Nobody has the streets to themselves.
        assert np.median(others) > 0.2
    # The search for passengers says who drives; where they go is for them to say.
    gap = {kind: np.diag(table).mean() - table[~np.eye(DRIVERS, dtype=bool)].mean() for kind, table in likeness.items()}
    assert gap[False] > gap[True] + 0.05
    # Everybody gets to the shared places.
    downtown = np.array(simulator.DEMAND[0][0]) * simulator.SIZE
    for track in tracks:
        x, y = metres(track)
        near = np.hypot(x - downtown[0], y - downtown[1]) < 1500
        assert near[track.occupied].mean() > 0.01


def test_one_driver_and_one_day():
    (track,) = city(0, drivers=1, days=1)
    assert len(track.time) > 300 and (day_of(track) == 0).mean() > 0.9


def test_ways_are_followed_to_their_end():
    corners = np.array([[[0.0, 0.0], [300.0, 0.0], [300.0, 400.0]], [[50.0, 50.0], [50.0, 50.0], [50.0, 10.0]]])
    trip, along = np.array([0, 0, 0, 0, 1, 1, 1]), np.array([0.0, 100.0, 500.0, 9999.0, 0.0, 30.0, 40.0])
    expected = [[0, 0], [100, 0], [300, 200], [300, 400], [50, 50], [50, 20], [50, 10]]
    np.testing.assert_allclose(simulator._along(corners, trip, along), expected)


@pytest.mark.parametrize("arguments", [(-1, 2, 2), (0, 0, 2), (0, 2, 0)])
def test_a_city_of_nobody_is_refused(arguments):
    seed, drivers, days = arguments
    with pytest.raises(UserError, match=f"seed={seed}, drivers={drivers}, days={days}"):
        next(city(seed, drivers=drivers, days=days))
