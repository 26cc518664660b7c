"""The benchmark of AAD's training step."""

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import attention

OPTIONS = attention.Options(batch_size=4)


@pytest.fixture(scope="module")
def measured():
    """Images, and the parts, which are compiled when they are first called."""
    x = tf.constant(np.random.default_rng(0).random((4, 16, 16, 3), np.float32))
    return x, attention._parts(OPTIONS, "small_cnn", x, tf.constant([0, 1, 2, 3]))


def test_the_parts_are_those_of_the_step(measured):
    x, parts = measured
    assert set(parts) == {"step", "attack", "classification", "hidden pictures", "maps", "update"}
    assert float(tf.reduce_max(tf.abs(parts["attack"]() - x))) <= OPTIONS.eps + 1e-6


@pytest.mark.slow
def test_the_parts_do_what_the_step_does(measured):
    _, parts = measured
    assert all(np.isfinite(part()).all() for part in parts.values())
    # Gradients of second order: nothing else reaches the weights through the difference of two maps.
    assert float(parts["maps"]()) != 0


@pytest.mark.slow
def test_it_says_how_the_step_compares(tmp_path):
    metrics = attention.attention(
        attention.Options(archs=("small_cnn",), batch_size=4, repeats=3, out=tmp_path / "run")
    )["metrics"]
    assert metrics["small_cnn_step_over_parts"] > 0
    assert metrics["targets"] == 1
