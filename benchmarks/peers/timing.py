"""Fair stopwatches: every repetition runs every contender once, each time in another order."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """The median of some repetitions, their smallest, their largest, and how many there are."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values), len(values))


def interleaved(
    contenders: Mapping[str, Callable[[], float]],
    repeats: int,
    *,
    slow_seconds: float = float("inf"),
    show: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """The seconds that each contender reports, one for each of `repeats` repetitions.

    A repetition runs every contender once and begins with the next one, so that none always follows the same other. One
    that took more than `slow_seconds` is not run again. `show` is called after each.
    """
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        turn = repeat % max(len(names), 1)
        for name in names[turn:] + names[:turn]:
            if not seconds[name] or seconds[name][-1] <= slow_seconds:
                seconds[name].append(contenders[name]())
            show()
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], name: str, to: str) -> Spread:
    """The ratio of two contenders' seconds within each repetition that both took part in."""
    return Spread.of([a / b for a, b in zip(seconds[name], seconds[to], strict=False)])
