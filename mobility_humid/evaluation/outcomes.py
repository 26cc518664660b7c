"""What an attack on trips did: who is still answered rightly, what moved, and what no attack can change."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from common.evaluation import statistics
from common.evaluation.robustness import Outcome, constant_answer
from common.evaluation.statistics import Estimate
from mobility_humid.data.layout import Layout
from mobility_humid.data.samples import TRAIN, VALIDATION, Fleet
from mobility_humid.data.trips import SERVE, SLOT
from mobility_humid.evaluation import trip_metrics
from mobility_humid.models import baselines
from mobility_humid.training.tasks import Task

# Pairs, or samples a driver, that the rule on served trips is fitted to.
_FITTED_PAIRS, _FITTED_SAMPLES = 4000, 100


def measured(outcome: Outcome, layout: Layout) -> Iterator[tuple[str, Estimate | float]]:
    """Figures of one outcome: accuracies, success rates, gradients a sample, and the size of what moved."""
    rates = {"clean_accuracy": (outcome.clean, None), "attacked_accuracy": (outcome.robust, None)}
    rates |= {name: (outcome.success, subset) for name, subset in directions(outcome).items()}
    for metric, (hits, subset) in rates.items():
        if subset is None or subset.any():
            yield metric, outcome.rate(hits, subset)
    if outcome.gradients is not None:
        yield "gradients", outcome.gradients / len(outcome.before)
    yield from sizes(outcome, layout).items()


def sizes(outcome: Outcome, layout: Layout) -> dict[str, float]:
    """How much moved: mean number of changed points of the fooled samples, if there are any, and their share of the
    points that could move; the largest displacement in cells and the largest jump between two points, over all samples.
    """
    before, after = outcome.examples.x, outcome.x
    changed = trip_metrics.changed_points(before, after)
    movable = layout.movable(before)[..., 0].sum(axis=(1, 2))
    fooled = outcome.success
    of_fooled = {}
    if fooled.any():
        of_fooled = {
            "changed_points_mean": float(changed[fooled].mean()),
            "changed_points_share": float(changed[fooled].sum() / movable[fooled].sum()),
        }
    return {
        **of_fooled,
        "displacement_cells_max": float(trip_metrics.displacement(before, after).max()),
        "largest_jump_before": float(trip_metrics.largest_jump(before[:, layout.moving]).max()),
        "largest_jump_after": float(trip_metrics.largest_jump(after[:, layout.moving]).max()),
    }


class WithinSpeed(NamedTuple):
    """An attack that keeps to a speed limit: shares of the trips that break it `before` and `after`, of those that may
    move, and who is answered rightly, bool (n,), when the trips that break it `after` stay as they were."""

    before: float
    after: float
    robust: np.ndarray


def within_speed(
    outcome: Outcome, layout: Layout, fastest: float, right: Callable[[np.ndarray], np.ndarray]
) -> WithinSpeed:
    """What is left of an attack where no trip may have a step longer than `fastest` cells that it did not have;
    `right`: samples (n, ...) -> who of them is answered rightly, bool (n,)."""
    before, after = outcome.examples.x[:, layout.moving], outcome.x[:, layout.moving]
    there = (before[..., SLOT] > 0).any(axis=2)
    fast = [trip_metrics.too_fast(trips, fastest) for trips in (before, after)]
    x = outcome.x.copy()
    x[:, layout.moving] = np.where(fast[1][:, :, None, None], before, after)
    shares = (float((of & there).sum() / max(there.sum(), 1)) for of in fast)
    return WithinSpeed(*shares, outcome.clean & right(x))


def directions(outcome: Outcome) -> dict[str, np.ndarray]:
    """Whose fooling counts as what, among those that were right: pairs are told by their two drivers."""
    if outcome.examples.identity.ndim == 1:
        return {"success_rate": outcome.clean}
    same = outcome.examples.y == 1
    return {
        "success_rate_impersonation": outcome.clean & ~same,
        "success_rate_dodging": outcome.clean & same,
    }


def mean_norm(outcomes: Sequence[Outcome], norm: str) -> float:
    """Mean `norm` of all moves of a sample together, over the fooled samples, in cells; 1 if there are none."""
    norms = np.concatenate([outcome.sizes(norm)[outcome.success] for outcome in outcomes])
    return float(norms.mean()) if len(norms) else 1.0


def bounds(fleet: Fleet, task: Task, part: str, count: int) -> dict[str, Estimate]:
    """Accuracy on `count` samples of `part` of what no attack on seek trips can change, so that a defence has to be
    better: a `constant` answer, the most frequent one, and a rule that reads `served_trips` alone, logistic regression
    on their heat maps, where samples have such trips."""
    drawn = task.drawn(fleet, part, count)
    labels = task.label(drawn)
    found = {"constant": constant_answer(labels)}
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
