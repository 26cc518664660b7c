"""Attacks over a data set: finished examples leave, waiting ones take their places, and no result depends on it."""

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf

from common.attacks import attack_dataset, bim, budget, compile, fgsm, iftgsm, mi_fgsm, pgd
from common.attacks.dataset import _compacted, _size_for, _until_next_look
from common.attacks.objectives import cosine_to
from tests.helpers.attack_oracles import Perceptron


@pytest.fixture(scope="module")
def net():
    """One for all tests: an attack is compiled once for each model."""
    return Perceptron((6,), seed=3)


@pytest.fixture
def task(net):
    """A small dense network and 41 points, some of which it takes long to move over the border, and some of which it
    already gets wrong."""
    draw = np.random.default_rng(4)
    x = draw.uniform(0.2, 0.8, (41, 6)).astype(np.float32)
    y = np.argmax(net.model(x), axis=1).astype(np.int32)
    y[::9] = (y[::9] + 1) % net.model(x).shape[1]
    return net.model, x, y


ATTACKS = {
    "pgd": partial(pgd, eps=0.3, alpha=0.02, steps=12, stop=True, seed=5),
    "pgd_l2": partial(pgd, eps=0.5, alpha=0.05, steps=12, norm="l2", stop=True, seed=5),
    "pgd_l1": partial(pgd, eps=1.0, alpha=0.1, steps=12, norm="l1", stop=True, seed=5),
    "pgd_best": partial(pgd, eps=0.3, alpha=0.02, steps=12, keep="best", stop=True, seed=5),
    "pgd_restarts": partial(pgd, eps=0.1, alpha=0.02, steps=5, restarts=3, stop=True, seed=5),
    "pgd_restarts_best": partial(pgd, eps=0.1, alpha=0.02, steps=5, restarts=3, keep="best", stop=True, seed=5),
    "pgd_margin": partial(pgd, eps=0.3, alpha=0.02, steps=12, loss="margin", stop=True, seed=5),
    "bim": partial(bim, eps=0.3, alpha=0.02, steps=12, stop=True),
    "mi_fgsm": partial(mi_fgsm, eps=0.3, alpha=0.02, steps=12, stop=True),
    "targeted": partial(bim, eps=0.3, alpha=0.02, steps=12, targeted=True, stop=True),
}


def whole(attack, model, x, y, **options):
    places = {"index": np.arange(len(x))} if attack.func is pgd else {}
    return attack(model, x, y, **options, **places).numpy()


@pytest.mark.parametrize("size", [1, 3, 8, 64])
@pytest.mark.parametrize("name", ATTACKS)
def test_a13_leaving_early_changes_no_result(task, name, size):
    model, x, y = task
    attack = ATTACKS[name]
    found = attack_dataset(partial(attack.func, model, **attack.keywords), x, y, batch_size=size)
    expected = whole(attack, model, x, y)
    won = np.argmax(model(found.x), axis=1) == np.argmax(model(expected), axis=1)
    # Norms are sums, which another processor rounds otherwise in a batch of one.
    same = np.isclose(found.x, expected, atol=5e-6 if name == "pgd_l2" else 1e-6, rtol=0).all(axis=1)
    # A sparse step goes along one coordinate or another by the last bit of a product of matrices.
    assert min(same.mean(), won.mean()) > 0.9 if name == "pgd_l1" else same.all() and won.all()
    assert 0 < found.utilisation <= 1


def test_a_finished_example_costs_nothing_more(task):
    model, x, y = task
    attack = partial(bim, model, eps=0.5, alpha=0.04, stop=True)
    needed = np.full(len(x), 12)
    for steps in range(12, -1, -1):
        moved = attack(x, y, steps=steps)
        needed[np.argmax(model(moved), axis=1) != y] = steps
    found = attack_dataset(partial(attack, steps=12), x, y, batch_size=4)
    # What an oracle would spend, that is up to each first success, and one more gradient to see it.
    assert round(found.gradients * found.utilisation) == needed.sum()
    assert needed.sum() < found.gradients < 1.5 * (needed + 1).sum() + 4 * 12
    assert found.gradients < 0.7 * 12 * len(x)


def test_the_last_to_arrive_find_their_places_in_a_batch_that_shrinks(task):
    model, x, y = task
    order = np.argsort(np.argmax(model(x), axis=1) == y, kind="stable")
    x, y = x[order], y[order]
    wrong = int((np.argmax(model(x), axis=1) != y).sum())
    last = slice(0, wrong + 2)
    attack = partial(bim, model, eps=0.3, alpha=0.02, steps=12, stop=True)
    found = attack_dataset(attack, x[last], y[last], batch_size=wrong)
    np.testing.assert_allclose(found.x, attack(x[last], y[last]), atol=1e-6, rtol=0)


def test_restarts_go_to_survivors_only(task):
    model, x, y = task
    once = attack_dataset(partial(pgd, model, eps=0.1, alpha=0.05, steps=5, stop=True), x, y, batch_size=8)
    often = attack_dataset(partial(pgd, model, eps=0.1, alpha=0.05, steps=5, restarts=4, stop=True), x, y, batch_size=8)
    standing = np.argmax(model(once.x), axis=1) == y
    assert 0 < standing.sum() < len(x)
    np.testing.assert_array_equal(often.x[~standing], once.x[~standing])
    # Where a restart ends is judged by an evaluation of its own.
    assert often.gradients <= once.gradients + 3 * (5 + 1) * (standing.sum() + 8)


def test_progress_counts_each_example_once(task, capsys, monkeypatch):
    monkeypatch.setattr("common.progress._LINE", 0.0)
    model, x, y = task
    attack = partial(pgd, model, eps=0.1, alpha=0.05, steps=5, restarts=4, stop=True)
    attack_dataset(attack, x, y, batch_size=8, progress=True)
    shown = [int(line.split("/")[0].removeprefix("pgd: ")) for line in capsys.readouterr().out.splitlines()]
    assert shown == sorted(set(shown)) and shown[-1] == len(x) and len(shown) > 3


def test_budgets_and_masks_of_examples_go_along(task):
    model, x, y = task
    draw = np.random.default_rng(6)
    eps = draw.uniform(0.05, 0.3, len(x)).astype(np.float32)
    mask = (draw.uniform(size=x.shape) < 0.7).astype(np.float32)
    attack = partial(bim, alpha=0.02, steps=12, stop=True, eps=eps, mask=mask)
    found = attack_dataset(partial(attack.func, model, **attack.keywords), x, y, batch_size=5).x
    np.testing.assert_allclose(found, whole(attack, model, x, y), atol=1e-6, rtol=0)
    assert np.all(np.abs(found - x).max(axis=1) <= eps + 1e-6)
    assert np.all(found[mask == 0] == x[mask == 0])


def test_feature_targets_and_their_thresholds_go_along(task):
    model, x, _ = task
    target = np.random.default_rng(7).normal(size=(len(x), model(x[:1]).shape[1])).astype(np.float32)
    threshold = np.linspace(-0.5, 0.9, len(x)).astype(np.float32)
    settings = {"eps": 0.3, "alpha": 0.02, "steps": 12, "threshold": threshold}
    found = attack_dataset(partial(iftgsm, model, **settings), x, target, batch_size=5)
    np.testing.assert_allclose(found.x, iftgsm(model, x, target, **settings), atol=1e-6, rtol=0)
    reached = cosine_to(model, {"embedding": target, "threshold": threshold})(tf.constant(found.x))[1].numpy()
    assert 0 < reached.sum() < len(x)


def test_a19_refilling_traces_nothing_anew(task):
    model, (_, x, y) = Perceptron((6,), seed=3).model, task
    for eps, size, steps in ((0.1, 8, 5), (0.2, 8, 7), (0.3, 16, 12), (0.3, 5, 3)):
        attack_dataset(partial(pgd, model, eps=eps, alpha=0.02, steps=steps, stop=True), x, y, batch_size=size)
    assert len(compile._compiled[model]) == 2


def test_attacks_without_labels_index_or_stop(task):
    model, x, y = task
    np.testing.assert_array_equal(
        attack_dataset(partial(budget.step_ll, model, eps=0.1), x, None, batch_size=7).x,
        budget.step_ll(model, x, eps=0.1),
    )
    plain = attack_dataset(partial(fgsm, model, eps=0.1), x, y, batch_size=7)
    np.testing.assert_array_equal(plain.x, fgsm(model, x, y, eps=0.1))
    assert plain.gradients == len(x) and plain.utilisation is None
    own = attack_dataset(lambda x, y: x + y[:, None], x, y, batch_size=7)
    np.testing.assert_array_equal(own.x, x + y[:, None].astype(np.float32))


def test_an_empty_data_set(task):
    model, x, y = task
    attack = partial(pgd, model, eps=0.1, alpha=0.1, steps=2, stop=True)
    assert attack_dataset(attack, x[:0], y[:0], progress=True).x.shape == (0, 6)


def test_bad_input_is_refused_in_any_batch(task):
    model, x, y = task
    x[-1, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        attack_dataset(partial(pgd, model, eps=0.1, alpha=0.1, steps=2, stop=True), x, y, batch_size=8)


def test_convolutions_keep_their_successes_at_any_batch_size():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    x = np.random.default_rng(8).uniform(size=(50, 8, 8, 1)).astype(np.float32)
    y = np.argmax(model(x), axis=1).astype(np.int32)
    attack = partial(pgd, model, eps=0.06, alpha=0.01, steps=10, stop=True)
    fooled = [np.argmax(model(attack_dataset(attack, x, y, batch_size=size).x), axis=1) != y for size in (7, 16, 50)]
    assert 5 < fooled[0].sum() < 45
    np.testing.assert_array_equal(fooled[0], fooled[1])
    np.testing.assert_array_equal(fooled[0], fooled[2])


def test_few_batch_sizes_and_no_place_lost():
    sizes = {_size_for(count, 256) for count in range(257)}
    assert len(sizes) < 22 and {0, 1, 256} <= sizes
    assert all(count <= _size_for(count, 256) <= max(1.4 * count, count + 2) for count in range(257))
    slots = np.array([4, -1, 7, -1, -1, -1, -1, 9])
    kept = _compacted(slots, 8)
    assert set(kept) >= {0, 2, 7} and len(kept) < 8 and len(set(kept)) == len(kept)


def test_looks_are_rare_where_few_finish_and_every_step_where_many_do():
    assert _until_next_look(np.full(64, 40), 0.0) == 8
    assert _until_next_look(np.full(64, 40), 0.5) == 1
    assert _until_next_look(np.full(64, 3), 0.0) == 3
