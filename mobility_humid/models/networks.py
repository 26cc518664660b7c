"""The networks: two drivers are one and the same (`Siamese`), or who of a few drivers it is (`Classifier`).

Both take samples as `layout` describes them, in grid units, and answer with logits. Trips are folded into the batch, so
that an encoder is called once; what it makes of the trips that an attack leaves alone need not be recomputed for
each of its steps (`unmoved`, then `answer`).
"""

from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from mobility_humid.data.layout import Layout
from mobility_humid.data.trips import PROFILE_FEATURES, SLOTS
from mobility_humid.models.maps import Likeness, PlaceEncoder, WayEncoder, root

Encoder = Literal["lstm", "places", "ways"]
Head = Literal["concat", "symmetric", "linear"]
PAPER_UNITS = (200, 100, 48)
_SPEED_SCALE = 100.0
_HIDDEN = (64, 32, 8)
_PACKAGE = "mobility_humid"
_EMBEDDED = "embedded_{}"
_MAPS = {"places": PlaceEncoder, "ways": WayEncoder}


@keras.saving.register_keras_serializable(_PACKAGE)
class TripEncoder(keras.layers.Layer):
    """LSTM, LSTM, dense layer with ReLU, `units` each (ST-SiameseNet): trips (B, length, features) -> (B, units[2]).

    Points are scaled to [0, 1] by the size of the map, the day and 100 km/h; padding stays zero and is read as such, as
    in the original.
    """

    def __init__(self, units: Sequence[int], scale: Sequence[float], seed: int, **arguments: Any) -> None:
        # In half precision points would lose their place before they are scaled.
        super().__init__(autocast=False, **arguments)
        self.units, self.scale, self.seed = tuple(units), tuple(scale), seed
        seeds = _seeds(seed)
        for place, name in enumerate(("lstm_1", "lstm_2")):
            layer = keras.layers.LSTM(
                self.units[place],
                return_sequences=place == 0,
                kernel_initializer=keras.initializers.GlorotUniform(seed=next(seeds)),
                recurrent_initializer=keras.initializers.Orthogonal(seed=next(seeds)),
                name=name,
            )
            setattr(self, name, layer)
        self.dense = _dense(self.units[2], next(seeds), "relu", "dense")

    def build(self, shape: Sequence[int | None]) -> None:
        self.lstm_1.build(shape)
        self.lstm_2.build((*shape[:2], self.units[0]))
        self.dense.build((shape[0], self.units[1]))

    def call(self, trips):
        scaled = trips / ops.convert_to_tensor(self.scale, trips.dtype)
        return self.dense(self.lstm_2(self.lstm_1(scaled)))

    def compute_output_shape(self, shape):
        return (shape[0], self.units[2])

    def get_config(self):
        return {**super().get_config(), "units": self.units, "scale": self.scale, "seed": self.seed}


class TripModel(keras.Model):
    """What both networks share: encoders, and one vector for each side of a sample.

    Weights are float32, and a file opens in the precision that is set when it is opened. `world`: the map of the trips
    and how they were cut, as `trips.world_of` has it, for trips to come.
    """

    def __init__(
        self,
        *,
        layout: Layout | dict,
        grid: Sequence[int],
        encoder: Encoder,
        units: Sequence[int],
        place_spacing: float,
        dropout: float,
        profile_scale: Sequence[Sequence[float]],
        encoders: int,
        seed: int,
        world: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(autocast=False, **arguments)
        self.layout = layout if isinstance(layout, Layout) else Layout.of(layout)
        self._arguments = {
            "layout": self.layout.config(),
            "grid": list(grid),
            "encoder": encoder,
            "units": list(units),
            "place_spacing": place_spacing,
            "dropout": dropout,
            "profile_scale": [list(map(float, row)) for row in profile_scale],
            "seed": seed,
            "world": world,
        }
        self.world = world
        self._seeds, self.on_map = _seeds(seed), encoder != "lstm"
        scale = (max(grid[0] - 1, 1), max(grid[1] - 1, 1), SLOTS, _SPEED_SCALE)[: self.layout.features]
        self.encoders = [
            _MAPS[encoder](grid, place_spacing, name=f"encoder_{place}")
            if self.on_map
            else TripEncoder(units, scale, next(self._seeds), name=f"encoder_{place}")
            for place in range(encoders)
        ]
        self.drop = keras.layers.Dropout(dropout, seed=next(self._seeds))
        if self.layout.profile:
            self.profile_layers = [_dense(size, next(self._seeds), "relu", f"profile_{size}") for size in (64, 32, 8)]

    def embed(self, trips, place: int):
        """One vector (B, D) for the trips (B, per_kind, length, features) of one side, of the kind in `place` of the
        layout: those of the single trips side by side or, of places, that of all trips together."""
        encoder = self.encoders[min(place, len(self.encoders) - 1)]
        if isinstance(encoder, PlaceEncoder):
            return encoder(trips)
        count, length, features = trips.shape[1:]
        return ops.reshape(encoder(ops.reshape(trips, (-1, length, features))), (-1, count * encoder.units[-1]))

    def embed_kind(self, x, place: int):
        """The trips of samples `x` of the kind in `place` of the layout, by side: (B, sides, D)."""
        layout, each = self.layout, self.layout.sides * self.layout.per_kind
        trips = x[:, place * each : (place + 1) * each]
        vectors = self.embed(ops.reshape(trips, (-1, layout.per_kind, layout.length, layout.features)), place)
        return ops.reshape(vectors, (-1, layout.sides, vectors.shape[-1]))

    def embed_all(self, x) -> list:
        """The trips of samples `x`, kind by kind: (B, sides, D) each."""
        return [self.embed_kind(x, place) for place in range(len(self.layout.kinds))]

    @property
    def mean_profile(self) -> list[float]:
        """The mean profile (11,) of the drivers that it was trained on; zeros for a network that reads none."""
        scale = self._arguments["profile_scale"]
        return scale[0] if scale else [0.0] * len(PROFILE_FEATURES)

    def profiles(self, x):
        """The profiles (B, sides, 11) in samples `x`; None when the layout has none."""
        return x[:, self.layout.trip_rows :, : len(PROFILE_FEATURES), 0] if self.layout.profile else None

    def sides_of(self, embedded: list, profiles):
        """One vector for each side, (B, sides, D): its trips, and its profile if there is one."""
        parts = [root(e) if self.on_map else e for e in embedded]
        if profiles is not None:
            parts.append(self.profile_vector(profiles))
        return ops.concatenate(parts, axis=-1)

    def profile_vector(self, profiles):
        """What the profile branch makes of `profiles` (B, sides, 11): (B, sides, 8)."""
        mean, deviation = (ops.convert_to_tensor(row, profiles.dtype) for row in self._arguments["profile_scale"])
        own = (profiles - mean) / deviation
        for layer in self.profile_layers:
            own = layer(own)
        return own

    def call(self, x, training=False):
        return self.judge(self.embed_all(x), self.profiles(x), training=training)

    def unmoved(self, x) -> dict[str, Any]:
        """What an attack on the moving trips of samples `x` need compute only once, by name: what is made of all
        trips."""
        return {_EMBEDDED.format(place): e for place, e in enumerate(self.embed_all(x))}

    def answer(self, moving, unmoved: dict[str, Any], x):
        """The logits for samples `x` with trips `moving` (B, K, length, features) in the place of those that move."""
        first, *others = (unmoved[_EMBEDDED.format(place)] for place in range(len(self.layout.kinds)))
        # The moving trips are the last driver's, and of the first kind.
        of_first = ops.concatenate([first[:, :-1], self.embed(moving, 0)[:, None]], axis=1)
        return self.judge([of_first, *others], self.profiles(x))

    def build(self, shape=None) -> None:
        if not self.built:
            # Once through all of it: every layer then has its weights.
            self.call(ops.zeros((1, *self.layout.shape)))
            self.built = True

    def get_config(self):
        return {**self._arguments, "name": self.name}


@keras.saving.register_keras_serializable(_PACKAGE)
class Siamese(TripModel):
    """ST-SiameseNet: samples of two drivers -> logit (B, 1) that they are the same.

    `head` "concat" joins the two sides as published, so that the answer depends on their order: it is trained in one
    order and answers with the mean of both. "symmetric" sees |a - b| and a * b of the mean trips,
    or of maps their `Likeness`, and so does "linear", a single layer. Outside of training `threshold`, set
    once on validation pairs, is taken off the logit: above 0 means the same driver.
    """

    def __init__(self, *, head: Head = "concat", **arguments: Any) -> None:
        kinds = arguments["layout"]["kinds"] if isinstance(arguments["layout"], dict) else arguments["layout"].kinds
        super().__init__(encoders=len(kinds), **arguments)
        self._arguments["head"] = self.head = head
        self.head_layers = [
            *(_dense(size, next(self._seeds), "relu", f"head_{size}") for size in _HIDDEN if head != "linear"),
            _dense(1, next(self._seeds), None, "logit"),
        ]
        self.threshold = self.add_weight((), initializer="zeros", trainable=False, name="threshold")
        if head != "concat":
            # What the comparison sees, brought to one scale.
            self.scaling = keras.layers.BatchNormalization(center=False, scale=False, momentum=0.95, name="scaling")
            if self.on_map:
                self.likeness = [Likeness.of(self.encoders[0], f"likeness_{place}") for place in range(len(kinds))]
        self.build()

    def judge(self, embedded: list, profiles, training=False):
        """The logit (B, 1) from what `embed_all` made of the trips."""
        if self.head != "concat":
            features = self.scaling(self._symmetric(embedded, profiles), training=training)
            z = self._compare(self.drop(features, training=training))
            return z if training else z - self.threshold
        a, b = ops.unstack(self.sides_of(embedded, profiles), 2, axis=1)
        if training:
            return self._compare(self.drop(ops.concatenate([a, b], axis=-1), training=True))
        both = [self._compare(ops.concatenate(order, axis=-1)) for order in ((a, b), (b, a))]
        return (both[0] + both[1]) / 2.0 - self.threshold

    def _symmetric(self, embedded: list, profiles):
        if not self.on_map:
            # The mean trip: which of a driver's trips comes first says nothing.
            each = self.layout.per_kind
            means = [ops.mean(ops.reshape(e, (-1, 2, each, e.shape[-1] // each)), axis=2) for e in embedded]
            a, b = ops.unstack(self.sides_of(means, profiles), 2, axis=1)
            return ops.concatenate([ops.abs(a - b), a * b], axis=-1)
        found = [layer(e[:, 0], e[:, 1]) for layer, e in zip(self.likeness, embedded, strict=True)]
        if profiles is not None:
            a, b = ops.unstack(self.profile_vector(profiles), 2, axis=1)
            found.append(ops.abs(a - b))
        return ops.concatenate(found, axis=-1)

    def _compare(self, features):
        for layer in self.head_layers:
            features = layer(features)
        return ops.cast(features, "float32")


@keras.saving.register_keras_serializable(_PACKAGE)
class Classifier(TripModel):
    """Samples of one driver -> logits (B, classes): one encoder for all kinds of trips, a dense layer of 64."""

    def __init__(self, *, classes: int, **arguments: Any) -> None:
        super().__init__(encoders=1, **arguments)
        self._arguments["classes"] = classes
        self.hidden = _dense(64, next(self._seeds), "relu", "hidden")
        self.logits = _dense(classes, next(self._seeds), None, "logits")
        self.build()

    def judge(self, embedded: list, profiles, training=False):
        """The logits (B, classes) from what `embed_all` made of the trips."""
        features = self.drop(self.sides_of(embedded, profiles)[:, 0], training=training)
        return ops.cast(self.logits(self.hidden(features)), "float32")


def _dense(units: int, seed: int, activation: str | None, name: str) -> keras.layers.Dense:
    initializer = keras.initializers.GlorotUniform(seed=seed)
    return keras.layers.Dense(units, activation=activation, kernel_initializer=initializer, name=name)


def _seeds(seed: int):
    """One seed after another for initialisers, by their place in the network."""
    rng = np.random.default_rng(seed)
    while True:
        yield int(rng.integers(2**31))
