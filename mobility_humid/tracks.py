"""One driver's raw GPS points, whatever file they came from."""

from typing import NamedTuple

import numpy as np


class Track(NamedTuple):
    """The points of one driver, in any order. n points.

    `time` int64 (n,), seconds since 1970 in UTC; `lat`, `lon` float64 (n,) in degrees; `occupied` bool (n,), a
    passenger is on board, or None for a fleet that does not say.
    """

    driver: str
    time: np.ndarray
    lat: np.ndarray
    lon: np.ndarray
    occupied: np.ndarray | None
