"""Attacks on attention: inside their budget, up their objective, stopped where they should be."""

from typing import get_args

import numpy as np
import pytest
import tensorflow as tf

from attention_defense.attacks import table
from attention_defense.attacks.attention import KINDS, attention_attack
from attention_defense.attacks.names import AttackName
from attention_defense.models.grad_cam import Attention, above_mean, overlap, relu_max_map
from common.attacks import attack_dataset
from common.errors import UserError
from common.evaluation.robustness import adversarial_examples
from tests.helpers.steep import classifier

EPS = 16 / 255


# AutoAttack is many attacks, each compiled for itself, and has tests of its own; what it cannot break it leaves alone.
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name == "autoattack_fast" else name
    for name in get_args(AttackName)
    if name != "autoattack"
]


@pytest.fixture(scope="module")
def case(model):
    x = np.random.default_rng(0).random((10, 16, 16, 3), np.float32)
    return x, np.asarray(tf.argmax(model(x), axis=1, output_type=tf.int32))


@pytest.mark.parametrize("name", NAMES)
def test_every_attack_stays_in_the_ball_and_the_box(model, case, name):
    x, y = case
    attack = table.make_attack(name, model, eps=EPS)
    moved = attack_dataset(attack, x, y).x
    assert np.abs(moved - x).max() <= EPS + 1e-6
    assert moved.min() >= 0 and moved.max() <= 1
    assert np.abs(moved - x).max() > EPS / 2


@pytest.mark.parametrize("kind", ["attention", "displace"])
def test_the_map_goes_where_it_is_pushed(model, case, kind):
    x, y = case
    moved = attention_attack(model, x, y, kind=kind, eps=EPS, alpha=EPS / 4, steps=15)
    before, after = (relu_max_map(Attention(model)(of, y).cam).numpy() for of in (x, moved))
    held = np.asarray(tf.argmax(model(moved), axis=1)) == y
    if kind == "attention":
        assert after.mean() < before.mean()
    else:
        attended = (before > 0.2).astype(float)
        gain = np.abs(attended - after).mean(axis=(1, 2)) - np.abs(attended - before).mean(axis=(1, 2))
        assert (gain[held] > 0).all() and gain.mean() > 0.05


def test_the_gated_attack_has_an_end(model, case):
    """The original's `while IoU > key or step == 4` may go round for ever."""
    x, y = case
    never = attention_attack(model, x, y, kind="gated", eps=EPS, alpha=EPS / 2, steps=3, iou_key=-1.0)
    assert np.abs(never - x).max() > EPS / 2
    at_once = attention_attack(model, x, y, kind="gated", eps=EPS, alpha=EPS / 2, steps=3, iou_key=1.0)
    assert np.array_equal(at_once, x)
    key = 0.9
    moved = attention_attack(model, x, y, kind="gated", eps=EPS, alpha=EPS / 4, steps=3, iou_key=key)
    before = above_mean(Attention(model)(x, y).cam)
    reached = overlap(before, above_mean(Attention(model)(moved, y).cam)).numpy() <= key
    steps = np.rint(np.abs(moved - x).max(axis=(1, 2, 3)) / (EPS / 4))
    # Who has not moved his attention has taken all three steps, and somebody has rested before.
    assert reached.any() and (steps[~reached] == 3).all() and (steps[reached] >= 1).all() and (steps < 3).any()


def test_restarts_never_do_worse(model, case):
    x, y = case
    found = []
    for restarts in (1, 4):
        moved = attention_attack(model, x, y, kind="adaptive", eps=2 / 255, alpha=1 / 255, steps=3, restarts=restarts)
        found.append(np.asarray(tf.argmax(model(moved), axis=1)) != y)
    assert found[0].any() and (found[1] | ~found[0]).all()


def test_what_a_image_becomes_does_not_depend_on_its_neighbours(model, case):
    x, y = case
    budget = {"eps": EPS, "alpha": EPS / 4, "steps": 3, "seed": 5}
    together = attention_attack(model, x, y, kind="adaptive", **budget, index=np.arange(10))
    alone = attention_attack(model, x[7:9], y[7:9], kind="adaptive", **budget, index=np.array([7, 8]))
    assert (np.abs(together[7:9] - alone) > 1e-4).mean() < 0.02


def test_the_adaptive_attack_beats_noise(model, case):
    x, y = case
    budget = {"eps": EPS, "alpha": EPS / 4, "steps": 10}
    moved = attention_attack(model, x, y, kind="adaptive", **budget)
    fooled = np.asarray(tf.argmax(model(moved), axis=1)) != y
    noise = attack_dataset(table.make_attack("noise", model, eps=EPS), x, y).x
    assert fooled.mean() > (np.asarray(tf.argmax(model(noise), axis=1)) != y).mean()


def test_rounded_to_8_bits_a_image_stays_in_the_ball(model, case):
    """0.1 is 25.5 grey levels: rounded, a change of that size would be one of 26."""
    x, y = case
    x = np.rint(255 * x) / np.float32(255)
    for name in ("fgsm", "pgd20", "attention", "noise"):
        moved = adversarial_examples(table.make_attack(name, model, eps=0.1), x, y)
        assert np.rint(255 * np.abs(moved - x)).max() == 25
    with pytest.raises(UserError, match=r"0\.9/255 is less than one grey level"):
        table.make_attack("fgsm", model, eps=0.9 / 255)


def test_attacks_aim_where_one_looks_and_the_adaptive_one_where_the_training_did(model, case):
    x, y = case
    for kind in KINDS:
        chosen = table.make_attack(kind, model, eps=EPS, layer="conv1", training=table.Training(layer="pool2"))
        value = chosen.func.bind(model, x, y, **chosen.keywords).attack
        assert value.objective.layer == ("pool2" if kind == "adaptive" else "conv1")


@pytest.mark.parametrize("kind", ["attention", "displace", "adaptive"])
def test_with_stop_an_image_stays_where_it_is_first_misclassified(model, case, kind):
    """And those that never are have taken all steps: the successes are the same."""
    x, y = case
    found = [
        attack_dataset(table.make_attack(kind, model, eps=3 / 255, stop=stop), x, y, batch_size=4)
        for stop in (False, True)
    ]
    fooled = [np.asarray(tf.argmax(model(moved.x), axis=1)) != y for moved in found]
    np.testing.assert_array_equal(*fooled)
    assert found[0].utilisation is None and 0 < found[1].utilisation <= 1


@pytest.mark.parametrize("kind", ["displace", pytest.param("adaptive", marks=pytest.mark.slow)])
def test_the_layer_that_is_aimed_at_decides_and_no_other(model, case, kind):
    x, y = case

    def moved(aim, other):
        compute_attention, trained = (other, aim) if kind == "adaptive" else (aim, other)
        attack = table.make_attack(
            kind, model, eps=EPS, layer=compute_attention, training=table.Training(layer=trained)
        )
        return attack_dataset(attack, x, y).x

    # None is the layer that is looked at unless one is named.
    same = moved(None, None)
    assert np.array_equal(moved(None, "conv1"), same)
    assert not np.array_equal(moved("conv1", None), same)


@pytest.mark.parametrize("kind", [name for name in get_args(AttackName) if not name.startswith("autoattack")])
def test_infinite_slopes_at_black_pixels_give_finite_images(kind):
    model, x = classifier((12, 12, 3), 4), np.random.default_rng(0).random((4, 12, 12, 3), np.float32)
    x[:3, :6] = 0
    y = np.asarray(model(x)).argmax(axis=1).astype(np.int32)
    attack = table.make_attack(kind, model, eps=EPS, layer="map")
    moved = attack_dataset(attack, x, y).x
    assert np.isfinite(moved).all() and 0 < np.abs(moved - x).max() <= EPS + 1e-6
