"""Adversarial training on trips, and the script that hardens a model and attacks it before and after."""

import json

import numpy as np
import pytest
from trip_toys import GRID, MODELS, random_samples, tiny_model

from common.evaluation import outputs
from mobility_humid.hardening import fast_st_fgsm, pgd_on_trips

PAIRS = ("dense", "places_symmetric_profile")
SETTINGS = {"eta": 2.0, "alpha": 1.0, "rounds": 3}


def answers(model, x):
    z = outputs(model, x)
    return (z[:, 0] > 0).astype(np.int32) if z.shape[1] == 1 else z.argmax(axis=1).astype(np.int32)


def crafted(make, name, x, y, seed=(1, 2), **settings):
    import tensorflow as tf

    layout = MODELS[name][1]
    adversary = make(layout, GRID, **SETTINGS | settings)
    model = tiny_model(name)
    run = tf.function(lambda x, y, seed: adversary(model, (x, y), seed))
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


def test_the_script_hardens_and_attacks_before_and_after(tiny_file, tmp_path, monkeypatch):
    from mobility_humid.fast_adversarial_train import fast_adversarial_train

    monkeypatch.chdir(tmp_path)
    samples = {"num_trajs": 4, "padding_length": 12, "test_days": 2, "validation_days": 2, "n_test": 24}
    (tmp_path / "tiny.yaml").write_text(
        f"train: {json.dumps({**samples, 'units': [6, 5, 4], 'epochs': 1, 'n_train': 64, 'batch_size': 16})}\n"
    )
    options = fast_adversarial_train.options(
        **samples,
        config=tmp_path / "tiny.yaml",
        dataset=str(tiny_file),
        epochs=2,
        n_train=64,
        train_batch_size=16,
        rounds=2,
        steps=3,
        restarts=1,
        n_slow=8,
        n_watch=8,
    )
    results = fast_adversarial_train(options)
    for key in ("clean_accuracy", "attacked_accuracy"):
        for when in ("before", "after"):
            assert 0 <= results["metrics"][f"{key}_{when}"] <= 1 and results["metrics"][f"{key}_{when}_n"] == 48
    assert {"model_fast", "model_pgd", "defence"} <= set(results["artifacts"])
    folder = tmp_path / "runs/mobility_humid/fast_adversarial_train/tiny"
    curves = (folder / "metrics.csv").read_text().splitlines()
    assert len(curves) == 1 + 2 * 2 and "validation_attacked_accuracy" in curves[0]
    # The model before is left as it was.
    assert (tmp_path / "runs/mobility_humid/train/tiny/model.keras").is_file()
