"""Attacked trips as files: what is read back is what was written."""

import csv
import datetime
import json
import zoneinfo

import numpy as np
import pytest

from common.files import read_npz
from mobility_humid.data.gps import Reader
from mobility_humid.data.layout import Layout
from mobility_humid.data.preparation import metres
from mobility_humid.data.trips import SEEK, SERVE, SLOT, Grid, TripSet, padded
from mobility_humid.data.writers import Attacked, save_attacked

GRID = Grid(37.7, -122.5, 250.0, 40, 30, "America/Los_Angeles", 4)
DRIVERS, DAYS = ("007", "Zoë,1"), ("2008-05-18", "2008-05-19")


def fleet():
    """Eight trips of three to five points, of which two drivers have two seek and two serve trips each."""
    rng = np.random.default_rng(0)
    lengths = np.array([3, 4, 5, 3, 1, 4, 3, 5])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    points = np.stack([rng.integers(0, most, offsets[-1]) for most in (40, 30)] + [np.zeros(offsets[-1])] * 2, axis=1)
    for i, count in enumerate(lengths):
        points[offsets[i] : offsets[i + 1], SLOT] = 1 + 30 * i + np.arange(count)
    driver, day = np.repeat([0, 1], 4), np.array([0, 0, 1, 1] * 2)
    kind = np.array([SEEK, SERVE] * 4, np.int8)
    profiles = np.zeros((2, 2, 11), np.float32)
    return TripSet(
        points.astype(np.int16), offsets, driver.astype(np.int32), day.astype(np.int32), kind, profiles, DRIVERS, DAYS,
        GRID, {},
    )  # fmt: skip


@pytest.fixture
def written(tmp_path):
    """Pairs of both drivers whose last driver's seek trips were moved by a cell, but for a trip that is missing."""
    trips = fleet()
    layout = Layout((SEEK, SERVE), 2, 2, 4, 3)
    drawn = np.array([[[[0, 2], [1, 3]], [[4, 6], [5, 7]]], [[[4, 6], [5, 7]], [[-1, 2], [1, 3]]]])
    rows = layout.rows(drawn)
    clean = layout.assemble(padded(trips, 4), rows, None)
    movable = layout.movable(clean)
    moved = np.where((movable > 0) & (clean < 29), clean + movable, clean - movable).astype(np.float32)
    attacked = [
        Attacked("seen", clean[:1], moved[:1], rows[:1, layout.moving], np.array([True])),
        Attacked("unseen", clean[1:], clean[1:], rows[1:, layout.moving], np.array([False])),
    ]
    return trips, layout, attacked, save_attacked(tmp_path, attacked, trips, layout)


def test_the_table_is_read_as_points_of_a_fleet(written):
    _, layout, attacked, paths = written
    tracks = {track.driver: track for track in Reader(paths["attacked_csv"])}
    # Of the pairs the last driver's trips are in it: Zoë's two seek trips, then one of 007's.
    assert {driver: len(track.time) for driver, track in tracks.items()} == {"Zoë,1": 1 + 3, "007": 4}
    track = tracks["Zoë,1"]
    x, y = metres(GRID, track.lat, track.lon)
    wanted = attacked[0].moved[0, layout.moving].reshape(-1, 3)
    wanted = wanted[wanted[:, SLOT] > 0]
    np.testing.assert_array_equal(np.stack([x // 250, y // 250], axis=1), wanted[:, :2])
    zone = zoneinfo.ZoneInfo("America/Los_Angeles")
    first = datetime.datetime(2008, 5, 18, 4, tzinfo=zone) + datetime.timedelta(minutes=5 * 120)
    assert track.time[0] == first.timestamp()
    with open(paths["attacked_csv"], newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["moved"] for row in rows] == ["1"] * 4 + ["0"] * 4
    assert {(row["part"], row["success"]) for row in rows} == {("seen", "1"), ("unseen", "0")}


def test_lines_before_and_after(written):
    trips, _, _, paths = written
    whole = json.loads(paths["attacked_geojson"].read_text("utf-8"))
    assert whole["type"] == "FeatureCollection" and len(whole["features"]) == 2 * 3
    before, after = whole["features"][:2]
    assert before["geometry"]["type"] == after["geometry"]["type"] == "Point"
    assert not before["properties"]["attacked"] and after["properties"]["attacked"]
    assert before["geometry"] != after["geometry"] and before["properties"]["trip"] == 4
    line = whole["features"][2]
    assert line["geometry"]["type"] == "LineString" and len(line["geometry"]["coordinates"]) == 3
    lon, lat = np.array(line["geometry"]["coordinates"]).T
    x, y = metres(GRID, lat, lon)
    own = trips.points[trips.offsets[6] : trips.offsets[7]]
    np.testing.assert_allclose([x / 250, y / 250], own[:, :2].T + 0.5, atol=1e-3)
    assert line["properties"]["times"][0] == "2008-05-19T19:00:00-07:00" and line["properties"]["driver"] == "Zoë,1"
    assert whole["features"][-1]["geometry"] == whole["features"][-2]["geometry"]


def test_arrays_hold_all_rows(written):
    _, layout, attacked, paths = written
    arrays = read_npz(paths["attacked_npz"])
    np.testing.assert_array_equal(arrays["moved"], np.concatenate([of.moved for of in attacked]))
    np.testing.assert_array_equal(arrays["clean"][1], attacked[1].clean[0])
    assert arrays["part"].tolist() == ["seen", "unseen"] and arrays["trips"].tolist() == [[4, 6], [-1, 2]]
    about = json.loads(arrays["description"].tobytes())
    assert Layout.of(about["filters"]["layout"]) == layout and about["grid"]["cell_size"] == 250
