"""What the training tests train: a small network on a few images whose colour gives the class away."""

import keras
import numpy as np

from common import attacks
from common.training import augmentation, loop
from common.training.batches import batches as array_batches

CLASSES = 3


def data(n=48, seed=0):
    random = np.random.default_rng(seed)
    y = random.integers(0, CLASSES, n).astype(np.int32)
    x = random.integers(0, 120, (n, 8, 8, 3), np.uint8)
    x[..., 0] += (60 * y[:, None, None]).astype(np.uint8)
    return x, y


def network(seed=0, dropout=0.0, norm=False):
    layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, kernel_initializer=keras.initializers.HeNormal(seed))]
    layers += [keras.layers.BatchNormalization()] if norm else []
    layers += [keras.layers.ReLU(), keras.layers.Flatten(), keras.layers.Dropout(dropout, seed=5)]
    return keras.Sequential(
        [*layers, keras.layers.Dense(CLASSES, kernel_initializer=keras.initializers.HeNormal(seed))]
    )


def sgd(rate=0.05):
    return keras.optimizers.SGD(rate, momentum=0.9)


def fit(model, *, epochs=2, batch_size=16, **settings):
    x, y = data()
    augment = settings.pop("augment", None)
    batches = array_batches(x, y, batch_size=batch_size, seed=1, augment=augment)
    settings = {"verbose": False, "optimizer": sgd()} | settings
    optimizer = settings.pop("optimizer")
    return loop.train(model, batches, loop.cross_entropy, optimizer, epochs=epochs, **settings)


def weights(model):
    return [np.asarray(v) for v in model.variables]


def same(a, b):
    return all((x == y).all() for x, y in zip(a, b, strict=True))


def eventful_fit(folder=None, callbacks=(), epochs=5):
    """Whatever draws or keeps something at once: dropout, augmentation, momentum, an adversary with a random start."""
    model = network(dropout=0.4)

    def adversary(model, batch, seed):
        x, y = batch
        return attacks.pgd(model, x, y, eps=0.05, alpha=0.05, steps=1, seed=seed), y

    history = fit(
        model,
        epochs=epochs,
        augment=augmentation.crop_and_flip(2),
        adversary=adversary,
        checkpoint_folder=folder,
        resume=True,
        callbacks=callbacks,
    )
    return model, history
