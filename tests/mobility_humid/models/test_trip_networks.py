"""The networks: the sheet's sizes, symmetric answers, padding that is not there, and files that any Keras opens."""

import ast
import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from common.training import checkpoints
from mobility_humid.data import layout as layout_module
from mobility_humid.data.layout import Layout
from mobility_humid.data.trips import PROFILE_FEATURES, SEEK, SERVE, SLOT, SPEED, UNTYPED, X, Y
from mobility_humid.models import networks
from mobility_humid.models.maps import Likeness, PlaceEncoder, WayEncoder
from mobility_humid.models.networks import PAPER_UNITS, Classifier, Siamese, TripEncoder
from tests.helpers.trip_toys import GRID, MODELS, random_samples, swapped, tiny_model

NETWORKS = [name for name, (network, _) in MODELS.items() if network != "dense"]
PAIRS = [name for name, (network, _) in MODELS.items() if network == "siamese"]
PLACES = [name for name in NETWORKS if not name.startswith("lstm")]


def paper(network, layout, **options):
    fixed = {"grid": (50, 93), "encoder": "lstm", "units": PAPER_UNITS, "place_spacing": 4.0, "dropout": 0.0}
    scale = [[0.0] * 11, [1.0] * 11] if layout.profile else ()
    return network(layout=layout, profile_scale=scale, seed=0, **fixed | options)


def answers(model, x):
    return np.asarray(model(x, training=False))


def test_the_sizes_of_the_paper():
    """Fact sheet, section 3; the one number more of the verifier is its threshold."""
    encoder = TripEncoder(PAPER_UNITS, (49, 92, 288), 0)
    encoder.build((None, 60, 3))
    assert encoder.count_params() == 288_448
    pair, single = Layout((SEEK, SERVE), 5, 2, 60, 3), Layout((SEEK, SERVE), 5, 1, 60, 3)
    assert pair.shape == (20, 60, 3) and single.shape == (10, 60, 3)
    # How long the trips are makes no weight, and time.
    pair, single = (dataclasses.replace(layout, length=3) for layout in (pair, single))
    siamese = paper(Siamese, pair)
    assert siamese.count_params() == 640_753 + 1
    assert len(siamese.encoders) == 2 and siamese.head_layers[0].kernel.shape == (960, 64)
    assert paper(Classifier, single, classes=4).count_params() == 319_492
    profile = paper(Siamese, Layout((SEEK, SERVE), 5, 2, 12, 3, profile=True), units=(4, 4, 48))
    assert profile.head_layers[0].kernel.shape == (976, 64)
    assert len(paper(Siamese, Layout((UNTYPED,), 2, 2, 6, 3), units=(4, 4, 4)).encoders) == 1


def test_rows_are_those_of_the_sheet():
    """Section 1.1: driver 1 seek, driver 2 seek, driver 1 serve, driver 2 serve; driver 2's seek trips move."""
    layout = Layout((SEEK, SERVE), 5, 2, 60, 3)
    trips = np.arange(20).reshape(1, 2, 2, 5)  # pair, side, kind, number
    wanted = [*range(0, 5), *range(10, 15), *range(5, 10), *range(15, 20)]
    assert layout.rows(trips)[0].tolist() == wanted
    assert layout.moving == slice(5, 10)
    single = Layout((SEEK, SERVE), 5, 1, 60, 3)
    assert single.rows(np.arange(10).reshape(1, 2, 5))[0].tolist() == list(range(10))
    assert single.moving == slice(0, 5)
    assert Layout((UNTYPED,), 3, 2, 60, 3).moving == slice(3, 6)
    assert Layout((SERVE,), 3, 2, 60, 3).moving is None
    for every in (layout, single, Layout((SEEK,), 2, 2, 12, 4, profile=True)):
        assert Layout.of(every.config()) == every


@pytest.mark.parametrize("name", MODELS)
def test_only_places_of_points_that_are_there_may_move(name):
    layout = MODELS[name][1]
    x = random_samples(layout, 5, 0)
    mask = layout.movable(x)
    wanted = np.zeros(x.shape, bool)
    for sample, row, column in np.argwhere(x[..., SLOT] > 0):
        if layout.moving.start <= row < layout.moving.stop:
            wanted[sample, row, column, [X, Y]] = True
    assert (mask == wanted).all() and wanted.any()
    assert not Layout((SERVE,), 2, 2, 6, 3).movable(random_samples(Layout((SERVE,), 2, 2, 6, 3), 2, 0)).any()


@pytest.mark.parametrize("name", PAIRS)
def test_the_order_of_the_drivers_changes_nothing_outside_of_training(name):
    model, layout = tiny_model(name), MODELS[name][1]
    x = random_samples(layout, 20, 1)
    z = answers(model, x)
    assert z.shape == (20, 1) and np.ptp(z) > 0.1
    np.testing.assert_allclose(answers(model, swapped(layout, x)), z, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in PAIRS if "concat" in name])
def test_the_concat_head_answers_with_the_mean_of_both_orders_less_the_threshold(name):
    model, layout = tiny_model(name), MODELS[name][1]
    x = random_samples(layout, 20, 2)
    before, rate, drop = float(model.threshold.numpy()), model.drop.rate, model.drop
    z = answers(model, x)
    try:
        drop.rate = 0.0
        orders = [np.asarray(model(v, training=True)) for v in (x, swapped(layout, x))]
        model.threshold.assign(0.75)
        np.testing.assert_allclose(answers(model, x), np.mean(orders, axis=0) - 0.75, atol=1e-5)
    finally:
        drop.rate = rate
        model.threshold.assign(before)
    # In training the order counts, as published.
    assert np.abs(orders[0] - orders[1]).max() > 1e-3
    np.testing.assert_allclose(z, np.mean(orders, axis=0) - before, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in PAIRS if "symmetric" in name])
def test_the_symmetric_head_takes_the_trips_of_a_driver_in_any_order(name):
    model, layout = tiny_model(name), MODELS[name][1]
    x = random_samples(layout, 20, 3)
    rows = np.arange(layout.shape[0])
    rows[: layout.per_kind] = rows[: layout.per_kind][::-1]
    np.testing.assert_allclose(answers(model, x[:, rows]), answers(model, x), atol=1e-5)


def test_d5_round_trips_are_bit_equal(tmp_path):
    """D5: logits, threshold, the fleet's map and the layout, for every network."""
    for name in NETWORKS:
        model, layout = tiny_model(name), MODELS[name][1]
        x = random_samples(layout, 9, 4)
        before = model.threshold.numpy() if hasattr(model, "threshold") else None
        if before is not None:
            model.threshold.assign(0.3)
        checkpoints.save_model(model, tmp_path / f"{name}.keras")
        wanted = answers(model, x)
        if before is not None:
            model.threshold.assign(before)
        again = checkpoints.load_model(tmp_path / f"{name}.keras")
        assert type(again) is type(model) and again.layout == layout and again.get_config() == model.get_config()
        np.testing.assert_array_equal(answers(again, x), wanted)


@pytest.mark.parametrize("name", PLACES)
def test_padding_is_nowhere(name):
    """What stands in a padded point, and how many there are, is nothing to the places encoder."""
    model, layout = tiny_model(name), MODELS[name][1]
    x = random_samples(layout, 12, 5)
    z, rng = answers(model, x), np.random.default_rng(0)
    padding = x[:, : layout.trip_rows, :, SLOT] == 0
    for feature in {X, Y, SPEED} & set(range(layout.features)):
        x[:, : layout.trip_rows, :, feature][padding] = rng.integers(0, 10, padding.sum())
    np.testing.assert_array_equal(answers(model, x), z)
    encoder = PlaceEncoder(GRID, 3.0)
    trips = random_samples(Layout((SEEK,), 2, 1, 6, 3), 4, 6)
    wider = np.concatenate([np.zeros((4, 2, 9, 3), np.float32), trips], axis=2)
    np.testing.assert_allclose(encoder(wider), encoder(trips), atol=1e-6)


@pytest.mark.parametrize("spacing", [1.0, 2.5, 4.0])
def test_shares_of_places_are_a_gaussian_count(spacing):
    """Against a loop in double precision; shares sum to 1, and are 0 without a trip."""
    encoder = PlaceEncoder(GRID, spacing)
    trips = random_samples(Layout((SEEK,), 3, 1, 6, 4), 5, 7)
    trips[4] = 0
    found = np.asarray(encoder(trips))
    across, up = encoder.size
    assert found.shape == (5, across * up + 24)
    assert (across - 1) * spacing >= GRID[0] - 1 and (up - 1) * spacing >= GRID[1] - 1
    for sample, shares in zip(trips[:4], found[:4], strict=True):
        where, when = np.zeros((across, up)), np.zeros(24)
        for point in sample.reshape(-1, 4).astype(float):
            if point[SLOT] == 0:
                continue
            near = [
                np.exp(-2 * ((point[a] - spacing * np.arange(n)) / spacing) ** 2) for a, n in ((X, across), (Y, up))
            ]
            where += np.outer(*near)
            when += np.exp(-2 * (point[SLOT] * 24 / 288 - np.arange(24) - 0.5) ** 2)
        np.testing.assert_allclose(
            shares, np.concatenate([(where / where.sum()).ravel(), when / when.sum()]), atol=1e-5
        )
        np.testing.assert_allclose([shares[:-24].sum(), shares[-24:].sum()], 1, atol=1e-4)
    assert (found[4] == 0).all()


@pytest.mark.parametrize("spacing", [1.0, 4.0])
def test_ways_are_counted_exactly(spacing):
    """Against a loop: each map counts its points in their squares; shares sum to 1, and are 0 without a trip."""
    encoder = WayEncoder(GRID, spacing)
    trips = random_samples(Layout((SEEK,), 3, 1, 6, 4), 5, 7)
    trips[4] = 0
    found = np.asarray(encoder(trips))
    across, up = encoder.size
    assert found.shape == (5, 7 * across * up + 24)
    for sample, shares in zip(trips[:4], found[:4, :-24].reshape(4, 7, across, up), strict=True):
        counts = np.zeros((7, across, up))
        for trip in sample.astype(float):
            points = trip[trip[:, SLOT] > 0][:, [X, Y]]
            for number, here in enumerate(points):
                place = tuple((here // spacing).astype(int))
                step = points[number + 1] - here if number + 1 < len(points) else np.zeros(2)
                parts = np.array([step[0], -step[0], step[1], -step[1]]).clip(0) / max(np.abs(step).sum(), 1)
                counts[(slice(None), *place)] += [1, number == 0, number + 1 == len(points), *parts]
        np.testing.assert_allclose(shares, counts / (counts.sum(axis=(1, 2), keepdims=True) + 1e-6), atol=1e-6)
    np.testing.assert_array_equal(found[:, -24:], PlaceEncoder(GRID, 4.0)(trips)[:, -24:])
    assert (found[4] == 0).all()


@pytest.mark.parametrize("spacing", [1.0, 3.0])
def test_the_slope_of_ways_is_that_of_gaussians(spacing):
    """Of the squares around a point, here by automatic differentiation; what a point counts for has its own slope."""
    encoder, rng = WayEncoder(GRID, spacing), np.random.default_rng(0)
    across, up = encoder.size
    cells = tf.constant(rng.integers(0, GRID, (2, 5, 2)), tf.float32)
    weights = tf.constant(rng.uniform(0, 1, (2, 5, 7)), tf.float32)
    facing = tf.constant(rng.normal(size=(2, across * up, 7)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch([cells, weights])
        total = tf.reduce_sum(encoder._counts(cells, weights) * facing)
    slopes, own = tape.gradient(total, [cells, weights])
    with tf.GradientTape() as tape:
        tape.watch(cells)
        place = (cells + 0.5) / spacing - 0.5
        near = [tf.exp(-2.0 * (place[..., axis, None] - np.arange(n)) ** 2) for axis, n in enumerate((across, up))]
        around = [tf.abs(tf.round(place)[..., axis, None] - np.arange(n)) <= 1 for axis, n in enumerate((across, up))]
        near = [tf.where(inside, bump, 0.0) for bump, inside in zip(near, around, strict=True)]
        soft = tf.einsum("bpx,bpy,bpm->bxym", *near, weights)
        total = tf.reduce_sum(tf.reshape(soft, facing.shape) * facing)
    np.testing.assert_allclose(slopes, tape.gradient(total, cells), atol=1e-4)
    square = np.int32(np.floor((cells.numpy() + 0.5) / spacing))
    expected = facing.numpy()[np.arange(2)[:, None], square[..., 0] * up + square[..., 1]]
    np.testing.assert_allclose(own, expected, atol=1e-6)


@pytest.mark.parametrize(("maps", "overlap"), [(1, False), (3, True)])
def test_likeness_of_many_maps_is_that_of_each(maps, overlap):
    """And the overlap, the sum of the lesser shares, is one number more."""
    across, up = 5, 7
    rng = np.random.default_rng(0)
    a, b = (
        np.concatenate([*rng.dirichlet(np.full(across * up, 0.3), (maps, 4)), rng.dirichlet(np.ones(24), 4)], axis=1)
        for _ in range(2)
    )
    a, b = np.float32(a), np.float32(b)
    joint, single = Likeness(across, up, maps, overlap), Likeness(across, up, 1)
    joint(a, b)
    joint.adapt(np.concatenate([a, b]))
    each, size = 3 + overlap, across * up
    found = np.asarray(joint(a, b))
    assert found.shape == joint.compute_output_shape(a.shape, b.shape) == (4, each * (1 + 4 * maps))
    found = found.reshape(4, 1 + 4 * maps, each)
    for number in range(maps):
        keep = np.r_[number * size : (number + 1) * size, maps * size : maps * size + 24]
        single(a[:, keep], b[:, keep])
        single.adapt(np.concatenate([a, b])[:, keep])
        expected = np.asarray(single(a[:, keep], b[:, keep])).reshape(4, 5, 3)
        own = found[:, [0, *range(1 + number, 1 + 4 * maps, maps)]]
        np.testing.assert_allclose(own[..., :3], expected, rtol=1e-5, atol=1e-6)
        if overlap:
            overlaps = np.minimum(a, b)[:, number * size : (number + 1) * size].sum(axis=1)
            np.testing.assert_allclose(own[:, 1, 3], overlaps, rtol=1e-5)


def test_likeness_is_what_it_says():
    """Against NumPy: Bhattacharyya and two centred cosines, for the hours and at four scales; alike in both orders."""
    across, up = 5, 7
    layer = Likeness(across, up)
    rng = np.random.default_rng(0)
    maps = rng.dirichlet(np.full(across * up, 0.3), 10)
    hours = rng.dirichlet(np.full(24, 0.5), 10)
    a, b = np.split(np.float32(np.concatenate([maps, hours], axis=1)), 2)
    layer(a, b)
    layer.adapt(np.concatenate([a, b]))
    fleet = np.concatenate([a, b]).mean(axis=0).astype(float)

    def figures(a, b, m):
        root = lambda v: np.sqrt(v + 1e-6)  # noqa: E731
        found = [(root(a) * root(b)).sum()]
        for p, q, r in ((root(a), root(b), root(m)), (a, b, m)):
            weight = 1.0 if p is not a else 1 / np.sqrt(m + 1e-5)
            p, q = (p - r) * weight, (q - r) * weight
            found.append((p * q).sum() / np.sqrt((p * p).sum() * (q * q).sum() + 1e-9))
        return found

    def coarser(chart):
        chart = np.pad(chart, [(0, chart.shape[0] % 2), (0, chart.shape[1] % 2)])
        return chart.reshape(chart.shape[0] // 2, 2, chart.shape[1] // 2, 2).sum(axis=(1, 3))

    for place in range(5):
        rows = [a[place].astype(float), b[place].astype(float), fleet]
        wanted = figures(*(row[-24:] for row in rows))
        charts = [row[:-24].reshape(across, up) for row in rows]
        for _ in range(4):
            wanted += figures(*(chart.ravel() for chart in charts))
            charts = [coarser(chart) for chart in charts]
        np.testing.assert_allclose(layer(a, b)[place], wanted, atol=1e-4)
    np.testing.assert_allclose(layer(b, a), layer(a, b), atol=1e-6)
    same = np.asarray(layer(a, a))
    np.testing.assert_allclose(same[:, [0, 3]], 1, atol=1e-3)
    np.testing.assert_allclose(same[:, [1, 2, 4, 5]], 1, atol=1e-3)


@pytest.mark.parametrize("name", ["lstm_concat", "places_symmetric_profile", "lstm_classes"])
def test_every_feature_that_is_there_counts(name):
    """Moving trips, served trips, time, speed (of the LSTM) and profiles: none is left out by a slip."""
    model, layout = tiny_model(name), MODELS[name][1]
    x = random_samples(layout, 6, 8)
    others = {}
    for row in range(0, layout.trip_rows, layout.per_kind):
        for feature in range(layout.features if "lstm" in name else 3):
            others[row, feature] = x.copy()
            trips = others[row, feature][:, row : row + layout.per_kind]
            trips[..., feature] += 7 * (trips[..., SLOT] > 0)
    for side in range(layout.sides):
        for feature in range(len(PROFILE_FEATURES)):
            others["profile", side, feature] = x.copy()
            others["profile", side, feature][:, layout.trip_rows + side, feature, 0] += 30
    z = answers(model, np.concatenate([x, *others.values()])).reshape(len(others) + 1, 6, -1)
    for what, found in zip(others, z[1:], strict=True):
        assert np.abs(found - z[0]).max() > 1e-5, what


@pytest.mark.parametrize("name", NETWORKS)
def test_half_precision_is_near(name, tmp_path):
    """Answers and slopes are those of float32 but for rounding; a file opens in the precision of the moment."""
    single, path = tiny_model(name), tmp_path / "model.keras"
    x = random_samples(MODELS[name][1], 16, 5)
    wanted, slope_wanted = logits_and_slopes(single, x)
    before = keras.config.dtype_policy()
    for precision in ("mixed_bfloat16", "mixed_float16"):
        keras.config.set_dtype_policy(precision)
        try:
            half = type(single).from_config(single.get_config())
            half.set_weights(single.get_weights())
            # A map so wide that halves cannot tell its cells apart.
            maps = PlaceEncoder((3000, 10), 10.0)
        finally:
            keras.config.set_dtype_policy(before)
        z, slope = logits_and_slopes(half, x)
        assert z.dtype == np.float32 and {str(v.dtype) for v in half.trainable_variables} == {"float32"}
        assert np.abs(z - wanted).max() <= 0.05 * np.abs(wanted).max()
        assert (slope * slope_wanted).sum() >= 0.9 * np.linalg.norm(slope) * np.linalg.norm(slope_wanted) > 0
        checkpoints.save_model(half, path)
        assert (answers(checkpoints.load_model(path), x) == wanted).all()
        trips = np.zeros((2, 1, 1, 3), np.float32)
        trips[..., SLOT], trips[:, 0, 0, X] = 288, (2049, 2050)
        a, b = np.asarray(maps(trips))
        assert np.abs(a - b).max() > 0.01


def logits_and_slopes(model, x):
    """The answers, and the slope of their sum."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        z = model(x, training=False)
    return np.asarray(z), np.asarray(tape.gradient(z, x))


@pytest.mark.parametrize("module", [networks, layout_module])
def test_networks_are_pure_keras(module):
    """No TensorFlow, not even for a moment: the file then opens under another backend too."""
    tree = ast.parse(Path(module.__file__).read_text("utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    tops = {name.split(".")[0] for name in imported}
    assert tops <= {"collections", "dataclasses", "typing", "keras", "numpy", "mobility_humid"}


OPEN = """
import sys
import keras, numpy as np
import mobility_humid.networks
model = keras.models.load_model(sys.argv[1], compile=False)
x = np.load(sys.argv[2])
np.save(sys.argv[3], keras.ops.convert_to_numpy(model(x, training=False)))
assert keras.backend.backend() == sys.argv[4]
"""


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_models_open_under_another_backend(tmp_path, backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    for name in ("lstm_concat", "places_symmetric_profile"):
        x = random_samples(MODELS[name][1], 7, 9)
        checkpoints.save_model(tiny_model(name), tmp_path / "model.keras")
        np.save(tmp_path / "x.npy", x)
        words = [str(tmp_path / file) for file in ("model.keras", "x.npy", "z.npy")]
        environment = os.environ | {"KERAS_BACKEND": backend}
        done = subprocess.run(
            [sys.executable, "-c", OPEN, *words, backend], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
        np.testing.assert_allclose(np.load(tmp_path / "z.npy"), answers(tiny_model(name), x), atol=1e-4)
