"""How near attacks that minimise a norm come to the smallest distances that any of them has found.

d* is per example the smallest distance of a pool of attacks; an attack's optimality is the share of what d* takes off
the area under the curve of accuracy by radius that the attack takes off too (Cina et al. 2025, AttackBench).
"""

from collections.abc import Callable

import numpy as np


def optimality(distances: np.ndarray, best: np.ndarray, right: np.ndarray, *, quantile: float = 1.0) -> float:
    """(rho0 eps0 - mean min(d, eps0)) / (rho0 eps0 - mean min(d*, eps0)), exactly: 1 for an attack that is best on
    every example, 0 for one that never succeeds within eps0.

    `distances` d (n,): how far an attack had to go, infinity where it did not succeed. `best` d* (n,): the smallest
    that is known. `right` (n,) bool: answered rightly without attack; of the others the distance is 0, rho0 is their
    share. eps0 is that `quantile` of the finite d* of examples that are answered rightly.

    Errors: `ValueError` where no example has a finite d* below eps0.
    """
    distances, best, right, end = _prepared(distances, best, right, quantile)
    whole = right.mean() * end
    return float((whole - np.minimum(distances, end).mean()) / (whole - np.minimum(best, end).mean()))


def as_published(distances: np.ndarray, best: np.ndarray, right: np.ndarray) -> float:
    """The same figure as the code of AttackBench reckons it, to be set beside its tables: areas by trapezoids through
    the distinct distances, from the smallest of them on and not from 0. Arguments and errors as of `optimality`."""
    distances, best, right, end = _prepared(distances, best, right, 1.0)

    def area(sizes: np.ndarray) -> float:
        sizes = np.minimum(sizes, end)
        radii = np.unique(sizes)
        return float(np.trapezoid((sizes[None] > radii[:, None]).mean(axis=1), radii))

    least = area(best)
    return float(1 - (area(distances) - least) / (right.mean() * end - least))


def _prepared(
    distances: np.ndarray, best: np.ndarray, right: np.ndarray, quantile: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    distances, best, right = (np.asarray(values) for values in (distances, best, right))
    if not len(right) or distances.shape != right.shape or best.shape != right.shape:
        raise ValueError(f"expected one distance for each example; received {distances.shape}, {best.shape}")
    if (distances < best).any():
        raise ValueError("a distance is below the smallest that is known")
    known = best[right & np.isfinite(best)]
    if not len(known):
        raise ValueError("no example that is answered rightly has a known distance")
    end = float(np.quantile(known, quantile))
    if not (best[right] < end).any():
        raise ValueError("no known distance is below the largest: there is no area to compare")
    return *(np.where(right, values, 0.0) for values in (distances, best)), right, end


def nearest_by_radii(
    attack: Callable[[np.ndarray], np.ndarray],
    distance: Callable[[np.ndarray], np.ndarray],
    count: int,
    *,
    first: float,
    looks: int = 10,
) -> np.ndarray:
    """The smallest distances (n,) of an attack with a budget, by a search of `looks` radii for each of `count`
    examples: twice the radius until one works, then half way between the last that failed and the nearest success.

    `attack`: radii float32 (n,) -> adversarial examples (n, ...). `distance`: these -> how far each is, infinity for
    one that is no success.
    """
    best, fails, radius = np.full(count, np.inf), np.zeros(count), np.full(count, float(first))
    for _ in range(looks):
        sizes = distance(attack(radius.astype(np.float32)))
        failed = ~np.isfinite(sizes)
        fails = np.where(failed, np.maximum(fails, np.minimum(radius, best)), fails)
        best = np.minimum(best, sizes)
        radius = np.where(np.isfinite(best), (fails + np.where(np.isfinite(best), best, 0.0)) / 2, 2 * radius)
    return best
