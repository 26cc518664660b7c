"""Attacked trips as files that other tools read: NumPy arrays, a table of points, and GeoJSON."""

import datetime
import json
import zoneinfo
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from common import files
from mobility_humid.data.layout import Layout
from mobility_humid.data.preparation import degrees
from mobility_humid.data.trips import SLOT, SLOTS, TripSet, X, Y, heading

_SLOT = datetime.timedelta(days=1) / SLOTS
_DIGITS = 6


class Attacked(NamedTuple):
    """Samples of a `part` before, `clean`, and after an attack, `moved`: float32 (n, rows, length, features) both.
    `trips` int32 (n, K): the trips, by their numbers, in the rows that may move, -1 for none; `success` bool (n,)."""

    part: str
    clean: np.ndarray
    moved: np.ndarray
    trips: np.ndarray
    success: np.ndarray


def save_attacked(folder: Path, attacked: list[Attacked], trips: TripSet, layout: Layout) -> dict[str, Path]:
    """Write `attacked.npz`, `.csv` and `.geojson`, each whole or not at all: their paths by a name for each.

    The points are those that a sample has, the last of longer trips, at the centres of their cells, when their five
    minutes begin. The array file has all rows of the samples; the others the trips that may move, a line of the table
    for a point, two lines of GeoJSON for a trip, before and after.
    """
    table = points_of(attacked, trips, layout)
    paths = {f"attacked_{kind}": folder / f"attacked.{kind}" for kind in ("npz", "csv", "geojson")}
    whole = {name: np.concatenate([getattr(of, name) for of in attacked]) for name in Attacked._fields[1:]}
    part = np.repeat(np.array([of.part for of in attacked]), [len(of.clean) for of in attacked])
    about = heading(trips.grid, {"layout": layout.config()}, trips.drivers, trips.days)
    files.write_npz(paths["attacked_npz"], {**whole, "part": part, **about})
    shown = table.drop(columns=["lat_before", "lon_before"])
    files.write_text(paths["attacked_csv"], shown.to_csv(index=False, lineterminator="\n"))
    files.write_text(paths["attacked_geojson"], json.dumps(_geojson(table), ensure_ascii=False))
    return paths


def points_of(attacked: list[Attacked], trips: TripSet, layout: Layout) -> pd.DataFrame:
    """A row for each point of a trip that may move: part, sample, driver, trip, time, lat, lon, moved, success, and
    where it was before."""
    tables, zone = [], zoneinfo.ZoneInfo(trips.grid.time_zone)
    for of in attacked:
        before, after = of.clean[:, layout.moving], of.moved[:, layout.moving]
        sample, row, point = np.nonzero((before[..., SLOT] > 0) & (of.trips >= 0)[:, :, None])
        trip = of.trips[sample, row]
        # Cells are counted from their corners.
        (lat, lon), (lat_before, lon_before) = (
            degrees(trips.grid, values[sample, row, point, X] + 0.5, values[sample, row, point, Y] + 0.5)
            for values in (after, before)
        )
        starts, slots = _starts(trips, zone), before[sample, row, point, SLOT].astype(int) - 1
        # Few moments, many points.
        moments = list(zip(trips.day[trip].tolist(), slots.tolist(), strict=True))
        clock = {(day, slot): (starts[day] + slot * _SLOT).isoformat() for day, slot in set(moments)}
        moved = (before[sample, row, point, :SLOT] != after[sample, row, point, :SLOT]).any(axis=1)
        columns = {
            "part": of.part,
            "sample": sample,
            "driver": np.array(trips.drivers, object)[trips.driver[trip]],
            "trip": trip,
            "time": [clock[moment] for moment in moments],
            "lat": lat.round(_DIGITS),
            "lon": lon.round(_DIGITS),
            "moved": moved.astype(int),
            "success": of.success[sample].astype(int),
            "lat_before": lat_before.round(_DIGITS),
            "lon_before": lon_before.round(_DIGITS),
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def _starts(trips: TripSet, zone: datetime.tzinfo) -> list[datetime.datetime]:
    """When each day of a fleet begins: the local clock counts its slots."""
    hour = datetime.time(trips.grid.day_start, tzinfo=zone)
    return [datetime.datetime.combine(datetime.date.fromisoformat(day), hour) for day in trips.days]


def _geojson(table: pd.DataFrame) -> dict:
    features = []
    for (part, sample, trip), points in table.groupby(["part", "sample", "trip"], sort=False):
        common = {
            "part": part,
            "sample": int(sample),
            "trip": int(trip),
            "driver": points["driver"].iloc[0],
            "success": bool(points["success"].iloc[0]),
            "moved": int(points["moved"].sum()),
            "times": points["time"].tolist(),
        }
        for attacked, columns in ((False, ["lon_before", "lat_before"]), (True, ["lon", "lat"])):
            places = points[columns].to_numpy().tolist()
            # A line has two ends.
            shape = {"type": "LineString", "coordinates": places}
            if len(places) == 1:
                shape = {"type": "Point", "coordinates": places[0]}
            features.append({"type": "Feature", "geometry": shape, "properties": {**common, "attacked": attacked}})
    return {"type": "FeatureCollection", "features": features}
