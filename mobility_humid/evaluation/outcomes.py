"""What an attack on trips did: who is still answered rightly, what moved, and what no attack can change."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from common.evaluation import statistics
from common.evaluation.statistics import Measured
from mobility_humid.data.layout import Layout
from mobility_humid.data.samples import TRAIN, VALIDATION, Fleet
from mobility_humid.data.trips import SERVE
from mobility_humid.evaluation import measures
from mobility_humid.models import baselines
from mobility_humid.training.tasks import Samples, Task

# What no attack within eta cells leaves, sample by sample.
ALL = "all"
# Pairs, or samples a driver, that the rule on served trips is fitted to.
_FITTED_PAIRS, _FITTED_SAMPLES = 4000, 100


class Outcome(NamedTuple):
    """Samples before and after an attack: answered rightly, bool (n,) each; and the trips after it."""

    samples: Samples
    clean: np.ndarray
    robust: np.ndarray
    moved: np.ndarray

    @property
    def fooled(self) -> np.ndarray:
        """Right before and wrong after, bool (n,)."""
        return self.clean & ~self.robust


def join(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcomes of one attack on several parts as one."""
    samples = Samples(*(np.concatenate(fields) for fields in zip(*(o.samples for o in outcomes), strict=True)))
    return Outcome(samples, *(np.concatenate([getattr(o, name) for o in outcomes]) for name in Outcome._fields[1:]))


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """Of several attacks, for each sample that all of them met, the first that fools the model."""
    count = min(len(outcome.clean) for outcome in outcomes)
    first, *others = (Outcome(o.samples.first(count), *(field[:count] for field in o[1:])) for o in outcomes)
    robust, moved = first.robust, first.moved
    for other in others:
        moved = np.where((robust & ~other.robust)[:, None, None, None], other.moved, moved)
        robust = robust & other.robust
    return first._replace(robust=robust, moved=moved)


def measured(outcome: Outcome, layout: Layout) -> Iterator[tuple[str, Measured | float]]:
    """Figures of one outcome: accuracies, success rates, and the size of what moved."""
    driver = outcome.samples.driver
    rates = {"clean_accuracy": (outcome.clean, None), "attacked_accuracy": (outcome.robust, None)}
    rates |= {name: (outcome.fooled, among) for name, among in directions(outcome).items()}
    for metric, (hits, among) in rates.items():
        if among is None or among.any():
            yield metric, statistics.rate(hits, driver, among)
    yield from sizes(outcome, layout).items()


def sizes(outcome: Outcome, layout: Layout) -> dict[str, float]:
    """How much moved: mean number of changed points of the fooled samples, if there are any, and their share of the
    points that could move; the largest displacement in cells and the largest jump between two points, over all samples.
    """
    before, after = outcome.samples.x, outcome.moved
    changed = measures.changed_points(before, after)
    movable = layout.movable(before)[..., 0].sum(axis=(1, 2))
    fooled = outcome.fooled
    of_fooled = {}
    if fooled.any():
        of_fooled = {
            "changed_points_mean": float(changed[fooled].mean()),
            "changed_points_share": float(changed[fooled].sum() / movable[fooled].sum()),
        }
    return {
        **of_fooled,
        "displacement_cells_max": float(measures.displacement(before, after).max()),
        "largest_jump_before": float(measures.largest_jump(before[:, layout.moving]).max()),
        "largest_jump_after": float(measures.largest_jump(after[:, layout.moving]).max()),
    }


def directions(outcome: Outcome) -> dict[str, np.ndarray]:
    """Whose fooling counts as what, among those that were right: pairs are told by their two drivers."""
    if outcome.samples.driver.ndim == 1:
        return {"success_rate": outcome.clean}
    same = outcome.samples.y == 1
    return {
        "success_rate_impersonation": outcome.clean & ~same,
        "success_rate_dodging": outcome.clean & same,
    }


def mean_norm(outcomes: Sequence[Outcome], order: int) -> float:
    """Mean norm of `order` 1 or 2 of all moves of a sample together, over the fooled samples, in cells; 1 if there are
    none."""
    moves = [(o.moved - o.samples.x)[o.fooled] for o in outcomes]
    norms = np.concatenate(
        [np.linalg.norm(move.reshape(len(move), math.prod(move.shape[1:])), ord=order, axis=1) for move in moves]
    )
    return float(norms.mean()) if len(norms) else 1.0


def bounds(fleet: Fleet, task: Task, part: str, count: int) -> dict[str, Measured]:
    """Accuracy on `count` samples of `part` of what no attack on seek trips can change, so that a defence has to be
    better: a `constant` answer, the most frequent one, and a rule that reads `served_trips` alone, logistic regression
    on their heat maps, where samples have such trips."""
    drawn = task.drawn(fleet, part, count)
    labels = task.label(drawn)
    found = {"constant": labels == np.bincount(labels).argmax()}
    if SERVE in fleet.layout.kinds:
        place = [fleet.layout.kinds.index(SERVE)]
        sampler, seed = fleet.sampler(TRAIN), [fleet.sampling.seed, 97]
        if task.sides == 2:
            fitted = sampler.pairs(_FITTED_PAIRS, seed)
            validation = task.drawn(fleet, VALIDATION, count)
            served = [pairs._replace(trips=pairs.trips[:, :, place]) for pairs in (fitted, validation, drawn)]
            on_validation, scores = baselines.heat_map_scores(fleet.trips, served[0], served[1:])
            answers = scores > statistics.best_threshold(on_validation, validation.same)
        else:
            fitted = sampler.singles(_FITTED_SAMPLES * len(fleet.trips.drivers), seed)
            served = [singles._replace(trips=singles.trips[:, place]) for singles in (fitted, drawn)]
            (answers,) = baselines.heat_map_names(fleet.trips, served[0], served[1:])
        found["served_trips"] = answers == labels
    return {name: statistics.rate(right, drawn.driver) for name, right in found.items()}
