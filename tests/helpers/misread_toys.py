"""What the tests of misread input attack and train: one dense layer of known weights, and what may stand behind it."""

import keras
import numpy as np
import pytest

from common.errors import UserError
from common.training import loop
from common.training.batches import batches as array_batches

layers = keras.layers
CLASSES = 3
WEIGHTS = [np.random.default_rng(5).normal(size=(6, CLASSES)).astype(np.float32), np.zeros(CLASSES, np.float32)]
X = np.random.default_rng(0).random((40, 6), np.float32)
PGD = {"eps": 0.2, "alpha": 0.05, "steps": 10}


def built(head, policy="float32", scale=1.0):
    """A model on (6,) of one dense layer, of known weights times `scale`, and what `head` puts on it."""
    keras.mixed_precision.set_global_policy(policy)
    try:
        inputs = keras.Input((6,))
        dense = layers.Dense(CLASSES)
        model = keras.Model(inputs, head(dense(inputs)))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    dense.set_weights([scale * w for w in WEIGHTS])
    return model


def plain(z):
    return layers.Activation("linear", dtype="float32")(z)


LOGITS = built(plain)
Y = LOGITS(X).numpy().argmax(1)


def called(model):
    model(X)
    return model


def fitted(model, x=X, y=Y, loss=loop.cross_entropy, **more):
    batches = array_batches(x, y, batch_size=20, seed=0)
    return loop.train(model, batches, loss, keras.optimizers.SGD(0.1), epochs=1, verbose=False, **more)[0]


def refusal(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 300
    return text
