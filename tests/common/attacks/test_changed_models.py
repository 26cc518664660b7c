"""Predictions and attacks follow a model whose layers, variables or properties change after the first call."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import attacks
from common.evaluation import gradients, predictions
from common.models import flat
from tests.helpers.misread_toys import CLASSES, LOGITS, PGD, WEIGHTS, X, Y

layers = keras.layers


class Scaled(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.scale = 1.0

    def call(self, x):
        return self.scale * x


def replaced(model):
    model.pop()
    model.add(layers.Dense(CLASSES))
    model.layers[-1].set_weights([-WEIGHTS[0], WEIGHTS[1]])


def normalised(model):
    model.layers[0].adapt(1 - 3 * X)


CHANGES = {
    "new head": replaced,
    "one layer more": lambda model: model.add(layers.Rescaling(-1.0)),
    "activation": lambda model: setattr(model.layers[-1], "activation", keras.ops.negative),
    "own property": lambda model: setattr(model.layers[1], "scale", -1.0),
    "adapted": normalised,
    "weights": lambda model: model.set_weights([*model.get_weights()[:3], -WEIGHTS[0], WEIGHTS[1]]),
    "variable": lambda model: (
        model.layers[-1].enable_lora(2) or model.layers[-1].lora_kernel_b.assign_add(np.ones((2, 3)))
    ),
    "trainable": lambda model: setattr(model, "trainable", False),
}


def network():
    normalisation = layers.Normalization()
    normalisation.adapt(X)
    net = keras.Sequential([keras.Input((6,)), normalisation, Scaled(), layers.Dense(CLASSES)])
    net.layers[-1].set_weights(WEIGHTS)
    return net


@pytest.mark.parametrize("change", CHANGES)
def test_predictions_and_attacks_follow_the_model(change):
    net = network()

    def found():
        return predictions.predict(net, X), predictions.outputs(net, X), attacks.pgd(net, X, Y, **PGD).numpy()

    first = found()
    CHANGES[change](net)
    answers, moved = net(X).numpy(), attacks.pgd(lambda x: net(x, training=False), X, Y, **PGD)
    for ours, wanted in zip(found(), (answers.argmax(1), answers, moved), strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-5)
    assert np.array_equal(first[1], answers) == (change == "trainable")


def test_everything_follows_the_model_that_a_function_holds():
    net = network()
    model = lambda x: net(x, training=False)  # noqa: E731
    runs = {
        "predict": lambda model: predictions.predict(model, X),
        "outputs": lambda model: predictions.outputs(model, X),
        "gradients": lambda model: gradients.gradient_rows(model, X, Y).zero,
        "ddn": lambda model: attacks.ddn(model, X, Y, steps=3),
        "step_ll": lambda model: attacks.step_ll(model, X, eps=0.1),
        "features": lambda model: attacks.fftgsm(model, X, np.eye(CLASSES)[Y], eps=0.1),
    }
    for run in runs.values():
        run(model)
    replaced(net)
    for name, run in runs.items():
        np.testing.assert_allclose(run(model), run(lambda x: net(x, training=False)), atol=1e-6, err_msg=name)


def test_a_changed_model_is_looked_at_anew():
    net = keras.Sequential([keras.Input((6,)), layers.Dense(CLASSES)])
    attacks.fgsm(net, X, Y, eps=0.1)
    net.add(layers.Lambda(tf.nn.softmax))
    with pytest.raises(ValueError, match="probabilities"):
        attacks.fgsm(net, X, Y, eps=0.1)
    net.pop()
    net.add(layers.Dense(2))
    with pytest.raises(ValueError, match="labels must be 0 to 1"):
        attacks.fgsm(net, X, np.full(40, 2), eps=0.1)


def test_a_model_that_stays_is_compiled_once():
    traced = []

    class Counting(keras.Model):
        def call(self, x):
            traced.append(1)
            return LOGITS(x)

    net = Counting()
    for _ in range(3):
        predictions.predict(net, X)
        attacks.fgsm(net, X, Y, eps=0.1)
        net.compile("sgd", "mse")
        count, traced[:] = len(traced), []
    assert count == 0


@pytest.mark.parametrize("kind", ["number", "tensor", "variable"])
def test_what_a_model_writes_down_at_each_call_is_no_change(kind):
    traced = []

    class Noting(layers.Layer):
        def build(self, shape):
            self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)
            self.calls, self.last, self.scale = 0, None, 1.0

        def call(self, x):
            traced.append(1)
            if kind == "number":
                self.calls += 1
            elif kind == "tensor":
                self.last = x
            else:
                self.count.assign_add(1.0)
            return self.scale * x

    net = keras.Sequential([keras.Input((6,)), Noting(), layers.Dense(CLASSES)])
    moved = [attacks.fgsm(net, X, Y, eps=0.1) for _ in range(2)]
    predictions.predict(net, X)
    net(X)
    traced.clear()
    attacks.fgsm(net, X, Y, eps=0.1)
    predictions.predict(net, X)
    assert not traced
    net.layers[0].scale = -1.0
    assert np.abs(attacks.fgsm(net, X, Y, eps=0.1) - moved[0]).max() > 0.1


def test_a_model_taken_apart_follows_the_model():
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(CLASSES), layers.ReLU()])
    net = keras.Sequential([keras.Input((6,)), inner])
    first = flat(net)
    assert flat(net) is first
    low_rank = lambda: net.layers[0].layers[0].enable_lora(1)  # noqa: E731
    for change in (inner.pop, lambda: net.add(layers.Dense(2)), low_rank, net.pop):
        change()
        np.testing.assert_allclose(flat(net)(X), net(X), atol=1e-6)
