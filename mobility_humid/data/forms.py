"""The forms in which fleets are published, many files a fleet: which files belong to one, whose points they hold, and
what their lines say."""

import csv
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
import pandas as pd

from common.errors import UserError


class Layout(NamedTuple):
    """Positions of the fields in a line: `place` field -> column, of `width` columns."""

    separator: str
    width: int
    place: dict[str, int]
    text_time: bool = False


class Form(NamedTuple):
    """A form of many files: `words` for messages, the `path` of a file inside the folder or archive, and, unless it is
    a table or XML, the `layout` of its lines, after so many lines of a `head`."""

    words: str
    path: re.Pattern[str]
    layout: Layout | None = None
    head: int = 0

    def driver(self, path: str, apart: int) -> str | None:
        """Whose points the file at `path` holds: what its name says, else the folder that is `apart` so many folders
        from the top, else the file's own name."""
        named = self.path.fullmatch(path).groupdict()
        if "driver" in named:
            return named["driver"]
        parts = PurePosixPath(path).parts[apart:]
        return parts[0] if len(parts) > 1 else PurePosixPath(path).stem


CABSPOTTING = Form(
    "new_<id>.txt (cabspotting)",
    re.compile(r"(?:.*/)?new_(?P<driver>[^/]+)\.txt"),
    Layout(" ", 4, {"lat": 0, "lon": 1, "occupied": 2, "time": 3}),
)
# Microsoft Research Asia, 2012: six lines of a head; latitude, longitude, 0, feet, days since 1899, date, time (GMT).
GEOLIFE = Form(
    "<id>/Trajectory/*.plt (GeoLife)",
    re.compile(r"(?:.*/)?(?P<driver>[^/]+)/Trajectory/[^/]+\.plt", re.IGNORECASE),
    Layout(",", 7, {"lat": 0, "lon": 1, "days": 4}),
    head=6,
)
# Microsoft Research Asia, 2011: id, date and time in Beijing, longitude, latitude.
T_DRIVE = Form(
    "<number>.txt (T-Drive)",
    re.compile(r"(?:.*/)?\d+\.txt"),
    Layout(",", 4, {"driver": 0, "time": 1, "lon": 2, "lat": 3}, text_time=True),
)
GPX = Form("*.gpx", re.compile(r".*\.gpx", re.IGNORECASE))
TABLES = Form("*.csv", re.compile(r".*\.csv", re.IGNORECASE))
# As they are looked for.
FORMS = (CABSPOTTING, GEOLIFE, T_DRIVE, GPX, TABLES)

# By trackintel, scikit-mobility and others, and Porto's taxis; what stands first is the field's own name.
NAMES = {
    "driver": ("driver", "user_id", "uid", "taxi_id", "cab_id", "vehicle_id", "medallion"),
    "time": ("time", "tracked_at", "datetime", "timestamp", "date_time", "unixtime"),
    "lat": ("lat", "latitude", "y"),
    "lon": ("lon", "lng", "longitude", "long", "x"),
    "occupied": ("occupied", "hired"),
}
# A trip a row, a point every 15 seconds from its time on (Moreira-Matias et al. 2013).
POLYLINE, MISSING, POLYLINE_SECONDS = "polyline", "missing_data", 15

_DAY, _UNIX_EPOCH = 86_400, 25_569
_HIDDEN = re.compile(r"(?:^|/)(?:\.[^./]|__MACOSX/)")


def form_of(paths: Iterable[str]) -> Form | None:
    """The first form that one of `paths` has."""
    paths = [path for path in paths if not _HIDDEN.search(path)]
    return next((form for form in FORMS if any(form.path.fullmatch(path) for path in paths)), None)


def belongs(form: Form, path: str) -> bool:
    """Whether the file at `path` is of the form, and none that a file browser has put there."""
    return form.path.fullmatch(path) is not None and not _HIDDEN.search(path)


def depth_of(paths: Sequence[str]) -> int:
    """How many folders all of `paths` have in common."""
    folders = [PurePosixPath(path).parts[:-1] for path in paths]
    return next(
        (n for n, parts in enumerate(zip(*folders, strict=False)) if len(set(parts)) > 1), min(map(len, folders))
    )


def seconds_of_days(days: pd.Series) -> pd.Series:
    """Days since 30 December 1899, with fractions, as Unix seconds, whole ones, for they count to a tenth of a
    millisecond."""
    days = pd.to_numeric(days, errors="coerce")
    return ((days - _UNIX_EPOCH) * _DAY).round()


def gpx_points(content: bytes, where: str) -> dict[str, pd.Series]:
    """The points of the tracks in a GPX file as text: `lat`, `lon`, `time`.

    Errors: `UserError` for what is no XML, and for XML that declares entities.
    """
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise UserError(f"{where}: declares a document type or entities, which GPX has not; export it again")
    try:
        root = ET.fromstring(content)
    except ET.ParseError as error:
        raise UserError(f"{where}: not a readable GPX file ({error}); export it again") from error
    points = [point for point in root.iter() if point.tag.rpartition("}")[2] == "trkpt"]
    times = [next((c.text for c in point if c.tag.rpartition("}")[2] == "time"), None) or "" for point in points]
    return {
        "lat": pd.Series([point.get("lat", "") for point in points], dtype=object),
        "lon": pd.Series([point.get("lon", "") for point in points], dtype=object),
        "time": pd.Series(times, dtype=object),
    }


def polylines(
    block: bytes, separator: str, place: dict[str, int], width: int
) -> tuple[dict[str, pd.Series], list[list[str]]]:
    """The points in rows of trips, and the fields of the rows that cannot be used: those with too few or too many, with
    what is no list of places, and those that say that some are missing, for then no one knows which."""
    lines, wrong = block.decode("utf-8", "surrogateescape").splitlines(), []
    parts: dict[str, list] = {"driver": [], "time": [], "lat": [], "lon": []}
    for row in csv.reader((line for line in lines if line.strip()), delimiter=separator):
        if len(row) != width or (MISSING in place and row[place[MISSING]].strip().lower() == "true"):
            wrong.append(row)
            continue
        try:
            points = np.asarray(json.loads(row[place[POLYLINE]]), float).reshape(-1, 2)
            started = float(row[place["time"]])
        except (ValueError, TypeError):
            wrong.append(row)
            continue
        parts["driver"].append(np.full(len(points), row[place["driver"]], object))
        parts["time"].append(started + POLYLINE_SECONDS * np.arange(len(points)))
        parts["lon"].append(points[:, 0])
        parts["lat"].append(points[:, 1])
    empty = {"driver": np.empty(0, object)}
    fields = {name: pd.Series(np.concatenate(p) if p else empty.get(name, np.empty(0))) for name, p in parts.items()}
    return {**fields, "occupied": pd.Series(np.ones(len(fields["time"]), object))}, wrong


def places_in(columns: dict[str, str], width: int, where: str) -> dict[str, int] | None:
    """Field -> position, from 0, where `columns` has numbers, from 1, for a table without a header; None for names.

    Errors: `UserError` for a number that the table has no column for, and for what is partly numbers.
    """
    numbers = {field: int(name) for field, name in columns.items() if name.isdecimal()}
    if not numbers or len(numbers) < len(columns):
        return None
    for field in ("driver", "time", "lat", "lon"):
        if field not in numbers:
            raise UserError(f"--columns: a table without a header needs {field}=<number of its column>")
    for field, number in numbers.items():
        if not 1 <= number <= width:
            raise UserError(f"{where}: --columns {field}={number}, but its first line has {width} fields")
    return {field: number - 1 for field, number in numbers.items()}


def without_head(content: bytes, lines: int) -> bytes:
    """`content` without so many first lines."""
    parts = content.split(b"\n", lines)
    return parts[lines] if len(parts) > lines else b""
