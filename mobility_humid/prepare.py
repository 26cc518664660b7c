"""Prepare raw GPS points of a fleet as trips on a grid: clean, cut by driver and day, resample, write one .npz."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from common.errors import UserError
from common.progress import track
from common.runs.options import Budget, Count, Natural, RunOptions, SeedsOptions
from common.runs.record import Run
from common.runs.script import script

if TYPE_CHECKING:
    import numpy as np

    from mobility_humid.data.gps import Track
    from mobility_humid.data.preparation import Fleet, Rules
    from mobility_humid.data.trips import Grid, TripSet

# Below this the places of a day hardly tell drivers apart, so a network has little to learn either.
WEAK_SIGNAL = 0.6
_UNSEEN_SHARE = 0.25
_PAIRS = 1000
_TRIPS_A_DAY = 64
_SIGNAL_POINTS = 1_200_000
_FIGURE_CELLS = 800


@dataclass(kw_only=True)
class Options(SeedsOptions, RunOptions):
    """The raw data, and what counts as a trip."""

    dataset: str = "city"
    """Points: the simulated city, or a path to a CSV (also packed) or Parquet file, or to a folder, tar or zip of
    cabspotting, GeoLife, T-Drive, GPX or CSV files; see data/README.md."""
    columns: str | None = None
    """Names of the columns where they are others, such as driver=medallion,time=ts,lat=y,lon=x,occupied=hired, or their
    numbers where there is no header, driver=1,time=2,lon=3,lat=4; without one for occupied the trips are untyped."""
    fleet: Literal["auto", "serve", "untyped"] = "auto"
    """What the rows say: auto follows the occupied column and, where there is none, leaves trips untyped; serve: all
    rows belong to served trips (Porto); untyped: pass over the column."""
    time_zone: str = "UTC"
    """Time zone of the days, and of ISO times without an offset, such as America/Los_Angeles."""
    day_start: Natural = 4
    """Hour of the local day, 0 to 23, at which a driver's day begins."""
    bbox: tuple[float, float, float, float] | None = None
    """Map as south,west,north,east in degrees; by default from the 1st to the 99th percentile of the first 500,000
    points."""
    cell_size: Budget = 250.0
    """Side of a grid cell in metres."""
    max_gap: Budget = 300.0
    """Seconds without a point after which a trip is cut."""
    break_after: Budget = 1800.0
    """Seconds within the space of a cell after which a stay is a break: the trip ends with it and another begins."""
    max_speed: Budget = 150.0
    """Speed in km/h, from the last good point, above which a point is a mistake and dropped."""
    interval: Natural = 60
    """Seconds between the points of a trip, interpolated, so that a device is not known by its rate; 0 keeps the points
    as they are."""
    min_points: Count = 5
    """Fewest points of a trip."""
    city_drivers: Count = 80
    """Drivers of the simulated city."""
    city_days: Count = 12
    """Days in the simulated city."""


def refusals(options: Options) -> None:
    """What is refused before points are read."""
    _rules(options)
    columns_of(options.columns)
    if options.dataset == "city" and options.columns is not None:
        raise UserError("--columns: is for CSV or Parquet files; the city has its own")


@script(app="mobility_humid", name="prepare", refusals=refusals)
def prepare(options: Options, run: Run) -> None:
    """Write `trips.npz` and `map.png`, and measure whether drivers can be identified at all."""
    import tempfile
    import time

    from mobility_humid.data.preparation import prepare_fleet

    rules = _rules(options)
    source = _source(options, run)
    # In the run's folder, since it may be too much for the system's; it has no name there and goes with the process.
    with tempfile.TemporaryFile(dir=run.folder) as spool:
        begun = time.perf_counter()
        fleet = prepare_fleet(source, rules, source.counts, spool)
        seconds = time.perf_counter() - begun
        run.data(source.name, source.sha256)
        density = fleet.save(run.folder / "trips.npz", progress=True)
        run.artifact("trips", run.folder / "trips.npz")
        run.figure("map", _draw, fleet.grid, density)
        _record(fleet, source.counts, seconds, run)
        _log_signal(_sample(fleet, options.seed), options, run)


def identity_signal(trips: "TripSet", seed: int) -> float:
    """How well heat maps alone tell unseen drivers apart: AUC over 1,000 pairs of whole days that were held out.

    Errors: `UserError` when there are too few drivers or days for that.
    """
    from common.evaluation.statistics import auc
    from mobility_humid.data.pairs import Sampler, split_drivers
    from mobility_humid.models.baselines import heat_map_scores

    test_days = max(2, round(len(trips.days) / 4))
    split = split_drivers(trips, seed=seed, unseen_share=_UNSEEN_SHARE, test_days=test_days, validation_days=0)
    sampling = {"kinds": trips.kinds, "per_kind": _TRIPS_A_DAY, "least": 1}
    train = Sampler(trips, split.seen, split.train, **sampling).pairs(_PAIRS, [seed, 0])
    test = Sampler(trips, split.unseen, split.test, **sampling).pairs(_PAIRS, [seed, 1])
    (scores,) = heat_map_scores(trips, train, [test])
    return auc(scores, test.same)


def _sample(fleet: "Fleet", seed: int) -> "TripSet":
    """Drivers drawn by `seed` until they have about a million points: enough for the signal of a fleet of any size."""
    import numpy as np

    names, sizes = fleet.drivers, fleet.sizes()
    drawn = [names[i] for i in np.random.default_rng([seed, len(names)]).permutation(len(names))]
    before = np.cumsum([0, *(sizes[name] for name in drawn[:-1])])
    return fleet.trips(sorted(name for name, points in zip(drawn, before, strict=True) if points < _SIGNAL_POINTS))


class _City:
    """The simulated city as a source, with the counts and the hash of a file."""

    name = "city"

    def __init__(self, options: Options) -> None:
        import hashlib

        self._options, self._digest = options, hashlib.sha256()
        self.counts: Counter[str] = Counter(points=0)

    def __iter__(self) -> "Iterator[Track]":
        from mobility_humid.data.city import city

        drivers = self._options.city_drivers
        tracks = city(self._options.seed, drivers=drivers, days=self._options.city_days)
        for driver in track(tracks, "simulating", total=drivers, units="drivers"):
            self._digest.update(driver.driver.encode() + b"\0")
            for values in driver[1:]:
                self._digest.update(b"" if values is None else values.tobytes())
            self.counts["points"] += len(driver.time)
            yield driver

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def _source(options: Options, run: Run) -> "Iterable[Track]":
    if options.dataset == "city":
        return _City(options)
    from mobility_humid.data.gps import Reader
    from mobility_humid.data.preparation import find_zone

    columns = columns_of(options.columns)
    return Reader(options.dataset, columns=columns, zone=find_zone(options.time_zone), spool=run.folder, progress=True)


def columns_of(text: str | None) -> dict[str, str]:
    """What --columns names, by field. Errors: `UserError` for what is no such list."""
    columns: dict[str, str] = {}
    for part in (text or "").split(",") if text else ():
        field, equals, name = (piece.strip() for piece in part.partition("="))
        if not (field and equals and name) or field in columns:
            raise UserError(f"--columns: expected field=column pairs such as driver=id,time=ts, got {part!r}")
        columns[field] = name
    return columns


def _rules(options: Options) -> "Rules":
    import dataclasses

    from mobility_humid.data.preparation import Rules, find_zone

    find_zone(options.time_zone)
    if options.day_start > 23:
        raise UserError(f"--day-start: expected an hour from 0 to 23, got {options.day_start}")
    for name in ("cell_size", "max_gap", "break_after", "max_speed"):
        if not getattr(options, name) > 0:
            raise UserError(f"--{name.replace('_', '-')}: must be above 0")
    return Rules(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Rules)})


def _record(fleet: "Fleet", counts: Counter[str], seconds: float, run: Run) -> None:
    from mobility_humid.data.trips import KINDS

    kept = 1 - sum(counts[name] for name in ("duplicates", "speed_jumps", "out_of_map")) / max(counts["points"], 1)
    kinds, days = fleet.kinds(), len(fleet.days())
    figures = {
        "points": counts["points"],
        "trips": sum(kinds.values()),
        "drivers": len(fleet.drivers),
        "days": days,
        "points_per_second": round(counts["points"] / max(seconds, 1e-9)),
        "kept_share": kept,
    }
    run.metrics(**figures)
    for name, value in figures.items():
        run.row(metric=name, value=value)
    for kind, n in sorted(kinds.items()):
        run.row(metric=f"trips_{KINDS[kind]}", value=n)
    for name, n in sorted(counts.items()):
        if name != "points":
            run.row(metric=name, value=n)
    cleaned = [f"{n:,} {name.replace('_', ' ')}" for name, n in sorted(counts.items()) if n and name != "points"]
    run.log(
        f"{counts['points']:,} points of {figures['drivers']} drivers on {days} days in {seconds:.1f} s:"
        f" {figures['trips']:,} trips; {', '.join(cleaned) or 'nothing to clean'}"
    )


def _log_signal(trips: "TripSet", options: Options, run: Run) -> None:
    try:
        value = identity_signal(trips, options.seed)
    except UserError as error:
        run.log(f"identity signal: not measured ({error})")
        return
    run.metrics(identity_auc=value)
    run.row(metric="identity_auc", value=value, split="unseen")
    run.log(f"identity signal: heat maps alone tell unseen drivers apart with an AUC of {value:.3f} (chance 0.5)")
    if value < WEAK_SIGNAL:
        run.log(
            f"the signal is weak (below {WEAK_SIGNAL}): {len(trips.days)} days show too little of a driver's habits;"
            " bring more days, or compare several days a side with --days-per-sample"
        )


def _draw(grid: "Grid", density: "dict[int, np.ndarray]", path: Path) -> None:
    """Where each kind of trips has its points, side by side, on a logarithmic scale."""
    import numpy as np
    from matplotlib.colors import LogNorm

    from common.evaluation import plots
    from mobility_humid.data.trips import KINDS

    # No more cells than the eye can tell apart.
    shrink = -(-max(grid.width, grid.height) // _FIGURE_CELLS)
    rows, columns = np.arange(0, grid.height, shrink), np.arange(0, grid.width, shrink)
    maps = [np.add.reduceat(np.add.reduceat(cells, rows, axis=0), columns, axis=1) for cells in density.values()]
    side = grid.cell_size * shrink
    extent = (0, len(columns) * side / 1000, 0, len(rows) * side / 1000)
    figure, panels = plots.panels(len(maps), 3.8)
    scale = LogNorm(1, max(2, *(int(cells.max()) for cells in maps)))
    for axes, kind, cells in zip(panels, density, maps, strict=True):
        shown = np.ma.masked_equal(cells, 0)
        image = axes.imshow(shown, origin="lower", extent=extent, norm=scale, cmap="viridis", interpolation="nearest")
        axes.set(title=f"{KINDS[kind]}: {int(cells.sum()):,} points", xlabel="km east", ylabel="km north")
    figure.colorbar(image, ax=list(panels), label=f"points per {side:g} m cell", shrink=0.85)
    plots.save(figure, path, "maps of where each kind of trips has its points")


if __name__ == "__main__":
    prepare.main()
