"""A model that takes images in another range than [0, 1]: recognised by labelled images, and never taken for robust."""

import functools
import warnings

import keras
import numpy as np
import pytest
from keras import layers

from common.attacks import pgd
from common.errors import UserError
from common.evaluation import classifiers, predictions, robustness
from common.evaluation.input_range import (
    BYTES,
    SIGNED,
    UNIT,
    Reading,
    better_reading,
    check_range,
    rescaled,
    takes_bytes,
)
from common.training import checkpoints

SHAPE = (4, 4, 1)


def brightness(middle, *, before=None, dtype="float32"):
    """Class 1 where the mean of the images is above `middle`, in the model's own range."""
    images = keras.Input(SHAPE, dtype=dtype)
    x = images if before is None else before(images)
    dense = layers.Dense(2, name="logits")
    model = keras.Model(images, dense(layers.Flatten()(x)))
    dense.set_weights([np.tile([[0.0, 1.0]], (16, 1)).astype(np.float32), np.array([0, -16 * middle], np.float32)])
    return model


def shades(count):
    """Images of one shade each, uint8, half of them darker than the middle and half brighter, sorted by that class."""
    rng = np.random.default_rng(0)
    shade = np.concatenate([rng.integers(90, 118, count // 2), rng.integers(138, 166, count - count // 2)])
    images = np.broadcast_to(shade[:, None, None, None], (count, *SHAPE)).astype(np.uint8)
    return images, (shade > 127).astype(np.int32)


X, Y = shades(200)
OWN = {BYTES: 127.0, SIGNED: 0.0, UNIT: 0.5}


@pytest.mark.parametrize("taken", OWN)
@pytest.mark.parametrize("given", OWN)
@pytest.mark.parametrize("form", ["8 bit", "float"])
def test_the_range_that_a_model_takes_is_found_whatever_it_is_given(taken, given, form):
    model = rescaled(brightness(OWN[taken]), *given)
    x = X if form == "8 bit" else X / np.float32(255)
    right = predictions.accuracy(model, x, Y)
    if taken == given:
        assert right == 1 and better_reading(model, x, Y, given) is None
        assert check_range("m.keras", model, x, Y, given) is None
        return
    assert right == 0.5
    better = better_reading(model, x, Y, given)
    assert better.reading == taken and (better.before, better.after, better.sure) == (0.5, 1.0, True)
    with pytest.raises(UserError, match=r"m\.keras: is right on 50% of the images") as refusal:
        check_range("m.keras", model, x, Y, given)
    assert f"in {given} and on 100% of the same in {taken}" in str(refusal.value)
    assert str(refusal.value).endswith(f"give {taken.options}")


def test_remedies_are_options_of_the_scripts():
    assert BYTES.options == "--input-scale 255"
    assert SIGNED.options == "--input-scale 2 --input-offset -1"
    assert "no --input-scale" in UNIT.options
    assert (str(BYTES), str(SIGNED), str(UNIT), str(Reading(4.0, -2.0))) == ("0..255", "[-1, 1]", "[0, 1]", "[-2, 2]")


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("one class only", X[:100], Y[:100]),
        ("few images", X[[0, 1, 198, 199]], Y[[0, 1, 198, 199]]),
        ("labels of something else", X, np.arange(200, dtype=np.int32) % 2),
        ("none", X[:0], Y[:0]),
    ],
)
def test_what_leaves_doubt_is_not_refused(name, x, y):
    better = better_reading(brightness(127.0), x, y)
    assert better is None or not better.sure


def test_a_constant_answer_is_no_better_reading():
    """A model that is nearly always wrong in its own range may well have one answer to all in another; where most
    images are of that class, it is right about those."""
    wrong = brightness(0.5)
    wrong.layers[-1].set_weights([-w for w in wrong.layers[-1].get_weights()])
    rows = np.r_[0:100, 195:200]
    better = better_reading(wrong, X[rows], 1 - Y[rows])
    assert better is None
    better = better_reading(wrong, X[rows], Y[rows])
    assert better is None or not better.sure


def test_a_lesser_gain_is_said():
    images, labels = shades(200)
    labels = np.where(np.arange(200) % 5 < 2, 1 - labels, labels)
    said = check_range("m.keras", brightness(127.0), images, labels)
    assert said is None or said.endswith("if that is what it takes, give --input-scale 255")


def test_a_model_that_divides_by_255_itself_is_known_by_that():
    divided = brightness(0.5, before=layers.Rescaling(1 / 255))
    assert takes_bytes(divided) and takes_bytes(brightness(127.0, dtype="uint8"))
    assert takes_bytes(brightness(0.0, before=layers.Rescaling(1 / 127.5, -1)))
    assert takes_bytes(brightness(0.0, before=layers.Normalization(mean=[127.0], variance=[3600.0])))
    assert takes_bytes(keras.Sequential([keras.Input(SHAPE), divided]))
    augmented = keras.Sequential([keras.Input(SHAPE), layers.RandomFlip(seed=0)])
    assert takes_bytes(keras.Sequential([keras.Input(SHAPE), augmented, layers.Dropout(0.1), divided]))
    for other in (
        brightness(127.0),
        brightness(0.0, before=layers.Normalization(mean=[0.5], variance=[0.06])),
        brightness(0.0, before=layers.Rescaling(2, -1)),
        lambda x: x,
    ):
        assert not takes_bytes(other)


def test_8_bit_images_are_judged_as_they_are_with_a_warning():
    divided = brightness(0.5, before=layers.Rescaling(1 / 255))
    with pytest.warns(
        UserWarning, match=r"on 100% of the same in 0\.\.255.*common\.evaluation\.input_range\.rescaled\(model, 255"
    ):
        assert predictions.accuracy(divided, X, Y) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Floats are what they are, and one that learnt on twice divided images is right on them.
        assert predictions.accuracy(divided, X / np.float32(255), Y) == 0.5
        assert predictions.accuracy(brightness(0.5 / 255, before=layers.Rescaling(1 / 255)), X, Y) == 1
        assert predictions.accuracy(rescaled(divided, 255), X, Y) == 1


def test_no_robustness_of_images_that_the_model_does_not_take():
    divided = brightness(0.5, before=layers.Rescaling(1 / 255))
    x = X / np.float32(255)
    with pytest.raises(UserError, match=r"rescaled\(model, 255"):
        robustness.robustness(divided, x, Y, functools.partial(pgd, divided, eps=0.01, alpha=0.01, steps=1))
    model = rescaled(divided, 255)
    # The nearest shade is 10/255 away from the border.
    for eps, left in ((8 / 255, 1.0), (1.0, 0.0)):
        attack = functools.partial(pgd, model, eps=eps, alpha=eps, steps=2, random_start=False)
        assert robustness.robustness(model, x, Y, attack).robust.mean() == left


def test_without_labels_one_answer_to_all_tells():
    divided = brightness(0.5, before=layers.Rescaling(1 / 255))
    with pytest.raises(
        UserError, match=r"m\.keras: brings its images down from 0\.\.255 .* has one answer to 100% of them"
    ):
        check_range("m.keras", divided, X, None)
    # Dark images have one answer anyhow; there is only something to say.
    assert "if it takes those, give --input-scale 255" in check_range("m.keras", divided, X[:100], None)
    assert check_range("m.keras", brightness(127.0), X, None) is None
    assert check_range("m.keras", rescaled(divided, 255), X, None, BYTES) is None


def test_a_classifier_from_a_file(tmp_path):
    checkpoints.save_model(brightness(0.5, before=layers.Rescaling(1 / 255)), tmp_path / "m.keras")
    with pytest.raises(UserError, match=r"m\.keras: is right on 50% .* give --input-scale 255"):
        classifiers.load_classifier(tmp_path / "m.keras", X, Y)
    assert predictions.accuracy(classifiers.load_classifier(tmp_path / "m.keras", X, Y, input_scale=255), X, Y) == 1
    with pytest.raises(UserError, match="give --input-scale 255"):
        classifiers.load_classifier(tmp_path / "m.keras", X, Y, input_scale=2, input_offset=-1)
    said = []
    classifiers.load_classifier(tmp_path / "m.keras", X, Y, check_range=False, log=said.append)
    assert said == []
    checkpoints.save_model(brightness(127.0, dtype="uint8"), tmp_path / "whole.keras")
    # Whole numbers can only be 0..255.
    assert predictions.accuracy(classifiers.load_classifier(tmp_path / "whole.keras", X, Y), X, Y) == 1


def test_rescaling_twice_and_what_cannot_be():
    model = rescaled(rescaled(brightness(127.0), 255), 2, -0.5)
    x = np.full((1, *SHAPE), 0.4, np.float32)
    assert np.allclose(np.asarray(model(x))[0, 1], 16 * (255 * (2 * 0.4 - 0.5) - 127), atol=1e-2)
    for scale, offset in ((0, 0), (-1, 0), (np.nan, 0), (1, np.inf)):
        with pytest.raises(UserError, match="expected a scale above 0"):
            rescaled(brightness(0.5), scale, offset)
    with pytest.raises(UserError, match="expected a Sequential or functional model"):
        rescaled(keras.Sequential([layers.Dense(2)]), 255)
