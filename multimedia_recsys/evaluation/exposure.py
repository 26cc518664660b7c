"""Exposure of attacked classes and items in the recommendation lists, before and after."""

from typing import NamedTuple

import numpy as np

from common.evaluation.statistics import difference
from multimedia_recsys.data.categories import Pair, chr_at, ncdcg_at
from multimedia_recsys.data.interactions import Interactions
from multimedia_recsys.evaluation import ranking
from multimedia_recsys.models.recommenders import Factors


class Exposure(NamedTuple):
    """Exposure of the attacked items, with one recommender and one set of images.

    `chr_origin`, `ncdcg_origin`, `chr_target`: of the attack's classes. `item_rate` float64 (m,): in which share of the
    lists each attacked item is. `item_rank` (m,): its mean rank, from 0, over the users who do not have it.
    """

    chr_origin: float
    ncdcg_origin: float
    chr_target: float
    item_rate: np.ndarray
    item_rank: np.ndarray


def exposure_of(
    factors: Factors, feedback: Interactions, label: np.ndarray, items: np.ndarray, pair: Pair, k: int
) -> Exposure:
    """Of the attacked `items` (m,) in top-`k` lists; `label` (N,) is the class of each item before the attack."""
    lists = ranking.top_k(factors, feedback, k)
    classes = int(max(label.max(), *pair)) + 1
    shares, gains = chr_at(lists, label, classes, k), ncdcg_at(lists, label, classes, k)
    counts = np.bincount(lists[lists >= 0], minlength=feedback.items)
    return Exposure(
        float(shares[pair.origin]),
        float(gains[pair.origin]),
        float(shares[pair.target]),
        counts[items] / feedback.users,
        ranking.item_ranks(factors, feedback, items),
    )


def measures(before: Exposure, after: Exposure) -> dict[str, dict[str, float]]:
    """What a row of `table.csv` says of each measure, its value and, where there is one, the interval:

    `chr_origin`, `ncdcg_origin`, `chr_target` after the attack; `chr_lift`, how much more of all places the origin
    class takes; and, over the attacked items, with intervals where there are two of them or more: `item_lift`, in how
    many more of the lists one is; `rank_shift`, by how many places one climbs.
    """
    values = {
        "chr_origin": after.chr_origin,
        "ncdcg_origin": after.ncdcg_origin,
        "chr_target": after.chr_target,
        "chr_lift": after.chr_origin - before.chr_origin,
    }
    return {metric: {"value": value} for metric, value in values.items()} | {
        "item_lift": _mean_gain(after.item_rate, before.item_rate),
        "rank_shift": _mean_gain(before.item_rank, after.item_rank),
    }


def _mean_gain(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    if len(ours) < 2:
        return {"value": float((ours - theirs).mean())}
    return difference(ours, theirs, np.arange(len(ours)))._asdict()
