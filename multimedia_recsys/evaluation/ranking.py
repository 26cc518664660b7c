"""Top-K lists and ranks of all users among all items, block by block: memory does not grow with users x items."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from common.progress import blocks
from multimedia_recsys.data.interactions import Interactions
from multimedia_recsys.models.recommenders import Factors

# Scores that are held at once; 64 MB of them keep two cores busy.
BLOCK_SCORES = 2**24


class Ranks(NamedTuple):
    """Rank of the held-out item of each user who has one among the items without an interaction, (R,) each.

    `rank` int64 from 0: higher scores come first, and among equal ones lower ids. `above` and `ties`: items that score
    higher, and others that score the same. `candidates`: items he does not have, the held-out one included.
    """

    user: np.ndarray
    rank: np.ndarray
    above: np.ndarray
    ties: np.ndarray
    candidates: np.ndarray


def top_k(factors: Factors, feedback: Interactions, k: int) -> np.ndarray:
    """The `k` items of the highest scores for each user, without those of his training, int32 (U, k).

    Of equal scores the lower id comes first. A user with fewer than `k` items left has -1 at the end.
    """
    k = min(k, feedback.items)
    lists = np.empty((feedback.users, k), np.int32)
    for users, scores in _blocks(factors, feedback):
        found = tf.math.top_k(scores, k)
        lists[users] = np.where(np.isneginf(found.values.numpy()), -1, found.indices.numpy())
    return lists


def ranks(factors: Factors, feedback: Interactions, wanted: np.ndarray | None = None) -> Ranks:
    """Ranks of the items `wanted` int (U,), -1 for none; by default those held out."""
    wanted = feedback.test if wanted is None else wanted
    found: list[tuple[np.ndarray, ...]] = []
    for users, scores in _blocks(factors, feedback):
        own = users[wanted[users] >= 0]
        if not len(own):
            continue
        higher, equal, lower_id = _compared(scores, own - users[0], wanted[own])
        counts = feedback.items - (feedback.start[own + 1] - feedback.start[own])
        found.append((own, higher + lower_id, higher, equal, counts))
    return Ranks(*(np.concatenate(column) for column in zip(*found, strict=True)))


def item_ranks(factors: Factors, feedback: Interactions, items: np.ndarray) -> np.ndarray:
    """The mean rank, from 0, of each of `items` (m,) over the users who do not have it: float64 (m,)."""
    totals, counts = np.zeros(len(items)), np.zeros(len(items))
    for _, scores in _blocks(factors, feedback):
        # One sort of a line serves all items; comparing each with the whole line would not end for a large shop.
        for line, ordered in zip(scores, np.sort(scores, axis=1), strict=True):
            own = line[items]
            left, right = (np.searchsorted(ordered, own, side) for side in ("left", "right"))
            rank = len(line) - right
            for place in np.flatnonzero(right - left > 1):
                rank[place] += np.count_nonzero(line[: items[place]] == own[place])
            free = ~np.isneginf(own)
            totals[free] += rank[free]
            counts += free
    return totals / np.maximum(counts, 1)


def quality(found: Ranks, cutoffs: tuple[int, ...] = (5, 10, 20)) -> dict[str, np.ndarray]:
    """Per user (R,): `hr_at_<K>` and `ndcg_at_<K>` of one relevant item, and `auc`, the share of the other candidates
    that score lower, ties counting half."""
    per_user = {}
    for k in cutoffs:
        hit = found.rank < k
        per_user[f"hr_at_{k}"] = hit.astype(np.float64)
        per_user[f"ndcg_at_{k}"] = np.where(hit, 1 / np.log2(found.rank + 2.0), 0.0)
    others = np.maximum(found.candidates - 1, 1)
    per_user["auc"] = 1 - (found.above + found.ties / 2) / others
    return per_user


def _compared(scores: np.ndarray, rows: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """In each of `rows` (R,) of `scores`, against the item of `items` (R,): how many score higher, how many others the
    same, and how many of these have a lower id."""
    lines = scores[rows]
    own = lines[np.arange(len(rows)), items][:, None]
    equal = lines == own
    lower = equal & (np.arange(lines.shape[1]) < items[:, None])
    return (lines > own).sum(axis=1), equal.sum(axis=1) - 1, lower.sum(axis=1)


def _blocks(factors: Factors, feedback: Interactions) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Users, in blocks, and their scores of all items, minus infinity for those of their training."""
    size = max(BLOCK_SCORES // feedback.items, 1)
    items = tf.constant(factors.items, tf.float32)
    for rows in blocks(feedback.users, size, "ranking", units="users"):
        users = np.arange(rows.start, rows.stop)
        scores = tf.matmul(tf.constant(factors.users[users], tf.float32), items, transpose_b=True).numpy()
        scores += factors.offset
        scores[feedback.seen(users)] = -np.inf
        yield users, scores
