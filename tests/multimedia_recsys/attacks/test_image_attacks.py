"""Networks that look at images, and attacks through them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from common.errors import UserError
from common.models import imagenet_classifier
from multimedia_recsys.attacks.images import ImageAttack, swap_control
from multimedia_recsys.models import cnn
from tests.helpers.steep import classifier


def blobs(count, seed):
    """Noise with a brighter quarter, whose place is the class."""
    rng = np.random.default_rng(seed)
    images, label = rng.integers(0, 160, size=(count, 16, 16, 3)), rng.integers(4, size=count)
    for image, quarter in zip(images, label, strict=True):
        across, down = 8 * (quarter % 2), 8 * (quarter // 2)
        image[down : down + 8, across : across + 8] += 40
    return images.astype(np.uint8), label


@pytest.fixture(scope="module")
def model():
    """Set by hand: two features a quarter, by how much it is brighter than the whole, and what they say of the class.

    Weights drawn about those let every pixel have its own gradient, and units have an offset so that none is dead.
    """
    rng = np.random.default_rng(4)
    images = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(8, 4, strides=4, activation="relu")(images)
    features = keras.layers.Dense(8, activation="relu")(keras.layers.Flatten()(x))
    made = keras.Model(images, keras.layers.Dense(4)(features))
    kernel = (1 + 0.2 * rng.normal(size=(4, 4, 3, 8))) / 48
    quarters = np.zeros((4, 4, 8, 8))
    for quarter in range(4):
        down, across = 2 * (quarter // 2), 2 * (quarter % 2)
        for unit, pitch in ((2 * quarter, 1.0), (2 * quarter + 1, 0.7)):
            quarters[..., unit] -= pitch / 128
            quarters[down : down + 2, across : across + 2, :, unit] += pitch / 32
    quarters *= 1 + 0.1 * rng.normal(size=quarters.shape)
    answers = np.repeat(np.eye(4), 2, axis=0) + 0.02 * rng.normal(size=(8, 4))
    weights = (kernel, np.full(8, 0.01), 20 * quarters.reshape(128, 8), np.full(8, 4.0), 4 * answers, np.zeros(4))
    made.set_weights([weight.astype(np.float32) for weight in weights])
    return made


@pytest.fixture(scope="module")
def images():
    return blobs(70, 2)[0]


def test_look_gives_class_probability_and_the_pooled_layer(model, images):
    extracted = cnn.extract(model, images, batch_size=32)
    logits = model(images / np.float32(255), training=False).numpy()
    assert np.array_equal(extracted.label, logits.argmax(axis=1))
    assert np.allclose(extracted.prob, tf.nn.softmax(logits).numpy().max(axis=1), atol=1e-6)
    pooled = keras.Model(model.input, model.layers[-1].input)(images / np.float32(255), training=False)
    assert np.allclose(extracted.features, pooled, rtol=1e-4, atol=1e-5)


def test_look_through_a_softmax_is_the_same(model, images):
    ended = keras.Model(model.input, keras.layers.Softmax()(model.output))
    for one, other in zip(cnn.extract(model, images), cnn.extract(ended, images), strict=True):
        assert np.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_model_without_pooled_features_is_refused():
    images = keras.Input((8, 8, 3))
    model = keras.Model(images, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(3, 3)(images)))
    with pytest.raises(UserError, match="no dense layer that reads a vector"):
        cnn.feature_model(model)


def test_resnet50_has_its_preprocessing_inside():
    """Caffe's: BGR in 0..255 less the mean; with given weights one image keeps its answer."""
    model = imagenet_classifier("resnet50", weights=None, size=64)
    rng = np.random.default_rng(7)
    for weight in model.weights:
        if "variance" in weight.path or "gamma" in weight.path:
            weight.assign(np.ones(weight.shape))
        elif len(weight.shape) > 1:
            weight.assign(rng.normal(scale=(2 / np.prod(weight.shape[:-1])) ** 0.5, size=weight.shape))
    image = np.random.default_rng(1).integers(256, size=(1, 64, 64, 3)).astype(np.float32)
    bare = keras.Model(model.get_layer("conv1_pad").input, model.output)
    expected = bare(keras.applications.resnet50.preprocess_input(image.copy()), training=False).numpy()
    found = model(image / 255, training=False).numpy()
    assert np.allclose(found, expected, atol=1e-3 * np.abs(expected).max())
    assert np.argmax(found) == np.argmax(expected)
    # Images taken for RGB in [0, 1] or for BGR are answered otherwise: the layer matters.
    assert not np.allclose(bare(image / 255, training=False).numpy(), expected, atol=1e-2 * np.abs(expected).max())
    assert cnn.feature_model(model).output_shape == (None, 2048)


@pytest.mark.parametrize("kind", ["fgsm", "pgd", "insa", "noise"])
def test_budgets_hold_in_eight_bits_and_change_something(model, images, kind):
    attack = ImageAttack(kind, model, eps=8 / 255, steps=5, direction=np.ones(8, np.float32))
    changed = attack(images, 2, np.arange(70))
    assert changed.dtype == np.uint8
    size = np.abs(changed.astype(int) - images).max(axis=(1, 2, 3))
    assert size.max() <= 8
    assert size.min() >= 6


@pytest.mark.parametrize("kind", ["pgd", "noise"])
def test_what_an_item_becomes_does_not_depend_on_its_neighbours(model, images, kind):
    attack = ImageAttack(kind, model, eps=8 / 255, steps=3)
    together = attack(images, 2, np.arange(70))
    alone = attack(images[33:35], 2, np.array([33, 34]))
    assert (together[33:35] != alone).mean() < 0.01


def test_steps_along_the_gradient_lead_to_the_class(model, images):
    some, label = blobs(40, 3)
    assert (cnn.extract(model, some).label == label).mean() > 0.9
    some, success = some[label != 2], {}
    for kind in ("noise", "fgsm", "pgd", "cw"):
        attack = ImageAttack(kind, model, eps=24 / 255, steps=20, confidence=1.0, cw_steps=100, cw_learning_rate=0.02)
        success[kind] = (cnn.extract(model, attack(some, 2, np.arange(len(some)))).label == 2).mean()
    assert success["noise"] < 0.1
    assert success["pgd"] >= success["fgsm"]
    assert min(success["pgd"], success["cw"]) > 0.9


def test_insa_raises_the_score_more_than_noise(model, images):
    direction = np.random.default_rng(3).normal(size=8).astype(np.float32)
    gain = {}
    for kind in ("noise", "insa"):
        changed = ImageAttack(kind, model, eps=8 / 255, direction=direction)(images, 0, np.arange(70))
        gain[kind] = (cnn.extract(model, changed).features - cnn.extract(model, images).features) @ direction
    assert (gain["insa"] > 0).all()
    assert gain["insa"].mean() > 3 * np.abs(gain["noise"]).mean()


def test_a_budget_for_each_channel_holds_for_each(model, images):
    changed = ImageAttack("pgd", model, eps=[2 / 255, 4 / 255, 8 / 255])(images[:8], 1, np.arange(8))
    assert np.abs(changed.astype(int) - images[:8]).max(axis=(0, 1, 2)).tolist() == [2, 4, 8]


def test_stand_ins_are_candidates_and_each_items_own():
    candidates = np.array([3, 5, 8])
    found = swap_control(candidates, np.array([10, 11, 12, 13]), seed=0)
    assert set(found) == set(candidates)
    assert swap_control(candidates, np.array([12]), seed=0)[0] == found[2]


def test_a_look_follows_the_model():
    inner = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(6, activation="relu")])
    net = keras.Sequential([keras.Input((4, 4, 3)), inner, keras.layers.Dense(3)])
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)

    def agrees():
        answer, found = keras.ops.softmax(net(images / np.float32(255))), cnn.extract(net, images)
        np.testing.assert_allclose(found.prob, np.max(answer, axis=1), atol=1e-5)
        np.testing.assert_array_equal(found.label, np.argmax(answer, axis=1))
        np.testing.assert_allclose(found.features, cnn.feature_model(net)(images / np.float32(255)), atol=1e-5)

    agrees()
    for change in (lambda: net.add(keras.layers.Dense(2)), net.pop, net.pop, lambda: net.add(keras.layers.Dense(4))):
        change()
        agrees()


@pytest.mark.parametrize("kind", ["fgsm", "pgd", "cw", "insa"])
def test_infinite_slopes_at_black_pixels_move_images_within_the_budget(kind):
    """An image that is not a number would be written as black."""
    model, (images, _) = classifier((16, 16, 3), 4), blobs(4, seed=3)
    images[:3, :8] = 0
    direction = np.linspace(-1, 1, 6).astype(np.float32)
    attack = ImageAttack(kind, model, eps=8 / 255, steps=3, cw_steps=5, cw_rounds=2, direction=direction)
    changed = attack(images, 1, np.arange(4)).astype(int)
    shift = np.abs(changed - images)
    assert shift.max() <= 8 if kind != "cw" else shift.max() < 200
    assert kind == "cw" or (shift.max(axis=(1, 2, 3)) > 0).all()
