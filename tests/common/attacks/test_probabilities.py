"""Probabilities are not logits, in any precision: cut before the activation or refused, in attacks and in training."""

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import attacks
from common.attacks.logits import probabilities
from common.evaluation import gradients, predictions, robustness
from common.training import loop
from common.training.methods import pgd_training, trades_training
from tests.helpers.misread_toys import CLASSES, LOGITS, PGD, WEIGHTS, X, Y, built, called, fitted, plain, refusal

layers = keras.layers
HALVES = ("mixed_float16", "mixed_bfloat16")


def in_float32(z):
    return plain(layers.Softmax()(z))


class Hidden(keras.Model):
    """`last` after a dense layer, where nobody can see it."""

    def __init__(self, last, units=CLASSES, **arguments):
        super().__init__(**arguments)
        self.dense, self.last = layers.Dense(units), last

    def call(self, x):
        return self.last(self.dense(x))


SOFTMAX = {
    "operation": keras.ops.softmax,
    "cast": in_float32,
    "lambda": lambda z: layers.Lambda(tf.nn.softmax)(z),
    "average": lambda z: layers.Average(dtype="float32")([keras.ops.softmax(z), keras.ops.softmax(z / 2)]),
}


@pytest.mark.parametrize("policy", ("float32", *HALVES))
@pytest.mark.parametrize("head", SOFTMAX)
def test_probabilities_of_any_precision_are_refused(head, policy):
    model = built(SOFTMAX[head], policy)
    with pytest.raises(ValueError, match="answers with probabilities"):
        attacks.fgsm(model, X, Y, eps=0.1)
    with pytest.raises(ValueError, match="answers with probabilities"):
        robustness.robustness(model, X, Y, lambda x, y: x)
    # Their order is that of the logits.
    assert (predictions.predict(model, X) == Y).mean() >= 0.95


@pytest.mark.parametrize("policy", HALVES)
def test_hidden_probabilities_of_half_precision_are_refused(policy):
    with pytest.raises(ValueError, match="answers with probabilities"):
        attacks.fgsm(Hidden(keras.ops.softmax, dtype=policy), X, Y, eps=0.1)


@pytest.mark.parametrize("classes", [2, 5, 100])
@pytest.mark.parametrize("policy", HALVES)
def test_sums_of_half_precision_may_miss_one(policy, classes):
    """By the roundings of every sum and quotient, and more with some weights than with others."""
    for seed in range(20):
        z = tf.random.stateless_normal([8, classes], [seed, classes], 0.0, 1.0 + seed)
        half = tf.nn.softmax(tf.cast(z, policy.removeprefix("mixed_")))
        assert probabilities(tf.cast(half, tf.float32), (policy.removeprefix("mixed_"),))


@pytest.mark.parametrize("scale", [1, 20])
@pytest.mark.parametrize("policy", ("float32", *HALVES))
def test_half_precision_is_attacked_as_well_as_its_twin(policy, scale):
    """With logits far apart a 16-bit float holds nothing of the cross-entropy's slope."""
    attack = partial(attacks.pgd, x=X, y=Y, **PGD)
    twin = predictions.accuracy(LOGITS, attack(built(plain, scale=scale)), Y)
    for head in (plain, lambda z: layers.Activation("softmax", dtype="float32")(z)):
        model = built(head, policy, scale)
        assert predictions.accuracy(LOGITS, attack(model), Y) <= twin + 0.03
        assert not gradients.gradient_rows(model, X, Y).zero.any()


def test_logits_in_half_precision_are_not_mistaken():
    for policy in HALVES:
        for scale in (0.0, 0.01, 0.3):
            assert attacks.fgsm(built(plain, policy, scale), X[:1], [0], eps=0.1).shape == (1, 6)


def test_several_labels_at_once_are_refused():
    for head in (keras.ops.sigmoid, lambda z: plain(keras.ops.sigmoid(z))):
        with pytest.raises(ValueError, match="several labels"):
            attacks.fgsm(built(head), X, Y, eps=0.1)


def test_one_probability_is_no_answer():
    """Above 0 throughout, it would be read as class 1 throughout."""
    with pytest.raises(ValueError, match="probabilities"):
        predictions.predict(Hidden(keras.ops.sigmoid, units=1), X)


@pytest.mark.parametrize("head", [*SOFTMAX, "hidden", "sigmoid"])
def test_training_wants_logits(head):
    model = {
        "hidden": lambda: called(Hidden(keras.ops.softmax)),
        "sigmoid": lambda: keras.Sequential([layers.Dense(1, activation="sigmoid")]),
    }.get(head, lambda: built(SOFTMAX[head]))()
    text = refusal(lambda: fitted(model, y=np.minimum(Y, 1)))
    assert "ends in" in text or "probabilit" in text


@pytest.mark.parametrize("policy", HALVES)
def test_training_wants_logits_in_half_precision(policy):
    for head in ("operation", "lambda"):
        assert "ends in softmax" in (text := refusal(lambda: fitted(built(SOFTMAX[head], policy)))) or "prob" in text  # noqa: B023
    assert np.isfinite(fitted(built(plain, policy))["loss"])


def test_adversarial_training_wants_logits_too():
    model, batch = built(keras.ops.softmax), (tf.constant(X), tf.constant(Y))
    assert "ends in softmax" in refusal(lambda: pgd_training(**PGD).loss(model, batch))
    assert "ends in softmax" in refusal(lambda: trades_training(**PGD).loss(model, (*batch, tf.constant(X))))


def test_one_logit_is_trained_as_two():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(1)])
    model.set_weights([WEIGHTS[0][:, :1], WEIGHTS[1][:1]])
    z, y = model(X).numpy()[:, 0], np.minimum(Y, 1)
    wanted = np.mean(np.logaddexp(0, z) - y * z)
    terms, logged = loop.cross_entropy(model, (tf.constant(X), tf.constant(y)))
    assert float(terms["cross_entropy"]) == pytest.approx(wanted, rel=1e-5)
    assert float(logged["accuracy"]) == pytest.approx(np.mean((z > 0) == y))


OWN = {
    "tf.nn.softmax": lambda: [layers.Dense(CLASSES, activation=tf.nn.softmax)],
    "lambda": lambda: [layers.Dense(CLASSES, activation=lambda z: keras.ops.softmax(z))],
    "activation layer": lambda: [layers.Dense(CLASSES), layers.Activation(lambda z: keras.ops.softmax(z))],
    "logistic": lambda: [layers.Dense(1, activation=lambda z: 1 / (1 + keras.ops.exp(-z)))],
}


@pytest.mark.parametrize("policy", ["float32", *HALVES])
@pytest.mark.parametrize("head", OWN)
def test_activations_that_are_no_keras_functions_are_found_by_their_numbers(head, policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = keras.Sequential([keras.Input((6,)), *OWN[head]()])
    finally:
        keras.config.set_dtype_policy("float32")
    y = np.minimum(Y, 1)
    with pytest.raises(ValueError, match="probabilities"):
        attacks.fgsm(model, X, y, eps=0.1)
    assert "probabilit" in refusal(lambda: fitted(model, y=y))


def test_a_dictionary_of_logits_is_refused():
    images = keras.Input((6,))
    model = keras.Model(images, {"logits": layers.Dense(CLASSES)(images)})
    with pytest.raises(ValueError, match="dictionary; pass a function"):
        attacks.fgsm(model, X, Y, eps=0.1)
