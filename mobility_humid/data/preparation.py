"""Raw GPS points to trips on a grid: cleaning, cutting, resampling and the profile of each driver's day.

Drivers are worked through one at a time, each with array operations over all of its points, and their results go to a
file, so that memory does not grow with the fleet.
"""

import datetime
import functools
import io
import itertools
import math
import zoneinfo
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np

from common.datasets.npz import NpzWriter
from common.errors import UserError
from common.progress import Progress
from mobility_humid.data.gps import Track
from mobility_humid.data.trips import PROFILE_FEATURES, SEEK, SERVE, SLOTS, UNTYPED, Grid, TripSet, heading

METRES_PER_DEGREE = math.radians(6_371_008.8)
# What is counted: points out of order, points dropped, cuts, and trips and drivers left out.
COUNTED = (
    "unsorted",
    "duplicates",
    "speed_jumps",
    "out_of_map",
    "time_jumps",
    "breaks",
    "break_points",
    "short_trips",
    "drivers_without_trips",
)
# So many points say where the map is; the rest of the fleet may be any size.
MAP_POINTS = 500_000
MAP_SHARE = (1.0, 99.0)
# 2048 x 2048: half a thousand kilometres at 250 m. More is a map of emptiness, or a cell size in the wrong unit.
MAX_CELLS = 2**22
DAY, SLOT_SECONDS = 86_400, 86_400 // SLOTS
_INT16 = 32_767
# All time zones of this century change their clocks at full quarters of an hour.
_QUARTER = 900


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How points become trips.

    `cell_size` in metres; `bbox` south, west, north, east in degrees, or None for the box between the 1st and the 99th
    percentile of the first half million points on either axis. A day begins at `day_start` o'clock in `time_zone`. A
    trip is cut at gaps above `max_gap` seconds and where the driver stays within a cell for `break_after` seconds or
    longer; points faster than `max_speed` km/h from the last good one are dropped. Trips have one point every
    `interval` seconds, or the points as they are for 0, and at least `min_points` of them. `fleet`: "auto" follows the
    tracks, which may tell seek and serve apart or not; "serve" means a passenger in every row; "untyped" leaves open
    what a trip is.
    """

    cell_size: float = 250.0
    bbox: tuple[float, float, float, float] | None = None
    time_zone: str = "UTC"
    day_start: int = 4
    max_gap: float = 300.0
    break_after: float = 1800.0
    max_speed: float = 150.0
    interval: int = 60
    min_points: int = 5
    fleet: Literal["auto", "serve", "untyped"] = "auto"


class _Driver(NamedTuple):
    """What is kept of a driver: trips as in `TripSet`, with days as numbers since 1970, and profiles by day."""

    points: np.ndarray
    lengths: np.ndarray
    day: np.ndarray
    kind: np.ndarray
    profile_days: np.ndarray
    profiles: np.ndarray


class Clock:
    """Local time of many stamps at once."""

    def __init__(self, zone: datetime.tzinfo) -> None:
        self._zone = zone
        self._known: dict[int, int] = {}

    def offsets(self, time: np.ndarray) -> np.ndarray:
        """Seconds to add to UTC for the sorted Unix seconds `time` (n,), int64 (n,)."""
        quarter = time // _QUARTER
        starts = np.flatnonzero(np.diff(quarter, prepend=quarter[:1] - 1))
        found = [self._offset(number) for number in quarter[starts].tolist()]
        return np.repeat(np.array(found, np.int64), np.diff(starts, append=len(time)))

    def _offset(self, quarter: int) -> int:
        if quarter not in self._known:
            moment = datetime.datetime.fromtimestamp(quarter * _QUARTER, self._zone)
            self._known[quarter] = int(moment.utcoffset().total_seconds())
        return self._known[quarter]


def find_zone(name: str) -> datetime.tzinfo:
    """The time zone of an IANA name. Errors: `UserError` naming --time-zone."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        raise UserError(
            f"--time-zone: no time zone {name!r}; expected a name such as UTC or America/Los_Angeles"
        ) from None


def prepare_trips(tracks: Iterable[Track], rules: Rules, counts: Counter[str], *, grid: Grid | None = None) -> TripSet:
    """The trips of all `tracks` in memory, on the map `grid`, by default that of `rules`; what was cleaned away is
    added to `counts`.

    Errors: `UserError` for an unknown time zone, a box or cell size that makes no map, and when no trip is left.
    """
    fleet = prepare_fleet(tracks, rules, counts, io.BytesIO(), grid=grid)
    return fleet.trips(fleet.drivers)


def prepare_fleet(
    tracks: Iterable[Track], rules: Rules, counts: Counter[str], spool: IO[bytes], *, grid: Grid | None = None
) -> "Fleet":
    """The trips of all `tracks`, their points in the file `spool`, on the map `grid`, by default that of `rules`.

    Errors: as `prepare_trips`.
    """
    clock = Clock(find_zone(rules.time_zone))
    counts.update(dict.fromkeys(COUNTED, 0))
    remaining = iter(tracks)
    first = list(_first(remaining, MAP_POINTS)) if rules.bbox is None and grid is None else []
    fleet = Fleet(grid or make_grid(rules, first), rules, counts, spool)
    # `first` is emptied on the way, so that no more than two drivers' raw points are held from there on.
    work = functools.partial(_prepare_driver, grid=fleet.grid, rules=rules, clock=clock, counts=counts)
    for name, driver in _in_turn(itertools.chain(_emptied(first), remaining), work):
        if driver is None:
            counts["drivers_without_trips"] += 1
        else:
            fleet.add(name, driver)
    if not fleet.drivers:
        found = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in counts.items() if n)
        raise UserError(f"no trip is left ({found or 'no points at all'}); check --bbox, --min-points and --max-gap")
    return fleet


class Fleet:
    """Prepared drivers, their points in a file: in memory are a few bytes for each trip, whatever the fleet's size."""

    def __init__(self, grid: Grid, rules: Rules, counts: Counter[str], spool: IO[bytes]) -> None:
        self.grid, self._rules, self._counts, self._spool = grid, rules, counts, spool
        self._drivers: dict[str, _Driver] = {}
        self._places: dict[str, tuple[int, int]] = {}

    @property
    def drivers(self) -> list[str]:
        """Their names, in order."""
        return sorted(self._drivers)

    def add(self, name: str, driver: _Driver) -> None:
        """Append a driver of another name than those before."""
        self._places[name] = (self._spool.seek(0, io.SEEK_END), len(driver.points))
        self._spool.write(driver.points.tobytes())
        self._drivers[name] = driver._replace(points=driver.points[:0].copy())

    def points(self, name: str) -> np.ndarray:
        """A driver's points, int16 (n, 4) as in `TripSet`."""
        place, count = self._places[name]
        self._spool.seek(place)
        return np.frombuffer(self._spool.read(count * 8), np.int16).reshape(count, 4)

    def sizes(self) -> dict[str, int]:
        """Number of points by driver."""
        return {name: count for name, (_, count) in self._places.items()}

    def kinds(self) -> Counter[int]:
        """Number of trips by kind."""
        total: Counter[int] = Counter()
        for driver in self._drivers.values():
            total.update(
                {int(kind): int(n) for kind, n in zip(*np.unique(driver.kind, return_counts=True), strict=True)}
            )
        return total

    def days(self) -> np.ndarray:
        """The days with trips, as numbers since 1970."""
        return np.unique(np.concatenate([driver.day for driver in self._drivers.values()]))

    def trips(self, names: Sequence[str]) -> TripSet:
        """The trips of some drivers, in memory."""
        return TripSet(points=np.concatenate([self.points(name) for name in names]), **self._about(names))

    def save(self, path: Path | str, *, progress: bool = False) -> dict[int, np.ndarray]:
        """Write what `save_trips` writes of all drivers, with the points of one at a time in memory.

        `progress` is shown if it takes long. Returns how many points each kind of trips has in each cell, int64
        (height, width).
        """
        names = self.drivers
        about = self._about(names)
        about |= heading(about.pop("grid"), about.pop("filters"), about["drivers"], about["days"])
        shape = (self.grid.height, self.grid.width)
        density = {kind: np.zeros(shape, np.int64) for kind in sorted(self.kinds())}
        shown = Progress(len(names), "writing trips", units="drivers", shown=progress)
        with NpzWriter(path) as archive, shown:
            member = archive.member("points", (int(about["offsets"][-1]), 4), np.int16)
            for name in names:
                points, driver = self.points(name), self._drivers[name]
                member.append(points)
                kinds = np.repeat(driver.kind, driver.lengths)
                for kind, cells in density.items():
                    x, y = points[kinds == kind, :2].T
                    np.add.at(cells, (y, x), 1)
                shown.add()
            for name, values in about.items():
                archive.member(name, values.shape, values.dtype).append(values)
        return density

    def _about(self, names: Sequence[str]) -> dict[str, Any]:
        """Everything in a `TripSet` of some drivers except its points."""
        drivers = [self._drivers[name] for name in names]
        lengths = np.concatenate([driver.lengths for driver in drivers])
        days, day = np.unique(np.concatenate([driver.day for driver in drivers]), return_inverse=True)
        profiles = np.full((len(names), len(days), len(PROFILE_FEATURES)), np.nan, np.float32)
        for number, driver in enumerate(drivers):
            # A day without a trip is none, though the driver may have been seen on it.
            own = np.isin(driver.profile_days, days)
            profiles[number, np.searchsorted(days, driver.profile_days[own])] = driver.profiles[own]
        return {
            "offsets": np.append(0, np.cumsum(lengths)).astype(np.int64),
            "driver": np.repeat(np.arange(len(names)), [len(driver.kind) for driver in drivers]).astype(np.int32),
            "day": day.astype(np.int32),
            "kind": np.concatenate([driver.kind for driver in drivers]),
            "profiles": profiles,
            "drivers": tuple(names),
            "days": tuple(str(np.datetime64(int(number), "D")) for number in days),
            "grid": self.grid,
            "filters": {**asdict(self._rules), "counts": {name: int(n) for name, n in sorted(self._counts.items())}},
        }


def make_grid(rules: Rules, tracks: Iterable[Track]) -> Grid:
    """The map of `rules`; where they name no box, around `tracks`.

    Cells are squares in the plane that a degree of latitude and, at the map's middle latitude, one of longitude span.

    Errors: `UserError` for a box that is none and for more cells than make sense.
    """
    if not 0 < rules.cell_size < 1e6:
        raise UserError(f"--cell-size: expected metres above 0, got {rules.cell_size}")
    if rules.bbox is None:
        lat, lon = (np.concatenate([getattr(track, axis) for track in tracks] or [[]]) for axis in ("lat", "lon"))
        if not len(lat):
            raise UserError("no point is left to define a map; give --bbox or other data")
        (south, north), (west, east) = np.percentile(lat, MAP_SHARE).tolist(), np.percentile(lon, MAP_SHARE).tolist()
    else:
        south, west, north, east = rules.bbox
        if not (-90 <= south < north <= 90 and -180 <= west < east <= 180):
            given = ",".join(map(str, rules.bbox))
            raise UserError(f"--bbox: expected south,west,north,east in degrees, got {given}")
    height = max(1, math.ceil((north - south) * METRES_PER_DEGREE / rules.cell_size))
    across = METRES_PER_DEGREE * _narrowing(south, height, rules.cell_size)
    width = max(1, math.ceil((east - west) * across / rules.cell_size))
    if max(width, height) > _INT16 or width * height > MAX_CELLS:
        raise UserError(
            f"--cell-size: {rules.cell_size:g} m give a map of {width} x {height} cells, at most {MAX_CELLS} do;"
            " use larger cells or a smaller --bbox"
        )
    return Grid(south, west, rules.cell_size, width, height, rules.time_zone, rules.day_start)


def metres(grid: Grid, lat: np.ndarray, lon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Metres to the east and to the north of the map's south-west corner, each (n,)."""
    across = METRES_PER_DEGREE * _narrowing(grid.south, grid.height, grid.cell_size)
    return (lon - grid.west) * across, (lat - grid.south) * METRES_PER_DEGREE


def degrees(grid: Grid, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latitude and longitude, each float64 (n,), of places that many cells east and north of the map's corner."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    across = METRES_PER_DEGREE * _narrowing(grid.south, grid.height, grid.cell_size)
    return grid.south + y * grid.cell_size / METRES_PER_DEGREE, grid.west + x * grid.cell_size / across


def _narrowing(south: float, height: int, cell_size: float) -> float:
    """How much shorter than one of latitude a degree of longitude is, halfway up the map."""
    return math.cos(math.radians(south + height * cell_size / METRES_PER_DEGREE / 2))


def _in_turn(tracks: Iterable[Track], work: Callable[[Track], _Driver | None]) -> Iterator[tuple[str, _Driver | None]]:
    """The driver of each track and what `work` makes of it, in a thread of its own while the next is unpacked."""
    with ThreadPoolExecutor(1) as worker:
        waiting: deque[tuple[str, Future[_Driver | None]]] = deque()
        for track in tracks:
            waiting.append((track.driver, worker.submit(work, track)))
            if len(waiting) > 1:
                name, result = waiting.popleft()
                yield name, result.result()
        for name, result in waiting:
            yield name, result.result()


def _first(tracks: Iterator[Track], points: int) -> Iterator[Track]:
    for track in tracks:
        yield track
        points -= len(track.time)
        if points <= 0:
            return


def _emptied(tracks: list[Track]) -> Iterator[Track]:
    tracks.reverse()
    while tracks:
        yield tracks.pop()


def _prepare_driver(track: Track, grid: Grid, rules: Rules, clock: Clock, counts: Counter[str]) -> _Driver | None:
    if not len(track.time):
        return None
    time, lat, lon, kind = _in_order(track, rules, counts)
    x, y = metres(grid, lat, lon)
    keep = plausible(time, x, y, rules.max_speed)
    counts["speed_jumps"] += int(len(keep) - keep.sum())
    time, x, y, kind = time[keep], x[keep], y[keep], kind[keep]
    inside = np.flatnonzero(
        (x >= 0) & (x < grid.width * grid.cell_size) & (y >= 0) & (y < grid.height * grid.cell_size)
    )
    counts["out_of_map"] += len(time) - len(inside)
    if not len(inside):
        return None
    time, x, y, kind = time[inside], x[inside], y[inside], kind[inside]
    offset = clock.offsets(time)
    local = time + offset - rules.day_start * 3600
    # Where a clock is put back over the day's start, the current day continues.
    day = np.maximum.accumulate(local // DAY)
    jump = np.diff(time) > rules.max_gap
    counts["time_jumps"] += int(jump.sum())
    elsewhere = (np.diff(inside) > 1) | (np.diff(kind) != 0)
    stays = _stays(x, y, elsewhere, grid.cell_size)
    standing = _standing(time, stays, rules.break_after)
    counts["breaks"] += int((standing & ~np.append(False, standing[:-1])).sum())
    # Slots follow the clock on the wall; a trip during which it is changed is cut, or its slots might decrease.
    cut = elsewhere | jump | standing | (np.diff(day) != 0) | (np.diff(offset) != 0)
    resting = np.append(False, standing) & np.append(standing, False)
    counts["break_points"] += int(resting.sum())

    begins = np.append(True, cut)
    distance = np.append(0.0, np.hypot(np.diff(x), np.diff(y)))
    travelled = np.cumsum(np.where(begins, 0.0, distance))
    starts = np.flatnonzero(begins & ~resting)
    ends = np.flatnonzero(np.append(cut, True) & ~resting)
    duration = time[ends] - time[starts]
    profile_days, profiles = _profiles(
        grid,
        time=time,
        local=local,
        day=day,
        x=x,
        y=y,
        stays=stays,
        max_gap=rules.max_gap,
        trips=_Runs(day[starts], kind[starts], travelled[ends] - travelled[starts], duration, ends - starts + 1),
    )

    lengths = duration // rules.interval + 1 if rules.interval else ends - starts + 1
    enough = lengths >= rules.min_points
    counts["short_trips"] += int(len(lengths) - enough.sum())
    if not enough.any():
        return None
    starts, lengths = starts[enough], lengths[enough]
    steps = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    if rules.interval:
        asked = np.repeat(time[starts], lengths) + steps * rules.interval
        x, y = np.interp(asked, time, x), np.interp(asked, time, y)
    else:
        own = np.repeat(starts, lengths) + steps
        asked, x, y = time[own], x[own], y[own]
    seconds = np.diff(asked, prepend=asked[:1] - 1)
    speed = np.hypot(np.diff(x, prepend=x[:1]), np.diff(y, prepend=y[:1])) / np.maximum(seconds, 1) * 3.6
    speed[steps == 0] = 0
    second = asked + np.repeat(offset[starts] - rules.day_start * 3600 - day[starts] * DAY, lengths)
    points = np.stack([*_cells(grid, x, y), _slots(second), np.minimum(np.rint(speed), _INT16)], axis=1)
    return _Driver(
        points.astype(np.int16),
        lengths.astype(np.int64),
        day[starts].astype(np.int32),
        kind[starts].astype(np.int8),
        profile_days.astype(np.int32),
        profiles,
    )


def _in_order(track: Track, rules: Rules, counts: Counter[str]) -> tuple[np.ndarray, ...]:
    """Time, lat, lon and kind of trip, by time and with each stamp once."""
    if rules.fleet == "serve":
        kind = np.full(len(track.time), SERVE, np.int8)
    elif rules.fleet == "untyped" or track.occupied is None:
        kind = np.full(len(track.time), UNTYPED, np.int8)
    else:
        kind = np.where(track.occupied, SERVE, SEEK).astype(np.int8)
    columns = (track.time, track.lat, track.lon, kind)
    # The newest point first, as in the original cabspotting files, is an order too.
    if len(track.time) > 1 and track.time[0] > track.time[-1]:
        columns = tuple(column[::-1] for column in columns)
    steps = np.diff(columns[0])
    counts["unsorted"] += int((steps < 0).sum())
    if (steps <= 0).any():
        # Points of one stamp by their place: which of them stays must not depend on the order of the file.
        time, lat, lon, kind = columns
        order = np.lexsort((kind, lon, lat, time))
        columns = tuple(column[order] for column in columns)
        once = np.diff(columns[0], prepend=columns[0][:1] - 1) > 0
        counts["duplicates"] += int(len(once) - once.sum())
        columns = tuple(column[once] for column in columns)
    return columns


def plausible(time: np.ndarray, x: np.ndarray, y: np.ndarray, max_speed: float) -> np.ndarray:
    """Which points can be reached from the last good one at `max_speed` km/h, bool (n,); the first is good.

    `time` in seconds, strictly rising; `x`, `y` in metres. A wrong first point does no lasting harm: the longer ago it
    is, the more is within reach of it.
    """
    keep = np.ones(len(time), bool)
    reach = max_speed / 3.6
    late = np.flatnonzero(np.hypot(np.diff(x), np.diff(y)) > reach * np.diff(time)) + 1
    here, next_late = 0, 0
    while next_late < len(late):
        good = late[next_late] - 1
        if good < here:
            # Compared with a point that has been dropped since; what counts is the last good one.
            next_late += 1
            continue
        begin, width = good + 1, 8
        while begin < len(time):
            window = slice(begin, begin + width)
            far = np.hypot(x[window] - x[good], y[window] - y[good]) > reach * (time[window] - time[good])
            if not far.all():
                begin += int(np.argmin(far))
                break
            begin, width = begin + len(far), 2 * width
        keep[good + 1 : begin] = False
        here = begin
    return keep


class _Stays(NamedTuple):
    """Runs of points within one square: first and last point of each, int64 (S,)."""

    first: np.ndarray
    last: np.ndarray


def _stays(x: np.ndarray, y: np.ndarray, elsewhere: np.ndarray, size: float) -> _Stays:
    """All stays in squares of `size` metres. `elsewhere` (n - 1,) bool: between two points something else was.

    Four grids, shifted by half a square, so that a parked car whose position wavers across a line of one of them is
    within a square of another.
    """
    first, last = [], []
    for shift_x, shift_y in itertools.product((0.0, 0.5), repeat=2):
        column, row = np.floor(x / size + shift_x), np.floor(y / size + shift_y)
        left = elsewhere | (np.diff(column) != 0) | (np.diff(row) != 0)
        first.append(np.flatnonzero(np.append(True, left)))
        last.append(np.flatnonzero(np.append(left, True)))
    return _Stays(np.concatenate(first), np.concatenate(last))


def _standing(time: np.ndarray, stays: _Stays, break_after: float) -> np.ndarray:
    """Whether the step from a point to the next belongs to a stay of `break_after` seconds or longer, bool (n - 1,)."""
    long = time[stays.last] - time[stays.first] >= break_after
    change = np.zeros(len(time) + 1, np.int64)
    np.add.at(change, stays.first[long], 1)
    np.add.at(change, stays.last[long], -1)
    return np.cumsum(change)[: len(time) - 1] > 0


class _Runs(NamedTuple):
    """A driver's trips before the short ones go: day, kind, metres, seconds and points of each, (R,)."""

    day: np.ndarray
    kind: np.ndarray
    metres: np.ndarray
    seconds: np.ndarray
    points: np.ndarray


def _profiles(
    grid: Grid,
    *,
    time: np.ndarray,
    local: np.ndarray,
    day: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    stays: _Stays,
    max_gap: float,
    trips: _Runs,
) -> tuple[np.ndarray, np.ndarray]:
    """The days of a driver, and float32 (days, 11) `PROFILE_FEATURES`, from all clean points of each day.

    Home is where the longest stay of the day was, gaps without points included; the favourite cell is where most of
    the other time went, gaps left out. Means are over trips of at least two points, 0 where there is none.
    """
    days = np.unique(day)
    profiles = np.zeros((len(days), len(PROFILE_FEATURES)), np.float32)
    first, last, place = _longest_stays(local, day, stays, days)
    for column, values in enumerate((x, y)):
        total = np.append(0.0, np.cumsum(values))
        profiles[:, column] = (total[last + 1] - total[first]) / (last + 1 - first) // grid.cell_size
    profiles[:, 2:4] = place

    which = np.searchsorted(days, day)
    number = np.arange(len(time))
    away = (number < first[which]) | (number > last[which])
    dwell = np.append(np.minimum(np.diff(time), max_gap), 0.0) * away
    column, row = _cells(grid, x, y)
    cell = row * grid.width + column
    keys, inverse = np.unique(which * (grid.width * grid.height) + cell, return_inverse=True)
    spent = np.bincount(inverse, weights=dwell)
    # By day, the longest last; of equals the first cell.
    order = np.lexsort((-keys, spent, keys // (grid.width * grid.height)))
    best = order[np.searchsorted(keys[order] // (grid.width * grid.height), np.arange(len(days)), "right") - 1]
    favourite = keys[best] % (grid.width * grid.height)
    profiles[:, 4], profiles[:, 5] = favourite % grid.width, favourite // grid.width
    nowhere = spent[best] == 0
    profiles[nowhere, 4:6] = profiles[nowhere, 0:2]

    for kind, column in ((SEEK, 6), (SERVE, 8)):
        own = (trips.kind == kind) & (trips.points > 1)
        place = np.searchsorted(days, trips.day[own])
        count = np.bincount(place, minlength=len(days))
        for values, unit, target in ((trips.metres, 1000, column), (trips.seconds, 60, column + 1)):
            total = np.bincount(place, weights=values[own], minlength=len(days))
            profiles[:, target] = total / unit / np.maximum(count, 1)
        if kind == SERVE:
            profiles[:, 10] = count
    return days, profiles


def _longest_stays(
    local: np.ndarray, day: np.ndarray, stays: _Stays, days: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `days` first and last point of its longest stay, and the slots (days, 2) from when to when on that
    day it was."""
    spans = day[stays.last] - day[stays.first] + 1
    which = np.repeat(np.arange(len(spans)), spans)
    on = day[stays.first][which] + np.arange(len(which)) - np.repeat(np.cumsum(spans) - spans, spans)
    begin = np.maximum(local[stays.first][which] - on * DAY, 0)
    end = np.minimum(local[stays.last][which] - on * DAY, DAY - 1)
    number, length = on - days[0], end - begin
    longest = np.full(days[-1] - days[0] + 1, -1)
    np.maximum.at(longest, number, length)
    equals = np.flatnonzero(length == longest[number])
    # Of equals the first stays: the last one to be written.
    equals = equals[np.argsort(-begin[equals], kind="stable")]
    best = np.zeros(len(longest), np.int64)
    best[number[equals]] = equals
    best = best[days - days[0]]
    slots = np.stack([_slots(begin[best]), _slots(end[best])], axis=1)
    return stays.first[which[best]], stays.last[which[best]], slots


def _cells(grid: Grid, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Interpolated points lie between points of the map, but for a rounding error at its edge.
    return (
        np.clip(x // grid.cell_size, 0, grid.width - 1).astype(np.int64),
        np.clip(y // grid.cell_size, 0, grid.height - 1).astype(np.int64),
    )


def _slots(seconds: np.ndarray) -> np.ndarray:
    return np.clip(seconds // SLOT_SECONDS + 1, 1, SLOTS)
