"""From raw points to trips: cutting, cleaning, days, the grid, profiles, and the script around them."""

import dataclasses
import datetime
import json
import os
import subprocess
import sys
import zoneinfo
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from mobility_humid import prepare as script
from mobility_humid.data.gps import Track
from mobility_humid.data.preparation import (
    COUNTED,
    METRES_PER_DEGREE,
    Clock,
    Rules,
    make_grid,
    metres,
    plausible,
    prepare_fleet,
    prepare_trips,
)
from mobility_humid.data.trips import PROFILE_FEATURES, SEEK, SERVE, SLOT, SPEED, UNTYPED, X, Y, load_trips, save_trips
from mobility_humid.prepare import prepare

REPOSITORY = Path(__file__).resolve().parents[2]
# A Saturday noon, and a map on the equator, where a degree is a degree: 0.01 degrees are 1112 m.
NOON = 1211025600
BOX = (0.0, 0.0, 0.2, 0.2)
RULES = Rules(bbox=BOX, cell_size=1000.0, min_points=2, max_gap=300, day_start=0)
DEGREE = METRES_PER_DEGREE


def track(time, x=5000.0, y=5000.0, occupied=False, driver="d0"):
    """A track from seconds after noon and metres east and north of the corner."""
    time = np.asarray(time, np.int64)
    x, y = (np.broadcast_to(np.asarray(values, float), time.shape) for values in (x, y))
    if occupied is not None:
        occupied = np.broadcast_to(np.asarray(occupied, bool), time.shape)
    scale = DEGREE * np.cos(np.radians(make_grid(RULES, []).height * 1000 / DEGREE / 2))
    return Track(driver, time + NOON, y / DEGREE, x / scale, occupied)


def run(*tracks, **changes):
    counts = Counter()
    trips = prepare_trips(tracks, dataclasses.replace(RULES, **changes), counts)
    return trips, Counter({name: n for name, n in counts.items() if n})


def lengths(trips):
    return np.diff(trips.offsets).tolist()


def minutes(n, start=0):
    return start + 60 * np.arange(n)


# Cutting


def test_a_trip_is_a_run_of_equal_occupancy():
    trips, counts = run(track(minutes(10), x=500 * np.arange(10), occupied=[0] * 4 + [1] * 6))
    assert trips.kind.tolist() == [SEEK, SERVE] and lengths(trips) == [4, 6] and trips.kinds == (SEEK, SERVE)
    assert trips.points[:, X].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] and set(trips.points[:, Y]) == {5}
    assert trips.points.dtype == np.int16 and trips.offsets.dtype == np.int64 and not counts


def test_a_time_jump_cuts():
    trips, counts = run(track(np.append(minutes(4), minutes(4, 180 + 301))))
    assert lengths(trips) == [4, 4] and counts == {"time_jumps": 1}
    assert lengths(run(track(np.append(minutes(4), minutes(4, 180 + 300))))[0]) == [12]


def test_points_out_of_the_map_are_dropped_and_cut_there():
    x = [500, 600, 700, -50, 800, 900, 1000]
    trips, counts = run(track(minutes(7), x=x))
    assert lengths(trips) == [3, 3] and counts == {"out_of_map": 1}
    assert trips.points[:, X].tolist() == [0, 0, 0, 0, 0, 1]


def test_a_speed_jump_is_dropped_and_does_not_cut():
    x = 1000 + 500 * np.arange(8.0)
    jumped = x.copy()
    jumped[3:5] += 9000
    trips, counts = run(track(minutes(8), x=jumped))
    assert lengths(trips) == [8] and counts == {"speed_jumps": 2}
    np.testing.assert_array_equal(trips.points, run(track(minutes(8), x=x))[0].points)


def test_a_speed_jump_out_of_the_map_does_not_cut_either():
    x = np.array([1000, 1500, 90_000, 2500, 3000])
    trips, counts = run(track(minutes(5), x=x))
    assert lengths(trips) == [5] and counts == {"speed_jumps": 1}


def test_a_long_stay_is_no_trip():
    """Its first point ends the trip before, its last one begins the next."""
    stay = minutes(40, 600)
    time = np.concatenate([minutes(10), stay, minutes(10, 600 + 2400)])
    x = np.concatenate([1200 * np.arange(10), np.full(40, 12_000), 12_000 - 1200 * np.arange(1, 11)])
    trips, counts = run(track(time, x=x))
    assert lengths(trips) == [11, 11] and counts == {"breaks": 1, "break_points": 38}
    assert lengths(run(track(time, x=x), break_after=3600)[0]) == [60]


def test_a_parked_car_that_wavers_over_a_line_of_the_grid_is_parked():
    x = np.where(np.arange(60) % 2, 4990, 5010)
    y = np.where(np.arange(60) % 3, 6990, 7010)
    with pytest.raises(UserError, match=r"no trip is left.*58 break points"):
        run(track(minutes(60), x=x, y=y))


def test_short_trips_are_counted_in_resampled_points():
    time = np.arange(0, 200, 10)
    trips, counts = run(track(np.append(time, minutes(6, 1000))), min_points=5)
    assert lengths(trips) == [6] and counts == {"short_trips": 1, "time_jumps": 1}


def test_a_fleet_that_does_not_say_is_cut_by_gaps_and_stays_only():
    x = 1500 * np.arange(10)
    trips, _ = run(track(np.append(minutes(5), minutes(5, 2000)), x=x, occupied=None))
    assert trips.kind.tolist() == [UNTYPED] * 2 and trips.kinds == (UNTYPED,)
    assert (trips.profiles[..., 6:] == 0).all() and np.isfinite(trips.profiles[..., :6]).all()


def test_a_fleet_may_be_served_trips_only_but_seeking_is_never_made_up():
    for occupied in (None, [0, 0, 0, 1, 1]):
        trips, _ = run(track(minutes(5), occupied=occupied), fleet="serve")
        assert trips.kind.tolist() == [SERVE]
        assert run(track(minutes(5), occupied=occupied), fleet="untyped")[0].kind.tolist() == [UNTYPED]
    assert run(track(minutes(5), occupied=True))[0].kinds == (SERVE,)


# Order


def test_unsorted_and_repeated_points_are_sorted_once_and_counted():
    time = minutes(6)
    clean, _ = run(track(time, x=500 * time / 60))
    order = np.array([0, 2, 1, 3, 3, 4, 5, 5])
    trips, counts = run(track(time[order], x=500 * time[order] / 60))
    assert counts == {"unsorted": 1, "duplicates": 2}
    np.testing.assert_array_equal(trips.points, clean.points)


def test_the_newest_point_first_is_an_order_too():
    """The original cabspotting files."""
    time = minutes(6)
    trips, counts = run(track(time[::-1], x=500 * time[::-1] / 60))
    assert not counts
    np.testing.assert_array_equal(trips.points, run(track(time, x=500 * time / 60))[0].points)


STEPS = st.lists(
    st.tuples(st.sampled_from([1, 20, 60, 61, 299, 400, 4000]), st.floats(-0.02, 0.02), st.booleans()), max_size=60
)


def walked(steps, driver="d0"):
    time = NOON + np.cumsum([0, 60, *(step[0] for step in steps)])
    lat = 0.1 + np.cumsum([0, 0.001, *(step[1] for step in steps)]) / 4
    occupied = np.array([False, False, *(step[2] for step in steps)])
    return Track(driver, time, lat, np.full(len(time), 0.05), occupied)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.randoms(use_true_random=False))
def test_a_scrambled_file_with_repeats_gives_the_same_trips(steps, random):
    clean = walked(steps)
    order = list(range(len(clean.time))) + [random.randrange(len(clean.time)) for _ in range(len(clean.time) // 3)]
    random.shuffle(order)
    other = clean._replace(**{name: getattr(clean, name)[order] for name in ("time", "lat", "lon", "occupied")})
    rules = dataclasses.replace(RULES, min_points=1)
    one, two = (prepare_trips([points], rules, Counter()) for points in (clean, other))
    for name in ("points", "offsets", "driver", "day", "kind", "profiles"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=3), st.sampled_from([0, 30, 60]), st.integers(0, 23))
def test_what_is_saved_is_read_back_and_keeps_its_promises(tmp_path_factory, walks, interval, day_start):
    rules = dataclasses.replace(
        RULES, min_points=1, interval=interval, day_start=day_start, time_zone="America/Los_Angeles"
    )
    counts = Counter()
    tracks = [walked(steps, f"d{i}") for i, steps in enumerate(walks)]
    path = tmp_path_factory.mktemp("saved") / "trips.npz"
    save_trips(path, prepare_trips(iter(tracks), rules, counts))
    # Refuses cells out of the map, slots out of the day and trips that are cut wrong.
    trips = load_trips(path)
    assert trips.filters["counts"] == dict(counts) and set(counts) == set(COUNTED)
    inner = np.ones(len(trips.points), bool)
    inner[trips.offsets[:-1]] = False
    assert (np.diff(trips.points[:, SLOT].astype(int), prepend=0)[inner] >= 0).all()
    assert (trips.points[~inner, SPEED] == 0).all() and trips.points[:, SPEED].max() <= rules.max_speed + 1
    place = trips.driver.astype(int) * len(trips.days) + trips.day
    assert (np.diff(place) >= 0).all() and list(trips.days) == sorted(trips.days)
    known = np.isfinite(trips.profiles).all(axis=2)
    assert known[trips.driver, trips.day].all() and (known == np.isfinite(trips.profiles).any(axis=2)).all()
    profile = trips.profiles[known]
    assert (profile[:, [0, 4]] < trips.grid.width).all() and (profile[:, [1, 5]] < trips.grid.height).all()
    assert (profile >= 0).all() and (profile[:, 2] >= 1).all() and (profile[:, 2] <= profile[:, 3]).all()
    assert (profile[:, 3] <= 288).all() and (profile[:, 10] % 1 == 0).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(-3000, 3000)), min_size=1, max_size=60))
def test_the_last_good_point_decides_what_can_be_reached(steps):
    time, x = np.cumsum([0, *(s[0] for s in steps)]), np.cumsum([0.0, *(s[1] for s in steps)])
    kept = [True]
    last = 0
    for i in range(1, len(time)):
        kept.append(abs(x[i] - x[last]) <= 150 / 3.6 * (time[i] - time[last]))
        last = i if kept[-1] else last
    assert plausible(time, x, np.zeros(len(x)), 150).tolist() == kept


# Days


def test_a_day_begins_where_it_is_told_to_and_cuts_trips():
    """Noon in UTC is 05:00 in San Francisco."""
    time = minutes(30, -3600 - 600)
    trips, _ = run(track(time), time_zone="America/Los_Angeles", day_start=4, break_after=1e6)
    assert trips.days == ("2008-05-16", "2008-05-17") and trips.day.tolist() == [0, 1] and lengths(trips) == [10, 20]
    assert trips.points[:, SLOT].tolist() == [287] * 5 + [288] * 5 + [1] * 5 + [2] * 5 + [3] * 5 + [4] * 5


def test_midnight_cuts_only_where_the_day_begins_there():
    time = minutes(20, 12 * 3600 - 600)
    trips, _ = run(track(time), day_start=0)
    assert lengths(trips) == [10, 10] and trips.days == ("2008-05-17", "2008-05-18")
    trips, _ = run(track(time), day_start=4)
    assert lengths(trips) == [20] and trips.days == ("2008-05-17",)
    assert trips.points[0, SLOT] == 12 * 19 + 12 * 10 // 12 + 1 and trips.points[10, SLOT] == 20 * 12 + 1


@pytest.mark.parametrize(
    ("date", "cut", "slots"),
    [
        # 02:00 becomes 03:00: an hour of slots is missing.
        ("2008-03-09T10:00:00", 10, (24, 37)),
        # 02:00 becomes 01:00: the slots would fall, so the trip is cut.
        ("2008-11-02T09:00:00", 10, (24, 13)),
    ],
)
def test_a_change_of_clocks_cuts_and_slots_follow_the_wall(date, cut, slots):
    change = int(np.datetime64(date, "s").astype(int)) - NOON
    trips, _ = run(track(minutes(20, change - 600)), time_zone="America/Los_Angeles", day_start=0)
    assert lengths(trips) == [cut, 20 - cut] and set(trips.day) == {0}
    assert (trips.points[cut - 1, SLOT], trips.points[cut, SLOT]) == slots


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["UTC", "America/Los_Angeles", "Europe/Lisbon", "Asia/Kolkata", "Australia/Lord_Howe"]),
    st.lists(st.integers(0, 4_000_000_000), min_size=1, max_size=30),
)
def test_the_clock_is_that_of_the_standard_library(name, times):
    zone = zoneinfo.ZoneInfo(name)
    times = sorted(times)
    told = [datetime.datetime.fromtimestamp(t, zone).utcoffset().total_seconds() for t in times]
    # Before 1970 ended some zones had offsets of odd seconds; the table is right from quarter to quarter.
    assert Clock(zone).offsets(np.array(times)).tolist() == told


def test_an_unknown_time_zone_is_refused():
    for name in ("Mars/Olympus", "", "../../etc/passwd", "/etc/passwd"):
        with pytest.raises(UserError, match="--time-zone: no time zone"):
            run(track(minutes(5)), time_zone=name)


# Resampling


def test_points_are_interpolated_to_one_rate():
    trips, _ = run(track([0, 90, 180], x=[1500, 4500, 7500], y=[1500, 1500, 1500]))
    assert trips.points[:, X].tolist() == [1, 3, 5, 7] and trips.points[:, SPEED].tolist() == [0, 120, 120, 120]
    trips, _ = run(track([0, 90, 180], x=[1500, 4500, 7500]), interval=0)
    assert trips.points[:, X].tolist() == [1, 4, 7] and trips.points[:, SPEED].tolist() == [0, 120, 120]


def test_a_device_is_not_known_by_its_rate():
    rates = [run(track(np.arange(0, 1201, step), x=np.arange(0, 1201, step) * 5.0))[0].points for step in (20, 60, 120)]
    for other in rates[1:]:
        np.testing.assert_array_equal(other, rates[0])


def test_int16_holds_speeds_that_are_not_filtered():
    trips, _ = run(track([0, 1], x=[500, 19_000]), interval=0, max_speed=1e9)
    assert trips.points[:, SPEED].tolist() == [0, 32767]


# The map


def test_the_map_by_itself_leaves_a_hundredth_out_on_every_side():
    rng = np.random.default_rng(0)
    lat, lon = 37 + rng.random(5000), -122 - rng.random(5000)
    points = Track("d0", np.arange(5000), lat, lon, None)
    grid = make_grid(Rules(), [points])
    assert abs(grid.south - 37.01) < 0.01 and abs(grid.west + 122.99) < 0.01
    x, y = metres(grid, lat, lon)
    inside = (x >= 0) & (x < grid.width * 250) & (y >= 0) & (y < grid.height * 250)
    assert 0.95 < inside.mean() < 0.97


def test_cells_are_squares_on_the_ground():
    grid = make_grid(Rules(bbox=(60.0, 10.0, 60.2, 10.4)), [])
    assert (grid.width, grid.height) == (89, 89)
    (x,), (y,) = metres(grid, np.array([60.2]), np.array([10.4]))
    assert x == pytest.approx(0.4 * DEGREE * np.cos(np.radians(60.1)), rel=1e-3) and y == pytest.approx(0.2 * DEGREE)


def test_one_place_is_a_map_of_one_cell():
    trips, _ = run(track(minutes(5), x=5000), bbox=None)
    assert (trips.grid.width, trips.grid.height) == (1, 1) and set(trips.points[:, X]) == {0}


def test_the_map_is_taken_from_the_first_points_only(monkeypatch):
    monkeypatch.setattr("mobility_humid.data.preparation.MAP_POINTS", 8)
    tracks = [track(minutes(5), x=1000 + 100 * i + np.arange(5), driver=f"d{i}") for i in range(2)]
    far = [track(minutes(5), x=19_000, driver="d2"), track(minutes(5), x=1050, driver="d3")]
    trips, counts = run(*tracks, *far, bbox=None, cell_size=10.0, min_points=1)
    assert trips.grid.width < 20 and counts["drivers_without_trips"] == 1 and "d2" not in trips.drivers


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"bbox": (1.0, 0.0, 0.0, 1.0)}, "--bbox"),
        ({"bbox": (0.0, 0.0, 0.0, 1.0)}, "--bbox"),
        ({"bbox": (0.0, 0.0, 91.0, 1.0)}, "--bbox"),
        ({"bbox": (0.0, float("nan"), 1.0, 1.0)}, "--bbox"),
        ({"bbox": (0.0, 0.0, 1.0, 1.0), "cell_size": 1.0}, "--cell-size: 1 m give a map"),
        ({"bbox": (0.0, 0.0, 0.00001, 1.0), "cell_size": 2.0}, "--cell-size"),
        ({"cell_size": 0.0}, "--cell-size"),
        ({"cell_size": float("nan")}, "--cell-size"),
        ({"bbox": (50.0, 50.0, 51.0, 51.0)}, "no trip is left"),
        ({"min_points": 500}, "no trip is left .*1 short trips"),
    ],
)
def test_a_map_that_makes_no_sense_is_refused(changes, word):
    with pytest.raises(UserError, match=word):
        run(track(minutes(5)), **changes)


def test_no_track_at_all_is_refused():
    for bbox in (BOX, None):
        with pytest.raises(UserError, match=r"no (trip|point) is left"):
            run(bbox=bbox)
        with pytest.raises(UserError, match=r"no (trip|point) is left"):
            run(track([]), bbox=bbox)


def test_an_error_while_reading_comes_through():
    def tracks():
        yield track(minutes(5))
        raise UserError("new_b.txt: holds no good line")

    with pytest.raises(UserError, match=r"new_b\.txt"):
        prepare_trips(tracks(), RULES, Counter())


def test_drivers_stand_in_the_order_of_their_names():
    trips, _ = run(*(track(minutes(5), x=1500 + 1000 * i, driver=name) for i, name in enumerate("cab")))
    assert trips.drivers == ("a", "b", "c") and trips.driver.tolist() == [0, 1, 2]
    assert trips.points[::5, X].tolist() == [2, 3, 1]


# Profiles


def feature(trips, name, driver=0, day=0):
    return float(trips.profiles[driver, day, PROFILE_FEATURES.index(name)])


def test_a_profile_is_of_the_drivers_whole_day():
    # Noon to 12:30 seeking, to 12:45 serving, 12:46 to 14:46 at home, and 20 minutes of each after that.
    time = np.concatenate([minutes(31), minutes(15, 31 * 60), [46 * 60, 166 * 60], minutes(20, 167 * 60)])
    x = np.concatenate([1500 + 100 * np.arange(31), 4500 + 200 * np.arange(15), [8500, 8500], np.full(20, 9500)])
    x[-20:] += 450 * (np.arange(20) % 2)
    occupied = np.concatenate([np.zeros(31), np.ones(15), [0, 0], np.ones(20)])
    trips, _ = run(track(time, x=x, y=7500, occupied=occupied), min_points=5)
    assert (feature(trips, "home_x"), feature(trips, "home_y")) == (8, 7)
    assert (feature(trips, "break_start"), feature(trips, "break_end")) == (12 * 12 + 10, 12 * 14 + 10)
    assert (feature(trips, "favourite_x"), feature(trips, "favourite_y")) == (9, 7)
    assert feature(trips, "seek_distance") == pytest.approx(3.0) and feature(trips, "seek_time") == 30
    assert feature(trips, "serve_trips") == 2 and feature(trips, "serve_time") == pytest.approx((14 + 19) / 2)
    assert feature(trips, "serve_distance") == pytest.approx((14 * 0.2 + 19 * 0.45) / 2, rel=1e-4)


def test_a_break_over_the_days_start_belongs_to_both_days():
    """Home from 02:00 to 09:00 while the day begins at 04:00."""
    evening, morning = minutes(30, 13.5 * 3600), minutes(30, 21 * 3600)
    x = np.concatenate([1500 + 370 * np.arange(29), [12_500, 12_500], 12_500 - 370 * np.arange(1, 30)])
    trips, _ = run(track(np.append(evening, morning), x=x), day_start=4)
    assert trips.days == ("2008-05-17", "2008-05-18")
    for day, (start, end) in enumerate([(264, 288), (1, 61)]):
        assert feature(trips, "home_x", day=day) == 12
        assert feature(trips, "break_start", day=day) == pytest.approx(start, abs=1)
        assert feature(trips, "break_end", day=day) == pytest.approx(end, abs=1)


def test_a_day_without_points_has_no_profile():
    x = 1500 * np.arange(10)
    both = np.append(minutes(5), minutes(5, 86_400))
    trips, _ = run(track(minutes(5), x=x[:5], driver="a"), track(both, x=x, driver="b"))
    assert np.isnan(trips.profiles[0, 1]).all() and np.isfinite(trips.profiles[[0, 1, 1], [0, 0, 1]]).all()


# Damage


def test_a_damaged_npz_is_refused(tmp_path):
    path = tmp_path / "trips.npz"
    save_trips(path, run(track(minutes(9)))[0])
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-1], b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"trips\.npz"):
            load_trips(path)


def test_a_fleet_on_disk_is_saved_as_one_in_memory(tmp_path):
    """And read back as it was, however its drivers came."""
    rng = np.random.default_rng(0)
    steps = [(60, change, index % 9 < 4) for index, change in enumerate(rng.uniform(-0.01, 0.01, 400))]
    tracks = [walked(steps[: 200 + 50 * i], name) for i, name in enumerate(["c", "a", "b"])]
    together = prepare_trips(tracks, RULES, Counter())
    save_trips(tmp_path / "memory.npz", together)
    with open(tmp_path / "spool", "w+b") as spool:
        fleet = prepare_fleet(iter(tracks), RULES, Counter(), spool)
        density = fleet.save(tmp_path / "disk.npz")
        one = fleet.trips(["b"])
    with np.load(tmp_path / "memory.npz") as memory, np.load(tmp_path / "disk.npz") as disk:
        assert memory.files == disk.files
        for name in memory.files:
            np.testing.assert_array_equal(memory[name], disk[name])
            assert memory[name].dtype == disk[name].dtype
    assert load_trips(tmp_path / "disk.npz").drivers == ("a", "b", "c") and one.drivers == ("b",)
    np.testing.assert_array_equal(one.points, fleet_points(together, 1))
    kinds = np.repeat(together.kind, np.diff(together.offsets))
    for kind, cells in density.items():
        expected = np.zeros((together.grid.height, together.grid.width), int)
        np.add.at(expected, tuple(together.points[kinds == kind, :2].T[::-1].astype(int)), 1)
        np.testing.assert_array_equal(cells, expected)
    assert fleet.sizes() == {name: len(fleet_points(together, i)) for i, name in enumerate("abc")}


def fleet_points(trips, driver):
    return trips.points[np.repeat(trips.driver, np.diff(trips.offsets)) == driver]


# The script


@pytest.fixture
def fleet(tmp_path, monkeypatch):
    """A folder of eight cabs around places of their own, on eight days."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cabs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for cab in range(8):
        home = rng.random(2) * 0.05
        lines = []
        for day in range(8):
            place = home + np.cumsum(rng.normal(0, 0.002, (180, 2)), axis=0)
            for minute, (lat, lon) in enumerate(place):
                stamp = NOON + day * 86_400 + 60 * minute
                lines.append(f"{37.7 + lat:.5f} {-122.4 + lon:.5f} {minute // 15 % 2} {stamp}")
        (folder / f"new_c{cab}.txt").write_text("\n".join([*lines[::-1], "broken line", ""]))
    return folder


def ended(argv, capsys):
    with pytest.raises(SystemExit) as end:
        prepare.main([str(word) for word in argv])
    captured = capsys.readouterr()
    return end.value.code, captured.out, captured.err


def check_results(folder):
    """The metrics, after checks of all that the script wrote about the fixture's cabs."""
    results = json.loads((folder / "results.json").read_text())
    assert set(results["artifacts"]) == {"trips", "map"} and len(results["data_sha256"]) == 64
    metrics = results["metrics"]
    assert metrics["points"] == 8 * 8 * 180 and metrics["drivers"] == metrics["days"] == 8
    assert metrics["points_per_second"] > 0 and 0 <= metrics["identity_auc"] <= 1 and 0.9 < metrics["kept_share"] <= 1
    trips = load_trips(folder / "trips.npz")
    assert metrics["trips"] == len(trips.driver) and trips.kinds == (SEEK, SERVE) and trips.grid.day_start == 4
    assert trips.filters["max_gap"] == 300 and trips.filters["counts"]["malformed_fields"] == 8
    assert "malformed_fields,8," in (folder / "table.csv").read_text()
    assert (folder / "map.png").read_bytes().startswith(b"\x89PNG")
    return metrics


@pytest.mark.slow
def test_the_script_writes_trips_a_map_and_the_identity_signal(fleet, capsys):
    status, out, err = ended(["--dataset", fleet, "--time-zone", "America/Los_Angeles"], capsys)
    assert status == 0 and err == ""
    assert (
        "identity signal: heat maps alone tell unseen drivers apart with an AUC of" in out
        and "8 malformed fields" in out
    )
    check_results(Path("runs/mobility_humid/prepare/cabs"))


@pytest.mark.slow
def test_other_fleets_need_no_code(fleet, capsys):
    lines = ["id,when,y,x"]
    for path in sorted(fleet.iterdir()):
        for line in path.read_text().splitlines()[:-1]:
            lat, lon, _, stamp = line.split()
            lines.append(f"{path.stem},{np.datetime64(int(stamp), 's')},{lat},{lon}")
    Path("porto.csv").write_text("\n".join(lines))
    command = [
        "--dataset",
        "porto.csv",
        "--columns",
        "driver=id, time=when,lat=y,lon=x",
        "--bbox",
        "37.7,-122.4,37.76,-122.3",
    ]
    for fleet_option, kinds in (([], (UNTYPED,)), (["--fleet", "serve"], (SERVE,))):
        status, _, err = ended([*command, *fleet_option, "--out", "-".join(["out", *fleet_option])], capsys)
        assert status == 0, err
        trips = load_trips(Path("-".join(["out", *fleet_option])) / "trips.npz")
        assert trips.kinds == kinds and trips.grid.south == 37.7 and len(trips.drivers) <= 8


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--dataset", "absent"], "absent: no such file or folder"),
        (["--dataset", "cabs", "--time-zone", "Nowhere"], "--time-zone: no time zone 'Nowhere'"),
        (["--dataset", "cabs", "--bbox", "1,2,3"], "--bbox"),
        (["--dataset", "cabs", "--bbox", "3,2,1,4"], "--bbox: expected south,west,north,east"),
        (["--dataset", "cabs", "--cell-size", "0"], "--cell-size"),
        (["--dataset", "cabs", "--cell-size", "0.01"], "--cell-size: 0.01 m give a map of"),
        (["--dataset", "cabs", "--max-speed", "0"], "--max-speed"),
        (["--dataset", "cabs", "--day-start", "24"], "--day-start"),
        (["--dataset", "cabs", "--fleet", "seek"], "--fleet"),
        (["--dataset", "cabs", "--columns", "driver"], "--columns: expected field=column"),
        (["--dataset", "cabs", "--columns", "speed=v"], "--columns: no field 'speed'"),
        (["--columns", "driver=x"], "--columns"),
        (["--dataset", "cabs", "--min-points", "900"], "no trip is left"),
        (["--strategy", "none"], "--strategy: unknown option"),
    ],
)
def test_bad_input_ends_in_one_line_and_leaves_nothing(fleet, capsys, argv, words):
    status, _, err = ended([*argv, "--out", "place"], capsys)
    assert status == 2 and words in err and err.count("\n") == 1 and err.startswith("prepare: ")
    assert not any(path.is_file() and path.name != ".lock" for path in Path("place").rglob("*"))


def test_a_weak_signal_advises_more_days(fleet, capsys, monkeypatch):
    """And everything is written, whatever the signal."""
    monkeypatch.setattr(script, "identity_signal", lambda *_: 0.55)
    status, out, _ = ended(["--dataset", fleet, "--time-zone", "America/Los_Angeles"], capsys)
    assert status == 0 and "AUC of 0.550" in out and "bring more days" in out and "8 malformed fields" in out
    assert check_results(Path("runs/mobility_humid/prepare/cabs"))["identity_auc"] == 0.55


def test_too_few_days_for_a_signal_are_said_and_no_failure(fleet, capsys):
    for path in fleet.iterdir():
        path.write_text("\n".join(path.read_text().splitlines()[:200]))
    status, out, _ = ended(["--dataset", fleet], capsys)
    assert status == 0 and "identity signal: not measured (" in out


@pytest.mark.slow
def test_the_city_is_prepared_by_default(tmp_path, monkeypatch, capsys):
    pytest.importorskip("mobility_humid.data.city")
    monkeypatch.chdir(tmp_path)
    status, _, err = ended(["--city-drivers", "8", "--city-days", "3"], capsys)
    assert status == 0, err
    results = json.loads(Path("runs/mobility_humid/prepare/demo/results.json").read_text())
    assert results["dataset"] == "city" and results["metrics"]["drivers"] == 8 and len(results["data_sha256"]) == 64
    assert ended(["--city-drivers", "8", "--city-days", "3", "--out", "again"], capsys)[0] == 0
    assert Path("again/trips.npz").read_bytes() == Path("runs/mobility_humid/prepare/demo/trips.npz").read_bytes()


@pytest.mark.slow
def test_no_tensorflow_is_imported_and_memory_stays_low(fleet):
    code = (
        "import sys; from mobility_humid.prepare import prepare; from tests.helpers.high_water import peak\n"
        f"prepare(prepare.options(dataset={str(fleet)!r}))\n"
        "print(sorted({'tensorflow', 'keras', 'torch'} & set(sys.modules)), peak())"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    modules, peak = done.stdout.splitlines()[-1].rsplit(" ", 1)
    assert modules == "[]" and int(peak) < 400e6


@pytest.mark.realdata
def test_the_60_cabs_take_seconds_and_under_400_mb(tmp_path):
    folder = os.environ.get("SUITE_DATA", "")
    source = Path(folder, "cabspotting_60_cabs.tar.xz")
    if not folder or not source.exists():
        pytest.skip("SUITE_DATA does not name a folder with the cabs")
    code = (
        "from mobility_humid.prepare import prepare; from tests.helpers.high_water import peak\n"
        f"prepare(prepare.options(dataset={str(source)!r}, out='run', time_zone='America/Los_Angeles'))\n"
        "print(peak())"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    begun = os.times()
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    spent = os.times()
    metrics = json.loads((tmp_path / "run/results.json").read_text())["metrics"]
    assert metrics["points"] == 1_345_490 and metrics["drivers"] == 60 and 24 <= metrics["days"] <= 26
    assert metrics["trips"] > 50_000 and metrics["kept_share"] > 0.95 and metrics["identity_auc"] > 0.65
    assert int(done.stdout.splitlines()[-1]) < 400e6
    # Processor time, so that other work on the machine does not fail it.
    assert spent.children_user + spent.children_system - begun.children_user - begun.children_system < 7
