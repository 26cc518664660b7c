"""A seeded city with a fleet of taxis: raw GPS points, as a fleet would deliver them.

It replaces a real fleet where there is none. A driver has a home, favourite quarters, hours, and a way of looking
for passengers. Where passengers get off is the same for all, and so is where they are found by those who look beyond
their own quarters: drivers meet downtown and at the airport, and a served trip says little about who drives.

The difficulty was fixed once, on clean accuracy alone. With 5 seek and 5 serve trips of one day a side, ST-Siamese with
LSTM encoders and a symmetric head, trained for 10 epochs of 4,000 pairs of 60 drivers on 7 days, is right on 0.86 of
1,000 pairs of 20 other drivers; the heat maps of the same trips on 0.81, and statistics of the whole days on 0.94.

The city lies where there is only sea, and its clocks show UTC. Tracks are the same bits on the same machine; another
CPU may round a logarithm differently.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from common.errors import UserError
from mobility_humid.data.gps import Track

# Monday, 7 January 2030; the south-west corner is a place in the North Atlantic.
FIRST_DAY = 1_893_974_400
SOUTH, WEST = 45.0, -35.0
METRES_PER_DEGREE = 111_195.0
# Metres to the east and to the north.
SIZE = np.array([12_000.0, 18_000.0])

# Where the passengers of all drivers are and go: middle (in shares of the size), spread in metres, share of the trips.
DEMAND = (
    ((0.50, 0.62), 1100.0, 0.34),  # downtown
    ((0.36, 0.50), 700.0, 0.14),  # central station
    ((0.68, 0.38), 900.0, 0.12),  # university
    ((0.80, 0.08), 350.0, 0.10),  # airport
    ((0.22, 0.80), 800.0, 0.08),  # mall
    ((0.50, 0.50), 4500.0, 0.22),  # anywhere
)

# What makes a driver: the knobs of how hard it is to tell drivers apart.
# Favourite quarters, how far they lie from home, how far they reach (spreads in metres), and how equally a driver likes
# them, in the long run (1 is any division) and on a day (the more, the nearer to the long run).
QUARTERS, RANGE, SPREAD, EQUALITY, CONSTANCY = 2, 1500.0, 500.0, 1.5, 4.0
# How near to home a shift begins and ends, a spread in metres.
COMMUTE = 3000.0
# Share of the seeks that make for a favourite quarter, drawn for each driver between these; of the others half hunt
# where the last passenger got off and half make for where demand is.
LOYALTY = (0.85, 1.0)
# Share of the seeks that wait at a stand instead of cruising, drawn for each driver between these.
WAITING = (0.0, 1.0)
# Mean minutes of a seek, and km/h, drawn for each driver between these, and by which factor days differ (a spread).
SEEK_MINUTES, SPEED, PACE = (8.0, 13.0), (22.0, 34.0), 0.12
# Hour at which a shift begins and hours that it lasts, drawn for each driver; hours by which a day differs from it.
SHIFT_START, SHIFT_LENGTH, SHIFT_JITTER = (7.0, 13.0), (8.0, 10.0), 2.0

# Minutes of the shortest and the longest trip; metres that a passenger goes at least.
TRIP_MINUTES, SHORTEST = (6.0, 25.0), 1500.0
# Seconds between points, and how much they differ.
INTERVAL, INTERVAL_JITTER = 60.0, 6.0
# What GPS does: its error in metres, shares of points that come twice and that follow a gap, most minutes of a gap.
ERROR, TWICE, GAPS, GAP_MINUTES = 12.0, 0.01, 0.004, 10.0
# Places that a cruise passes.
TURNS = 5


class _Driver(NamedTuple):
    """Places in metres, times in seconds, speed in metres a second."""

    home: np.ndarray
    quarters: np.ndarray
    liking: np.ndarray
    loyalty: float
    waiting: float
    seek: float
    speed: float
    start: float
    length: float
    day_off: int


class _Trips(NamedTuple):
    """T trips in order of time: `begin` (T,) in seconds, `speed` (T,) in metres a second, `corners` (T, corners, 2) in
    metres, `occupied` bool (T,)."""

    begin: np.ndarray
    speed: np.ndarray
    corners: np.ndarray
    occupied: np.ndarray


def city(seed: int, *, drivers: int, days: int) -> Iterator[Track]:
    """The GPS points of `drivers` taxi drivers on `days` days, driver by driver, each in order of time.

    About one point a minute on shift, on six days a week; some come twice, some are missing. Driver i depends on
    `(seed, i)` and `days` alone, so more drivers only append.

    Errors: `UserError` for a negative seed, or fewer than one driver or day.
    """
    if seed < 0 or drivers < 1 or days < 1:
        raise UserError(f"city: seed={seed}, drivers={drivers}, days={days}; expected at least 0, 1 and 1")
    for number in range(drivers):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
        shifts, trips = _drive(rng, _draw_driver(rng), days)
        yield _record(rng, f"driver{number:04d}", shifts, trips)


def _draw_driver(rng: np.random.Generator) -> _Driver:
    home = rng.uniform(0.1, 0.9, 2) * SIZE
    return _Driver(
        home=home,
        quarters=_near(rng, home, RANGE, QUARTERS),
        liking=rng.dirichlet(np.full(QUARTERS, EQUALITY)),
        loyalty=rng.uniform(*LOYALTY),
        waiting=rng.uniform(*WAITING),
        seek=rng.uniform(*SEEK_MINUTES) * 60,
        speed=rng.uniform(*SPEED) / 3.6,
        start=rng.uniform(*SHIFT_START) * 3600,
        length=rng.uniform(*SHIFT_LENGTH) * 3600,
        # Not the first day, so that every driver has one.
        day_off=int(rng.integers(1, 7)),
    )


def _drive(rng: np.random.Generator, driver: _Driver, days: int) -> tuple[np.ndarray, _Trips]:
    """When shifts begin and end (n, 2), in seconds, and the trips of them all. Trip by trip, all days at once."""
    day = np.flatnonzero(np.arange(days) % 7 != driver.day_off)
    n = len(day)
    late, longer = 3600 * SHIFT_JITTER * rng.normal(0, 1, (2, n)).clip(-1.5, 1.5)
    begin = FIRST_DAY + day * 86_400.0 + driver.start + late
    now, closing = begin.copy(), begin + driver.length + longer / 2
    liking = rng.gamma(CONSTANCY * driver.liking + 0.1, 1, (n, QUARTERS))
    liking /= liking.sum(axis=1, keepdims=True)
    seek, pace = driver.seek * np.exp(rng.normal(0, PACE, n)), driver.speed * np.exp(rng.normal(0, PACE, n))
    place = _near(rng, driver.home, COMMUTE, n)
    shortest, longest = 60 * TRIP_MINUTES[0], 60 * TRIP_MINUTES[1]
    driven, columns = [], []
    out, occupied = np.ones(n, bool), False
    while out.any():
        homewards = out & (now >= closing) & (not occupied)
        speed = pace * np.exp(rng.normal(0, 0.1, n))
        if occupied:
            stops = np.repeat(_destination(rng, place)[:, None], TURNS, axis=1)
            seconds = np.zeros(n)
        else:
            stops = _search(rng, driver, liking, place)
            stops[homewards] = _near(rng, driver.home, COMMUTE, n)[homewards, None]
            seconds = seek * rng.gamma(4, 1 / 4, n)
        corners = _route(rng, place, stops)
        metres = np.abs(np.diff(corners, axis=1)).sum(axis=(1, 2))
        # A passenger gets to where they want to go, and a shift ends at home.
        seconds = np.where(homewards | occupied, metres / speed, seconds).clip(shortest, longest)
        speed = np.where(homewards | occupied, metres / seconds, speed)
        driven.append(out.copy())
        columns.append((now.copy(), speed, corners, np.full(n, occupied)))
        place = _along(corners, np.arange(n), speed * seconds)
        now += np.where(out, seconds, 0)
        out &= ~homewards
        occupied = not occupied
    # From (trips, days, ...) to (days, trips, ...), of which some days have more: by day and time.
    there = np.stack(driven, axis=1)
    trips = _Trips(*(np.stack(column, axis=1)[there] for column in zip(*columns, strict=True)))
    return np.stack([begin, now], axis=1), trips


def _search(rng: np.random.Generator, driver: _Driver, liking: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Where drivers who are at `place` (n, 2) look for a passenger, (n, TURNS, 2); `liking` (n, quarters)."""
    n = len(place)
    favourite = (np.cumsum(liking[:, :-1], axis=1) < rng.random((n, 1))).sum(axis=1)
    quarter = _near(rng, driver.quarters[favourite], SPREAD, n)
    elsewhere = np.where(rng.random((n, 1)) < 0.5, _near(rng, place, SPREAD, n), _demand(rng, n))
    goal = np.where(rng.random((n, 1)) < driver.loyalty, quarter, elsewhere)[:, None]
    cruise = np.concatenate([goal, _inside(goal + rng.normal(0, SPREAD, (n, TURNS - 1, 2)))], axis=1)
    return np.where(rng.random((n, 1, 1)) < driver.waiting, goal, cruise)


def _destination(rng: np.random.Generator, place: np.ndarray) -> np.ndarray:
    """Where passengers found at `place` (n, 2) go: of three wishes the nearest that is not too near to ride to."""
    wishes = np.stack([_demand(rng, len(place)) for _ in range(3)], axis=1)
    metres = np.abs(wishes - place[:, None]).sum(axis=2)
    chosen = np.argmin(np.where(metres < SHORTEST, 1e6 - metres, metres), axis=1)
    return wishes[np.arange(len(place)), chosen]


def _demand(rng: np.random.Generator, n: int) -> np.ndarray:
    middles, spreads, shares = (np.array(column) for column in zip(*DEMAND, strict=True))
    spot = rng.choice(len(DEMAND), n, p=shares)
    return _near(rng, middles[spot] * SIZE, spreads[spot, None], n)


def _near(rng: np.random.Generator, middle: np.ndarray, spread: float | np.ndarray, n: int) -> np.ndarray:
    return _inside(middle + spread * rng.normal(0, 1, (n, 2)))


def _inside(place: np.ndarray) -> np.ndarray:
    return place.clip(0, SIZE)


def _route(rng: np.random.Generator, place: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Ways from `place` (n, 2) by all `stops` (n, TURNS, 2), streets running east or north: (n, 1 + 2 * TURNS, 2)."""
    path = np.concatenate([place[:, None], stops], axis=1)
    before, after = path[:, :-1], path[:, 1:]
    east_first = rng.random((*before.shape[:2], 1)) < 0.5
    turn = np.where(east_first == np.array([True, False]), after, before)
    legs = np.stack([turn, after], axis=2).reshape(len(place), -1, 2)
    return np.concatenate([place[:, None], legs], axis=1)


def _along(corners: np.ndarray, trip: np.ndarray, metres: np.ndarray) -> np.ndarray:
    """Places (p, 2) on the ways `corners` (T, corners, 2) of `trip` (p,), `metres` (p,) from their beginning, or
    their end where that comes first."""
    reached = np.cumsum(np.abs(np.diff(corners, axis=1, prepend=corners[:, :1])).sum(axis=2), axis=1)
    # All ways laid end to end, a metre apart, so that one sorted search finds all legs.
    starts = np.concatenate([[0.0], np.cumsum(reached[:, -1] + 1)])[:-1]
    place = starts[trip] + np.clip(metres, 0, reached[trip, -1])
    milestones = (starts[:, None] + reached).ravel()
    return np.stack([np.interp(place, milestones, corners[..., axis].ravel()) for axis in range(2)], axis=1)


def _record(rng: np.random.Generator, name: str, shifts: np.ndarray, trips: _Trips) -> Track:
    """What the driver's device sends of `shifts` (n, 2)."""
    longest = (shifts[:, 1] - shifts[:, 0]).max(initial=0)
    steps = rng.normal(INTERVAL, INTERVAL_JITTER, (len(shifts), int(longest / INTERVAL * 1.1) + 1)).clip(1)
    steps += np.where(rng.random(steps.shape) < GAPS, 60 * rng.uniform(0, GAP_MINUTES, steps.shape), 0)
    time = shifts[:, :1] + np.cumsum(steps, axis=1)
    time = time[time < shifts[:, 1:]]
    time = np.repeat(time, 1 + (rng.random(len(time)) < TWICE))
    trip = np.searchsorted(trips.begin, time, side="right") - 1
    x, y = _along(trips.corners, trip, (time - trips.begin[trip]) * trips.speed[trip]).T
    x, y = (metres + rng.normal(0, ERROR, len(time)) for metres in (x, y))
    lat = SOUTH + y / METRES_PER_DEGREE
    lon = WEST + x / (METRES_PER_DEGREE * np.cos(np.radians(SOUTH)))
    return Track(name, time.astype(np.int64), lat, lon, trips.occupied[trip])
