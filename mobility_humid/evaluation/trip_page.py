"""Trips before and after an attack as one HTML page that needs nothing else: a map with a slider for the budget."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from common import files
from mobility_humid.data.layout import Layout
from mobility_humid.data.preparation import degrees
from mobility_humid.data.trips import SLOT, Grid, X, Y

TEMPLATES = Path(__file__).parent / "templates"
# A graticule has about so many lines each way, at round numbers.
_LINES, _ROUND = 5, (1, 2, 5, 10)
_SCALE_SHARE = 0.3


class Drawn(NamedTuple):
    """A sample on the map: what it is, `said` for people; its trips before, float (rows, length, features), after by
    eta, and by eta whether the answer was turned."""

    said: str
    before: np.ndarray
    after: Mapping[int, np.ndarray]
    turned: Mapping[int, bool]


def write_page(samples: list[Drawn], layout: Layout, grid: Grid, path: Path, *, title: str) -> None:
    """Write the page of `samples` to `path`, whole or not at all: the trips that move, before and after, and in grey
    those that do not; with lines of latitude and longitude, and a scale."""
    env = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    shown = [_on_map(sample, layout, grid) for sample in samples]
    # Nothing in it ends the element that holds it.
    data = json.dumps(shown, separators=(",", ":")).replace("<", "\\u003c")
    files.write_text(path, env.get_template("trips.html.j2").render(title=title, data=data, samples=samples))


def _on_map(sample: Drawn, layout: Layout, grid: Grid) -> dict[str, Any]:
    """A sample in cells: its lines by kind, and the box, graticule and scale of the map."""
    moving = layout.moving
    before = _lines(sample.before[moving], sample.before[moving])
    after = {eta: _lines(x[moving], sample.before[moving]) for eta, x in sorted(sample.after.items())}
    every = np.concatenate([np.array(line) for line in (*before, *(line for of in after.values() for line in of))])
    low, high = every.min(axis=0) - 2, every.max(axis=0) + 2
    rest = np.ones(layout.trip_rows, bool)
    rest[moving] = False
    return {
        "said": sample.said,
        "box": [float(v) for v in (*low, *high)],
        "others": _lines(sample.before[: layout.trip_rows][rest], sample.before[: layout.trip_rows][rest]),
        "before": before,
        "after": {str(eta): lines for eta, lines in after.items()},
        "turned": {str(eta): bool(turned) for eta, turned in sample.turned.items()},
        "graticule": _graticule(grid, low, high),
        "scale": _scale(grid, float(high[0] - low[0])),
    }


def _lines(trips: np.ndarray, there: np.ndarray) -> list[list[list[int]]]:
    """The points of each trip (rows, length, features) that has any, whole cells: [x, y] each."""
    found = [trip[own[:, SLOT] > 0][:, [X, Y]].astype(int).tolist() for trip, own in zip(trips, there, strict=True)]
    return [line for line in found if line]


def _graticule(grid: Grid, low: np.ndarray, high: np.ndarray) -> dict[str, list]:
    """Lines of round latitudes and longitudes across the box: [cell, label] each."""
    # The centre of cell x is at x + 1/2 from the corner.
    (south, north), (west, east) = degrees(grid, np.array([low[0], high[0]]) + 0.5, np.array([low[1], high[1]]) + 0.5)
    found: dict[str, list] = {}
    for name, first, last, span, start in (
        ("lat", south, north, high[1] - low[1], low[1]),
        ("lon", west, east, high[0] - low[0], low[0]),
    ):
        step = _round_step((last - first) / _LINES)
        digits = max(0, -int(np.floor(np.log10(step))))
        ticks = np.arange(np.ceil(first / step), np.floor(last / step) + 1) * step
        found[name] = [
            [round(float(start + (tick - first) / (last - first) * span), 3), f"{tick:.{digits}f}°"] for tick in ticks
        ]
    return found


def _scale(grid: Grid, cells: float) -> list:
    """A bar of a round length: [cells, label]."""
    metres = _round_step(_SCALE_SHARE * cells * grid.cell_size, down=True)
    return [metres / grid.cell_size, f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"]


def _round_step(value: float, *, down: bool = False) -> float:
    power = 10.0 ** np.floor(np.log10(value))
    fitting = [n for n in _ROUND if (n * power <= value * (1 + 1e-9) if down else n * power >= value * (1 - 1e-9))]
    return float((fitting[-1] if down else fitting[0]) * power)
