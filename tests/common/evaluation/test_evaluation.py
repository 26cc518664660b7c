"""Accuracy, perturbation sizes and image quality against plain formulas."""

from functools import partial

import keras
import numpy as np
import pytest

from common import attacks
from common.evaluation import gradients, predictions, quality, robustness


def test_perturbation_sizes():
    x = np.zeros((2, 2, 3))
    changed = np.array([[[0.5, 0, 0], [0, -0.25, 0]], [[0, 0, 0], [0, 0, 0]]])
    sizes = quality.perturbation_sizes(x, changed)
    assert sizes["linf"].tolist() == [0.5, 0] and sizes["l1"].tolist() == [0.75, 0] and sizes["l0"].tolist() == [2, 0]
    assert sizes["l2"].tolist() == pytest.approx([np.sqrt(0.3125), 0])


def test_psnr_and_ssim():
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (3, 32, 32, 3), np.uint8)
    changed = np.clip(x.astype(int) + random.integers(-9, 10, x.shape), 0, 255).astype(np.uint8)
    mse = ((x.astype(float) - changed) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(quality.psnr(x, changed), 10 * np.log10(255**2 / mse), rtol=1e-5)
    np.testing.assert_allclose(quality.ssim(x, x), 1.0, rtol=1e-6)
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2

    def local(a):
        tiles = np.lib.stride_tricks.sliding_window_view(a, (11, 11), axis=(1, 2))
        return (tiles * window).sum(axis=(-1, -2))

    a, b = x.astype(float), changed.astype(float)
    ma, mb = local(a), local(b)
    va, vb, cab = local(a * a) - ma**2, local(b * b) - mb**2, local(a * b) - ma * mb
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = ((2 * ma * mb + c1) * (2 * cab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(quality.ssim(x, changed), expected, atol=2e-4)
    assert quality.ssim(x[:, :6, :6], changed[:, :6, :6]).shape == (3,)


def test_predict_reads_bytes_as_unit_interval_and_any_batch_size():
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(5)])
    x = np.random.default_rng(1).integers(0, 256, (23, 4, 4, 1), np.uint8)
    expected = model(x / np.float32(255)).numpy().argmax(1)
    assert (predictions.predict(model, x, batch_size=7) == expected).all()
    assert (predictions.predict(model, x / np.float32(255)) == expected).all()
    np.testing.assert_allclose(predictions.outputs(model, x, batch_size=7), model(x / np.float32(255)), atol=1e-6)
    assert predictions.accuracy(model, x, expected) == 1.0
    assert predictions.accuracy(model, x, (expected + 1) % 5) == 0.0


def test_outputs_are_those_of_inference_with_the_weights_of_now():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dropout(0.9, seed=0)])
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    before = predictions.outputs(model, x, batch_size=2)
    np.testing.assert_allclose(before, model(x, training=False), atol=1e-6)
    model.set_weights([2 * w for w in model.get_weights()])
    np.testing.assert_allclose(predictions.outputs(model, x), 2 * before, atol=1e-5)


def test_robustness_counts_example_by_example_on_what_is_stored():
    """A15, B13: zero-gradient rows are counted; success is judged after rounding to 8 bits."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.ReLU(), keras.layers.Dense(2, use_bias=False)])
    # The second class wins by the first coordinate; the third and fourth weigh nothing.
    model.layers[-1].set_weights([np.array([[-10.0, 10.0], [10.0, -10.0], [0.0, 0.0], [0.0, 0.0]], np.float32)])

    def fgsm(eps):
        return lambda x, y, index: attacks.fgsm(model, x, y, eps=eps)

    grid = np.float32(255)
    x = np.array([[140, 120, 9, 9], [200, 50, 9, 9], [100, 150, 9, 9], [0, 0, 0, 0]], np.float32) / grid
    y = np.array([1, 1, 1, 0], np.int32)
    found = robustness.robustness(model, x, y, fgsm(12 / 255), batch_size=3)
    assert found.clean.tolist() == [True, True, False, True]
    assert found.robust.tolist() == [False, True, False, True]
    assert found.sizes("linf")[:3] == pytest.approx(12 / 255)
    assert found.sizes("l2")[1] == pytest.approx(12 / 255 * np.sqrt(2), rel=1e-5)
    # Only what succeeds has a distance, and what was wrong before has none to go.
    assert found.distances("linf").tolist() == [pytest.approx(12 / 255), np.inf, 0, np.inf]
    assert gradients.gradient_rows(model, x, y).zero.tolist() == [False, False, False, True]
    # A shift of less than half a grey level is gone once the image is stored.
    tiny = robustness.robustness(model, x, y, fgsm(0.4 / 255))
    assert (tiny.sizes("linf") == 0).all()
    kept = robustness.robustness(model, x, y, fgsm(0.4 / 255), eight_bit=False)
    assert kept.sizes("linf")[0] == pytest.approx(0.4 / 255, rel=1e-4)


def test_no_examples_are_robust_in_no_way_and_no_network_is_asked_about_them():
    """What an attack has left may be nothing, of which not every layer can make something."""

    class Strict(keras.layers.Layer):
        def call(self, x):
            if x.shape[0] == 0:
                raise ValueError("a batch of none")
            return x

    model = keras.Sequential([keras.Input((6,)), Strict(), keras.layers.Dense(3)])
    attack = partial(attacks.pgd, model, eps=0.1, alpha=0.05, steps=2, stop=True)
    found = robustness.robustness(model, np.zeros((0, 6), np.float32), np.zeros(0, np.int32), attack)
    assert found.robust.shape == (0,) and predictions.predict(model, np.zeros((0, 6), np.float32)).shape == (0,)
