"""Tiny networks with random weights, and samples as they may occur."""

import functools

import numpy as np

from mobility_humid.data.layout import Layout
from mobility_humid.data.trips import PROFILE_FEATURES, SEEK, SERVE, SLOT, UNTYPED, X, Y

# The map of the tiny models.
GRID = (11, 14)
# (network or "dense", its layout): every kind of trips, encoder and head, 3 and 4 features, with and without profiles.
MODELS = {
    "dense": ("dense", Layout((SEEK, SERVE), 2, 2, 6, 3)),
    "lstm_concat": ("siamese", Layout((SEEK, SERVE), 2, 2, 12, 4, profile=True)),
    "lstm_symmetric": ("siamese", Layout((SEEK,), 2, 2, 6, 3)),
    "places_concat": ("siamese", Layout((SEEK, SERVE), 2, 2, 12, 4, profile=True)),
    "places_symmetric": ("siamese", Layout((UNTYPED,), 3, 2, 6, 3)),
    "places_symmetric_profile": ("siamese", Layout((SEEK, SERVE), 2, 2, 12, 3, profile=True)),
    "ways_linear": ("siamese", Layout((SEEK, SERVE), 2, 2, 12, 3)),
    "lstm_classes": ("classifier", Layout((SEEK, SERVE), 2, 1, 12, 3, profile=True)),
    "places_classes": ("classifier", Layout((UNTYPED,), 3, 1, 6, 4)),
}
CLASSES = 3
# Options of the scripts for the trips of the fixture `tiny_file`.
SMALLEST = {"num_trajs": 4, "padding_length": 12, "test_days": 2, "validation_days": 2, "n_test": 24}


def random_samples(layout, count, seed):
    """Samples as they may occur: trips of 0 to all points behind padding, in small steps, and random profiles."""
    rng = np.random.default_rng(seed)
    x = np.zeros((count, *layout.shape), np.float32)
    for sample in x:
        for trip in sample[: layout.trip_rows]:
            # One trip in eight is missing, one in eight is as long as may be.
            length = int(np.clip(rng.integers(-layout.length // 8, layout.length * 9 // 8 + 1), 0, layout.length))
            points = trip[layout.length - length :]
            steps = rng.integers(-1, 2, (length, 2))
            places = np.cumsum(steps, axis=0) + rng.integers(0, GRID, 2)
            points[:, [X, Y]] = np.clip(places, 0, np.array(GRID) - 1)
            points[:, SLOT] = np.minimum(rng.integers(1, 289) + np.sort(rng.integers(0, 9, length)), 288)
            points[:, SLOT + 1 :] = rng.integers(0, 120, (length, layout.features - 3))
    if layout.profile:
        x[:, layout.trip_rows :, : len(PROFILE_FEATURES), 0] = rng.uniform(0, 20, (count, layout.sides, 11))
    return x


@functools.lru_cache
def tiny_model(name, seed=1):
    """One of `MODELS` with random weights, about as often right as wrong on random samples, and easy to fool.

    All tests of a process share it, and what was compiled for it.
    """
    from mobility_humid.models.networks import Classifier, Siamese

    network, layout = MODELS[name]
    if network == "dense":
        return dense(seed)
    x = random_samples(layout, 64, 99)
    common = {
        "layout": layout,
        "grid": GRID,
        "encoder": name.split("_")[0],
        "units": (6, 5, 4),
        "place_spacing": 4.0,
        "dropout": 0.3,
        "profile_scale": [[10.0] * 11, [6.0] * 11] if layout.profile else (),
        "seed": seed,
    }
    if network == "classifier":
        model = Classifier(classes=CLASSES, **common)
        last = model.logits
    else:
        model = Siamese(head=name.split("_")[1], **common)
        last = model.head_layers[-1]
        if model.on_map and model.head != "concat":
            for likeness, maps in zip(model.likeness, model.embed_all(x), strict=True):
                likeness.adapt(np.asarray(maps).reshape(-1, maps.shape[-1]))
    last.kernel.assign(last.kernel * 2 / np.std(model(x, training=False)))
    last.bias.assign(last.bias - np.median(model(x, training=False), axis=0))
    return model


def dense(seed=1):
    """Plain layers, which compile at once; `model.logit` is the last, `model.calls` how often it was called."""
    import keras

    class Dense(keras.Model):
        def __init__(self):
            super().__init__()
            self.calls = 0
            self.flat = keras.Sequential([keras.layers.Rescaling(0.1), keras.layers.Flatten()])
            # A global seed would have TensorFlow forget all that it has optimised so far.
            first, second = (keras.initializers.GlorotUniform(seed=2 * seed + k) for k in range(2))
            self.hidden = keras.layers.Dense(8, activation="tanh", kernel_initializer=first)
            self.logit = keras.layers.Dense(1, kernel_initializer=second)

        def call(self, x, training=False):
            self.calls += 1
            return self.logit(self.hidden(self.flat(x[..., :2])))

    model, x = Dense(), random_samples(MODELS["dense"][1], 64, 99)
    middle = float(np.median(model(x)))
    model.logit.bias.assign([-middle])
    return model


def answers(model, x):
    """The class that `model` answers with: above 0 is the same driver, or the largest logit."""
    from common.evaluation.predictions import outputs

    z = outputs(model, x)
    return (z[:, 0] > 0).astype(np.int32) if z.shape[1] == 1 else z.argmax(axis=1).astype(np.int32)


def verifier_file(path, fleet, **options):
    """An untrained verifier of the samples of `fleet`, whose answers are halved."""
    from common.training import checkpoints
    from mobility_humid.models.networks import Siamese

    fixed = {"units": (8, 8, 4), "place_spacing": 4.0, "dropout": 0.0, "profile_scale": (), "seed": 0}
    model = Siamese(layout=fleet.layout, grid=fleet.trips.grid.size, encoder="places", head="concat", **fixed | options)
    z = model(fleet.samples(fleet.pairs("validation", 50)), training=False).numpy()
    last = model.head_layers[-1]
    last.kernel.assign(last.kernel * 2 / z.std())
    last.bias.assign([-2 * np.median(z) / z.std()])
    checkpoints.save_model(model, path)
    return path


def swapped(layout, x):
    """Samples `x` with the two drivers exchanged."""
    rows = np.arange(layout.trip_rows).reshape(len(layout.kinds), 2, layout.per_kind)[:, ::-1].ravel()
    if layout.profile:
        rows = np.concatenate([rows, [layout.trip_rows + 1, layout.trip_rows]])
    return x[:, rows]
