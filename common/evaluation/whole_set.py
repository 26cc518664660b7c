"""What AutoAttack leaves of a whole test set, from a cheap attack on all of it and the full one on a sample."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.attacks import AutoAttackResult, autoattack
from common.attacks.autoattack import Version
from common.attacks.budget import Norm
from common.attacks.loop import Model
from common.evaluation.statistics import Estimate, share_of_population


class WholeSet(NamedTuple):
    """The robust accuracy on the whole set, with the interval that sampling leaves, and what it was made of: `first`
    on all examples, `second` on those at the places `sampled`, int (m,), all of which the first had left."""

    accuracy: Estimate
    first: AutoAttackResult
    second: AutoAttackResult
    sampled: np.ndarray


def whole_set(
    model: Model,
    x: np.ndarray,
    y: np.ndarray,
    *,
    eps: float,
    norm: Norm = "linf",
    versions: tuple[Version, Version] = ("fast", "standard"),
    sample: int = 500,
    seed: int = 0,
    batch_size: int = 256,
    state: Path | str | None = None,
    progress: bool = False,
    log: Callable[[str], None] | None = None,
) -> WholeSet:
    """The accuracy on `x` (N, ...) float in [0, 1] with labels `y` (N,) that both versions together would leave.

    The first runs on all, the second on `sample` of its survivors, drawn from `seed`. How many of all survivors it
    would break has an exact interval (drawing without replacement), of which nothing is left where all are sampled. It
    is that of this test set, not of images to come. `state` is a folder for both evaluations to go on from.

    Errors: as `autoattack`.
    """
    options = {"norm": norm, "seed": seed, "batch_size": batch_size, "progress": progress, "log": log}
    files = [None if state is None else Path(state) / f"{version}.npz" for version in versions]
    if state is not None:
        Path(state).mkdir(parents=True, exist_ok=True)
    x, y = np.asarray(x), np.asarray(y)
    first = autoattack(model, x, y, eps=eps, version=versions[0], state=files[0], **options)
    survivors = np.flatnonzero(first.robust)
    drawn = np.random.default_rng(seed).permutation(len(survivors))[:sample]
    sampled = np.sort(survivors[drawn])
    second = autoattack(
        model, x[sampled], y[sampled], index=sampled, eps=eps, version=versions[1], state=files[1], **options
    )
    stood = share_of_population(int(second.robust.sum()), len(sampled), len(survivors))
    of_all = len(survivors) / max(len(x), 1)
    value, low, high = (of_all * share for share in (stood.value, stood.low, stood.high))
    return WholeSet(Estimate(value, len(x), low, high), first, second, sampled)
