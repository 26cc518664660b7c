"""Attacks on trips: what they may change, what they promise, and that they are as strong as they can be cheaply."""

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from common import attacks
from common.attacks import bim
from common.attacks.attack import as_tensors
from common.errors import UserError
from mobility_humid.attacks.trips import ATTACKS, partial_victim, trip_attack, unmoved
from mobility_humid.data.layout import Layout
from mobility_humid.data.trips import SEEK, SERVE, SLOT, SPEED, UNTYPED, X, Y
from tests.helpers.steep import Gamma
from tests.helpers.trip_toys import CLASSES, GRID, MODELS, answers, random_samples, tiny_model

BY_NORM = [name for name, of in ATTACKS.items() if of.in_radius]
RANDOM = ("noise", "strong", "apgd_linf", "apgd_l2")
# Every attack on plain layers, which compile at once, and each of the networks under some.
CASES = [
    *(("dense", name) for name in ATTACKS),
    ("lstm_concat", "st_ifgsm_l0"),
    ("lstm_symmetric", "cw_l2"),
    ("places_concat", "st_ifgsm_l2"),
    ("places_symmetric", "st_fgsm_linf"),
    ("lstm_classes", "st_fgsm_l1"),
    *(("places_classes", name) for name in ("st_ifgsm_l0", "cw_l0", "strong")),
]
each_case = pytest.mark.parametrize("model_name, name", CASES, ids=["-".join(case) for case in CASES])


def hit(name, model_name, x, y, **options):
    """The attack `name` on one of the tiny models, quick settings."""
    model, layout = tiny_model(model_name), MODELS[model_name][1]
    options = {"eta": 2, "steps": 6, "radius": 6.0, "restarts": 2, "search_steps": 3} | options
    batch_size = options.pop("batch_size", 128)
    named = partial(trip_attack, model, name=name, layout=layout, grid=GRID, **options)
    return attacks.attack_dataset(named, x, y, batch_size=batch_size).x


def task(model_name, count=24, seed=0):
    """Samples and what the model answers to them."""
    x = random_samples(MODELS[model_name][1], count, seed)
    return x, answers(tiny_model(model_name), x)


def changed(x, moved):
    return (x != moved).any(axis=(1, 2, 3))


def check_moves(name, layout, x, moved, eta, radius):
    """A1-A5, F2, F3: exact, for every sample."""
    assert moved.dtype == np.float32 and moved.shape == x.shape and np.isfinite(moved).all()
    # The other driver's and the served trips, profiles, time, speed and padding.
    fixed = layout.movable(x) == 0
    np.testing.assert_array_equal(moved[fixed], x[fixed])
    np.testing.assert_array_equal(moved[:, : layout.moving.start], x[:, : layout.moving.start])
    np.testing.assert_array_equal(moved[:, layout.moving.stop :], x[:, layout.moving.stop :])
    np.testing.assert_array_equal(moved[..., SLOT:], x[..., SLOT:])
    there = x[:, : layout.trip_rows, :, SLOT] > 0
    assert (moved[:, : layout.trip_rows][~there] == 0).all()
    for feature, size in ((X, GRID[0]), (Y, GRID[1])):
        cells = moved[:, : layout.trip_rows, :, feature][there]
        assert (cells == np.round(cells)).all() and cells.min() >= 0 and cells.max() <= size - 1
    slots = np.where(there, moved[:, : layout.trip_rows, :, SLOT], 0)
    assert (np.diff(slots, axis=2) >= 0).all()
    shift = (moved - x).astype(np.float64).reshape(len(x), -1)
    if name in BY_NORM:
        size = np.abs(shift).sum(axis=1) if name.endswith("l1") else np.sqrt(np.square(shift).sum(axis=1))
        assert size.max() <= radius * (1 + 1e-6)
    else:
        assert np.abs(shift).max() <= eta


@each_case
@settings(max_examples=5, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    count=st.integers(1, 5),
    seed=st.integers(0, 2**31),
    eta=st.integers(0, 20),
    steps=st.integers(0, 8),
    radius=st.floats(0, 30, width=32),
    labels=st.sampled_from(["right", "random"]),
)
def test_a1_a5_f2_f3_trips_stay_trips(model_name, name, count, seed, eta, steps, radius, labels):
    """A1-A5, F2, F3: whatever the samples, labels and budget; what nothing can fool comes back whole or within."""
    x, y = task(model_name, count, seed)
    if labels == "random":
        most = 2 if MODELS[model_name][0] != "classifier" else CLASSES
        y = np.random.default_rng(seed).integers(0, most, count).astype(np.int32)
    moved = hit(name, model_name, x, y, eta=eta, steps=steps, radius=radius, seed=seed % 1000)
    check_moves(name, MODELS[model_name][1], x, moved, eta, radius)
    wrong = answers(tiny_model(model_name), x) != y
    if name.startswith(("cw", "st_ifgsm")):
        # Nothing is spent on what is answered wrongly already.
        np.testing.assert_array_equal(moved[wrong], x[wrong])


@each_case
def test_the_attack_moves_something_and_fools_someone(model_name, name):
    """Or the tests of what it may not do would say nothing."""
    x, y = task(model_name)
    moved = hit(name, model_name, x, y, eta=4, steps=12, radius=12.0)
    check_moves(name, MODELS[model_name][1], x, moved, 4, 12.0)
    assert changed(x, moved).any()
    assert name == "noise" or (answers(tiny_model(model_name), moved) != y).any()


@each_case
def test_a6_no_budget_and_no_steps_change_no_bit(model_name, name):
    """A6: except that one step has no number of steps, and a random start no steps to lose."""
    x, y = task(model_name)
    np.testing.assert_array_equal(hit(name, model_name, x, y, eta=0, radius=0.0), x)
    if name.startswith(("cw", "st_ifgsm")):
        np.testing.assert_array_equal(hit(name, model_name, x, y, steps=0), x)


@pytest.mark.parametrize("model_name", ["lstm_concat", "places_classes"])
def test_a16_weights_stay(model_name):
    """A16: and the random states of dropout."""
    model = tiny_model(model_name)
    before = [np.array(v) for v in model.variables]
    x, y = task(model_name)
    for name in (name for of, name in CASES if of == model_name):
        hit(name, model_name, x, y)
    for old, new in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("model_name", MODELS)
def test_the_part_that_moves_answers_for_the_whole(model_name):
    """`partial_victim` is the model itself, also where the trips have moved away from what was computed before."""
    model, layout = tiny_model(model_name), MODELS[model_name][1]
    x, other = random_samples(layout, 8, 0), random_samples(layout, 8, 1)
    whole = x.copy()
    whole[:, layout.moving] = other[:, layout.moving]
    sample = tf.constant(x)
    victim = partial_victim(model, layout, {"sample": sample, **unmoved(model, sample)})
    for moving, wanted in ((x, x), (other, whole)):
        found = victim(tf.constant(moving[:, layout.moving]))
        np.testing.assert_allclose(found, model(wanted, training=False), atol=1e-6, rtol=1e-6)
    # The same gradient, too, and none of it lost in what is kept fixed.
    with tf.GradientTape(persistent=True) as tape:
        full, part = tf.constant(whole), tf.constant(whole[:, layout.moving])
        tape.watch([full, part])
        one, two = model(full, training=False)[:, 0], victim(part)[:, 0]
    gradient = tape.gradient(one, full).numpy()[:, layout.moving]
    np.testing.assert_allclose(tape.gradient(two, part), gradient, atol=1e-5, rtol=1e-3)
    assert np.abs(gradient).max() > 0


@pytest.mark.parametrize("name", ["st_fgsm_l1", "st_ifgsm_linf", "st_ifgsm_l2", "strong", "apgd_l2"])
def test_what_succeeds_in_the_search_succeeds_on_whole_cells(name):
    """Sheet, section 7, point 11: the search sees snapped trips, so its promise is kept, sample by sample."""
    layout, model = MODELS["dense"][1], tiny_model("dense")
    x, y = task("dense", 64)
    settings = {"name": name, "layout": layout, "grid": GRID, "steps": 6, "restarts": 2}
    for eta, radius in ((1, 2.0), (2, 5.0), (3, 9.0)):
        value, _, inputs, _ = trip_attack.bind(model, x, y, eta=eta, radius=radius, **settings)
        promised = attacks.search(value, model, as_tensors(inputs)).success.numpy()
        moved = trip_attack(model, x, y, eta=eta, radius=radius, **settings)
        np.testing.assert_array_equal(answers(model, moved) != y, promised)
    assert promised.any() and not promised.all()


@pytest.mark.parametrize("model_name, name", [case for case in CASES if case[1] in ("st_ifgsm_l0", "cw_l0", "cw_l2")])
def test_attacks_that_look_for_little_return_a_success_or_nothing(model_name, name):
    x, y = task(model_name, 48)
    moved = hit(name, model_name, x, y, eta=3, steps=12)
    wrong = answers(tiny_model(model_name), moved) != y
    np.testing.assert_array_equal(wrong, changed(x, moved))
    assert wrong.any()


def rounds_of(model_name, x, y, rounds, *, eta=3, steps=10, l0_from="clean"):
    """ST-iFGSM L0 after each of `rounds` numbers of rounds."""
    settings = {"eta": eta, "steps": steps, "l0_from": l0_from}
    return [hit("st_ifgsm_l0", model_name, x, y, prune_rounds=k, **settings) for k in rounds]


@pytest.mark.parametrize("l0_from", ["clean", "previous"])
@pytest.mark.parametrize("model_name", ["dense", "places_classes"])
def test_f2_l0_never_grows_over_the_rounds(model_name, l0_from):
    """F2: neither the changed points nor those who get away; and the points of a round are among those before."""
    layout = MODELS[model_name][1]
    x, y = task(model_name, 24)
    before = None
    for moved in rounds_of(model_name, x, y, (1, 2, 3, 5, 8, 13, 50), l0_from=l0_from):
        check_moves("st_ifgsm_l0", layout, x, moved, 3, None)
        points = (moved != x).any(axis=-1)
        if before is None:
            first = points
        else:
            assert not (points & ~before).any()
            np.testing.assert_array_equal(points.any(axis=(1, 2)), before.any(axis=(1, 2)))
        before = points
    assert first.any(axis=(1, 2)).sum() >= 5 and points.sum() < 0.6 * first.sum()
    if l0_from == "clean":
        np.testing.assert_array_equal(moved, hit("st_ifgsm_l0", model_name, x, y, eta=3, steps=10))


@pytest.mark.parametrize("model_name", ["dense", "places_classes"])
def test_l0_stops_where_the_next_round_fails(model_name):
    """With a fifth fewer of the points that it changed, those of least gradient, the attack no longer works."""
    model, layout = tiny_model(model_name), MODELS[model_name][1]
    eta, steps, rows = 3, 10, layout.moving
    x, y = task(model_name, 48)
    moved = hit("st_ifgsm_l0", model_name, x, y, eta=eta, steps=steps)
    points = (moved != x).any(axis=-1)
    several = points.sum(axis=(1, 2)) > 1
    x, y, moved, points = (v[several] for v in (x, y, moved, points))
    assert len(x) >= 3 and (answers(model, moved) != y).all()
    with tf.GradientTape() as tape:
        at = tf.constant(moved)
        tape.watch(at)
        z = model(at, training=False)
        z = tf.concat([tf.zeros_like(z), z], axis=1) if z.shape[1] == 1 else z
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(y, z)
    slope = np.abs(tape.gradient(loss, at).numpy()[..., [X, Y]]).sum(axis=-1)
    left = points.copy()
    for sample, count in enumerate(points.sum(axis=(1, 2))):
        order = np.argsort(np.where(points[sample], slope[sample], np.inf), axis=None, kind="stable")
        left[sample].flat[order[: max(1, int(0.2 * count))]] = False
    allowed = layout.movable(x) * left[..., None]

    def seen(moving):
        moving = moving + tf.stop_gradient(tf.round(moving) - moving)
        return model(tf.concat([x[:, : rows.start], moving, x[:, rows.stop :]], axis=1), training=False)

    top = np.array([[[[GRID[0] - 1, GRID[1] - 1, 999, 999][: layout.features]]]], np.float32)
    start = x[:, rows]
    budget = {"eps": eta, "alpha": 2.5 * eta / steps, "steps": steps, "stop": True, "mask": allowed[:, rows]}
    found = tf.function(lambda: bim(seen, start, y, high=top, **budget), autograph=False)()
    again = x.copy()
    again[:, rows] = np.round(found)
    np.testing.assert_array_equal(answers(model, again), y)


def test_l0_from_clean_and_from_before_both_prune():
    """Section 7, point 14: both are offered; the paper's starts each round from the clean trips."""
    x, y = task("dense", 48)
    counts = {}
    for start in ("clean", "previous"):
        moved = hit("st_ifgsm_l0", "dense", x, y, eta=3, l0_from=start)
        assert (answers(tiny_model("dense"), moved) != y)[changed(x, moved)].all()
        counts[start] = (moved != x).any(axis=-1).sum() / changed(x, moved).sum()
    full = hit("st_ifgsm_linf", "dense", x, y, eta=3)
    points = (full != x).any(axis=-1).sum() / changed(x, full).sum()
    assert max(counts.values()) < 0.7 * points


def test_cw_finds_nearer_examples_than_st_ifgsm():
    x, y = task("dense", 64)
    cw = hit("cw_l2", "dense", x, y, eta=4, steps=40, search_steps=5)
    steep = hit("st_ifgsm_linf", "dense", x, y, eta=4, steps=20)
    model = tiny_model("dense")
    both = (answers(model, cw) != y) & (answers(model, steep) != y)
    assert both.sum() >= 16
    size = lambda moved: np.sqrt(np.square(moved - x).sum(axis=(1, 2, 3)))[both]  # noqa: E731
    assert np.mean(size(cw) <= size(steep)) >= 0.9
    few = hit("cw_l0", "dense", x, y, eta=4, steps=40)
    fooled = changed(x, few) & changed(x, cw)
    count = lambda moved: (moved != x).any(axis=-1).sum(axis=(1, 2))[fooled]  # noqa: E731
    assert count(few).mean() <= count(cw).mean()


def test_noise_stands_at_the_corners_of_the_box():
    """Except at the rim of the map; in all directions alike; the same again under one seed."""
    layout = MODELS["dense"][1]
    x, y = task("dense", 200)
    for eta in (1, 3):
        moved = hit("noise", "dense", x, y, eta=eta)
        free = layout.movable(x) > 0
        top = np.array([GRID[0] - 1, GRID[1] - 1, 0], np.float32)
        low, high = np.maximum(x - eta, 0), np.minimum(x + eta, top)
        assert ((moved == low) | (moved == high))[free].all()
        inside = free & (high - low == 2 * eta)
        np.testing.assert_allclose(np.mean((moved == high)[inside]), 0.5, atol=0.03)
        np.testing.assert_array_equal(hit("noise", "dense", x, 1 - y, eta=eta, steps=1), moved)


@pytest.mark.parametrize(
    ("name", "model_name"), [("strong", "dense"), ("strong", "places_classes"), ("apgd_linf", "dense")]
)
def test_strong_is_at_least_as_strong(name, model_name):
    """B1, B6: what one start on one loss fools, five times the steps from random starts do, too."""
    x, y = task(model_name, 96)
    model = tiny_model(model_name)
    for eta in (1, 3):
        plain = answers(model, hit("st_ifgsm_linf", model_name, x, y, eta=eta)) != y
        strong = answers(model, hit(name, model_name, x, y, eta=eta, steps=30)) != y
        noise = answers(model, hit("noise", model_name, x, y, eta=eta)) != y
        assert strong.mean() >= plain.mean() - 0.02 and plain.mean() > noise.mean()
        assert (noise & ~strong).mean() <= 0.02


def test_b2_success_grows_with_the_budget():
    """B2, B3: and fools everybody whom a driver all over the map can fool."""
    x, y = task("dense", 96)
    model = tiny_model("dense")
    rates = [np.mean(answers(model, hit("strong", "dense", x, y, eta=eta, steps=20)) != y) for eta in (0, 1, 2, 4, 14)]
    assert (np.diff(rates) >= -1 / 96).all() and rates[0] == 0 and rates[-1] > rates[1]


def test_only_the_trips_without_a_passenger_of_the_last_driver_move():
    """Section 1.2; untyped fleets have one kind, of which those of the last driver."""
    for name in ("dense", "lstm_symmetric", "places_symmetric", "lstm_classes"):
        layout = MODELS[name][1]
        x, y = task(name, 8)
        case = next(n for of, n in CASES if of == name and n != "noise")
        moved = hit(case, name, x, y, eta=4, radius=12.0)
        rows = np.flatnonzero((moved != x).any(axis=(0, 2, 3)))
        first = (layout.sides - 1) * layout.per_kind
        assert set(rows) <= set(range(first, first + layout.per_kind)) and len(rows)
        assert layout.kinds[0] in (SEEK, UNTYPED)


def test_what_cannot_be_attacked_is_refused_in_one_line():
    layout = Layout((SERVE,), 2, 2, 6, 3)
    x, y = random_samples(layout, 2, 0), np.zeros(2, np.int32)
    with pytest.raises(UserError, match=r"--traj-type serve: .* an attack needs seek trips") as refusal:
        trip_attack(tiny_model("dense"), x, y, name="st_fgsm_linf", layout=layout, grid=GRID)
    assert "\n" not in str(refusal.value)
    x, y = task("dense", 2)
    with pytest.raises(UserError, match="'fgsm': no such attack; choose of st_fgsm_linf, "):
        hit("fgsm", "dense", x, y)
    for name in BY_NORM:
        with pytest.raises(UserError, match=f"{name}: needs --radius, in cells"):
            hit(name, "dense", x, y, radius=None)


def test_speed_stays_where_there_is_one():
    """Also where it is larger than the map."""
    x, y = task("places_classes", 12)
    x[..., SPEED] *= 9
    moved = hit("strong", "places_classes", x, y, eta=5)
    np.testing.assert_array_equal(moved[..., SPEED], x[..., SPEED])
    assert (moved[..., X] != x[..., X]).any()


@pytest.mark.parametrize("name", ATTACKS)
def test_infinite_slopes_at_the_edge_of_the_map_give_whole_cells(name):
    """The first column and row of cells are 0."""
    layout = MODELS["dense"][1]
    first, second = (keras.initializers.GlorotUniform(seed) for seed in (1, 2))
    trips_in = keras.Input(layout.shape)
    hidden = keras.layers.Dense(8, activation="tanh", kernel_initializer=first)
    flat = keras.layers.Flatten()(Gamma()(trips_in))
    model = keras.Model(trips_in, keras.layers.Dense(1, kernel_initializer=second)(hidden(flat)))
    x = random_samples(layout, 8, 5)
    x[..., :2] = np.where(np.arange(8)[:, None, None, None] < 6, 0, x[..., :2])
    settings = {"eta": 2, "steps": 4, "radius": 6.0, "restarts": 1, "search_steps": 2}
    moved = trip_attack(model, x, answers(model, x), name=name, layout=layout, grid=GRID, **settings)
    assert (
        np.isfinite(moved).all()
        and (moved == np.rint(moved)).all()
        and np.abs(moved - x).max() <= (2 if name not in BY_NORM else 6)
    )
