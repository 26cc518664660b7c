import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import functools

import numpy as np
import pytest

from mobility_humid.layout import Layout
from mobility_humid.samples import SampleOptions, load_fleet
from mobility_humid.trips import PROFILE_FEATURES, SEEK, SERVE, SLOT, UNTYPED, Grid, TripSet, X, Y, save_trips


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
        smallest = {"num_trajs": 4, "padding_length": 12, "test_days": 2, "validation_days": 2, "n_test": 20}
        return load_fleet(SampleOptions(dataset=str(tiny_file), **smallest | options), print, sides=sides)

    return make


# The map of the tiny models.
GRID = (11, 14)
# (network or "dense", its layout): every kind of trips, encoder and head, 3 and 4 features, with and without profiles.
MODELS = {
    "dense": ("dense", Layout((SEEK, SERVE), 2, 2, 6, 3)),
    "lstm_concat": ("siamese", Layout((SEEK, SERVE), 2, 2, 12, 4, profile=True)),
    "lstm_symmetric": ("siamese", Layout((SEEK,), 2, 2, 6, 3)),
    "places_concat": ("siamese", Layout((SEEK, SERVE), 2, 2, 12, 4, profile=True)),
    "places_symmetric": ("siamese", Layout((UNTYPED,), 3, 2, 6, 3)),
    "places_symmetric_profile": ("siamese", Layout((SEEK, SERVE), 2, 2, 12, 3, profile=True)),
    "lstm_classes": ("classifier", Layout((SEEK, SERVE), 2, 1, 12, 3, profile=True)),
    "places_classes": ("classifier", Layout((UNTYPED,), 3, 1, 6, 4)),
}
CLASSES = 3


def random_samples(layout, count, seed):
    """Samples as they may occur: trips of 0 to all points behind padding, in small steps, and random profiles."""
    rng = np.random.default_rng(seed)
    x = np.zeros((count, *layout.shape), np.float32)
    for sample in x:
        for trip in sample[: layout.trip_rows]:
            # One trip in eight is missing, one in eight is as long as may be.
            length = int(np.clip(rng.integers(-layout.length // 8, layout.length * 9 // 8 + 1), 0, layout.length))
            points = trip[layout.length - length :]
            steps = rng.integers(-1, 2, (length, 2))
            places = np.cumsum(steps, axis=0) + rng.integers(0, GRID, 2)
            points[:, [X, Y]] = np.clip(places, 0, np.array(GRID) - 1)
            points[:, SLOT] = np.minimum(rng.integers(1, 289) + np.sort(rng.integers(0, 9, length)), 288)
            points[:, SLOT + 1 :] = rng.integers(0, 120, (length, layout.features - 3))
    if layout.profile:
        x[:, layout.trip_rows :, : len(PROFILE_FEATURES), 0] = rng.uniform(0, 20, (count, layout.sides, 11))
    return x


@functools.lru_cache
def tiny_model(name, seed=1):
    """One of `MODELS` with random weights, about as often right as wrong on random samples, and easy to fool."""
    import keras

    from mobility_humid.networks import Classifier, Siamese

    network, layout = MODELS[name]
    x = random_samples(layout, 64, 99)
    if network == "dense":
        keras.utils.set_random_seed(seed)
        inputs = keras.Input(layout.shape)
        flat = keras.layers.Flatten()(keras.layers.Rescaling(0.1)(inputs[..., :2]))
        hidden = keras.layers.Dense(8, activation="tanh")(flat)
        model = keras.Model(inputs, keras.layers.Dense(1, name="logit")(hidden))
        last = model.get_layer("logit")
        last.bias.assign([-float(np.median(model(x)))])
        return model
    common = {
        "layout": layout,
        "grid": GRID,
        "encoder": name.split("_")[0],
        "units": (6, 5, 4),
        "place_spacing": 4.0,
        "dropout": 0.3,
        "profile_scale": [[10.0] * 11, [6.0] * 11] if layout.profile else (),
        "seed": seed,
    }
    if network == "classifier":
        model = Classifier(classes=CLASSES, **common)
        last = model.logits
    else:
        model = Siamese(head=name.split("_")[1], **common)
        last = model.head_layers[-1]
        if model.on_map and model.head == "symmetric":
            for likeness, maps in zip(model.likeness, model.embed_all(x), strict=True):
                likeness.adapt(np.asarray(maps).reshape(-1, maps.shape[-1]))
    last.kernel.assign(last.kernel * 2 / np.std(model(x, training=False)))
    last.bias.assign(last.bias - np.median(model(x, training=False), axis=0))
    return model


def swapped(layout, x):
    """Samples `x` with the two drivers exchanged."""
    rows = np.arange(layout.trip_rows).reshape(len(layout.kinds), 2, layout.per_kind)[:, ::-1].ravel()
    if layout.profile:
        rows = np.concatenate([rows, [layout.trip_rows + 1, layout.trip_rows]])
    return x[:, rows]
