"""Where gradients are not finite no attack answers with anything but numbers, and such rows are counted."""

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import attacks
from common.evaluation import gradients, predictions, robustness
from tests.helpers.attack_oracles import search
from tests.helpers.misread_toys import CLASSES, LOGITS, WEIGHTS, X, Y

layers = keras.layers


class Gamma(keras.layers.Layer):
    """Infinitely steep at 0."""

    def call(self, x):
        return x**0.45


BLACK = np.where(np.arange(6) == 1, 0, X).astype(np.float32)
BLACK[20:] = X[20:]
STEEP = keras.Sequential([keras.Input((6,)), Gamma(), layers.Dense(CLASSES)])
STEEP.set_weights(WEIGHTS)
STEEP_Y = STEEP(BLACK).numpy().argmax(1)
STEPS = {"eps": 0.05, "alpha": 0.02, "steps": 6}
FINITE = {
    "fgsm": partial(attacks.fgsm, eps=0.05),
    **{f"fgsm {norm}": partial(attacks.fgsm, eps=0.05, norm=norm) for norm in ("l2", "l1")},
    **{f"bim {norm}": partial(attacks.bim, norm=norm, **STEPS) for norm in ("linf", "l2", "l1")},
    **{f"mi_fgsm {norm}": partial(attacks.mi_fgsm, norm=norm, **STEPS) for norm in ("linf", "l2", "l1")},
    "pgd l2, best of two": partial(attacks.pgd, norm="l2", restarts=2, keep="best", random_start=False, **STEPS),
    "targeted": partial(attacks.bim, targeted=True, norm="l2", **STEPS),
    "ddn": partial(attacks.ddn, steps=20),
    "sigma_zero": partial(attacks.sigma_zero, steps=20),
    "cw_l2": partial(attacks.cw_l2, steps=30, search_steps=3, constant=10.0, learning_rate=0.1),
    "cw_l0": partial(attacks.cw_l0, steps=20, search_steps=1, constant=10.0, learning_rate=0.1),
    "features": lambda model, x, y: attacks.iftgsm(model, x, np.roll(np.eye(CLASSES)[y], 1, 1), **STEPS),
}


@pytest.mark.parametrize("name", FINITE)
def test_an_infinite_gradient_gives_finite_examples_that_have_moved(name):
    found = np.asarray(FINITE[name](STEEP, BLACK, STEEP_Y))
    assert np.isfinite(found).all()
    if name != "targeted":
        assert (found != BLACK)[:20].any(1).mean() >= 0.9
    # Rows that have no such entry are attacked as if they were alone.
    np.testing.assert_allclose(found[20:], FINITE[name](STEEP, BLACK[20:], STEEP_Y[20:]), atol=1e-5)


def test_minimal_attacks_succeed_where_the_gradient_is_infinite():
    for name in ("ddn", "cw_l2", "sigma_zero"):
        found = FINITE[name](STEEP, BLACK, STEEP_Y)
        assert (predictions.predict(STEEP, found) != STEEP_Y)[:20].all(), name


def test_infinite_gradients_are_counted():
    found = robustness.robustness(STEEP, BLACK, STEEP_Y, partial(attacks.bim, STEEP, norm="l2", **STEPS))
    assert np.isfinite(found.sizes("l2")).all()
    rows = gradients.gradient_rows(STEEP, BLACK, STEEP_Y)
    assert rows.infinite.tolist() == [True] * 20 + [False] * 20
    assert not rows.zero.any()


def test_a_gradient_of_no_numbers_counts_as_none():
    """Not a single entry says where to go: the row stays, and is among those with a zero gradient."""

    def blind(x):
        size = tf.reduce_sum(x, 1, keepdims=True)
        return LOGITS(tf.where(size > 0, x / size, x))

    x = np.array(X[:4])
    x[0] = 0
    y = predictions.predict(blind, x)
    found = gradients.gradient_rows(blind, x, y)
    assert found.zero.tolist() == found.infinite.tolist() == [True, False, False, False]
    moved = attacks.bim(blind, x, y, norm="l2", **STEPS).numpy()
    assert (moved != x).any(1).tolist() == [False, True, True, True]


def test_finite_gradients_whose_sum_is_not_still_point_somewhere():
    loud = lambda x: LOGITS(x) * 3e37  # noqa: E731
    quiet = attacks.mi_fgsm(LOGITS, X, Y, **STEPS, targeted=True)
    x = tf.constant(X)
    objective = lambda x: (1e38 * tf.reduce_sum(x, 1), tf.zeros(len(X), tf.bool))  # noqa: E731
    for rule in (attacks.ascent(tf.sign, 0.02, 1.0), attacks.adam(0.02)):
        found = search(objective, rule, attacks.linf(x, 0.1), x, 3).x
        np.testing.assert_allclose(found, np.minimum(X + 0.06, 1), atol=1e-3)
    assert np.isfinite(attacks.mi_fgsm(loud, X, Y, **STEPS)).all() and quiet.shape == X.shape


def test_an_attack_that_answers_with_no_numbers_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        robustness.robustness(LOGITS, X, Y, lambda x, y: x * np.nan)


def test_answers_that_are_no_numbers_are_no_class():
    broken = lambda x: tf.where(x[:, :1] > 0.5, np.nan, LOGITS(x))  # noqa: E731
    lost = X[:, 0] > 0.5
    np.testing.assert_array_equal(predictions.predict(broken, X), np.where(lost, -1, Y))
    assert predictions.accuracy(broken, X, Y) == pytest.approx(np.mean(~lost))
    with pytest.raises(ValueError, match="not finite"):
        predictions.predict(LOGITS, np.where(X > 0.9, np.nan, X))


@pytest.mark.parametrize("attack", [FINITE["fgsm"], FINITE["bim l2"], partial(attacks.ddn, steps=3)])
def test_under_xla_what_is_no_image_is_answered_with_no_numbers(attack):
    x = X.copy()
    x[3, 2], x[5, 1], x[7] = np.nan, np.inf, 200
    found = tf.function(lambda x: attack(LOGITS, x, tf.constant(Y)), jit_compile=True)(tf.constant(x)).numpy()
    bad = np.isin(np.arange(len(x)), [3, 5, 7])
    assert np.isnan(found[bad]).all() and np.isfinite(found[~bad]).all()
