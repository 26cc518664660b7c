"""What may be attacked: any callable with logits, or with probabilities that come from a layer which can be cut off."""

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf

from common.attacks import ascent, bim, fgsm, l2, linf, logits_of, pgd, unit_l2
from common.attacks.objectives import untargeted_ce
from tests.helpers.attack_oracles import perceptron, search

pytestmark = pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")

layers = keras.layers


def head_cases() -> dict:
    """Models that end in probabilities, each as (build, classes): build(weights) -> model on (6,)."""

    def sequential(*last):
        return lambda: keras.Sequential([keras.Input((6,)), layers.Dense(5, activation="tanh"), *[f() for f in last]])

    def functional(head):
        def build():
            x = keras.Input((6,))
            return keras.Model(x, head(layers.Dense(5, activation="tanh")(x)))

        return build

    def nested():
        inner = keras.Sequential([keras.Input((5,)), layers.Dense(3, activation="softmax")])
        return functional(inner)()

    def doubly_nested():
        return keras.Sequential([keras.Input((6,)), layers.Rescaling(1.0), nested()])

    def application():
        x = keras.Input((6,))
        y = layers.Reshape((1, 6, 1))(x)
        y = layers.GlobalAveragePooling2D()(layers.Conv2D(5, (1, 3), activation="tanh")(y))
        return keras.Model(x, layers.Dense(3, activation="softmax", name="predictions")(y))

    def grown():
        model = keras.Sequential([keras.Input((6,)), layers.Dense(5, activation="tanh")])
        model(np.zeros((1, 6)))
        model.add(layers.Dense(3, activation="softmax"))
        return model

    def shared():
        softmax, x = layers.Softmax(), keras.Input((6,))
        return keras.Model(x, softmax(layers.Dense(3)(softmax(layers.Dense(5)(x)))))

    return {
        "sequential activation": sequential(lambda: layers.Dense(3, activation="softmax")),
        "sequential without bias": sequential(lambda: layers.Dense(3, activation="softmax", use_bias=False)),
        "sequential layer": sequential(lambda: layers.Dense(3), layers.Softmax),
        "sequential never called": lambda: keras.Sequential([layers.Dense(3, activation="softmax")]),
        "sequential grown": grown,
        "functional activation": functional(layers.Dense(3, activation="softmax")),
        "functional layer": functional(lambda x: layers.Activation("softmax")(layers.Dense(3)(x))),
        "functional softmax": functional(lambda x: layers.Softmax()(layers.Dense(3)(x))),
        "nested": nested,
        "doubly nested": doubly_nested,
        "application": application,
        "shared layer": shared,
        "sigmoid unit": sequential(lambda: layers.Dense(1, activation="sigmoid")),
        "sigmoid layer": functional(lambda x: layers.Activation("sigmoid")(layers.Dense(1)(x))),
        "half precision": sequential(lambda: layers.Dense(3, activation="softmax", dtype="mixed_bfloat16")),
    }


def innermost(model: keras.Model) -> keras.layers.Layer:
    """The last layer with weights, however deep."""
    last = [layer for layer in model.layers if layer.weights][-1]
    return innermost(last) if isinstance(last, keras.Model) else last


@pytest.mark.parametrize("head", head_cases())
def test_probabilities_are_attacked_before_their_activation(head):
    """Where the softmax is 1 to the last digit, a model is attacked like its twin without it, and every row moves."""
    keras.utils.set_random_seed(3)
    model = head_cases()[head]()
    x = tf.constant(np.random.default_rng(0).random((8, 6), dtype=np.float32))
    model(x)
    z = logits_of(model)
    kernel = innermost(model).kernel
    kernel.assign(kernel * 60 / tf.reduce_max(tf.reduce_max(z(x), axis=1) - tf.reduce_min(z(x), axis=1)))
    answer, squashed = np.asarray(model(x), np.float32), tf.nn.softmax(z(x))
    np.testing.assert_allclose(answer, squashed[:, 1:] if answer.shape[1] == 1 else squashed, atol=1e-2)
    y = tf.argmax(z(x), axis=1, output_type=tf.int32)
    for norm, space, direction, eps in (("linf", linf, tf.sign, 0.2), ("l2", l2, unit_l2, 0.5)):
        found = bim(model, x, y, eps=eps, alpha=eps / 4, steps=10, norm=norm)
        # Not compiled: that would take longer than all steps.
        twin = search(untargeted_ce(z, {"y": y}), ascent(direction, eps / 4), space(x, eps), x, 10).x
        np.testing.assert_allclose(found, twin, atol=1e-6)
        assert (found != x).numpy().any(axis=1).all()


class Wrapped(keras.Model):
    """Hides its layers; `last` is what it does at the end."""

    def __init__(self, units: int, last):
        super().__init__()
        self.dense, self.last = layers.Dense(units), last

    def call(self, x):
        return self.last(self.dense(x))


class Doubled(keras.Model):
    """A functional model whose own call does more than its layers."""

    def call(self, x, training=None):
        return 1 - super().call(x, training=training)


def overridden() -> keras.Model:
    x = keras.Input((6,))
    doubled = type("Overridden", (Doubled, type(keras.Model(x, x))), {})
    return doubled(x, layers.Dense(3, activation="softmax")(x))


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Wrapped(3, keras.ops.softmax), "probabilities"),
        (lambda: Wrapped(1, keras.ops.sigmoid), "probabilities"),
        (lambda: keras.Sequential([layers.Dense(3, activation=tf.nn.softmax)]), "probabilities"),
        (lambda: keras.Sequential([layers.Dense(3, activation="sigmoid")]), "several labels"),
        (
            lambda: keras.Sequential(
                [layers.Reshape((6, 1)), layers.Conv1D(3, 6, activation="softmax"), layers.Flatten()]
            ),
            "probabilities",
        ),
        (lambda: keras.Sequential([layers.Reshape((1, 6)), layers.Dense(3)]), "classes"),
        (overridden, "more than its layers show"),
    ],
    ids=[
        "subclassed softmax",
        "subclassed sigmoid",
        "bare function",
        "several labels",
        "flattened",
        "rank",
        "overridden",
    ],
)
def test_what_cannot_be_attacked_is_refused(build, message):
    x = np.random.default_rng(0).random((8, 6), dtype=np.float32)
    with pytest.raises(ValueError, match=message):
        fgsm(build(), x, np.zeros(8, int), eps=0.1)


def test_two_outputs_and_welded_activations_are_refused():
    x = keras.Input((6,))
    two = keras.Model(x, [layers.Dense(3)(x), layers.Dense(3)(x)])
    with pytest.raises(ValueError, match="2 outputs"):
        logits_of(two)
    y = layers.EinsumDense("bi,io->bo", output_shape=3, activation="softmax")(x)
    with pytest.raises(ValueError, match="separate layer"):
        logits_of(keras.Model(x, y))


def test_small_logits_are_not_mistaken_for_probabilities():
    """One plain unit between 0 and 1, and a model of zeros, are logits."""
    x = np.random.default_rng(0).random((8, 6), dtype=np.float32)
    for units, weights in ((1, [np.full((6, 1), 0.1), np.array([0.1])]), (3, [np.zeros((6, 3)), np.zeros(3)])):
        model = keras.Sequential([keras.Input((6,)), layers.Dense(units)])
        model.set_weights(weights)
        assert fgsm(model, x, np.zeros(8, int), eps=0.1).shape == x.shape


@pytest.mark.parametrize("kind", ["sequential", "functional", "subclassed", "function", "partial"])
def test_any_callable_is_a_model(kind):
    net = perceptron()
    x, y = net.data(4)

    class Sub(keras.Model):
        def call(self, x, training=None):
            assert training is False
            return net.model(x)

    inputs = keras.Input((12,))
    model = {
        "sequential": net.model,
        "functional": keras.Model(inputs, net.model(inputs)),
        "subclassed": Sub(),
        "function": lambda x: net.model(x),
        "partial": partial(net.model, training=False),
    }[kind]
    budget = {"eps": 0.1, "alpha": 0.05, "steps": 3}
    np.testing.assert_array_equal(pgd(model, x, y, **budget), pgd(net.model, x, y, **budget))
