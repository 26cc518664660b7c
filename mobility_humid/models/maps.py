"""Trips as maps: where and when time was spent, where trips begin, end and go, and how alike two such maps are.

What `PlaceEncoder` and `WayEncoder` make of trips is made of maps side by side, shares of the places, and 24 shares of
the hours. Both have slopes, so that attacks and training see where a point would have to go.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mobility_humid.data.trips import SLOT, SLOTS, X, Y

_PACKAGE = "mobility_humid"


@keras.saving.register_keras_serializable(_PACKAGE)
class PlaceEncoder(keras.layers.Layer):
    """How much time was spent where and when: trips (B, n, length, features) -> (B, places + 24).

    The places lie `spacing` cells apart all over the map, a point counts for those around it by a Gaussian of their
    distance, and the hours of the day likewise: a heat map with a gradient. The places' shares of the time sum to 1,
    and so do the hours'; without any trip all are 0. Float32 under every policy: the shares are small.
    """

    maps, overlap = 1, False

    def __init__(self, grid: Sequence[int], spacing: float, **arguments: Any) -> None:
        super().__init__(**{"dtype": "float32", **arguments})
        self.grid, self.spacing = tuple(grid), float(spacing)
        # Beyond the last cell too, or what is spent at the rim would count less.
        self._lines = [np.arange(0, size - 1 + self.spacing, self.spacing, np.float32) for size in self.grid]
        self._hours = np.arange(24, dtype=np.float32) + 0.5

    def call(self, trips):
        points, there = _points(trips)
        # A Gaussian of both coordinates is a product, so that a map is one product of two thin matrices.
        near = [_bumps(points[..., axis : axis + 1], line, self.spacing) for axis, line in enumerate(self._lines)]
        where = ops.matmul(ops.transpose(near[0] * there, (0, 2, 1)), near[1])
        return ops.concatenate([_share(ops.reshape(where, (-1, self.size[0] * self.size[1]))), self.hours(trips)], -1)

    def hours(self, trips):
        """The shares of the hours alone: (B, 24)."""
        points, there = _points(trips)
        when = _bumps(points[..., SLOT : SLOT + 1] * (24 / SLOTS), self._hours, 1.0)
        return _share(ops.sum(when * there, axis=1))

    @property
    def size(self) -> tuple[int, int]:
        """Number of places across and up."""
        return len(self._lines[0]), len(self._lines[1])

    def compute_output_shape(self, shape):
        return (shape[0], self.maps * self.size[0] * self.size[1] + len(self._hours))

    def get_config(self):
        return {**super().get_config(), "grid": self.grid, "spacing": self.spacing}


@keras.saving.register_keras_serializable(_PACKAGE)
class WayEncoder(PlaceEncoder):
    """Seven maps of trips, and the hours: (B, n, length, features) -> (B, 7 * places + 24).

    Of all points, of those where a trip begins, and ends, and of those from where it goes on to the east, west, north
    and south; a step in between counts for two of them by its parts. A place is a square of `spacing` cells, and a
    point counts for its own alone, so that the shares are exact; their slope is that of Gaussians around the places.
    """

    maps, overlap = 7, True

    def call(self, trips):
        x, y = trips[..., X], trips[..., Y]
        there = ops.cast(trips[..., SLOT] > 0, trips.dtype)
        none = ops.zeros_like(there[..., :1])
        before, after = (ops.concatenate(of, -1) for of in ((none, there[..., :-1]), (there[..., 1:], none)))
        steps = [ops.concatenate([v[..., 1:] - v[..., :-1], none], -1) * there * after for v in (x, y)]
        length = ops.maximum(ops.abs(steps[0]) + ops.abs(steps[1]), 1.0)
        ways = [ops.relu(sign * step) / length for step in steps for sign in (1.0, -1.0)]
        weights = ops.stack([there, there * (1.0 - before), there * (1.0 - after), *ways], axis=-1)
        weights = ops.reshape(weights, (-1, there.shape[1] * there.shape[2], self.maps))
        counts = self._counts(_points(trips)[0][..., X : Y + 1], weights)
        shares = counts / (ops.sum(counts, axis=1, keepdims=True) + 1e-6)
        flat = ops.reshape(ops.transpose(shares, (0, 2, 1)), (-1, self.maps * self.size[0] * self.size[1]))
        return ops.concatenate([flat, self.hours(trips)], axis=-1)

    def _counts(self, cells, weights):
        """The sum of `weights` (B, P, maps) of the points in each place, (B, places, maps), points at `cells`
        (B, P, 2)."""
        across, up = self.size
        places = across * up

        def rows(square):
            """Where the places `square` (B, P, 2) of each example are, of all examples' places end to end."""
            first = ops.arange(ops.shape(square)[0])[:, None] * places
            return first + square[..., 0] * up + square[..., 1]

        @ops.custom_gradient
        def counted(cells, weights):
            # From the middle of a place, in places.
            place = (cells + 0.5) / self.spacing - 0.5
            own = ops.clip(ops.cast(ops.round(place), "int32"), 0, np.array([across - 1, up - 1], np.int32))
            found = ops.segment_sum(
                ops.reshape(weights, (-1, self.maps)), ops.reshape(rows(own), (-1,)), ops.shape(cells)[0] * places
            )

            def slopes(upstream):
                flat = ops.reshape(upstream, (-1, self.maps))
                along = [0.0, 0.0]
                for right in (-1, 0, 1):
                    for further in (-1, 0, 1):
                        square = own + np.array([right, further], np.int32)
                        inside = ops.clip(square, 0, np.array([across - 1, up - 1], np.int32))
                        away = place - ops.cast(square, place.dtype)
                        near = ops.exp(-2.0 * ops.sum(ops.square(away), axis=-1))
                        near *= ops.cast(ops.all(square == inside, axis=-1), near.dtype)
                        gain = near * ops.sum(ops.take(flat, rows(inside), axis=0) * weights, axis=-1)
                        along = [old - 4.0 / self.spacing * away[..., i] * gain for i, old in enumerate(along)]
                return ops.stack(along, axis=-1), ops.take(flat, rows(own), axis=0)

            return ops.reshape(found, (-1, places, self.maps)), slopes

        return counted(cells, weights)


def _points(trips):
    """The points of trips (B, n, length, features), (B, P, features), and which are there, 0 or 1, (B, P, 1)."""
    points = ops.reshape(trips, (-1, trips.shape[1] * trips.shape[2], trips.shape[3]))
    return points, ops.cast(points[..., SLOT : SLOT + 1] > 0, points.dtype)


def _bumps(values, centres: np.ndarray, spacing: float):
    """Gaussians of `values` (..., 1) around `centres`, `spacing` apart: narrow enough to keep neighbours apart, wide
    enough to have a slope half-way."""
    return ops.exp(-0.5 * ops.square((values - ops.convert_to_tensor(centres, values.dtype)) / (0.5 * spacing)))


def _share(amounts):
    return amounts / (ops.sum(amounts, axis=-1, keepdims=True) + 1e-6)


def root(shares):
    """Square roots; the floor keeps their gradient finite in unvisited places."""
    return ops.sqrt(shares + 1e-6)


@keras.saving.register_keras_serializable(_PACKAGE)
class Likeness(keras.layers.Layer):
    """How alike two sides' maps of one kind of trip are: shares a, b (B, D) of an encoder -> (B, numbers), the same
    for both orders.

    Of each of `maps` maps at four scales, each twice as coarse as the one before, and of the hours: the Bhattacharyya
    coefficient, sum of sqrt(a b), and the cosine of what is peculiar to each side, sqrt(a) - sqrt(m) and
    (a - m) / sqrt(m); with `overlap` the sum of min(a, b) too. m, the map of the mean driver, is what `adapt` was
    given. Float32 under every policy, as the maps are.
    """

    def __init__(self, across: int, up: int, maps: int = 1, overlap: bool = False, **arguments: Any) -> None:
        super().__init__(**{"dtype": "float32", **arguments})
        self.across, self.up, self.maps, self.overlap = across, up, maps, overlap

    @classmethod
    def of(cls, encoder: PlaceEncoder, name: str) -> "Likeness":
        """The layer that compares what `encoder` makes."""
        return cls(*encoder.size, maps=encoder.maps, overlap=encoder.overlap, name=name)

    def build(self, *shapes) -> None:
        shape = (self.maps * self.across * self.up + 24,)
        self.fleet = self.add_weight(shape, initializer="ones", trainable=False, name="fleet")

    def adapt(self, shares: np.ndarray) -> None:
        """Take the mean of maps (n, D), one a driver, for that of the fleet."""
        self.fleet.assign(shares.mean(axis=0))

    def call(self, a, b):
        sides = (a, b, self.fleet[None])
        # The maps side by side, as channels are in an image.
        maps = [ops.reshape(v[..., :-24], (-1, self.maps, self.across, self.up)) for v in sides]
        maps = [ops.transpose(v, (0, 2, 3, 1)) for v in maps]
        found = [alike(*(v[..., -24:] for v in sides), self.overlap)]
        for scale in range(4):
            flat = [ops.transpose(ops.reshape(v, (-1, v.shape[1] * v.shape[2], self.maps)), (0, 2, 1)) for v in maps]
            of_each = alike(*flat, self.overlap)
            found.append(ops.reshape(of_each, (-1, self.maps * of_each.shape[-1])))
            if scale < 3:
                # Means over squares, times four: sums, also at the rim.
                maps = [4.0 * ops.average_pool(_even(v), 2, 2, data_format="channels_last") for v in maps]
        return ops.concatenate(found, axis=-1)

    def compute_output_shape(self, shape, _):
        return (shape[0], (3 + self.overlap) * (1 + 4 * self.maps))

    def get_config(self):
        own = {"across": self.across, "up": self.up, "maps": self.maps, "overlap": self.overlap}
        return {**super().get_config(), **own}


def _even(maps):
    return ops.pad(maps, ((0, 0), (0, maps.shape[1] % 2), (0, maps.shape[2] % 2), (0, 0)))


def alike(a, b, middle, overlap: bool = False):
    """(B, ..., 3), or 4 with `overlap`, from shares a, b (B, ..., D) and those of the fleet (1, ..., D)."""
    roots = [root(v) for v in (a, b, middle)]
    rarity = 1.0 / ops.sqrt(middle + 1e-5)
    found = [ops.sum(roots[0] * roots[1], axis=-1)]
    for x, y, m in (roots, [v * rarity for v in (a, b, middle)]):
        x, y = x - m, y - m
        lengths = ops.sum(ops.square(x), axis=-1) * ops.sum(ops.square(y), axis=-1)
        found.append(ops.sum(x * y, axis=-1) / ops.sqrt(lengths + 1e-9))
    if overlap:
        found.append(ops.sum(ops.minimum(a, b), axis=-1))
    return ops.stack(found, axis=-1)
