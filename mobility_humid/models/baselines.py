"""What simple means achieve on the same samples: a network that does not beat them has learnt nothing that matters.

Two of them, for pairs (`*_scores`) and for naming the driver (`*_names`). The heat map knows only where the trips of a
sample went, without order and time. The whole day knows every trip of the sample's days, also those that the sample
leaves out, through statistics that a dispatcher would look at. Neither is told how often a device reports, which would
recognise the device instead of the driver.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from common.progress import blocks, track
from mobility_humid.data.pairs import Pairs, Singles
from mobility_humid.data.trips import SLOT, SLOTS, SPEED, TripSet, X, Y

# Sides of a heat map's square, in cells of the grid. Two drivers who turn in the same quarter seldom meet in one cell,
# so likeness is looked for at several scales.
SCALES = (1, 2, 4, 8)
# Squares that the fleet never visits count as if this share of its points lay there.
RARE = 1e-5
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
# Two hours, in slots.
HOURS = 24
# Pairs whose maps are held at a time.
BLOCK = 1000
# Of a fit. They are small: where others use the cores too, several threads wait for one another for many times as long
# as they work.
THREADS = 1


def heat_map_scores(
    trips: TripSet, train: Pairs, tests: Sequence[Pairs], *, progress: bool = False
) -> list[np.ndarray]:
    """The probability that the sides of each pair are one driver, float64 (n,) for each of `tests`, by where they went.

    Logistic regression on how alike the two sides' maps are, by kind of trip and scale (`_likeness`). With one weight
    per square of |a - b| and a * b it did worse on unseen cabs of San Francisco, however regularised: a square says
    nothing about drivers who were not trained on. `progress` is shown if it takes long.
    """
    charts = [_Charts(trips, train.trips, scale) for scale in SCALES]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    model.fit(_likeness(charts, train.trips, progress), train.same)
    return [model.predict_proba(_likeness(charts, pairs.trips, progress))[:, 1] for pairs in tests]


def heat_map_names(trips: TripSet, train: Singles, tests: Sequence[Singles]) -> list[np.ndarray]:
    """The driver of each sample, one of those in `train`, int32 (n,) for each of `tests`, from where the trips went.

    Multinomial logistic regression on the square roots of the shares of squares of the two finest scales, by kind of
    trip; squares that no trip of `train` visits are left out.
    """
    charts = [_Charts(trips, train.trips, scale) for scale in SCALES[:2]]

    def features(singles: Singles) -> sparse.csr_array:
        maps = [
            chart.of(singles.trips[:, kind])[:, np.flatnonzero(fleet)]
            for chart in charts
            for kind, fleet in enumerate(chart.fleet)
        ]
        return sparse.hstack(maps, format="csr").sqrt()

    model = LogisticRegression(C=1.0, max_iter=300)
    with threadpool_limits(THREADS):
        model.fit(features(train), train.driver)
    return [model.predict(features(singles)).astype(np.int32) for singles in tests]


def whole_day_scores(
    trips: TripSet, train: Pairs, tests: Sequence[Pairs], *, progress: bool = False
) -> list[np.ndarray]:
    """The probability that the sides of each pair are one driver, float64 (n,) for each of `tests`, from how they work.

    Gradient boosting on |a - b| and a + b for the statistics a and b of the sides' days (`day_statistics`).
    """
    statistics = day_statistics(trips, progress=progress)

    def features(pairs: Pairs) -> np.ndarray:
        sides = _mean_of_days(statistics, pairs.driver, pairs.days)
        return np.concatenate([np.abs(sides[:, 0] - sides[:, 1]), sides[:, 0] + sides[:, 1]], axis=1)

    model = HistGradientBoostingClassifier(
        learning_rate=0.05, max_iter=200, max_leaf_nodes=8, min_samples_leaf=40, max_features=0.3, random_state=0
    )
    with threadpool_limits(THREADS):
        model.fit(features(train), train.same)
        return [model.predict_proba(features(pairs))[:, 1] for pairs in tests]


def whole_day_names(
    trips: TripSet, train: Singles, tests: Sequence[Singles], *, progress: bool = False
) -> list[np.ndarray]:
    """The driver of each sample, one of those in `train`, int32 (n,) for each of `tests`, from how they work.

    Randomised trees on the statistics of the samples' days (`day_statistics`); boosting needs as many trees again for
    every driver.
    """
    statistics = day_statistics(trips, progress=progress)

    def features(singles: Singles) -> np.ndarray:
        return np.nan_to_num(_mean_of_days(statistics, singles.driver, singles.days), nan=-1.0)

    model = ExtraTreesClassifier(300, max_features=0.2, random_state=0).fit(features(train), train.driver)
    return [model.predict(features(singles)).astype(np.int32) for singles in tests]


def day_statistics(trips: TripSet, *, progress: bool = False) -> np.ndarray:
    """What all trips of each driver's day say, float32 (D, N, features), not a number where there are none.

    By kind, and for all together: the number of trips; how many slots they take, and how many cells lie between their
    ends; where they begin; where all their points are; how fast they go, and how often not at all. Of the day: when and
    where it begins and ends, its longest pause and where that was, and its shares by blocks of two hours. `progress` is
    shown if it takes long.
    """
    groups = len(trips.drivers) * len(trips.days)
    day = trips.driver.astype(np.int64) * len(trips.days) + trips.day
    lengths = np.diff(trips.offsets)
    point_day, point_kind = np.repeat(day, lengths), np.repeat(trips.kind, lengths)
    begin, end = (trips.points[place].astype(np.float64) for place in (trips.offsets[:-1], trips.offsets[1:] - 1))
    took, reach = end[:, SLOT] - begin[:, SLOT], np.hypot(end[:, X] - begin[:, X], end[:, Y] - begin[:, Y])
    speed = trips.points[:, SPEED]

    columns = []
    for kind in track((*trips.kinds, None), "whole days", units="kinds of trips", shown=progress):
        chosen, points = (slice(None) if kind is None else kinds == kind for kinds in (trips.kind, point_kind))
        columns.append(np.bincount(day[chosen], minlength=groups)[:, None])
        columns += [_summary(values[chosen], day[chosen], groups) for values in (took, reach, begin[:, X], begin[:, Y])]
        columns += [_summary(trips.points[points, column], point_day[points], groups) for column in (X, Y, SPEED)]
        columns.append(_summary(speed[points] < 3, point_day[points], groups)[:, :1])

    # Trips are sorted by day and time.
    first = np.flatnonzero(np.diff(day, prepend=-1))
    last = np.append(first[1:], len(day)) - 1
    pause = np.append(begin[1:, SLOT] - end[:-1, SLOT], 0)
    pause[last] = 0
    longest = np.lexsort((pause, day))[last]
    of_days = np.full((groups, 10), np.nan)
    of_days[day[first]] = np.column_stack(
        [begin[first, :3], end[last, :3], pause[longest], np.where(pause[longest, None] > 0, end[longest, :3], np.nan)]
    )
    block = (trips.points[:, SLOT] - 1) // HOURS
    hours = np.bincount(point_day * (SLOTS // HOURS) + block, minlength=groups * (SLOTS // HOURS))
    hours = hours.reshape(groups, -1) / np.maximum(np.bincount(point_day, minlength=groups), 1)[:, None]
    table = np.concatenate([*columns, of_days, hours], axis=1, dtype=np.float32)
    table[np.bincount(day, minlength=groups) == 0] = np.nan
    return table.reshape(len(trips.drivers), len(trips.days), -1)


def _summary(values: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """Mean, standard deviation and `QUANTILES` of the `values` (n,) of each group, (groups, 2 + quantiles)."""
    values = np.asarray(values, np.float64)
    order = np.lexsort((values, group))
    count = np.bincount(group, minlength=groups)
    there = np.flatnonzero(count)
    first, number = (np.cumsum(count) - count)[there], count[there]
    out = np.full((groups, 2 + len(QUANTILES)), np.nan)
    out[there, 0] = np.bincount(group, values, groups)[there] / number
    squares = np.bincount(group, values**2, groups)[there] / number
    out[there, 1] = np.sqrt(np.maximum(squares - out[there, 0] ** 2, 0))
    for column, share in enumerate(QUANTILES, 2):
        out[there, column] = values[order[first + np.rint(share * (number - 1)).astype(np.int64)]]
    return out


def _mean_of_days(statistics: np.ndarray, driver: np.ndarray, days: np.ndarray) -> np.ndarray:
    """(..., features) for `driver` (...) and `days` (..., days per side); what one of the days lacks is left out."""
    values = statistics[driver[..., None], days]
    known = np.isfinite(values)
    count = known.sum(axis=-2)
    total = np.where(known, values, 0).sum(axis=-2)
    return np.divide(total, count, out=np.full(total.shape, np.nan, np.float32), where=count > 0)


class _Charts:
    """Heat maps of squares of `scale` x `scale` cells; `fleet` (kinds, squares), that of the mean driver, is made
    of the trips `known` (..., kinds, K) alone."""

    def __init__(self, trips: TripSet, known: np.ndarray, scale: int) -> None:
        across, up = -(-trips.grid.width // scale), -(-trips.grid.height // scale)
        square = trips.points[:, Y].astype(np.int32) // scale * across + trips.points[:, X] // scale
        # Duplicates are summed in place, which must not reach the trips' own offsets.
        table = (np.ones(len(square), np.float32), square, trips.offsets.copy())
        self._visits = sparse.csr_array(table, (len(trips.driver), across * up))
        self._visits.sum_duplicates()
        self.fleet = np.stack([self._mean_driver(trips, known[..., kind, :]) for kind in range(known.shape[-2])])

    def of(self, chosen: np.ndarray) -> sparse.csr_array:
        """Shares of the squares in the trips `chosen` (n, K), -1 for none: (n, squares), rows of sum 1, or 0."""
        there = chosen >= 0
        rows = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
        return self._shares(chosen[there], rows)

    def _mean_driver(self, trips: TripSet, known: np.ndarray) -> np.ndarray:
        # Trips are sorted by driver, so those of each, in order, are a run.
        number = np.unique(known[known >= 0])
        rows = np.flatnonzero(np.diff(trips.driver[number], prepend=-1, append=-1))
        return self._shares(number, rows).mean(axis=0)

    def _shares(self, number: np.ndarray, rows: np.ndarray) -> sparse.csr_array:
        """Map of the trips `number[rows[i]:rows[i + 1]]` for each i."""
        ones = np.ones(len(number), np.float32)
        counts = sparse.csr_array((ones, number, rows), (len(rows) - 1, self._visits.shape[0])) @ self._visits
        return (sparse.diags_array(1 / np.maximum(counts.sum(axis=1), 1)) @ counts).tocsr()


def _likeness(charts: Sequence[_Charts], trips: np.ndarray, progress: bool = False) -> np.ndarray:
    """Of pairs of sides `trips` (n, 2, kinds, K), float64 (n, scales * kinds * 4), the same for both orders.

    For maps a and b and that of the fleet m: the overlap, sum of min(a, b); the Bhattacharyya coefficient, sum of
    sqrt(a b); and the cosine of what is peculiar to each side, sqrt(a) - sqrt(m), and (a - m) / sqrt(m), in which a
    square that no other driver visits weighs most.
    """
    n, _, kinds, _ = trips.shape
    out = np.zeros((n, len(charts), kinds, 4))
    for rows in blocks(n, BLOCK, "heat maps", units="pairs", shown=progress):
        for column, chart in enumerate(charts):
            for kind, fleet in enumerate(chart.fleet):
                a, b = (chart.of(trips[rows, side, kind]) for side in range(2))
                rarity = 1 / np.sqrt(fleet + RARE)
                out[rows, column, kind, 0] = a.minimum(b).sum(axis=1)
                out[rows, column, kind, 1] = a.sqrt().multiply(b.sqrt()).sum(axis=1)
                out[rows, column, kind, 2] = _cosine(a.sqrt(), b.sqrt(), np.sqrt(fleet))
                out[rows, column, kind, 3] = _cosine(a * rarity, b * rarity, fleet * rarity)
    return out.reshape(n, -1)


def _cosine(a: sparse.csr_array, b: sparse.csr_array, middle: np.ndarray) -> np.ndarray:
    """Cosine of the rows of a - middle and b - middle, multiplied out so that they stay sparse; 0 for an empty row."""
    square = middle @ middle
    a_middle, b_middle = a @ middle, b @ middle
    both = a.multiply(b).sum(axis=1) - a_middle - b_middle + square
    a_square, b_square = (m.multiply(m).sum(axis=1) - 2 * along + square for m, along in ((a, a_middle), (b, b_middle)))
    scale = np.sqrt(np.maximum(a_square, 1e-9) * np.maximum(b_square, 1e-9))
    return np.where((a.sum(axis=1) > 0) & (b.sum(axis=1) > 0), both / scale, 0.0)
