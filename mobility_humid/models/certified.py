"""A verifier of drivers whose answer under attack is known, not estimated.

Served trips cannot be moved, and what is read of seek trips is a mean over their points of a table of cells, made of
the other driver's trips and the fleet's. So the worst that moving each point by up to eta cells can do is the mean of
the table's largest, or smallest, value within eta of each point: a filter of the table. Bound and attack coincide.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
from keras import ops

from mobility_humid.data.trips import SERVE, SLOT, X, Y
from mobility_humid.models.maps import Likeness, alike
from mobility_humid.models.networks import TripModel

Reads = Literal["strict", "in_model"]
# Widths of the Gaussians that maps are blurred by, in cells: a point that is moved a cell or two is hardly moved on the
# wider ones.
WIDTHS = (1.0, 2.0, 4.0, 8.0)
# Cells that a driver, or the fleet, never visits count as if this share of the points lay there.
RARE = 1e-5
_PACKAGE = "mobility_humid"


@keras.saving.register_keras_serializable(_PACKAGE)
class CertifiedSiamese(TripModel):
    """Samples of two drivers -> logit (B, 1) that they are the same: `fixed`, what an attacker cannot change, and
    `seek`, the mean of a table of cells over the points that may be moved.

    `fixed` is linear in the likeness of both drivers' served trips (`networks.Likeness`), which the last driver's
    passengers chose; with `reads` "in_model" also in how alike the times and the numbers of their seek trips are, which
    an attack on places leaves as they are. The table of a sample is linear in the logarithms of how much more often the
    first driver is at a cell than the fleet, blurred by `WIDTHS`, by kind of trip. `adapt` shows it the fleet, `weigh`
    sets the `fixed` part, which training only scales and shifts.
    """

    def __init__(self, *, reads: Reads = "strict", **arguments: Any) -> None:
        kinds = arguments["layout"]["kinds"] if isinstance(arguments["layout"], dict) else arguments["layout"].kinds
        super().__init__(encoders=len(kinds), **arguments)
        if self.layout.sides != 2 or SERVE not in self.layout.kinds or self.layout.moving is None:
            raise ValueError("a certified verifier compares two drivers by their served and their seek trips")
        self._arguments["reads"] = self.reads = reads
        self.grid = tuple(self._arguments["grid"])
        self._served = self.layout.kinds.index(SERVE)
        self._blurs = [[_blur(size, width) for size in self.grid] for width in WIDTHS]
        tables = len(self.layout.kinds) * len(WIDTHS)
        self.fleet = self.add_weight((*self.grid, tables), initializer="ones", trainable=False, name="fleet")
        self.spread = self.add_weight((tables,), initializer="ones", trainable=False, name="spread")
        self.likeness = Likeness.of(self.encoders[self._served], "likeness")
        self.weigh_fixed = keras.layers.Dense(1, kernel_initializer="zeros", trainable=False, name="fixed")
        self.trust = self.add_weight((), initializer="ones", name="trust")
        self.offset = self.add_weight((), initializer="zeros", name="offset")
        self.weigh_tables = self.add_weight((tables,), initializer="zeros", name="tables")
        self.threshold = self.add_weight((), initializer="zeros", trainable=False, name="threshold")
        self.build()

    def adapt(self, x: np.ndarray, *, batch_size: int = 50) -> None:
        """Take the mean map of the drivers in samples `x` (n, ...) of pairs for the fleet's, and bring the tables to
        one scale there."""
        blocks = [x[first : first + batch_size] for first in range(0, len(x), batch_size)]
        served = [np.asarray(self.embed_kind(block, self._served)) for block in blocks]
        self.likeness.adapt(np.concatenate(served).reshape(-1, served[0].shape[-1]))
        self.fleet.assign(np.mean([np.asarray(self._maps(block)).mean(axis=0) for block in blocks], axis=0))
        found = [np.asarray(_mean(self._levels(block), *self._points(block))) for block in blocks]
        self.spread.assign(np.maximum(np.concatenate(found).std(axis=0), 1e-3))

    def weigh(self, weights: np.ndarray, bias: float) -> None:
        """Let `fixed` be `bias` and the features by their `weights` (F,)."""
        self.weigh_fixed.set_weights([weights[:, None], np.array([bias])])

    def call(self, x, training=False):
        return self.answer(x[:, self.layout.moving], self._weighed(self.observe(x), training), x)

    def observe(self, x) -> "Observed":
        """What is read of samples `x` (B, ...), before any weight is: the same for all verifiers of a fleet that read
        the same."""
        points, there = self._points(x)
        return Observed(self.features(x), self._levels(x), _shares(points, there, self.grid))

    def unmoved(self, x) -> dict[str, Any]:
        """What no point of the moving trips in samples `x` changes: the `fixed` logit (B,), the `table` (B, W, H)."""
        return self._weighed(self.observe(x))

    def answer(self, moving, unmoved: dict[str, Any], x):
        """The logit (B, 1) for trips `moving` (B, K, length, features) in the place of those that move."""
        return (unmoved["fixed"] + _mean(unmoved["table"][..., None], *_flat(moving))[:, 0])[:, None]

    def bounds(self, seen: "Observed", eta: int, training=False):
        """The least and the largest logit, (B,) each, of samples whose moving points each go up to `eta` cells along
        both axes, on the map: both can be had."""
        unmoved = self._weighed(seen, training)
        ends = [sign * _over(_largest_near(sign * unmoved["table"], eta), seen.where) for sign in (-1.0, 1.0)]
        return tuple(unmoved["fixed"] + end for end in ends)

    def channels(self, seen: "Observed"):
        """The two parts of the logit, (B,) each: `fixed` and `seek`."""
        unmoved = self._weighed(seen)
        return unmoved["fixed"], _over(unmoved["table"], seen.where)

    def _weighed(self, seen: "Observed", training=False) -> dict[str, Any]:
        fixed = self.trust * self.weigh_fixed(seen.features)[:, 0] + self.offset
        table = ops.sum(seen.levels * (self.weigh_tables / self.spread), axis=-1)
        return {"fixed": fixed if training else fixed - self.threshold, "table": table}

    def _points(self, x):
        return _flat(x[:, self.layout.moving])

    def features(self, x):
        """What the `fixed` part weighs of samples `x`: (B, F)."""
        served = self.embed_kind(x, self._served)
        found = [self.likeness(served[:, 0], served[:, 1])]
        if self.reads == "in_model":
            even = ops.full((1, 24), 1.0 / 24)
            for place in range(len(self.layout.kinds)):
                if place != self._served:
                    hours = self._hours(x, place)
                    found.append(alike(hours[:, 0], hours[:, 1], even))
            found.append(self._counts(x))
        return ops.concatenate(found, axis=-1)

    def _hours(self, x, place: int):
        """The shares of the hours in the trips of one kind, by side: (B, 2, 24)."""
        each, layout = self.layout.per_kind, self.layout
        trips = x[:, 2 * place * each : 2 * (place + 1) * each]
        hours = self.encoders[place].hours(ops.reshape(trips, (-1, each, layout.length, layout.features)))
        return ops.reshape(hours, (-1, 2, 24))

    def _counts(self, x):
        """How many times as many trips, and points, one side has as the other: (B, 2 x kinds), 0 for as many."""
        each, found = self.layout.per_kind, []
        for first in range(0, self.layout.trip_rows, 2 * each):
            there = ops.cast(x[:, first : first + 2 * each, :, SLOT] > 0, "float32")
            points = ops.sum(ops.reshape(there, (-1, 2, each, self.layout.length)), axis=(2, 3))
            trips = ops.sum(ops.reshape(ops.max(there, axis=-1), (-1, 2, each)), axis=2)
            found += [ops.abs(ops.log((1.0 + n[:, 0]) / (1.0 + n[:, 1]))) for n in (trips, points)]
        return ops.stack(found, axis=-1)

    def _maps(self, x):
        """Blurred shares of the cells in the first side's trips, kind by kind and width by width: (B, W, H, tables)."""
        each, maps = self.layout.per_kind, []
        for place in range(len(self.layout.kinds)):
            shares = _shares(*_flat(x[:, 2 * place * each : (2 * place + 1) * each]), self.grid)
            maps += [ops.matmul(ops.matmul(blurs[0], shares), blurs[1].T) for blurs in self._blurs]
        return ops.stack(maps, axis=-1)

    def _levels(self, x):
        return ops.log((self._maps(x) + RARE) / (self.fleet + RARE))


class Observed(NamedTuple):
    """What a verifier weighs: `features` (B, F) of what cannot be moved, `levels` (B, W, H, tables) of the cells, and
    `where` the moving points are, shares of the cells (B, W, H)."""

    features: Any
    levels: Any
    where: Any


def _blur(size: int, width: float) -> np.ndarray:
    """What spreads each of `size` cells by a Gaussian, all of it on the map: (size, size)."""
    cells = np.arange(size)
    bumps = np.exp(-0.5 * ((cells[:, None] - cells) / width) ** 2)
    return (bumps / bumps.sum(axis=0)).astype(np.float32)


def _flat(trips):
    """The points of trips (B, K, length, features), (B, P, 2), and which are there, 0 or 1, (B, P)."""
    points = ops.reshape(trips, (-1, trips.shape[1] * trips.shape[2], trips.shape[3]))
    return points[..., X : Y + 1], ops.cast(points[..., SLOT] > 0, points.dtype)


def _shares(points, there, grid: Sequence[int]):
    """The shares of the cells, (B, W, H), in `points` (B, P, 2) that are `there`; 0 without any."""
    across, up = (ops.one_hot(ops.cast(ops.round(points[..., axis]), "int32"), size) for axis, size in enumerate(grid))
    counts = ops.matmul(ops.transpose(across * there[..., None], (0, 2, 1)), up)
    return counts / ops.maximum(ops.sum(there, axis=1), 1.0)[:, None, None]


def _over(table, where):
    """Means of `table` (B, W, H) over shares of the cells: (B,)."""
    return ops.sum(table * where, axis=(1, 2))


def _mean(tables, points, there):
    """Means of `tables` (B, W, H, D) over the cells of `points` (B, P, 2) that are `there` (B, P): (B, D), 0 without
    any. As a function of the points it has the slope of the cells around them."""
    across, up, depth = tables.shape[1:]
    flat = ops.reshape(tables, (-1, across * up, depth))
    cell = ops.stop_gradient(ops.round(points))
    x, y = (ops.clip(cell[..., axis], 0, size - 1) for axis, size in enumerate((across, up)))

    def read(x, y):
        index = ops.cast(ops.clip(x, 0, across - 1) * up + ops.clip(y, 0, up - 1), "int32")
        return ops.take_along_axis(flat, index[..., None], axis=1)

    value = read(x, y)
    for axis, (right, left) in enumerate(((read(x + 1, y), read(x - 1, y)), (read(x, y + 1), read(x, y - 1)))):
        slope = ops.stop_gradient((right - left) / 2.0)
        own = points[..., axis : axis + 1]
        value += slope * (own - ops.stop_gradient(own))
    return ops.sum(value * there[..., None], axis=1) / ops.maximum(ops.sum(there, axis=1), 1.0)[:, None]


def _largest_near(table, eta: int):
    """The largest of `table` (B, W, H) within `eta` cells along both axes."""
    # One axis after the other, and examples as channels: an eighth of the time of one square window an example.
    maps = ops.transpose(table, (1, 2, 0))[None]
    for window in ((2 * eta + 1, 1), (1, 2 * eta + 1)):
        maps = ops.max_pool(maps, window, strides=1, padding="same", data_format="channels_last")
    return ops.transpose(maps[0], (2, 0, 1))


def certified(low: np.ndarray, high: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Whose answer no attack changes, and is right, bool (n,): logits between `low` and `high`, `same` (n,) or not."""
    return np.where(np.asarray(same) == 1, np.asarray(low) > 0, np.asarray(high) <= 0)


def clipped(
    fixed: np.ndarray, seek: np.ndarray, same: np.ndarray, most: Sequence[float]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of answers `fixed` + `seek` clipped to [-c, c], for each c of `most`: who is answered rightly, and who is so
    whatever the moving trips are, bool (n,) each."""
    sign = np.where(np.asarray(same) == 1, 1.0, -1.0)
    found = []
    for c in most:
        right = (fixed + np.clip(seek, -c, c) > 0) == (sign > 0)
        found.append((right, sign * fixed > c))
    return found
