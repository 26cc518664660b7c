"""Attacks on data sets of any size: examples that have reached their goal leave, and waiting ones take their places."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from common.arrays import BY_NAME, to_array
from common.attacks import budget
from common.attacks.loop import Flight, Result, advance, begin, land, merge
from common.progress import Progress

Tensor = tf.Tensor

# Steps between two looks at who has finished: at most so many, and fewer when more of the batch than this is expected
# to finish in them.
_LONGEST = 8
_IDLE = 0.1
# What may differ between examples; given with one row per example of the data set, rows go along with their examples.
_BUDGETS = ("eps", "alpha", "start_eps", "threshold", "mask", "low", "high")


class Attacked(NamedTuple):
    """Adversarial examples `x`, float32 (N, ...).

    Of attacks that stop at success also `gradients`, the input gradients computed, and `utilisation`, the share of
    them that went into examples still short of their goal; the rest found a success, or filled up a batch. None for
    other attacks.
    """

    x: np.ndarray
    gradients: int | None = None
    utilisation: float | None = None


def attack_dataset(
    attack: Callable[..., Tensor],
    x: np.ndarray,
    y: np.ndarray | None,
    *,
    batch_size: int = 256,
    progress: bool = False,
) -> Attacked:
    """`attack` on all of `x` (N, ...) with labels or targets `y` (N,) or (N, D), or None for attacks without.

    `attack` is a named one with its options, as in `functools.partial(pgd, model, eps=8/255, alpha=2/255, steps=40)`,
    or any function of `x`, `y` and, if it has such an argument, `index`, the places of the batch in the data set.
    Budgets and masks in a partial may have one row for each of the N examples. With `stop=True` the model always works
    on full batches of unfinished examples. Neither that nor the batch size changes a success. `progress` is shown if it
    takes long. Rows are counted in their order, whatever index a table has.

    Errors: `ValueError` for what is no array of numbers, and for another number of labels or targets.
    """
    x, y = to_array(x), None if y is None else to_array(y, "labels", BY_NAME)
    if y is not None and len(y) != len(x):
        raise ValueError(f"one target or label per example, {len(x)} of them, is wanted; received shape {y.shape}")
    of_rows = _Rows(attack, x, y)
    out = np.empty(np.shape(x), np.float32)
    with Progress(len(x), _name_of(attack), units="examples", shown=progress) as bar:
        for first in range(0, len(x), batch_size):
            rows = np.arange(first, min(first + batch_size, len(x)))
            prepared = of_rows.prepare(rows) if of_rows.named else None
            if prepared and prepared.plan.stop:
                return _Refill(of_rows, batch_size, bar.add).run()
            out[rows] = budget.run(*prepared) if prepared else of_rows.attack(rows)
            bar.add(len(rows))
    return Attacked(out)


def _name_of(attack: Callable[..., Tensor]) -> str:
    name = getattr(getattr(attack, "func", attack), "__name__", "attack")
    return "attack" if name == "<lambda>" else name


class _Rows:
    """An attack on any rows of a data set, with what belongs to them."""

    def __init__(self, attack: Callable[..., Tensor], x, y) -> None:
        self.function, self.x, self.y = attack, x, y
        self.named = isinstance(attack, functools.partial) and isinstance(attack.func, budget.NamedAttack)
        self.budgets = _per_example(attack.keywords, len(x)) if self.named else {}
        self.indexed = "index" in inspect.signature(attack).parameters

    def arguments(self, rows: np.ndarray) -> tuple[tuple, dict[str, Any]]:
        own = {name: np.asarray(value)[rows] for name, value in self.budgets.items()}
        if self.indexed:
            own["index"] = rows.astype(np.int32)
        return (self.x[rows],) if self.y is None else (self.x[rows], self.y[rows]), own

    def attack(self, rows: np.ndarray) -> Tensor:
        arguments, own = self.arguments(rows)
        return self.function(*arguments, **own)

    def prepare(self, rows: np.ndarray) -> budget.Prepared:
        """Of a named attack: checked, not run."""
        arguments, own = self.arguments(rows)
        return self.function.func.prepare(*self.function.args, *arguments, **{**self.function.keywords, **own})


class _Refill:
    """One run of a stopping attack over a data set."""

    def __init__(self, of_rows: _Rows, batch_size: int, show: Callable) -> None:
        self.of_rows, self.batch_size, self.show = of_rows, batch_size, show
        # The fields of `Tensors` that have a row for each example.
        self.own = tuple(name for name in budget.Tensors._fields if name in {"x", "y", "index", *of_rows.budgets})
        self.out = np.empty(np.shape(of_rows.x), np.float32)
        self.score = np.full(len(self.out), -np.inf, np.float32)
        self.done = np.zeros(len(self.out), bool)
        self.gradients = self.useful = 0

    def run(self) -> Attacked:
        rows = np.arange(len(self.out))
        self.plan, self.model, self.shared = self.of_rows.prepare(rows[:1])
        for restart in range(int(self.shared.restarts)):
            rows = rows[~self.done[rows]]
            if len(rows):
                self._pass(rows, restart)
        return Attacked(self.out, self.gradients, self.useful / self.gradients if self.gradients else 1.0)

    def _pass(self, rows: np.ndarray, restart: int) -> None:
        """All of `rows` once, from the starts that belong to `restart`."""
        waiting = _WaitingRoom(rows, functools.partial(self._take_off, restart=restart), self.batch_size)
        places = sources = np.zeros(0, np.int32)
        slots, under_way = waiting.first()
        left = under_way.flight.left.numpy()
        finishing = len(slots)
        while len(slots):
            steps = _until_next_look(left[slots >= 0], finishing / len(slots))
            under_way, taken, useful = self._call(_advance, under_way, steps, places, sources, waiting.ready)
            left = under_way.flight.left.numpy()
            self.gradients += int(taken) * len(slots)
            self.useful += int(useful)
            leaving = np.flatnonzero((left == 0) & (slots >= 0)).astype(np.int32)
            finishing = max(len(leaving) / steps, finishing / 2)
            places = sources = leaving[:0]
            if not len(leaving):
                continue
            self._keep(under_way, slots[leaving], leaving, restart)
            fresh, sources = waiting.take(len(leaving))
            places = leaving[: len(fresh)]
            slots, left = slots.copy(), left.copy()
            slots[leaving] = -1
            slots[places], left[places] = fresh, waiting.left[sources]
            kept = _compacted(slots, self.batch_size)
            if len(kept) < len(slots):
                # Arrivals have the lowest of the free places, so nothing below theirs is dropped.
                slots, left = slots[kept], left[kept]
                under_way = _picked(under_way, kept)

    def _call(self, function: Callable, under_way: "_Group", *more: Any) -> Any:
        """`function` compiled, with the tensors of `under_way` and what every example shares."""
        flat = tf.nest.flatten([under_way.flight, *more])
        tensors = self.shared._replace(**under_way.own)
        return budget.call(function, self.plan, self.model, tensors, *map(tf.convert_to_tensor, flat), own=self.own)

    def _take_off(self, rows: np.ndarray, restart: int) -> "_Group":
        plan, model, tensors = self.of_rows.prepare(rows)
        flight = budget.call(_begin, plan, model, tensors, tf.constant(restart))
        return _Group({name: getattr(tensors, name) for name in self.own}, flight)

    def _keep(self, under_way: "_Group", rows: np.ndarray, places: np.ndarray, restart: int) -> None:
        """Write down what the examples `rows`, at `places` in the batch, have come to."""
        restarts = int(self.shared.restarts)
        if self.plan.keep == "last" and restarts == 1:
            self.out[rows] = tf.gather(under_way.flight.x, places).numpy()
            self.show(len(rows))
            return
        # Scores decide between iterates and between restarts. Few sizes: a new one costs a convolution a new plan.
        padded = np.resize(places, _size_for(len(places), self.batch_size))
        found = self._call(_land, _picked(under_way, padded))
        found = Result(*(value[: len(places)] for value in found))
        if restart:
            found = merge(found, Result(*(tf.constant(a[rows]) for a in (self.out, self.score, self.done))))
        self.out[rows], self.score[rows], self.done[rows] = (value.numpy() for value in found)
        # The others begin once more.
        self.show(len(rows) if restart + 1 == restarts else int(self.done[rows].sum()))


class _Group(NamedTuple):
    """Examples under way: the tensors of `named.Tensors` that are their `own`, and their `flight`."""

    own: dict[str, Tensor]
    flight: Flight


def _picked(group: _Group, places: np.ndarray) -> _Group:
    return tf.nest.map_structure(lambda value: tf.gather(value, places), group)


class _WaitingRoom:
    """The examples that wait for a place, made ready in blocks: one by one, that would take longer than a step."""

    def __init__(self, rows: np.ndarray, take_off: Callable[[np.ndarray], _Group], size: int) -> None:
        self.later, self.take_off, self.size = rows, take_off, size
        self.rows, self.used = rows[:0], 0

    def first(self) -> tuple[np.ndarray, _Group]:
        """The first block, all of which finds a place."""
        self._make_ready()
        self.used = len(self.rows)
        return self.rows, self.ready

    def take(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Up to `most` waiting rows, and where in `ready` they are until the next call."""
        if most > len(self.rows) - self.used and len(self.later):
            self._make_ready()
        sources = np.arange(self.used, min(self.used + most, len(self.rows)), dtype=np.int32)
        self.used += len(sources)
        return self.rows[sources], sources

    def _make_ready(self) -> None:
        rows, self.later = self.later[: self.size], self.later[self.size :]
        fresh, rest = self.take_off(rows), slice(self.used, None)
        if self.used < len(self.rows):
            fresh = tf.nest.map_structure(lambda old, new: tf.concat([old[rest], new], axis=0), self.ready, fresh)
        self.rows, self.ready, self.used = np.concatenate([self.rows[rest], rows]), fresh, 0
        self.left = fresh.flight.left.numpy()


def _begin(plan, model, t: budget.Tensors, restart: Tensor) -> Flight:
    _, rule, space, _ = budget.parts(plan, model, t)
    return begin(rule, budget.first_point(plan, space, t, restart), t.steps)


def _advance(plan, model, t: budget.Tensors, *flat: Tensor, own: tuple[str, ...]) -> tuple[_Group, Tensor, Tensor]:
    """Arrivals take their places, then all go on for some steps."""

    def arriving(old: Tensor, new: Tensor) -> Tensor:
        changed = tf.tensor_scatter_nd_update(old, places[:, None], tf.gather(new, sources))
        return tf.ensure_shape(changed, old.shape)

    before = _Group({name: getattr(t, name) for name in own}, _packed(plan, model, t, flat))
    of_flight = len(tf.nest.flatten(before.flight))
    steps, places, sources, *ready = flat[of_flight:]
    group = tf.nest.map_structure(arriving, before, tf.nest.pack_sequence_as(before, ready))
    objective, rule, space, rank = budget.parts(plan, model, t._replace(**group.own))
    flight, taken, useful = advance(objective, rule, space, group.flight, steps, rank=rank, stop=True)
    return _Group(group.own, flight), taken, useful


def _land(plan, model, t: budget.Tensors, *flat: Tensor, own: tuple[str, ...]) -> Result:
    objective, _, _, rank = budget.parts(plan, model, t)
    return land(objective, _packed(plan, model, t, flat), rank)


def _packed(plan, model, t: budget.Tensors, flat) -> Flight:
    empty = begin(budget.parts(plan, model, t).rule, t.x, 0)
    return tf.nest.pack_sequence_as(empty, flat[: len(tf.nest.flatten(empty))])


def _until_next_look(left: np.ndarray, finishing: float) -> int:
    """Steps in which about `_IDLE` of the batch will finish, at a share of `finishing` a step or by having no more
    steps `left` (B,)."""
    return max(1, min(_LONGEST, int(_IDLE / max(finishing, 1e-9)), int(np.quantile(left, _IDLE))))


def _compacted(slots: np.ndarray, batch_size: int) -> np.ndarray:
    """Places to keep once too few are taken: all those, filled up to one of a few sizes."""
    taken, free = np.flatnonzero(slots >= 0), np.flatnonzero(slots < 0)
    return np.concatenate([taken, free[: _size_for(len(taken), batch_size) - len(taken)]])


def _size_for(count: int, batch_size: int) -> int:
    """The smallest part of `batch_size`, each three quarters of the one before, that holds `count`."""
    size = batch_size if count else 0
    while size > 1 and size * 3 // 4 >= count:
        size = size * 3 // 4
    return size


def _per_example(options: Mapping[str, Any], count: int) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k in _BUDGETS and np.ndim(v) and np.shape(v)[0] == count > 1}
