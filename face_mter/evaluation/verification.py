"""Face verification: scores, thresholds and rates of embeddings, with intervals by person.

A pair is accepted when the cosine of its embeddings is the threshold or above. Embeddings are (N, D) of any length;
they are brought to length 1 here. `person` int (N,) is ascending, as in `Faces`.
"""

import math
from typing import NamedTuple

import numpy as np

from common.errors import UserError
from common.evaluation.statistics import Estimate, Statistic, bootstrap, ratio

# Numbers held at a time in addition to what is returned.
_BLOCK = 2**22


class Scores(NamedTuple):
    """Cosines, float32, of all pairs of images: `genuine` in the order of `genuine_pairs`, `impostor` in that of
    `impostor_scores`; `person` int (N,) says who is on each image."""

    genuine: np.ndarray
    impostor: np.ndarray
    person: np.ndarray


class Rates(NamedTuple):
    """The true and the false accept rate at one threshold, each with an interval by person."""

    tar: Estimate
    far: Estimate


class Roc(NamedTuple):
    """A thinned ROC curve, float64 (points,) each, from the highest threshold to the lowest."""

    threshold: np.ndarray
    far: np.ndarray
    tar: np.ndarray


def normalised(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings (N, D) brought to length 1, float32.

    Errors: `UserError` for one that is zero or not finite.
    """
    embeddings = np.asarray(embeddings, np.float32)
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings: expected (N, D), received {embeddings.shape}")
    length = np.sqrt(np.einsum("nd,nd->n", embeddings, embeddings, dtype=np.float64))
    if len(bad := np.flatnonzero(~(np.isfinite(length) & (length > 0)))):
        raise UserError(f"embeddings: row {bad[0]} has length {length[bad[0]]:g}; expected finite ones; train again")
    return (embeddings / length[:, None]).astype(np.float32)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The cosine of each row of `a` with that of `b`, (N, D) both: float32 (N,) in [-1, 1]."""
    return np.clip(np.einsum("nd,nd->n", normalised(a), normalised(b)), -1, 1)


def pair_scores(embeddings: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The cosines of `pairs` int (n, 2) of rows of `embeddings`: float32 (n,) in [-1, 1]."""
    z, scores = normalised(embeddings), np.empty(len(pairs), np.float32)
    rows = max(1, _BLOCK // z.shape[1])
    for first in range(0, len(pairs), rows):
        a, b = pairs[first : first + rows].T
        scores[first : first + rows] = np.einsum("nd,nd->n", z[a], z[b])
    return np.clip(scores, -1, 1, out=scores)


def genuine_pairs(person: np.ndarray) -> np.ndarray:
    """All pairs of images of one person, int32 (n, 2), the first the smaller, in lexical order."""
    stop = _stops(person)
    count = stop - np.arange(len(person)) - 1
    first = np.repeat(np.arange(len(person)), count)
    step = np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
    return np.stack([first, first + 1 + step], axis=1).astype(np.int32)


def impostor_scores(embeddings: np.ndarray, person: np.ndarray) -> np.ndarray:
    """The cosines of all pairs of images of different people, float32 (n,), in the lexical order of the pairs.

    Computed in blocks: in addition to the result (18 MB for 3,000 images) it takes some 40 MB, however many there are.
    """
    z, stop = normalised(embeddings), _stops(person)
    scores = np.empty(int(np.sum(len(z) - stop)), np.float32)
    rows, done = max(1, _BLOCK // max(len(z), 1)), 0
    for first in range(0, len(z), rows):
        stops = stop[first : first + rows]
        block = z[first : first + rows] @ z[stops[0] :].T
        found = block[np.arange(stops[0], len(z)) >= stops[:, None]]
        scores[done : done + len(found)] = found
        done += len(found)
    return np.clip(scores, -1, 1, out=scores)


def impostor_pairs(person: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The pairs of images, int32 (n, 2), that the entries `rows` int (n,) of `impostor_scores` belong to."""
    stop = _stops(person)
    count = len(person) - stop
    begin = np.cumsum(count) - count
    first = np.searchsorted(begin, rows, side="right") - 1
    return np.stack([first, stop[first] + rows - begin[first]], axis=1).astype(np.int32)


def all_scores(embeddings: np.ndarray, person: np.ndarray) -> Scores:
    """The cosines of all pairs of images.

    Errors: `UserError` when there is no pair of one person or none of two.
    """
    genuine = pair_scores(embeddings, genuine_pairs(person))
    impostor = impostor_scores(embeddings, person)
    for kind, scores in (("one person", genuine), ("two people", impostor)):
        if not len(scores):
            raise UserError(f"{len(person)} images hold no pair of {kind}; bring more images or people")
    return Scores(genuine, impostor, np.asarray(person))


def to_distance(cosine: float | np.ndarray) -> np.ndarray:
    """The Euclidean distance, in [0, 2], of two points of the unit sphere with this cosine: sqrt(2 - 2 cosine)."""
    return np.sqrt(np.maximum(2 - 2 * np.asarray(cosine, np.float64), 0))


def to_cosine(distance: float | np.ndarray) -> np.ndarray:
    """The cosine, in [-1, 1], of two points of the unit sphere at this Euclidean distance: 1 - distance^2 / 2."""
    return 1 - np.asarray(distance, np.float64) ** 2 / 2


def far_threshold(impostor: np.ndarray, far: float) -> float:
    """The threshold at a false accept rate: the smallest that accepts at most a share `far` of `impostor` (n,).

    It is the next number, in the precision of the scores, above the highest of those that must be refused. Where scores
    tie there, all of them are refused.

    Errors: `UserError` for fewer than 1 / `far` negatives, which cannot show such a rate, and a `far` outside (0, 1).
    """
    impostor = _checked(impostor, "pairs of different people")
    refused = len(impostor) - 1 - _allowed(len(impostor), far)
    return float(np.nextafter(np.partition(impostor, refused)[refused], np.inf))


def threshold_at_tar(genuine: np.ndarray, tar: float) -> float:
    """The highest threshold at which at least a share `tar` of `genuine` (n,) is accepted, to judge two models at
    equal TAR.

    Errors: `UserError` for no positives and a `tar` outside (0, 1].
    """
    genuine = _checked(genuine, "pairs of one person")
    if not 0 < tar <= 1:
        raise UserError(f"tar={tar}: expected a share above 0, up to 1, such as 0.9")
    n = len(genuine)
    accepted = next(k for k in range(max(1, math.floor(tar * n) - 1), n + 1) if k / n >= tar)
    return float(np.partition(genuine, n - accepted)[n - accepted])


def tar_at(genuine: np.ndarray, impostor: np.ndarray, far: float) -> float:
    """The share of `genuine` that is accepted at the `far_threshold` of `impostor`. Errors: as that."""
    return float(np.mean(_checked(genuine, "pairs of one person") >= far_threshold(impostor, far)))


def roc(genuine: np.ndarray, impostor: np.ndarray, *, points: int = 200) -> Roc:
    """About `points` points of the ROC curve, from a FAR of 0 to 1 and evenly in its logarithm.

    Each lies on the full curve. Errors: `UserError` for no pairs of either kind.
    """
    genuine = np.sort(_checked(genuine, "pairs of one person"))
    impostor = np.sort(_checked(impostor, "pairs of different people"))
    n = len(impostor)
    accepted = np.unique(np.rint(np.geomspace(1, n, points)).astype(np.int64))
    accepted = np.concatenate([[0], accepted[accepted < n]])
    threshold = np.nextafter(impostor[n - 1 - accepted], np.inf).astype(np.float64)
    threshold = np.unique(np.append(threshold, min(genuine[0], impostor[0])))[::-1]
    far, tar = ((len(s) - np.searchsorted(s, threshold)) / len(s) for s in (impostor, genuine))
    return Roc(threshold, far, tar)


def accept_rates(scores: Scores, threshold: float, *, repeats: int = 1000, seed: int = 0) -> Rates:
    """TAR and FAR at a `threshold` that was fixed elsewhere, with intervals by bootstrap over the people.

    A pair of one person counts as often as the person was drawn, one of two as often as the product. Takes memory for a
    table of people by people. Errors: `UserError` for fewer than two people.
    """
    people, number, count = np.unique(scores.person, return_inverse=True, return_counts=True)
    # Of NumPy's own type, or it would be rounded to that of the scores.
    threshold = np.float64(threshold)
    hits, accepted = scores.genuine >= threshold, np.flatnonzero(scores.impostor >= threshold)
    table = _table(number[impostor_pairs(scores.person, accepted)], len(people))
    mine = number[genuine_pairs(scores.person)[:, 0]]
    of_person = [np.bincount(mine, values, len(people)) for values in (hits, np.ones(len(hits)))]

    def true_accepts(weights: np.ndarray) -> np.ndarray:
        return ratio(weights @ of_person[0], weights @ of_person[1])

    def false_accepts(weights: np.ndarray) -> np.ndarray:
        return ratio(_table_weight(weights, table), _cross_weight(weights, count))

    everyone, pairs = np.arange(len(people)), len(scores.impostor)
    tar, far = (bootstrap(s, everyone, repeats=repeats, seed=seed) for s in (true_accepts, false_accepts))
    return Rates(
        Estimate(float(np.mean(hits)), len(hits), *tar),
        Estimate(len(accepted) / pairs, pairs, *far),
    )


def tar_at_far(scores: Scores, far: float, *, repeats: int = 1000, seed: int = 0) -> Estimate:
    """`tar_at` with an interval by bootstrap over the people, the threshold recomputed in every draw.

    So the interval knows how unsure the threshold is. Errors: as `far_threshold`, and for fewer than two people.
    """
    value = tar_at(scores.genuine, scores.impostor, far)
    people = np.arange(len(np.unique(scores.person)))
    interval = bootstrap(weighted_tar(scores, far), people, repeats=repeats, seed=seed)
    return Estimate(value, len(scores.genuine), *interval)


def weighted_tar(scores: Scores, far: float) -> Statistic:
    """`tar_at` for `common.evaluation.statistics.bootstrap` of the people: weights (draws, people) -> (draws,); without
    a value where a draw has pairs of one kind only."""
    _, number, count = np.unique(scores.person, return_inverse=True, return_counts=True)
    rising = np.argsort(scores.genuine)
    genuine, mine = scores.genuine[rising], number[genuine_pairs(scores.person)[rising, 0]]
    highest_refused = _highest_refused(scores, far)

    def accepted(weights: np.ndarray) -> np.ndarray:
        place = np.searchsorted(genuine, highest_refused(weights), side="right")
        weight = np.cumsum(weights[:, mine], axis=1)
        below = np.where(place > 0, weight[np.arange(len(place)), place - 1], 0)
        return ratio(weight[:, -1] - below, weight[:, -1])

    def statistic(weights: np.ndarray) -> np.ndarray:
        value, told = np.full(len(weights), np.nan), _cross_weight(weights, count) > 0
        value[told] = _in_blocks(accepted, weights[told], len(mine))
        return value

    return statistic


def _highest_refused(scores: Scores, far: float) -> Statistic:
    """The highest negative that each draw of the people must refuse, for draws that have negatives."""
    people, number, count = np.unique(scores.person, return_inverse=True, return_counts=True)
    falling = np.argsort(scores.impostor)[::-1]
    allowed = _allowed(len(falling), far)

    def of_people(low: int, high: int) -> np.ndarray:
        return number[impostor_pairs(scores.person, falling[low:high])]

    def search(weights: np.ndarray, low: int, high: int) -> np.ndarray:
        """Look from place `low` to `high` in falling order: draws differ little in where it is."""
        table, (a, b) = _table(of_people(0, low), len(people)), of_people(low, high).T

        def of_block(weights: np.ndarray) -> np.ndarray:
            above, total = _table_weight(weights, table), _cross_weight(weights, count)
            share = (above[:, None] + np.cumsum(weights[:, a] * weights[:, b], axis=1)) / total[:, None]
            refused = scores.impostor[falling[low + np.argmax(share > far, axis=1)]]
            outside = (above / total > far) | (share[:, -1] <= far)
            if outside.any():
                refused[outside] = search(weights[outside], low // 2 if low > 1000 else 0, min(2 * high, len(falling)))
            return refused

        return _in_blocks(of_block, weights, high - low)

    margin = 1000 + allowed // 10
    return lambda weights: search(weights, max(0, allowed - margin), min(allowed + margin, len(falling)))


def mean_cosine(embeddings: np.ndarray, person: np.ndarray) -> float:
    """The mean cosine of all pairs of images of different people; near 1, the embedding has collapsed.

    Found from the sums of the embeddings: |sum of all|^2 is the sum over all pairs. `person` in any order.

    Errors: `UserError` for fewer than two people.
    """
    sums, count = _sums(normalised(embeddings), person)
    if len(count) < 2:
        raise UserError(f"{len(count)} people; expected 2 or more to compare")
    across = np.sum(sums.sum(axis=0) ** 2) - np.sum(sums**2)
    return float(across / (count.sum() ** 2 - np.sum(count**2)))


def templates(embeddings: np.ndarray, group: np.ndarray) -> np.ndarray:
    """One embedding of length 1 for each group of images, such as a clip: the mean of its embeddings of length 1.

    `group` int (N,) in any order; float32 (groups, D), in ascending order of the groups' numbers. Mode 1 of the
    original's YouTube Faces evaluation.

    Errors: `UserError` for a group whose embeddings cancel out.
    """
    sums, count = _sums(normalised(embeddings), group)
    return normalised(sums / count[:, None])


def _stops(person: np.ndarray) -> np.ndarray:
    """For each image the first one behind those of its person, int64 (N,)."""
    person = np.asarray(person)
    if person.ndim != 1 or (np.diff(person) < 0).any():
        raise ValueError("person: expected (N,) in ascending order")
    return np.searchsorted(person, person, side="right")


def _checked(scores: np.ndarray, kind: str) -> np.ndarray:
    scores = np.asarray(scores)
    scores = scores if scores.dtype.kind == "f" else scores.astype(np.float64)
    if not len(scores):
        raise UserError(f"no {kind}; bring more images or people")
    if not np.isfinite(scores).all():
        raise UserError(f"scores of {kind} that are not finite; train the network again")
    return scores


def check_far(far: float) -> None:
    """Errors: `UserError` for what is no false accept rate."""
    if not 0 < far < 1:
        raise UserError(f"far={far}: expected a share between 0 and 1, such as 0.001")


def _allowed(impostor: int, far: float) -> int:
    """How many of them may be accepted: the highest number whose share is at most `far`."""
    check_far(far)
    about = math.floor(far * impostor)
    allowed = max(k for k in range(max(0, about - 1), about + 2) if k / impostor <= far)
    if not allowed:
        raise UserError(
            f"{impostor} pairs of different people cannot show a false accept rate of {far}; expected"
            f" {math.ceil(1 / far)} or more: bring more people or raise far"
        )
    return allowed


def _cross_weight(weights: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The weight (draws,) of all pairs of different people with `count` images each."""
    images = weights * count
    return (images.sum(axis=1) ** 2 - np.sum(images**2, axis=1)) / 2


def _table(pairs: np.ndarray, people: int) -> np.ndarray:
    """How many of the pairs (n, 2) of numbers of people are of each two, float64 (people, people)."""
    return np.bincount(pairs @ [people, 1], minlength=people**2).reshape(people, people).astype(np.float64)


def _table_weight(weights: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The weight (draws,) of the pairs in a `_table`."""
    return np.einsum("dp,dp->d", weights @ table, weights)


def _in_blocks(statistic: Statistic, weights: np.ndarray, width: int) -> np.ndarray:
    """`statistic` of so many draws at a time that `width` numbers for each are not too many."""
    rows = max(1, _BLOCK // max(width, 1))
    return np.concatenate([statistic(weights[first : first + rows]) for first in range(0, max(len(weights), 1), rows)])


def _sums(z: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums float64 (groups, D) of the rows of each group, and how many there are, int64 (groups,)."""
    order = np.argsort(group, kind="stable")
    _, first, count = np.unique(np.asarray(group)[order], return_index=True, return_counts=True)
    return np.add.reduceat(z[order], first, axis=0, dtype=np.float64), count
