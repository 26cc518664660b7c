"""The trips' two structures at their smallest: one and the same network, one and the same step, and figures of both."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from benchmarks import mobility as bench
from benchmarks.mobility import mobility
from common.errors import UserError
from common.runs import record, report
from common.training.loop import compiled_step
from mobility_humid.attacks.trips import trip_attack
from mobility_humid.data.trips import SLOT, X, Y
from mobility_humid.training.verification import same_driver_loss

UNITS = (8, 8, 4)
LAYOUT = bench.pair_layout(6, 2)


@pytest.fixture(scope="module")
def networks():
    x = bench.random_pairs(LAYOUT, 4, 1)
    return x, *bench.both(LAYOUT, UNITS, x, 1)


@pytest.fixture
def pair(networks):
    """Pairs of random trips, and both networks; whatever a test does to their weights is undone."""
    _, *models = networks
    before = [model.get_weights() for model in models]
    yield networks
    for model, weights in zip(models, before, strict=True):
        model.set_weights(weights)


def test_random_trips_are_plausible():
    x = bench.random_pairs(bench.pair_layout(60), 4, 0)
    np.testing.assert_array_equal(x, bench.random_pairs(bench.pair_layout(60), 4, 0))
    there = x[..., SLOT] > 0
    assert (np.diff(there.astype(int), axis=2) >= 0).all()
    assert there.sum(axis=2).min() >= 3 and 0.2 < there.mean() < 0.8
    assert (x == np.round(x)).all() and (x[~there] == 0).all()
    unit = bench.in_unit_box(x)
    assert unit.min() == 0 and unit.max() <= 1
    np.testing.assert_array_equal(bench.on_grid(unit), unit)
    both_there = there[:, :, 1:] & there[:, :, :-1]
    assert (np.diff(x[..., SLOT], axis=2)[both_there] >= 0).all()


def test_both_structures_are_one_network(pair):
    x, ours, original = pair
    assert original.count_params() == sum(np.prod(v.shape) for v in ours.trainable_variables)
    assert bench.disagreement(ours, original, x) < bench.TOLERANCE
    # It is no matter of course: with the head's rows in ours' order they are two.
    original.get_layer("head_64").set_weights(ours.head_layers[0].get_weights())
    assert bench.disagreement(ours, original, x) > 10 * bench.TOLERANCE


def test_published_size():
    assert bench.sliced_network(bench.pair_layout(2), (200, 100, 48)).count_params() == 640_753


@pytest.mark.slow
def test_both_train_alike():
    layout = bench.pair_layout(4, 1)
    x = bench.random_pairs(layout, 4, 1)
    ours, original = bench.both(layout, UNITS, x, 1)
    same = np.array([1, 0, 1, 0], np.int32)
    step = compiled_step(ours, same_driver_loss, keras.optimizers.Adam(bench.LEARNING_RATE))
    for _ in range(2):
        logs = step((x, same))
        original.reset_metrics()
        loss, accuracy = original.train_on_batch(bench.in_unit_box(x), same[:, None].astype(np.float32))
        assert float(logs["loss"]) == pytest.approx(loss, abs=1e-5)
        assert float(logs["accuracy"]) == pytest.approx(accuracy)


def test_both_step_alike(pair):
    x, ours, original = pair
    # A head to which both orders are the same: ours answers with their mean.
    kernel, bias = ours.head_layers[0].get_weights()
    half = len(kernel) // 2
    ours.head_layers[0].set_weights([np.concatenate([kernel[:half]] * 2), bias])
    bench.copy_weights(ours, original)
    y = (np.asarray(ours(x, training=False))[:, 0] > 0).astype(np.int32)
    movable = LAYOUT.movable(x)
    start = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(start)
        z = ours(start, training=False)
    slope = np.abs(tape.gradient(z, start).numpy())
    # Where the map ends ours stops and the original does not.
    inside = (x > 0) & (x < np.array([*bench.GRID, np.inf]) - 1)
    clear = (slope > 1e-3 * slope.max()) & (movable > 0) & inside
    assert clear.sum() > 20
    theirs = bench.eager_attack(original, bench.in_unit_box(x), y, movable, eta=2, alpha=0.02, steps=1)
    theirs = theirs - bench.in_unit_box(x)
    where = {"name": "st_ifgsm_linf", "layout": LAYOUT, "grid": bench.GRID}
    stopping = trip_attack(ours, x, y, eta=2, alpha=1.0, steps=1, **where)
    unstopped = bench.unstopped_attack(ours, eta=2.0, alpha=1.0, steps=1)(x, y).numpy()
    np.testing.assert_array_equal(stopping, unstopped)
    np.testing.assert_array_equal(np.sign(theirs)[clear], (unstopped - x)[clear])
    assert (theirs[movable == 0] == 0).all()


def test_original_stays_in_its_budget(pair):
    x, _, original = pair
    unit, movable = bench.in_unit_box(x), LAYOUT.movable(x)
    y = np.zeros(len(x), np.int32)
    moved = bench.eager_attack(original, unit, y, movable, eta=2, alpha=0.05, steps=3)
    shift = np.abs(moved - unit)
    assert shift[..., X].max() == pytest.approx(2 / 49, abs=1e-6)
    assert shift[..., Y].max() == pytest.approx(2 / 92, abs=1e-6)
    assert shift[..., SLOT].max() == 0


@pytest.mark.slow
def test_mobility_at_its_smallest(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    smallest = {"batch_size": 4, "steps": 1, "train_steps": 1, "repeats": 1, "per_kind": 1, "padding_length": 4}
    metrics = mobility(mobility.options(units=UNITS, **smallest))["metrics"]
    assert metrics["targets"] == 2
    assert all(metrics[name] > 0 for name, _, _ in bench.RATIOS)
    value = report.lookup(record.read_table(tmp_path / "runs/benchmarks/mobility/demo"))
    assert value(metric="largest_difference") < bench.TOLERANCE
    for metric, one, other in bench.RATIOS:
        seconds = [value(model=name, metric="seconds") for name in (one, other)]
        assert value(split=metric, metric="ratio") == pytest.approx(seconds[0] / seconds[1], rel=1e-3)


def test_mobility_asks_for_three_units(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--units: expected three numbers"):
        mobility(mobility.options(units=[8, 4]))
