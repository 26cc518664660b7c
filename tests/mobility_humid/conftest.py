import numpy as np
import pytest

from mobility_humid.data.trips import PROFILE_FEATURES, SEEK, SERVE, Grid, TripSet, save_trips
from mobility_humid.train import Options, load_fleet
from tests.helpers.trip_toys import SMALLEST


def walk(rng, grid, home, length):
    """A trip of `length` points in steps of at most a cell around `home`."""
    steps = rng.integers(-1, 2, size=(length, 2))
    place = np.clip(np.cumsum(steps, axis=0) + home, 0, [grid.width - 1, grid.height - 1])
    slot = rng.integers(1, 289) + np.arange(length) // 5
    speed = rng.integers(0, 60, size=length)
    return np.column_stack([place, np.minimum(slot, 288), speed]).astype(np.int16)


@pytest.fixture(scope="session")
def tiny_trips():
    """8 drivers, each around a place of its own, 8 days of 3 to 5 trips of each kind."""
    rng = np.random.default_rng(0)
    grid = Grid(south=0.0, west=0.0, cell_size=250.0, width=20, height=30)
    points, driver, day, kind = [], [], [], []
    for d in range(8):
        home = rng.integers(3, [17, 27])
        for n in range(8):
            for k in rng.permutation([SEEK] * rng.integers(3, 6) + [SERVE] * rng.integers(3, 6)):
                points.append(walk(rng, grid, home, int(rng.integers(4, 16))))
                driver.append(d), day.append(n), kind.append(k)
    offsets = np.concatenate([[0], np.cumsum([len(p) for p in points])])
    return TripSet(
        points=np.concatenate(points),
        offsets=offsets.astype(np.int64),
        driver=np.array(driver, np.int32),
        day=np.array(day, np.int32),
        kind=np.array(kind, np.int8),
        profiles=rng.random((8, 8, len(PROFILE_FEATURES)), np.float32),
        drivers=tuple(f"d{i}" for i in range(8)),
        days=tuple(f"2020-01-0{i + 1}" for i in range(8)),
        grid=grid,
        filters={},
    )


@pytest.fixture(scope="session")
def tiny_file(tiny_trips, tmp_path_factory):
    """`tiny_trips` as the file that prepare.py would write."""
    path = tmp_path_factory.mktemp("trips") / "tiny.npz"
    save_trips(path, tiny_trips)
    return path


@pytest.fixture(scope="session")
def tiny_fleet(tiny_file):
    """Fleets of `tiny_trips`: `tiny_fleet(sides=1, with_speed=True)`; 2 of 8 drivers unseen, 4 days to train on, 2 to
    validate, 2 to test; samples of 2 trips of each kind, of 12 points."""

    def make(*, sides=2, **options):
        return load_fleet(Options(dataset=str(tiny_file), **SMALLEST | options), print, sides=sides)

    return make
