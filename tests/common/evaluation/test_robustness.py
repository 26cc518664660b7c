"""The evaluation: entries, outcomes, unions, common examples, comparisons."""

import importlib
from functools import partial

import keras
import numpy as np
import pytest

from common import attacks
from common.evaluation.robustness import (
    Entry,
    Evaluation,
    Examples,
    constant_answer,
    difference,
    join,
    of_classifier,
    union,
)
from common.evaluation.statistics import bootstrap, weighted_mean, wilson

GREY = np.float32(255)


def threshold_model(at):
    """Answers 1 above `at` grey levels."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    model.layers[0].set_weights([np.array([[0.0, 255.0]], np.float32), np.array([0.0, -at], np.float32)])
    return model


def held(name, robust, *, eps=0.1, control=False, x=None):
    """A function that leaves examples as `robust` says: x is what `scored` reads."""
    robust = np.asarray(robust, bool)
    return Entry(
        name=name,
        attack=lambda x, y, index: np.where(robust[index], 1.0, 0.0)[:, None].astype(np.float32),
        eps=eps,
        control=control,
        subset=len(robust),
    )


def evaluation(count=6, clean=(1, 1, 1, 1, 1, 0), identity=None, **options):
    """Examples whose x is 1 where they are answered rightly."""
    x = np.array(clean[:count], np.float32)[:, None]
    examples = Examples(x, np.arange(count), identity)
    return Evaluation(examples, lambda x, rows: x[:, 0] > 0.5, eight_bit=False, **options)


def test_an_attack_that_stops_is_run_again_where_quantisation_took_it_back():
    model = threshold_model(100.3)
    x, y = np.array([[100], [90], [99]], np.float32) / GREY, np.zeros(3, np.int32)
    attack = partial(attacks.bim, model, eps=2 / 255, alpha=0.4 / 255, steps=5)
    found = {
        stop: of_classifier(model, x, y).run(Entry(name="bim", attack=partial(attack, stop=stop), eps=2 / 255))
        for stop in (False, True)
    }
    # The first crosses at 100.4, which a file holds as 100; with all steps it is 102.
    assert found[True].found.tolist() == [False, True, False]
    for of in found.values():
        assert of.robust.tolist() == [False, True, False]
    assert found[True].x[0] == pytest.approx(102 / 255) and found[True].gradients > found[True].robust.size
    assert found[False].found is None and found[False].gradients == 15


def test_so_is_autoattack_whose_examples_have_hardly_crossed(monkeypatch):
    model = threshold_model(100.3)
    x, y = np.array([[100], [90], [99]], np.float32) / GREY, np.zeros(3, np.int32)
    attack = partial(attacks.autoattacked, model, eps=2 / 255, version="fast", stop=True)
    barely = {"barely": lambda x, y: np.minimum(x + 2 / 255, 100.4 / 255).astype(np.float32)}
    # The package has a function of that name.
    module = importlib.import_module("common.attacks.autoattack")
    monkeypatch.setattr(module, "plan", lambda *_, **__: (barely, ()))
    found = of_classifier(model, x, y).run(Entry(name="autoattack", attack=attack, eps=2 / 255))
    assert found.found.tolist() == [False, True, False] == found.robust.tolist()


def test_the_same_draws_where_it_is_run_again():
    """A random start is that of the example's own place, whoever else is run again."""
    model = threshold_model(100.3)
    x, y = np.linspace(96, 100, 30, dtype=np.float32)[:, None] / GREY, np.zeros(30, np.int32)
    attack = partial(attacks.pgd, model, eps=1.2 / 255, alpha=0.3 / 255, steps=3, seed=5)
    with_stop = of_classifier(model, x, y).run(Entry(name="pgd", attack=partial(attack, stop=True)))
    without = of_classifier(model, x, y).run(Entry(name="pgd", attack=attack))
    again = with_stop.found != with_stop.after
    np.testing.assert_array_equal(with_stop.x[again], without.x[again])


def test_unions_and_tables_go_by_threat_model_and_common_examples():
    of = evaluation()
    of.run(held("a", [0, 1, 1, 1, 1, 1]))
    of.run(held("b", [1, 0, 1, 1]))
    of.run(held("noise", [1, 1, 0, 1, 1, 0], control=True))
    of.run(held("far", [0, 0, 0, 0, 0, 0], eps=0.5))
    left = of.union("linf", 0.1)
    assert left.robust.tolist() == [False, False, False, True] and left.entry.name == "all"
    # Each is shown as the first attack that takes it left it; one attack alone has no union.
    assert of.union("linf", 0.5) is None
    rows = list(of.rows())
    value = {(row["attack"], row["eps"], row["metric"]): (row["value"], row["n"]) for row in rows}
    assert value["a", 0.1, "accuracy"] == (pytest.approx(4 / 6), 6) and value["b", 0.1, "accuracy"] == (0.75, 4)
    assert value["all", 0.1, "accuracy"] == (0.25, 4) and ("all", 0.5, "accuracy") not in value
    assert value["a", 0.1, "accuracy_common"] == (0.75, 4) and value["noise", 0.1, "accuracy_common"] == (0.75, 4)
    assert ("far", 0.5, "accuracy_common") not in value
    # Success is among what was right before.
    assert value["a", 0.1, "success"] == (0.2, 5)
    one = next(row for row in rows if row["attack"] == "b" and row["metric"] == "accuracy")
    assert (one["low"], one["high"]) == wilson(0.75, 4)
    assert {row["attack"]: row.get("gradients") for row in rows} and not [r for r in rows if r["metric"] == "gradients"]


def test_a_narrower_norm_belongs_to_the_ball_that_it_is_searched_in():
    of = evaluation()
    few = held("l0", [0, 1, 1, 1, 1, 1])
    of.run(Entry(name="l0", attack=few.attack, norm="l0", eps=2, within=("linf", 2)))
    of.run(held("linf", [1, 0, 1, 1, 1, 1], eps=2))
    assert of.union("linf", 2).robust.sum() == 3
    assert next(iter(of.rows()))["norm"] == "l0"


def test_options_with_a_row_for_each_example_follow_it_and_a_seed_is_for_all():
    """Two examples, and a seed that is a pair: only one of the two is run again."""
    model = threshold_model(100.3)
    x, y = np.array([[100], [90]], np.float32) / GREY, np.zeros(2, np.int32)
    eps = np.array([3, 1], np.float32) / GREY
    attack = partial(attacks.pgd, model, eps=eps, alpha=0.4 / 255, steps=8, random_start=False, seed=np.array([1, 2]))
    found = of_classifier(model, x, y).run(Entry(name="pgd", attack=partial(attack, stop=True)))
    assert found.found.tolist() == [False, True] and found.robust.tolist() == [False, True]
    assert found.x[0] == pytest.approx(103 / 255)


def test_the_clean_examples_are_an_outcome_and_a_part_has_no_cost():
    of = evaluation()
    clean = of.unattacked()
    assert clean.entry.columns == {"attack": "clean", "norm": "linf", "eps": 0.0} and clean.robust.sum() == 5
    whole = of_classifier(threshold_model(100.3), np.zeros((4, 1), np.float32), np.zeros(4, np.int32))
    bim = partial(attacks.bim, threshold_model(100.3), eps=0.1, alpha=0.1, steps=2)
    cost = whole.run(Entry(name="bim", attack=bim))
    assert cost.gradients == 8 and cost.first(2).gradients is None


def test_curves_transfer_and_no_images_kept():
    of = evaluation(keep=False)
    for eps, robust in ((0.3, [0, 0, 0, 1, 1, 1]), (0.1, [0, 1, 1, 1, 1, 1])):
        of.run(held("a", robust, eps=eps))
    rates = {eps: (found.value, found.n) for eps, found in of.curve("a").items()}
    assert rates == {0.0: (pytest.approx(5 / 6), 6), 0.1: (pytest.approx(4 / 6), 6), 0.3: (pytest.approx(2 / 6), 6)}
    assert list(of.curve("a")) == [0.0, 0.1, 0.3]
    assert of.outcome("a").x is None and of.outcome("a", 0.1).robust.sum() == 4 and of.outcome("b") is None
    shown = of.show(Entry(name="transfer", eps=0.1), np.zeros((6, 1), np.float32))
    assert not shown.after.any() and shown.gradients is None
    assert union([of.outcome("a", 0.1), shown]).robust.sum() == 0


def test_scores_become_answers_at_a_threshold():
    x = np.array([[0.2], [0.4], [0.8]], np.float32)
    of = Evaluation(Examples(x, np.arange(3)), lambda x, rows: x[:, 0], as_found=True)
    found = of.run(Entry(name="up", attack=lambda x, y: x + 0.1, eps=0.1))
    np.testing.assert_allclose(found.found, [0.3, 0.5, 0.9], atol=1e-6)
    np.testing.assert_allclose(found.after * 255, np.rint(found.found * 255), atol=1e-4)
    near = of.at(lambda score: score < 0.45)
    assert near.before.tolist() == [True, True, False] and near.outcomes[0].success.tolist() == [False, True, False]
    assert of.before.dtype == np.float32


def test_comparisons_are_paired_and_by_identity():
    identity = np.array([0, 0, 1, 1, 2, 2])
    of = evaluation(identity=identity)
    first, second = of.run(held("a", [0, 1, 1, 0, 1, 1])), of.run(held("b", [0, 0, 1, 1]))
    found = difference(first, second)
    gain = first.robust[:4].astype(float) - second.robust[:4]
    assert found.value == gain.mean() == 0 and found.n == 4
    assert (found.low, found.high) == bootstrap(weighted_mean(gain), identity[:4])
    assert difference(first, second, lambda outcome: outcome.clean).value == 0
    rate = first.rate(first.robust)
    assert (rate.low, rate.high) == bootstrap(weighted_mean(first.robust), identity)
    both = join([first, second])
    assert len(both.robust) == 10 and both.robust.tolist() == [*first.robust, *second.robust]
    assert len(both.examples.identity) == 10


def test_the_constant_answer_is_the_most_frequent():
    assert constant_answer(np.array([2, 1, 2, 0])).tolist() == [True, False, True, False]
