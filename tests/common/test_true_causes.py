"""Refusals that name the true cause: the value that is out of range, and that there is nothing at all."""

import keras
import numpy as np
import pytest

from common import attacks, datasets
from common.errors import UserError
from common.evaluation import predictions
from common.training import batches


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])


X, Y = np.full((3, 4), 0.25, np.float32), np.array([0, 1, 2])


def test_a_value_that_is_hardly_outside_does_not_read_as_1(model, tmp_path):
    x = X.copy()
    x[1, 2], x[0, 0] = np.nextafter(np.float32(1), np.float32(2)), 0.00019
    with pytest.raises(ValueError, match=r"received values from 0.00019 to 1.0000001\. "):
        attacks.pgd(model, x, Y, eps=0.1, alpha=0.1, steps=1)
    for dtype, value in ((np.float32, "1.0000001"), (np.float64, "1.0000000000000002")):
        images = np.full((3, 2, 2), 0.25, dtype)
        images[0, 0] = np.nextafter(dtype(1), dtype(2))
        np.savez(tmp_path / "a.npz", x_train=images, x_test=images, y_train=Y, y_test=Y)
        with pytest.raises(UserError, match=rf"a.npz\[x_train\]: {np.dtype(dtype)} values from 0.25 to {value};"):
            datasets.load(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("value", [np.inf, np.nan, -0.5])
def test_the_budget_that_is_none_is_shown(model, value):
    eps = np.array([[0.1], [value], [0.2]], np.float32)
    with pytest.raises(ValueError, match=f"eps must be finite and 0 or more; received {value}"):
        attacks.pgd(model, X, Y, eps=eps, alpha=0.1, steps=1)


def test_no_examples_are_said_to_be_none(model):
    with pytest.raises(UserError, match="x: holds no examples to measure an accuracy on"):
        predictions.accuracy(model, X[:0], Y[:0])
    with pytest.raises(UserError, match="x: holds no examples to train on"):
        batches.batches(X[:0], Y[:0], batch_size=4, seed=0)
    assert predictions.outputs(model, X[:0]).shape == (0, 3)
    assert attacks.pgd(model, X[:0], Y[:0], eps=0.1, alpha=0.1, steps=1).shape == (0, 4)
