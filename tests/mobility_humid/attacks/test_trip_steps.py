"""One step of each training: the loss against NumPy, on trips as they are and on those that an adversary moves."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from common.training.loop import compiled_step
from mobility_humid.training.fast_st_fgsm import fast_st_fgsm, pgd_on_trips
from mobility_humid.training.tasks import CLASSIFICATION, SIAMESE
from tests.helpers.trip_toys import CLASSES, GRID, MODELS, answers, dense, random_samples, tiny_model


def cross_entropy(model, x, y):
    """In training, in double precision."""
    z = np.asarray(model(x, training=True), np.float64)
    z = np.concatenate([np.zeros_like(z), z], axis=1) if z.shape[1] == 1 else z
    return np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y])


@pytest.mark.parametrize("name", ["lstm_concat", "places_symmetric_profile", "places_classes"])
def test_a_step_lowers_the_loss(name):
    tiny, (network, layout) = tiny_model(name), MODELS[name]
    model = type(tiny).from_config(tiny.get_config() | {"dropout": 0.0})
    model.set_weights(tiny.get_weights())
    task = CLASSIFICATION if network == "classifier" else SIAMESE
    x = random_samples(layout, 24, 3)
    y = np.random.default_rng(0).integers(0, CLASSES if network == "classifier" else 2, 24).astype(np.int32)
    before, right = cross_entropy(model, x, y), np.mean(classes(model, x) == y)
    step = compiled_step(model, task.loss, keras.optimizers.SGD(0.01, clipnorm=1.0))
    logs = step((tf.constant(x), tf.constant(y)))
    assert float(logs["loss"]) == pytest.approx(before, rel=1e-4) and float(logs["accuracy"]) == pytest.approx(right)
    assert cross_entropy(model, x, y) < before
    # Nothing is left out of it, but what is met and not learnt.
    moved = [(new != old).any() for new, old in zip(model.get_weights(), tiny.get_weights(), strict=True)]
    assert sum(moved) >= len(model.trainable_variables) - 1


def classes(model, x):
    """The class that a model answers with in training."""
    z = np.asarray(model(x, training=True))
    return z[:, 0] > 0 if z.shape[1] == 1 else z.argmax(axis=1)


@pytest.mark.parametrize("make", [fast_st_fgsm, pgd_on_trips])
def test_a_step_trains_on_what_the_adversary_makes(make):
    model, layout = dense(), MODELS["dense"][1]
    x = random_samples(layout, 24, 3)
    y = answers(model, x)
    clean = cross_entropy(model, x, y)
    adversary = make(layout, GRID, eta=2.0, alpha=1.0, rounds=2)
    step = compiled_step(model, SIAMESE.loss, keras.optimizers.SGD(0.0), adversary=adversary)
    logs = step((tf.constant(x), tf.constant(y)))
    # All of them are answered rightly as they are.
    assert float(logs["accuracy"]) < 0.9 and float(logs["loss"]) > 1.02 * clean
