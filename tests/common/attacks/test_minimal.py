"""Attacks that look for the smallest perturbation, and L0 by pruning."""

import warnings
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import attacks
from common.attacks import (
    Pruning,
    adam,
    ascent,
    at_success,
    bim,
    box,
    compile,
    cw_l0,
    cw_l2,
    ddn,
    deepfool,
    ead,
    in_ball,
    linf,
    minimal,
    objectives,
    sigma_zero,
    targeted_margin,
    threat_models,
    top_l1,
    unit_l2,
    untargeted_ce,
    untargeted_margin,
    updates,
)
from tests.helpers.attack_oracles import SHAPES, Perceptron, each_rank, fooled, linear_task, search

ATTACKS = {
    "ddn": partial(ddn, steps=60),
    "cw_l2": partial(cw_l2, steps=60, search_steps=4, constant=0.1, learning_rate=0.05),
    "cw_l0": partial(cw_l0, steps=40, search_steps=2),
    "sigma_zero": partial(sigma_zero, steps=60),
    "ead": partial(ead, steps=40, search_steps=4, constant=0.1, learning_rate=0.05),
    "deepfool": deepfool,
}


def size(moved, x, norm):
    delta = (np.asarray(moved).astype(np.float64) - x).reshape(len(x), -1)
    return np.linalg.norm(delta, axis=1) if norm == "l2" else (delta != 0).sum(axis=1)


def fewest(model, x, y, low, high):
    """How many coordinates of each example must change, at least, for a linear model: the most useful go first."""
    slope = (model.get_weights()[0][:, 1] - model.get_weights()[0][:, 0]).astype(np.float64)
    lead = np.diff(model(x).numpy(), axis=1)[:, 0].astype(np.float64)
    counts = []
    for row, gap in zip(x.reshape(len(x), -1).astype(np.float64), lead, strict=True):
        away = -np.sign(gap) * slope
        gain = np.sort(np.abs(slope) * np.where(away > 0, high - row, row - low))[::-1]
        counts.append(1 + int(np.searchsorted(np.cumsum(gain), abs(gap))))
    return np.array(counts)


@each_rank
@pytest.mark.parametrize("batch", [1, 8])
def test_a9_l2_distance_of_the_linear_oracle(rank, batch):
    model, x, y, (low, high), best = linear_task(SHAPES[rank], batch, "l2", True)
    for attack in (
        partial(ddn, steps=300),
        partial(cw_l2, steps=300, search_steps=12, constant=0.1, learning_rate=0.02),
    ):
        found = attack(model, x, y, low=low, high=high)
        assert fooled(model, found, y).all()
        ratio = size(found, x, "l2") / best
        assert ratio.max() <= 1.05, attack
        assert ratio.min() >= 1 - 1e-4


@pytest.mark.parametrize("shape", [SHAPES[1], pytest.param((6, 10), marks=pytest.mark.slow)], ids=str)
def test_l0_distance_of_the_linear_oracle(shape):
    """Counts are whole numbers, and 3 for 2 is 1.5 times the optimum: the bound is on the sum over many examples."""
    model, x, y, (low, high), _ = linear_task(shape, 64, "l1", True)
    least = fewest(model, x, y, low, high)
    assert least.max() > least.min()
    for attack in (partial(sigma_zero, steps=400), partial(cw_l0, steps=150, search_steps=4, learning_rate=0.1)):
        found = attack(model, x, y, low=low, high=high)
        assert fooled(model, found, y).all()
        counts = size(found, x, "l0")
        assert counts.sum() <= 1.15 * least.sum(), attack
        assert np.median(counts / least) == 1
        assert (counts >= least).all()


@pytest.fixture(scope="module")
def task():
    net = Perceptron((3, 3, 2), seed=2)
    x, y = net.data(12)
    return net.model, x, y


@pytest.mark.parametrize("name", ATTACKS)
def test_a1_a3_a4_box_and_mask_are_exact(task, name):
    model, x, y = task
    mask = (np.random.default_rng(0).random(x.shape) < 0.7).astype(np.float32)
    found = ATTACKS[name](model, x, y, mask=mask).numpy()
    assert found.dtype == np.float32 and np.isfinite(found).all()
    assert found.min() >= 0 and found.max() <= 1
    assert (found[mask == 0] == x[mask == 0]).all()
    moved = fooled(model, found, y)
    assert moved.any()
    # Those that were not fooled come back as they were.
    assert (found[~moved] == x[~moved]).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_a6_no_steps_and_wrong_answers_change_no_bit(task, name):
    model, x, y = task
    assert (ATTACKS[name](model, x, y, steps=0).numpy() == x).all()
    wrong = ((y + 1) % 3).astype(np.int32)
    assert (ATTACKS[name](model, x, wrong).numpy() == x).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_a16_weights_and_averages_stay(name):
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Conv2D(2, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    x = np.random.default_rng(2).random((4, 4, 4, 1)).astype(np.float32)
    y = np.argmax(model(x), axis=1).astype(np.int32)
    before = [np.array(v) for v in model.variables]
    ATTACKS[name](model, x, y, steps=5)
    for old, new in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "deepfool"])
def test_a17_targeted(task, name):
    model, x, y = task
    target = ((y + 1) % 3).astype(np.int32)
    found = ATTACKS[name](model, x, target, targeted=True).numpy()
    hit = ~fooled(model, found, target)
    assert hit.mean() >= 0.5
    assert (found[~hit] == x[~hit]).all()


RULES = {
    "sign": lambda x0, space: ascent(tf.sign, 0.05),
    "momentum": lambda x0, space: ascent(tf.sign, 0.05, 0.9),
    "unit_l2": lambda x0, space: ascent(unit_l2, 0.1),
    "top_l1": lambda x0, space: ascent(top_l1(0.2), 0.2),
    "adam": lambda x0, space: adam(0.05),
    "ddn": lambda x0, space: updates.ddn(x0, 20),
    "sigma_zero": lambda x0, space: updates.sigma_zero(x0, space, 20),
}


@pytest.mark.parametrize(
    "name", [name if name in ("sign", "sigma_zero") else pytest.param(name, marks=pytest.mark.slow) for name in RULES]
)
def test_a20_every_rule_under_xla(name):
    net = Perceptron((10,), seed=6)
    x, y = net.data(200)

    def attack(x, y):
        space = {"unit_l2": threat_models.l2, "top_l1": threat_models.l1}.get(name, linf)(
            x, {"unit_l2": 0.5, "top_l1": 1.0}.get(name, 0.2)
        )
        if name in ("ddn", "sigma_zero", "adam"):
            space = box(x)

        def nearest(inputs, moved, value, success):
            return tf.where(success, -tf.reduce_sum(tf.abs(moved - x), axis=1), float("-inf"))

        return search(untargeted_ce(net.model, {"y": y}), RULES[name](x, space), space, x, 20, selection=nearest)

    inputs = tf.constant(x), tf.constant(y)
    plain, fused = tf.function(attack)(*inputs), tf.function(attack, jit_compile=True)(*inputs)
    rates = [float(np.mean(found.success)) for found in (plain, fused)]
    assert rates[0] > 0.1
    assert abs(rates[0] - rates[1]) <= 0.02
    done = plain.success.numpy() & fused.success.numpy()
    distances = [np.median(np.abs(found.x.numpy() - x).sum(axis=1)[done]) for found in (plain, fused)]
    np.testing.assert_allclose(*distances, rtol=0.02)


def test_margins_are_differences_of_logits():
    net = Perceptron((5,), seed=7)
    x, y = net.data(20)
    z = net.logits(x.astype(np.float64))
    others = np.where(np.eye(3)[y] == 1, -np.inf, z).max(axis=1)
    score, done = untargeted_margin(net.model, {"y": y})(tf.constant(x))
    np.testing.assert_allclose(score, others - z[np.arange(20), y], atol=1e-5)
    assert not done.numpy().any()
    target = (y + 1) % 3
    others = np.where(np.eye(3)[target] == 1, -np.inf, z).max(axis=1)
    score, done = targeted_margin(net.model, {"target": target})(tf.constant(x))
    np.testing.assert_allclose(score, z[np.arange(20), target] - others, atol=1e-5)
    assert not done.numpy().any()
    lead = np.median(-untargeted_margin(net.model, {"y": y})(tf.constant(x))[0])
    assert untargeted_margin(net.model, {"y": (y + 1) % 3, "confidence": float(lead)})(tf.constant(x))[1].numpy().any()


def test_confidence_is_kept(task):
    model, x, y = task
    margin = {}
    for confidence in (0.0, 0.5):
        found = cw_l2(model, x, y, steps=80, search_steps=6, constant=1.0, learning_rate=0.05, confidence=confidence)
        won = fooled(model, found, y)
        assert won.mean() >= 0.5
        margin[confidence] = untargeted_margin(model, {"y": y})(found)[0].numpy()[won]
    assert margin[0.0].min() >= 0 and margin[0.5].min() >= 0.5
    assert np.median(margin[0.0]) < 0.25


@pytest.mark.parametrize("mutant", ["hinge", "search"])
def test_a18_mutants_of_cw_are_killed(monkeypatch, mutant):
    model, x, y, (low, high), best = linear_task(SHAPES[1], 8, "l2", True)
    if mutant == "hinge":

        def turned(model, inputs):
            return lambda x: (-untargeted_margin(model, inputs)(x)[0], untargeted_margin(model, inputs)(x)[1])

        monkeypatch.setattr(objectives, "untargeted_margin", turned)
    else:
        # A failure does not raise c.
        monkeypatch.setattr(minimal, "_next_constant", lambda constant, fails, works: constant)
    # What other tests compiled for this model knows no mutant.
    monkeypatch.setattr(compile, "_compiled", compile.PerModel())
    found = cw_l2(model, x, y, steps=300, search_steps=12, constant=1e-3, learning_rate=0.02, low=low, high=high)
    won = fooled(model, found, y)
    assert not won.all() or (size(found, x, "l2") / best).max() > 1.05


def test_bad_settings_are_refused(task):
    model, x, y = task
    for settings, message in (
        ({"steps": -1}, "steps must be"),
        ({"learning_rate": float("nan")}, "learning_rate must be"),
        ({"mask": np.ones((2, 2))}, "must be a scalar|broadcast"),
    ):
        with pytest.raises(ValueError, match=message):
            cw_l2(model, x, y, **settings)
    with pytest.raises(ValueError, match="labels must be"):
        ddn(model, x, y + 5)
    with pytest.raises(ValueError, match="one target or label per example"):
        sigma_zero(model, x, y[:3])
    with pytest.raises(ValueError, match="Divide 8-bit"):
        ddn(model, x * 255, y)
    with pytest.raises(ValueError, match="'coordinate' or 'pixel'"):
        cw_l0(model, x, y, per="channel")


def test_pixels_are_kept_or_given_up_whole(task):
    model, x, y = task
    by_pixel = cw_l0(model, x, y, steps=40, search_steps=2, per="pixel").numpy()
    by_coordinate = cw_l0(model, x, y, steps=40, search_steps=2).numpy()
    won = fooled(model, by_pixel, y) & fooled(model, by_coordinate, y)
    pixels = (by_pixel != x).any(axis=-1).sum(axis=(1, 2))
    assert won.sum() >= 6
    assert pixels[won].sum() <= size(by_coordinate, x, "l0")[won].sum()


def test_attacks_run_inside_a_function(task):
    model, x, y = task
    inside = tf.function(lambda x, y: ddn(model, x, y, steps=20))
    np.testing.assert_allclose(inside(tf.constant(x), tf.constant(y)), ddn(model, x, y, steps=20), atol=1e-5)


def test_crafting_is_silent_about_gradients(task):
    model, x, y = task
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        sigma_zero(model, x, y, steps=3)


def previous(inputs, threat_model):
    return inputs["previous"]


def test_pruning_prunes_the_points_of_trips():
    """ST-iFGSM's L0 on a tiny identifier of trips (B, trips, time, 3): the third feature and the padding stay."""
    net = Perceptron((2, 5, 3), seed=8)
    x, y = net.data(16)
    valid = np.ones((16, 2, 5, 1), np.float32)
    valid[:, 1, 3:] = 0
    features = np.array([[[[1.0, 1.0, 0.0]]]], np.float32)

    def saliency(model, inputs, found):
        return tf.reduce_sum(tf.abs(found.gradient) * features, axis=-1, keepdims=True)

    attack = in_ball(
        attacks.untargeted_ce,
        start=previous,
        selection=lambda inputs, x, value, success: tf.cast(success, tf.float32),
        stop=at_success,
        rounds=Pruning(lambda inputs: tf.constant(valid), saliency),
    )
    inputs = {"x": x, "y": y, "eps": 0.2, "alpha": 0.05, "steps": 6, "mask": features, "drop": 0.2}
    counts, past, won = [], None, 0
    for rounds in (1, 2, 4, 12):
        moved = attacks.run(attack, net.model, {**inputs, "prune_rounds": rounds}).numpy()
        points = (moved != x).any(axis=-1).sum(axis=(1, 2))
        success = fooled(net.model, moved, y)
        assert (moved[..., 2] == x[..., 2]).all() and (moved[:, 1, 3:] == x[:, 1, 3:]).all()
        assert (moved[~success] == x[~success]).all()
        if past is not None:
            # Never more points than a round before, and nobody who was fooled gets away.
            assert (points <= past).all() and success.sum() == won
        past, won = points, success.sum()
        counts.append(points[success].mean())
    assert won >= 8
    assert counts[-1] < 0.6 * counts[0]


def test_pruning_gives_up_the_least_first_and_ends_with_the_last_success():
    weight = tf.constant([5.0, 1.0, 3.0, 0.0, 2.0, 4.0])
    needed = tf.constant([6.5, 100.0])

    def objective(x):
        value = tf.reduce_sum(x * weight, axis=1)
        return value, value >= needed

    attack = in_ball(
        lambda model, inputs: objective,
        stop=at_success,
        rounds=Pruning(lambda inputs: tf.ones((1, 6)), lambda model, inputs, found: found.x * weight),
    )
    inputs = {"x": tf.zeros((2, 6)), "eps": 1.0, "alpha": 1.0, "low": 0.0, "high": 1.0, "steps": 1, "drop": 0.01}
    found = attacks.search(attack, None, {**inputs, "prune_rounds": 20})
    np.testing.assert_array_equal(found.x, [[1, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(found.success, [True, False])
    stopped = attacks.search(attack, None, {**inputs, "prune_rounds": 2})
    np.testing.assert_array_equal(stopped.x[0], [1, 0, 1, 0, 1, 1])


def test_ddn_beats_a_fixed_budget_on_the_same_gradients(task):
    model, x, y = task
    found = ddn(model, x, y, steps=100)
    sizes = size(found, x, "l2")
    eps = np.float32(np.median(sizes[fooled(model, found, y)]))
    fixed = bim(model, x, y, eps=eps, alpha=eps / 10, steps=100, norm="l2")
    assert (sizes <= eps).sum() >= fooled(model, fixed, y).sum()


@pytest.mark.parametrize("attack", [cw_l2, cw_l0])
def test_carlini_wagner_wants_a_box_with_ends(task, attack):
    model, x, y = task
    for low, high in ((-np.inf, np.inf), (0.0, np.inf)):
        with pytest.raises(ValueError, match="low and high must be finite"):
            attack(model, x, y, steps=2, low=low, high=high)
