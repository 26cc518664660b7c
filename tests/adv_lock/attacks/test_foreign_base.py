"""Base classifiers of others: of any size of images, and in any range."""

import weakref

import keras
import numpy as np
from keras import layers

from adv_lock.attacks.targeted import at_size, targeted_attack
from common.evaluation.input_range import rescaled
from tests.helpers.steep import classifier

RNG = np.random.default_rng(0)


def convolutional(sides):
    images = keras.Input((*sides, 3))
    x = layers.Conv2D(4, 3, activation="relu", kernel_initializer=keras.initializers.HeNormal(0))(images)
    return keras.Model(images, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def test_a_fully_convolutional_one_takes_images_as_they_are():
    base = convolutional((None, None))
    attack = targeted_attack(base, eps=0.5, alpha=0.2, steps=3)
    for height, width in ((8, 8), (12, 9)):
        images = RNG.integers(256, size=(2, height, width, 3), dtype=np.uint8)
        shift = attack.perturb(images, np.array([0, 1]))
        assert shift.shape == images.shape and np.abs(shift).max() > 0
        assert (attack.answers(images) == np.asarray(base(images / np.float32(255))).argmax(1)).all()


def test_images_of_another_size_are_seen_at_that_of_the_network():
    images = [RNG.integers(256, size=(side, side, 3), dtype=np.uint8) for side in (8, 16)]
    seen = at_size(images, convolutional((8, 8)))
    assert seen.shape == (2, 8, 8, 3) and seen.dtype == np.float32
    assert (seen[0] == images[0] / np.float32(255)).all() and seen.min() >= 0 and seen.max() <= 1
    assert at_size(images, convolutional((None, None))).shape == (2, 8, 8, 3)


def test_kept_attacks_are_those_of_one_reading_and_one_network():
    """The weights alone are the same."""
    base = convolutional((8, 8))
    images = keras.Input((8, 8, 3))
    other = keras.Model(images, layers.LeakyReLU()(base(images)))
    prints = {
        targeted_attack(model, eps=0.5, alpha=0.2, steps=3).fingerprint()
        for model in (base, rescaled(base, 255), rescaled(base, 2, -1), other)
    }
    assert len(prints) == 4
    assert targeted_attack(base, eps=0.5, alpha=0.2, steps=3).fingerprint() in prints


def test_photographs_are_looked_at_one_by_one():
    """All of them in memory at their own size would be gigabytes."""
    read, alive = [], []

    def photographs():
        for _ in range(6):
            photograph = np.zeros((300, 200, 3), np.uint8)
            read.append(weakref.ref(photograph))
            yield photograph
            del photograph
            alive.append(sum(reference() is not None for reference in read))

    assert at_size(photographs(), convolutional((8, 8))).shape == (6, 8, 8, 3)
    assert max(alive) <= 2


def test_infinite_slopes_at_black_pixels_give_finite_signals():
    images = RNG.integers(256, size=(4, 8, 8, 3), dtype=np.uint8)
    images[:3, :4] = 0
    shift = targeted_attack(classifier((8, 8, 3), 3), eps=0.5, alpha=0.2, steps=4).perturb(images, np.arange(4) % 3)
    assert np.isfinite(shift).all() and (np.abs(shift).max(axis=(1, 2, 3)) > 0).all()
