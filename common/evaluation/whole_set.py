"""What AutoAttack leaves of a whole test set, from a cheap attack on all of it and the full one on a sample."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.attacks import AutoAttackResult, autoattack
from common.attacks.autoattack import Version
from common.attacks.budget import Norm
from common.attacks.loop import Model
from common.evaluation.statistics import Estimate, share_of_population


class Sampled(NamedTuple):
    """The accuracy on a whole set, with the interval that sampling leaves, and what `attacked` those at the places
    `sampled`, int (m,)."""

    accuracy: Estimate
    attacked: AutoAttackResult
    sampled: np.ndarray


class WholeSet(NamedTuple):
    """The robust accuracy on the whole set, with the interval that sampling leaves, and what it was made of: `first`
    on all examples, `second` on those at the places `sampled`, int (m,), all of which the first had left."""

    accuracy: Estimate
    first: AutoAttackResult
    second: AutoAttackResult
    sampled: np.ndarray


def from_sample(
    model: Model,
    x: np.ndarray,
    y: np.ndarray,
    left: np.ndarray,
    *,
    eps: float,
    norm: Norm = "linf",
    version: Version = "standard",
    sample: int = 500,
    seed: int = 0,
    batch_size: int = 256,
    state: Path | str | None = None,
    progress: bool = False,
    log: Callable[[str], None] | None = None,
) -> Sampled:
    """The accuracy on `x` (N, ...) float in [0, 1] with labels `y` (N,), of whom other attacks have `left` some, bool
    (N,), after `version` too.

    It runs on a `sample` of those, drawn from `seed`. How many of all of them it would break has an exact interval
    (drawing without replacement), of which nothing is left where all are sampled. It is that of this test set, not of
    images to come. `state`: a file for the evaluation to go on from.

    Errors: as `autoattack`.
    """
    x, y, survivors = np.asarray(x), np.asarray(y), np.flatnonzero(left)
    sampled = np.sort(survivors[np.random.default_rng(seed).permutation(len(survivors))[:sample]])
    options = {"norm": norm, "seed": seed, "batch_size": batch_size, "progress": progress, "log": log}
    attacked = autoattack(
        model, x[sampled], y[sampled], index=sampled, eps=eps, version=version, state=state, **options
    )
    stood = share_of_population(int(attacked.robust.sum()), len(sampled), len(survivors))
    of_all = len(survivors) / max(len(x), 1)
    value, low, high = (of_all * share for share in (stood.value, stood.low, stood.high))
    return Sampled(Estimate(value, len(x), low, high), attacked, sampled)


def whole_set(
    model: Model,
    x: np.ndarray,
    y: np.ndarray,
    *,
    versions: tuple[Version, Version] = ("fast", "standard"),
    sample: int = 500,
    state: Path | str | None = None,
    **options: Any,
) -> WholeSet:
    """The accuracy on `x` (N, ...) float in [0, 1] with labels `y` (N,) that both versions together would leave.

    The first runs on all, the second on a `sample` of its survivors, as in `from_sample`, which has the other
    `options`. `state` is a folder for both evaluations to go on from.

    Errors: as `autoattack`.
    """
    files = [None if state is None else Path(state) / f"{version}.npz" for version in versions]
    if state is not None:
        Path(state).mkdir(parents=True, exist_ok=True)
    x, y = np.asarray(x), np.asarray(y)
    first = autoattack(model, x, y, version=versions[0], state=files[0], **options)
    second = from_sample(model, x, y, first.robust, version=versions[1], sample=sample, state=files[1], **options)
    return WholeSet(second.accuracy, first, second.attacked, second.sampled)
