"""Tiny networks with random weights, and samples as they may occur."""

import functools

import numpy as np

from mobility_humid.layout import Layout
from mobility_humid.trips import PROFILE_FEATURES, SEEK, SERVE, SLOT, UNTYPED, X, Y

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
    "lstm_classes": ("classifier", Layout((SEEK, SERVE), 2, 1, 12, 3, profile=True)),
    "places_classes": ("classifier", Layout((UNTYPED,), 3, 1, 6, 4)),
}
CLASSES = 3


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
    """One of `MODELS` with random weights, about as often right as wrong on random samples, and easy to fool."""
    import keras

    from mobility_humid.networks import Classifier, Siamese

    network, layout = MODELS[name]
    x = random_samples(layout, 64, 99)
    if network == "dense":
        keras.utils.set_random_seed(seed)
        inputs = keras.Input(layout.shape)
        flat = keras.layers.Flatten()(keras.layers.Rescaling(0.1)(inputs[..., :2]))
        hidden = keras.layers.Dense(8, activation="tanh")(flat)
        model = keras.Model(inputs, keras.layers.Dense(1, name="logit")(hidden))
        last = model.get_layer("logit")
        last.bias.assign([-float(np.median(model(x)))])
        return model
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
        if model.on_map and model.head == "symmetric":
            for likeness, maps in zip(model.likeness, model.embed_all(x), strict=True):
                likeness.adapt(np.asarray(maps).reshape(-1, maps.shape[-1]))
    last.kernel.assign(last.kernel * 2 / np.std(model(x, training=False)))
    last.bias.assign(last.bias - np.median(model(x, training=False), axis=0))
    return model


def swapped(layout, x):
    """Samples `x` with the two drivers exchanged."""
    rows = np.arange(layout.trip_rows).reshape(len(layout.kinds), 2, layout.per_kind)[:, ::-1].ravel()
    if layout.profile:
        rows = np.concatenate([rows, [layout.trip_rows + 1, layout.trip_rows]])
    return x[:, rows]
