"""Keras's networks with their preprocessing inside, and models cut in two."""

import keras
import numpy as np
import pytest

from common.errors import UserError
from common.models import IMAGENET, build, imagenet_classifier, split_at


def test_inception_v3_has_its_preprocessing_inside():
    """[-1, 1]: what the layer hands on is what Keras's own function makes of 0..255."""
    model = imagenet_classifier("inception_v3", weights=None, size=75)
    image = np.random.default_rng(1).integers(256, size=(1, 75, 75, 3)).astype(np.float32)
    prepared = keras.Model(model.input, model.get_layer("preprocessing").output)(image / 255)
    assert np.allclose(prepared, keras.applications.inception_v3.preprocess_input(image.copy()), atol=1e-5)
    assert model.output_shape == (None, 1000)


def test_weights_that_cannot_be_had_are_one_line(monkeypatch, tmp_path):
    def offline(**arguments):
        # What Keras raises for a failed download, of no class that tells.
        raise Exception("URL fetch failure on\n somewhere")

    monkeypatch.setitem(IMAGENET, "resnet50", (offline, *IMAGENET["resnet50"][1:]))
    message = r"resnet50: weights imagenet cannot be downloaded \(URL fetch failure on somewhere\)"
    with pytest.raises(UserError, match=message):
        imagenet_classifier("resnet50", size=64)
    with pytest.raises(UserError, match=r"inception_v3: weights .*absent\.h5 cannot be downloaded"):
        imagenet_classifier("inception_v3", size=75, weights=tmp_path / "absent.h5")


def test_two_halves_make_the_whole():
    model = build("small_cnn", (16, 16, 3), 4)
    x = np.random.default_rng(0).random((3, 16, 16, 3), np.float32)
    first, second = split_at(model, model.get_layer("block2_pool").output)
    assert np.allclose(second(first(x)), model(x), atol=1e-6)
    assert split_at(model, model.get_layer("block2_pool").output)[0] is first
    # One and the same weights, not copies of them.
    assert {id(v) for v in (*first.variables, *second.variables)} == {id(v) for v in model.variables}


def test_a_cut_that_something_passes_by_is_refused():
    model = build("resnet20", (16, 16, 3), 4)
    with pytest.raises(UserError, match="something passes it by"):
        split_at(model, model.get_layer("stage1_block1_conv1").output)
