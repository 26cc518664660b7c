"""B16: planted points are found by attacks that work, and weak attacks are called so."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from common.attacks import NOISE, Ascent, in_ball, untargeted_ce, worst_case
from common.attacks.apgd import auto_pgd
from common.attacks.threat_models import linf
from common.attacks.updates import UpdateRule
from common.evaluation.read_out import features_of, find_planted
from tests.helpers.digit_defences import Answer, classifier, right_ones

EPS = 0.1
STEPS = {"steps": 100, "restarts": 1}
PLAIN = {"steps": 40, "alpha": EPS / 4}


@pytest.fixture(scope="module")
def scene():
    model = classifier()
    return features_of(model), right_ones(model, 32)[0]


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5), ("l1", 3.0)])
def test_what_works_finds_them(scene, norm, eps):
    features, x = scene
    attack = auto_pgd(norm, "margin", shrinking=norm == "l1")
    found = find_planted(features, x, attack, STEPS, eps=eps, norm=norm, inner=400)
    assert found.planted.sum() >= 30 and found.passed, found
    # That they are hard to come by is what makes it a test.
    assert found.random.value <= 0.2


def descent(inputs, threat_model):
    rule = Ascent("linf")(inputs, threat_model)

    def step(state, x, value, success, gradient, *rest):
        return rule.step(state, x, value, success, -gradient, *rest)

    return UpdateRule(rule.init, step)


def still(inputs, threat_model):
    return UpdateRule(lambda x: (), lambda state, x, *told: (x, state))


def near(inputs):
    return linf(inputs["x"], inputs["eps"] / 4, inputs["low"], inputs["high"], None)


STRONG = in_ball(untargeted_ce, selection=worst_case)
WEAK = {
    "looks at no model": (NOISE, {"alpha": 0.0, "steps": 0}),
    "one small step": (STRONG, {"alpha": EPS / 10, "steps": 1}),
    "goes down": (dataclasses.replace(STRONG, update=descent), PLAIN),
    "stays where it is": (dataclasses.replace(STRONG, update=still), PLAIN),
    "a quarter of the ball": (dataclasses.replace(STRONG, threat_model=near), PLAIN),
}


@pytest.mark.parametrize("name", WEAK)
def test_weak_attacks_are_called_so(scene, name):
    features, x = scene
    attack, inputs = WEAK[name]
    found = find_planted(features, x, attack, inputs, eps=EPS, inner=400)
    assert not found.passed and found.found.high < 0.95, found


def test_a_detector_must_be_passed_too(scene):
    """An attack that ignores a detector finds what the detector leaves of what it finds anyway; on the inverted one,
    the rest."""
    features, x = scene
    attack = auto_pgd("linf", "margin")

    def bright(x):
        return tf.reduce_mean(tf.reshape(x, [len(x), -1])[:, :32], axis=1) > tf.reduce_mean(
            tf.reshape(x, [len(x), -1])[:, 32:], axis=1
        )

    found = [
        find_planted(features, x, attack, STEPS, eps=0.3, inner=200, accepted=accepted)
        for accepted in (bright, lambda x: ~bright(x))
    ]
    assert all(each.found.value < 0.999 or each.planted.sum() < len(x) for each in found)
    assert sum(int(each.planted.sum()) for each in found) >= len(x) - 2


def test_a_part_of_the_examples_gets_what_all_get():
    """Draws are tied to places."""
    model = classifier()
    x, attack = right_ones(model, 6)[0], auto_pgd("linf", "margin")
    options = {"eps": EPS, "inner": 50}
    whole, rows = find_planted(features_of(model), x, attack, STEPS, **options), np.array([1, 4])
    part = find_planted(features_of(model), x[rows], attack, STEPS, index=rows, **options)
    for name in ("planted", "hits", "lucky"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[rows])


def test_nothing_can_be_planted_where_features_are_the_same():
    model = classifier(after=[Answer()])
    found = find_planted(model, right_ones(model, 4)[0], auto_pgd("linf", "margin"), STEPS, eps=1e-4, inner=50)
    assert not (found.planted.any() or found.hits.any() or found.lucky.any())


def test_a_model_without_a_last_affine_layer():
    assert features_of(lambda x: x) is None
    features = features_of(classifier(after=[Answer()]))
    assert features.output_shape == (None, 128)
    assert np.isfinite(features(right_ones(classifier(), 2)[0])).all()
