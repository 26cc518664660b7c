"""What hides slopes from attacks is found, named and gone around, and a sound model is left as it is."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from common.attacks import RandomModel, value_and_gradient
from common.attacks.objectives import untargeted_margin
from common.evaluation.checks import slopes
from common.evaluation.views import look, slopes_of
from tests.helpers.digit_defences import (
    Answer,
    Hidden,
    Levels,
    Mean,
    Noisy,
    Rounded,
    Three,
    Votes,
    classifier,
    right_ones,
)


def seen(model, count=64):
    return look(model, *right_ones(model, count))


def test_a_sound_model_is_attacked_as_it_is():
    model = classifier()
    found = seen(model)
    assert found.mechanism == "none" and not found.differ and not found.probabilities
    assert found.slopes.correlation > 0.999 and found.slopes.error < 0.05
    assert [view.model for view in found.views] == [model]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_is_no_mechanism(policy):
    """To which the steps of finite differences are none."""
    keras.config.set_dtype_policy(policy)
    try:
        model = classifier()
    finally:
        keras.config.set_dtype_policy("float32")
    found = seen(model)
    assert found.mechanism == "none" and found.slopes.half and found.slopes.correlation is None
    assert slopes(found).passed is None and slopes(found).note == "half precision rounds them"


def test_a_slope_that_is_wrong_is_seen():
    """Finite differences against the gradient of another function."""

    @tf.custom_gradient
    def lying(x):
        signs = tf.sign(tf.sin(1000.0 * tf.reshape(tf.range(64, dtype=tf.float32), [8, 8, 1])))
        return x, lambda slope: slope * signs

    model = classifier()
    x, y = (tf.constant(each) for each in right_ones(model, 16))
    assert abs(slopes_of(lambda x: model(lying(x)), x, y).correlation) < 0.9


@pytest.mark.parametrize("scale", [1e3, 1e4])
def test_scaled_logits(scale):
    found = seen(classifier(after=[keras.layers.Rescaling(scale)]))
    assert found.mechanism == "scaled logits" and found.slopes.zero > 0.01 and found.slopes.flat == 0


def test_a_softmax_that_hides_is_cut_off():
    model = classifier(after=[Hidden()])
    found = seen(model)
    assert found.mechanism == "scaled logits" and found.probabilities
    (view,) = found.views
    x, y = right_ones(model, 32)
    logits = np.asarray(view.model(x))
    assert (logits.argmax(axis=1) == y).all() and logits.min() < 0


def test_a_softmax_that_shows_is_no_mechanism():
    assert seen(classifier(after=[keras.layers.Softmax()])).mechanism == "none"


def test_a_function_that_answers_with_probabilities():
    model = classifier()
    found = look(lambda x: tf.nn.softmax(model(x)), *right_ones(model, 32))
    assert found.mechanism == "scaled logits" and found.views[0].words == "the logarithm of its answers"


@pytest.mark.parametrize(
    ("before", "named"),
    [([Rounded(name="rounded")], ("rounded",)), ([Levels(name="levels"), Mean()], ("levels",))],
)
def test_steps_get_the_slope_of_their_secants(before, named):
    model = classifier(*before)
    x, y = right_ones(model, 32)
    found = look(model, x, y)
    assert found.mechanism == "non-differentiable" and found.layers == named
    assert found.slopes.missing or found.slopes.flat == 1
    view = found.views[0]
    assert view.exact and np.array_equal(view.model(tf.constant(x)), model(x))
    margin = untargeted_margin(view.model, {"y": y})
    value, _, gradient = value_and_gradient(margin, tf.constant(x))
    # A step of a level along it makes the margin worse for the defence in nearly all cases.
    moved = margin(tf.clip_by_value(x + 0.2 * tf.sign(gradient), 0, 1))[0]
    assert float(tf.reduce_mean(tf.cast(moved > value, tf.float32))) > 0.9


def test_answers_without_scores_are_imitated():
    model = classifier(after=[Three(), Votes(name="votes")])
    found = seen(model)
    assert found.mechanism == "non-differentiable" and found.layers == ("votes",)
    view = found.views[0]
    x, y = right_ones(model, 64)
    assert not view.exact and (np.argmax(view.model(tf.constant(x)), axis=1) == y).mean() > 0.9


def test_an_answer_alone_is_cut_off():
    found = seen(classifier(after=[Answer(name="answer")]))
    assert found.mechanism == "non-differentiable" and found.layers == ("answer",) and found.views[0].exact


def test_a_model_that_draws_is_attacked_on_its_mean():
    found = seen(classifier(Noisy()))
    assert found.mechanism == "random" and found.differ and isinstance(found.views[0].model, RandomModel)


def test_nothing_to_climb_on():
    """A function that shows no layers and has no slope."""
    model = classifier()
    found = look(lambda x: tf.stop_gradient(model(x)), *right_ones(model, 16))
    assert found.slopes.missing and not found.views and found.mechanism == "non-differentiable"
