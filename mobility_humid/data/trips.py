"""Trips on the grid of a map: what `prepare.py` writes and every other script reads."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import files
from common.errors import UserError

# A trip is one of these: driven without a passenger, with one, or of a fleet that does not say.
SEEK, SERVE, UNTYPED = 0, 1, 2
KINDS = ("seek", "serve", "untyped")
# A slot is five minutes of the day, counted from 1: slot 0 is no time at all and marks padding.
SLOTS = 288
X, Y, SLOT, SPEED = range(4)
PROFILE_FEATURES = (
    "home_x",
    "home_y",
    "break_start",
    "break_end",
    "favourite_x",
    "favourite_y",
    "seek_distance",
    "seek_time",
    "serve_distance",
    "serve_time",
    "serve_trips",
)
_ARRAYS = ("points", "offsets", "driver", "day", "kind", "profiles", "drivers", "days", "description")


@dataclass(frozen=True)
class Grid:
    """The map: square cells, counted from the south-west corner, x to the east and y to the north.

    `south`, `west` in degrees; `cell_size` in metres; `width`, `height` in cells. A day of trips begins at
    `day_start` o'clock in `time_zone`.
    """

    south: float
    west: float
    cell_size: float
    width: int
    height: int
    time_zone: str = "UTC"
    day_start: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in cells."""
        return self.width, self.height


@dataclass(frozen=True)
class TripSet:
    """The trips of a fleet. P points in all, T trips, D drivers, N days.

    `points` int16 (P, 4): cell x, cell y, slot 1..288 of the driver's day, mean speed since the point before in km/h;
    those of trip i are `points[offsets[i]:offsets[i + 1]]`, in order of time. `offsets` int64 (T + 1,). `driver`, `day`
    int32 (T,) and `kind` int8 (T,), sorted by driver, day and time. `profiles` float32 (D, N, 11), the columns
    `PROFILE_FEATURES`: cells, slots, km and minutes; not a number where a driver has no such day. `drivers`, `days`:
    names, and ISO dates. `filters`: what was cleaned away and how, for people.
    """

    points: np.ndarray
    offsets: np.ndarray
    driver: np.ndarray
    day: np.ndarray
    kind: np.ndarray
    profiles: np.ndarray
    drivers: tuple[str, ...]
    days: tuple[str, ...]
    grid: Grid
    filters: dict[str, Any]
    sha256: str = ""

    @property
    def kinds(self) -> tuple[int, ...]:
        """The kinds of trips there are, such as (SEEK, SERVE)."""
        return tuple(int(kind) for kind in np.unique(self.kind))


def save_trips(path: Path | str, trips: TripSet) -> None:
    """Write one `.npz`, whole or not at all; grid and filters are JSON inside it."""
    arrays: dict[str, np.ndarray] = {name: getattr(trips, name) for name in _ARRAYS[:6]}
    files.write_npz(path, arrays | heading(trips.grid, trips.filters, trips.drivers, trips.days))


def heading(
    grid: Grid, filters: Mapping[str, Any], drivers: Sequence[str], days: Sequence[str]
) -> dict[str, np.ndarray]:
    """The arrays of such a file that hold text."""
    description = json.dumps({"grid": dataclasses.asdict(grid), "filters": filters})
    return {
        "drivers": np.array(drivers, np.str_),
        "days": np.array(days, np.str_),
        "description": np.frombuffer(description.encode(), np.uint8),
    }


def world_of(trips: TripSet) -> dict[str, Any]:
    """The map of `trips` and the rules by which points became trips: what it takes to make others alike."""
    rules = {name: value for name, value in trips.filters.items() if name != "counts"}
    return {"grid": dataclasses.asdict(trips.grid), "rules": rules}


def fastest_step(trips: TripSet) -> float | None:
    """How many cells two consecutive points may be apart by the speed limit that `trips` were cleaned by; None where
    they do not say, or do not come at regular intervals."""
    speed, interval = (float(trips.filters.get(name) or 0.0) for name in ("max_speed", "interval"))
    return speed / 3.6 * interval / trips.grid.cell_size if speed and interval else None


def load_trips(path: Path | str) -> TripSet:
    """The trips in a file that `save_trips` wrote.

    Errors: `UserError` naming file and array for what is missing, damaged or contradicts itself.
    """
    path = Path(path)
    arrays = files.read_npz(path)
    if missing := [name for name in _ARRAYS if name not in arrays]:
        raise UserError(f"{path}: no array {missing[0]!r}; expected trips as prepare.py writes them")
    try:
        description = json.loads(arrays.pop("description").tobytes())
        grid, filters = Grid(**description["grid"]), dict(description["filters"])
        names = {name: tuple(str(text) for text in arrays.pop(name)) for name in ("drivers", "days")}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}[description]: not readable ({error}); prepare the trips again") from error
    trips = TripSet(**arrays, **names, grid=grid, filters=filters, sha256=files.sha256(path))
    _check(path, trips)
    return trips


def _check(path: Path, trips: TripSet) -> None:
    count, drivers, days = len(trips.driver), len(trips.drivers), len(trips.days)
    shapes = {
        "points": (len(trips.points), 4),
        "offsets": (count + 1,),
        "driver": (count,),
        "day": (count,),
        "kind": (count,),
        "profiles": (drivers, days, len(PROFILE_FEATURES)),
    }
    for name, shape in shapes.items():
        if getattr(trips, name).shape != shape:
            raise UserError(f"{path}[{name}]: shape {getattr(trips, name).shape}, expected {shape}")
    if not count:
        raise UserError(f"{path}: holds no trip")
    grid, lengths = trips.grid, np.diff(trips.offsets)
    if not (grid.width > 0 and grid.height > 0 and grid.cell_size > 0):
        raise UserError(f"{path}[description]: a grid of {grid.width} x {grid.height} cells")
    if trips.offsets[0] != 0 or trips.offsets[-1] != len(trips.points) or lengths.min() < 1:
        raise UserError(f"{path}[offsets]: do not cut the {len(trips.points)} points into trips")
    for name, most in (("driver", drivers), ("day", days), ("kind", len(KINDS))):
        values = getattr(trips, name)
        if values.min() < 0 or values.max() >= most:
            raise UserError(f"{path}[{name}]: values from {values.min()} to {values.max()}, expected 0 to {most - 1}")
    for column, name, low, high in (
        (X, "x", 0, grid.width - 1),
        (Y, "y", 0, grid.height - 1),
        (SLOT, "slot", 1, SLOTS),
    ):
        values = trips.points[:, column]
        if values.min() < low or values.max() > high:
            raise UserError(
                f"{path}[points]: {name} from {values.min()} to {values.max()}, expected {low} to {high};"
                " prepare them again"
            )


def padded(trips: TripSet, length: int, *, speed: bool = False) -> np.ndarray:
    """Every trip as one row of a table, int16 (T + 1, length, 3), or 4 with `speed`: x, y, slot[, km/h].

    Shorter trips have zeros in front, of longer ones the last `length` points count, as in the original. The last row
    is an empty trip, so that -1 picks one.
    """
    features = 4 if speed else 3
    table = np.zeros((len(trips.driver) + 1, length, features), np.int16)
    lengths = np.minimum(np.diff(trips.offsets), length)
    ends = trips.offsets[1:]
    for column in range(length):
        # Column by column: one fancy index for all trips that reach so far.
        reach = np.flatnonzero(lengths > column)
        table[reach, length - 1 - column] = trips.points[ends[reach] - 1 - column, :features]
    return table
