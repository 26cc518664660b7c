"""A sample as one tensor: which row is whose trip.

A sample is float32 (rows, length, features) in grid units: features x, y, slot and, if wanted, km/h; a point whose slot
is 0 is padding. Its rows are, kind by kind (seek, then serve), those of driver 1 and those of driver 2, as in the
original; a sample for naming a driver has one driver only. With profiles each driver has one more row at the end, whose
first column holds the profile; its slots are 0, so that nothing takes it for a trip.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mobility_humid.data.trips import PROFILE_FEATURES, SERVE, SLOT, X, Y


@dataclass(frozen=True)
class Layout:
    """`kinds` of trips, `per_kind` trips of each, `sides` 2 for pairs or 1, `length` points a trip, 3 or 4
    `features`."""

    kinds: tuple[int, ...]
    per_kind: int
    sides: int
    length: int
    features: int
    profile: bool = False

    @property
    def trip_rows(self) -> int:
        """Number of rows that hold trips."""
        return len(self.kinds) * self.sides * self.per_kind

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a sample."""
        return self.trip_rows + self.sides * self.profile, self.length, self.features

    @property
    def moving(self) -> slice | None:
        """The rows that an attacker moves: the trips of the last driver that no passenger fixes; None without any."""
        free = [place for place, kind in enumerate(self.kinds) if kind != SERVE]
        if not free:
            return None
        # Seek trips come first; of an untyped fleet there is one kind only.
        first = (free[0] * self.sides + self.sides - 1) * self.per_kind
        return slice(first, first + self.per_kind)

    def config(self) -> dict[str, Any]:
        """The fields as plain values, for a model's file."""
        return {**asdict(self), "kinds": list(self.kinds)}

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Layout":
        """The layout that `config` describes."""
        return cls(**{**config, "kinds": tuple(config["kinds"])})

    def rows(self, trips: np.ndarray) -> np.ndarray:
        """Trip numbers (n, sides, kinds, per_kind), or without `sides` for one, as int32 (n, trip_rows)."""
        trips = trips.reshape(len(trips), self.sides, len(self.kinds), self.per_kind)
        return np.ascontiguousarray(trips.swapaxes(1, 2).reshape(len(trips), self.trip_rows), np.int32)

    def assemble(self, table: np.ndarray, rows: np.ndarray, profiles: np.ndarray | None) -> np.ndarray:
        """Samples float32 (n, rows, length, features) from a table of trips and their numbers (n, trip_rows).

        `profiles` (n, sides, 11), when the layout has them.
        """
        x = np.zeros((len(rows), *self.shape), np.float32)
        x[:, : self.trip_rows] = table[rows]
        if self.profile:
            x[:, self.trip_rows :, : len(PROFILE_FEATURES), 0] = profiles
        return x

    def movable(self, x: np.ndarray) -> np.ndarray:
        """Which coordinates of samples `x` (n, ...) an attacker may change, float32 0 or 1, of the shape of `x`: x and
        y of the points of the moving rows; never time, speed or padding."""
        mask = np.zeros(x.shape, np.float32)
        if self.moving is not None:
            there = x[:, self.moving, :, SLOT] > 0
            for coordinate in (X, Y):
                mask[:, self.moving, :, coordinate] = there
        return mask
