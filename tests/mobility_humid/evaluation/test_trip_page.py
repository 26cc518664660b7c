"""The map of trips before and after an attack."""

import json
import re

import numpy as np
import pytest

from mobility_humid.data.layout import Layout
from mobility_humid.data.preparation import degrees
from mobility_humid.data.trips import SEEK, SERVE, SLOT, Grid, X, Y
from mobility_humid.evaluation.trip_page import Drawn, write_page

LAYOUT = Layout((SEEK, SERVE), 2, 2, 4, 3)
GRID = Grid(south=37.5, west=-122.5, cell_size=250.0, width=80, height=100)


@pytest.fixture
def sample():
    rng = np.random.default_rng(0)
    before = np.zeros((8, 4, 3))
    before[..., [X, Y]] = rng.integers(20, 40, (8, 4, 2))
    before[..., SLOT] = 5
    # A trip that is not there, and one of two points.
    before[2] = 0
    before[3, :2] = 0
    after = {eta: before.copy() for eta in (1, 2)}
    after[1][3, 2, X] += 1
    after[2][3, 2:, Y] -= 2
    return Drawn("unseen: <a> and b</script>", before, after, {1: False, 2: True})


def page_of(samples, path):
    write_page(samples, LAYOUT, GRID, path, title="Trips & more")
    text = path.read_text("utf-8")
    return text, json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)[1])


def test_the_page_holds_the_trips_and_nothing_from_elsewhere(sample, tmp_path):
    text, (shown, again) = page_of([sample, sample], tmp_path / "trips.html")
    assert shown == again and shown["said"] == sample.said
    assert "Trips &amp; more" in text and text.count("unseen: &lt;a&gt; and b&lt;/script&gt;") == 2
    # The name of a standard, in what draws, is no address that is loaded.
    assert re.findall(r"https?://[^\"]*", text) == ["http://www.w3.org/2000/svg"] and "src=" not in text
    moving = sample.before[LAYOUT.moving]
    assert shown["before"] == [moving[1, 2:, :2].astype(int).tolist()]
    assert shown["after"] == {str(eta): [x[3, 2:, :2].astype(int).tolist()] for eta, x in sample.after.items()}
    assert shown["turned"] == {"1": False, "2": True}
    others = [sample.before[row, :, :2].astype(int).tolist() for row in (0, 1, 4, 5, 6, 7)]
    assert shown["others"] == others
    west, south, east, north = shown["box"]
    points = np.array([*shown["before"][0], *shown["after"]["2"][0], *shown["after"]["1"][0]])
    assert (points >= [west + 2, south + 2]).all() and (points <= [east - 2, north - 2]).all()


def test_the_graticule_and_the_scale_are_where_they_say(sample, tmp_path):
    wide = sample._replace(before=sample.before.copy())
    wide.before[3, 2, :2], wide.before[3, 3, :2] = (1, 2), (75, 95)
    for drawn in (sample, wide):
        _, (shown,) = page_of([drawn], tmp_path / "trips.html")
        for axis, name in enumerate(("lon", "lat")):
            low, high = shown["box"][axis], shown["box"][axis + 2]
            lines = shown["graticule"][name]
            assert 1 <= len(lines) <= 7 and all(low <= cell <= high for cell, _ in lines)
            for cell, label in lines:
                place = np.full(2, 0.5)
                place[axis] += cell
                found = degrees(GRID, *place)[1 - axis]
                assert float(label.rstrip("°")) == pytest.approx(float(found), abs=2e-5)
        cells, label = shown["scale"]
        number, unit = label.split()
        assert cells * GRID.cell_size == pytest.approx(float(number) * {"m": 1, "km": 1000}[unit])
        assert cells <= 0.3 * (shown["box"][2] - shown["box"][0])
