"""What unauthorised trainers do to images."""

import io
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from adv_lock.attacks import views
from adv_lock.training import trainers
from common.models import build, imagenet_classifier


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, 4, 4, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((16, 16), Image.BICUBIC)) for image in coarse])


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_and_grey(images, channels):
    """Each image by itself; grey has one value a pixel, and is grey already without colours."""
    given = images[..., :channels]
    stored, without = trainers.jpeg(given), trainers.grey(given)
    for image, found in zip(given, stored, strict=True):
        file = io.BytesIO()
        Image.fromarray(image.squeeze()).save(file, "JPEG", quality=10)
        np.testing.assert_array_equal(found.squeeze(), np.asarray(Image.open(file)))
    assert stored.shape == without.shape == given.shape and without.dtype == np.uint8
    expected = given if channels == 1 else np.rint(given @ np.array([0.299, 0.587, 0.114]))[..., None]
    assert (np.abs(without.astype(int) - expected) <= 1).all() and (without == without[..., :1]).all()


def test_projection_leaves_nothing_for_a_linear_classifier():
    """Classes that differ along one direction are alike without it, in training and in new images; all else stays."""
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(8, 8, 3))
    y = np.arange(400) % 2
    noise = rng.normal(0, 12, (400, 8, 8, 3))
    images = np.clip(128 + noise + 8 * (2 * y - 1)[:, None, None, None] * signal, 0, 255).astype(np.uint8)
    change = trainers.projection(images[:300], y[:300])
    for rows in (slice(300), slice(300, None)):
        changed, before = change(images[rows]).astype(float), images[rows].astype(float)
        along = [(of - of.mean(axis=0)).reshape(len(of), -1) @ signal.ravel() for of in (before, changed)]
        apart = [abs(of[y[rows] == 1].mean() - of[y[rows] == 0].mean()) for of in along]
        assert apart[1] < 0.1 * apart[0]
        assert np.abs(changed - before).mean() < 12
    assert change(images).dtype == np.uint8 and change(images).shape == images.shape


def test_pixels_are_read_from_nearby(images):
    """Within the least and the greatest value up to two pixels away; each image and seed in its own way."""
    given = tf.constant(np.stack([images[0], images[0]]))
    moved = trainers.shift_pixels(given, tf.constant([1, 2]))
    assert moved.dtype == tf.uint8 and moved.shape == given.shape
    np.testing.assert_array_equal(moved, trainers.shift_pixels(given, tf.constant([1, 2])))
    moved = moved.numpy().astype(int)
    assert (moved[0] != moved[1]).any() and (moved[0] != images[0]).any()
    padded = np.pad(images[0].astype(int), [(2, 2), (2, 2), (0, 0)], mode="edge")
    near = np.stack([padded[i : i + 16, j : j + 16] for i in range(5) for j in range(5)])
    assert (moved >= near.min(axis=0)).all() and (moved <= near.max(axis=0)).all()
    flat = tf.fill([1, 5, 9, 3], tf.constant(77, tf.uint8))
    np.testing.assert_array_equal(trainers.shift_pixels(flat, tf.constant([1, 2])), flat)


def test_the_worst_of_five_is_the_worst(images):
    """Of the changes that the same seeds make, that with the largest loss, image by image; labels stay."""
    model = build("small_cnn", (16, 16, 3), 4, seed=1)
    x, y, seed = tf.constant(images / 255, tf.float32), tf.range(12) % 4, tf.constant([3, 4])
    found, labels = trainers.worst_of_five(0.0).adversary(model, (x, y), seed)
    change = trainers.strong_changes()
    each = tf.stack([change(x, tf.random.fold_in(seed, draw)) for draw in range(5)])
    losses = tf.stack(
        [tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=model(v, training=False)) for v in each]
    )
    expected = tf.gather(tf.transpose(each, [1, 0, 2, 3, 4]), tf.argmax(losses, axis=0), batch_dims=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(labels, y)
    assert tf.reduce_min(each) >= 0 and tf.reduce_max(each) <= 1 and len(np.unique(np.argmax(losses, axis=0))) > 1


def test_the_probe_reads_what_the_last_layer_reads(images):
    model = build("small_cnn", (16, 16, 3), 4, seed=1)
    read = trainers.features(model, images)
    last = model.layers[-1]
    np.testing.assert_allclose(
        read @ last.kernel.numpy() + last.bias.numpy(), np.asarray(model(images / 255.0)), rtol=1e-3, atol=1e-3
    )
    y = np.arange(12) % 3
    np.testing.assert_array_equal(trainers.probe(partial(trainers.features, model), images, y, images), y)


def test_imagenet_features_are_those_of_the_enlarged_image():
    """Colour or grey, 8 bit, of any size; what the network reads of 224 pixels."""
    grey = np.random.default_rng(2).integers(0, 256, (2, 16, 16, 1), np.uint8)
    enlarged = keras.ops.image.resize(
        np.repeat(grey, 3, axis=-1) / np.float32(255), (224, 224), "bicubic", antialias=True
    )
    whole = imagenet_classifier("efficientnet_lite0", size=224)
    expected = keras.Model(whole.input, whole.get_layer("features").output)(enlarged)
    found = trainers.imagenet_features(grey)
    assert found.shape == (2, 1280)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_photograph_comes_back_from_an_upload_as_jpeg_and_smaller():
    image = np.asarray(Image.fromarray(np.random.default_rng(3).integers(0, 256, (5, 6, 3), np.uint8)).resize((41, 30)))
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=75)
    np.testing.assert_array_equal(trainers.reuploaded(image), np.asarray(Image.open(file)))
    assert trainers.halved(image).shape == (15, 21, 3)


def test_the_search_goes_on_with_the_better_ones_for_longer():
    asked = []

    def score(name, epochs):
        asked.append((name, epochs))
        # The best after two epochs is not the best after four.
        return -abs(int(name) - (5 if epochs < 4 else 7))

    assert trainers.successive_halving(map(str, range(20)), score) == ("6", -1)
    assert [sum(epochs == rung for _, epochs in asked) for rung, _ in trainers.RUNGS] == [20, 7, 3]


def test_pipelines_do_what_they_are_called(images):
    assert len(trainers.PIPELINES) == 28 and trainers.PIPELINES["nothing"](images) is images
    np.testing.assert_array_equal(trainers.PIPELINES["jpeg30, grey"](images), trainers.grey(trainers.jpeg(images, 30)))
    assert {name for name, pipeline in trainers.PIPELINES.items() if pipeline.augment is not None} == {
        name for name in trainers.PIPELINES if "pixel shift" in name
    }
    assert len(np.unique(trainers.eight_levels(images))) <= 8
    blurred = trainers.PIPELINES["blur"](images)
    assert (
        blurred.dtype == np.uint8
        and np.abs(np.diff(blurred.astype(int), axis=1)).mean() < np.abs(np.diff(images.astype(int), axis=1)).mean()
    )
    seen = trainers.through(images, "resize")
    np.testing.assert_allclose(seen, views.VIEWS["resize"](images / np.float32(255)) * 255, atol=0.51)
