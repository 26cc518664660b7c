"""What adversarial training on trips trains on."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from mobility_humid.training.fast_st_fgsm import fast_st_fgsm, pgd_on_trips
from tests.helpers.trip_toys import GRID, MODELS, answers, random_samples, tiny_model

PAIRS = ("dense", "places_symmetric_profile")


@functools.cache
def traced(make, name, rounds, alpha):
    """The adversary against a tiny model as a graph: tracing it takes seconds, and for all batches one is enough."""
    model, layout = tiny_model(name), MODELS[name][1]
    adversary = make(layout, GRID, eta=2.0, alpha=alpha, rounds=rounds)
    signature = [tf.TensorSpec([None, *layout.shape]), tf.TensorSpec([None], tf.int32), tf.TensorSpec([2], tf.int32)]
    return tf.function(lambda x, y, seed: adversary(model, (x, y), seed), input_signature=signature, autograph=False)


def crafted(make, name, x, y, seed=(1, 2), rounds=2, alpha=1.0):
    run = traced(make, name, rounds, alpha)
    moved, labels = run(tf.constant(x), tf.constant(y), tf.constant(seed))
    np.testing.assert_array_equal(labels, y)
    return moved.numpy()


@pytest.mark.parametrize("make", [fast_st_fgsm, pgd_on_trips])
@pytest.mark.parametrize("name", [*PAIRS, "places_classes"])
def test_f2_what_is_trained_on_are_trips_that_an_attacker_could_make(make, name):
    """Mask also for the initial noise (the original's padding and served trips move), budget, map, whole cells."""
    layout = MODELS[name][1]
    x = random_samples(layout, 24, 5)
    y = answers(tiny_model(name), x)
    moved = crafted(make, name, x, y)
    shift = moved - x
    assert (shift * (1 - layout.movable(x)) == 0).all() and np.abs(shift).max() == 2
    np.testing.assert_array_equal(shift, np.round(shift))
    places = moved[:, layout.moving, :, :2]
    assert (places >= 0).all() and (places <= np.array(GRID) - 1).all()


@pytest.mark.parametrize("name", PAIRS)
def test_fast_st_fgsm_trains_on_what_fools_and_else_on_clean_trips(name):
    layout, model = MODELS[name][1], tiny_model(name)
    x = random_samples(layout, 48, 6)
    y = answers(model, x)
    y[:8] = 1 - y[:8]
    moved = crafted(fast_st_fgsm, name, x, y)
    changed = (moved != x).any(axis=(1, 2, 3))
    wrong_now = answers(model, moved) != y
    assert not changed[:8].any(), "wrong before, and yet moved"
    assert changed[8:].any() and wrong_now[changed].all()
    assert not wrong_now[8:][~changed[8:]].any()


def test_later_rounds_leave_fewer_points_moved():
    name = PAIRS[0]
    layout, model = MODELS[name][1], tiny_model(name)
    x = random_samples(layout, 48, 7)
    y = answers(model, x)
    counts = []
    for rounds in (1, 6):
        moved = crafted(fast_st_fgsm, name, x, y, rounds=rounds, alpha=2.0)
        counts.append((moved != x).any(axis=3).sum(axis=(1, 2)))
    both = (counts[0] > 0) & (counts[1] > 0)
    assert both.sum() > 5 and counts[1][both].mean() < 0.9 * counts[0][both].mean()


@pytest.mark.parametrize("make", [fast_st_fgsm, pgd_on_trips])
def test_c1_a16_the_seed_decides_and_no_weight_moves(make):
    name = "places_symmetric_profile"
    layout, model = MODELS[name][1], tiny_model(name)
    x = random_samples(layout, 24, 8)
    y = answers(model, x)
    before = [np.array(weight) for weight in model.get_weights()]
    first, again, other = (crafted(make, name, x, y, seed=seed) for seed in ((1, 2), (1, 2), (3, 4)))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    for weight, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, kept)
