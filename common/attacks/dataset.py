"""Attacks on data sets of any size: examples that have reached their goal leave, and waiting ones take their places."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from common.attacks import named
from common.attacks.loop import Flight, Result, advance, begin, land, merge

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
    on full batches of unfinished examples. Neither that nor the batch size changes a success.
    """
    from keras.utils import Progbar

    bar = Progbar(len(x)) if progress and len(x) else None
    show = bar.add if bar else lambda count: None
    if isinstance(attack, functools.partial) and isinstance(attack.func, named.NamedAttack):
        rows_of = functools.partial(_rows, _per_example(attack.keywords, len(x)))
        if len(x) and _prepare(attack, x, y, np.arange(min(batch_size, len(x))), rows_of).plan.stop:
            return _Refill(attack, x, y, batch_size, rows_of, show).run()
    else:
        rows_of = functools.partial(_rows, {})
    out = np.empty(np.shape(x), np.float32)
    for first in range(0, len(x), batch_size):
        rows = np.arange(first, min(first + batch_size, len(x)))
        out[rows] = attack(*_arguments(x, y, rows), **rows_of(rows), **_place(attack, rows))
        show(len(rows))
    return Attacked(out)


class _Refill:
    """One run of a stopping attack over a data set."""

    def __init__(self, attack: functools.partial, x, y, batch_size: int, rows_of: Callable, show: Callable) -> None:
        self.attack, self.x, self.y, self.rows_of, self.show = attack, x, y, rows_of, show
        self.batch_size = batch_size
        shared = {"x", "y", "index", *rows_of(np.arange(1))}
        self.own = [name in shared for name in named.Tensors._fields]
        self.out = np.empty(np.shape(x), np.float32)
        self.score = np.full(len(x), -np.inf, np.float32)
        self.done = np.zeros(len(x), bool)
        self.gradients = self.useful = 0

    def run(self) -> Attacked:
        rows = np.arange(len(self.x))
        restarts = int(_prepare(self.attack, self.x, self.y, rows[: self.batch_size], self.rows_of).tensors.restarts)
        for restart in range(restarts):
            rows = rows[~self.done[rows]]
            if len(rows):
                self._pass(rows, restart, restarts)
        return Attacked(self.out, self.gradients, self.useful / self.gradients if self.gradients else 1.0)

    def _pass(self, rows: np.ndarray, restart: int, restarts: int) -> None:
        """All of `rows` once, from the starts that belong to `restart`."""
        waiting = _WaitingRoom(rows, self._take_off, restart, self.batch_size)
        slots, (plan, model, tensors), flight = waiting.next_block()
        left = flight.left.numpy()
        finishing = len(slots)
        while len(slots):
            steps = _until_next_look(left[slots >= 0], finishing / len(slots))
            flat = tf.nest.flatten(flight)
            flight, taken, useful = named.call(_advance, plan, model, tensors, tf.constant(steps), *flat)
            left = flight.left.numpy()
            self.gradients += int(taken) * len(slots)
            self.useful += int(useful)
            leaving = np.flatnonzero((left == 0) & (slots >= 0))
            finishing = max(len(leaving) / steps, finishing / 2)
            if not len(leaving):
                continue
            self._keep(named.Prepared(plan, model, tensors), flight, slots[leaving], leaving, restart, restarts)
            slots = slots.copy()
            slots[leaving] = -1
            while len(leaving) and waiting:
                fresh, prepared, new = waiting.take(len(leaving), self._each)
                places, leaving = leaving[: len(fresh)], leaving[len(fresh) :]
                put = functools.partial(tf.tensor_scatter_nd_update, indices=places[:, None])
                tensors = self._each(lambda old, new, put=put: put(old, updates=new), tensors, prepared.tensors)
                flight = tf.nest.map_structure(lambda old, new, put=put: put(old, updates=new), flight, new)
                slots[places], left[places] = fresh, new.left.numpy()
            kept = _compacted(slots, self.batch_size)
            if len(kept) < len(slots):
                slots, left = slots[kept], left[kept]
                pick = functools.partial(tf.gather, indices=kept)
                tensors, flight = self._each(pick, tensors), tf.nest.map_structure(pick, flight)

    def _take_off(self, rows: np.ndarray, restart: int) -> tuple[named.Prepared, Flight]:
        prepared = _prepare(self.attack, self.x, self.y, rows, self.rows_of)
        return prepared, named.call(_begin, *prepared, tf.constant(restart))

    def _keep(self, prepared, flight: Flight, rows, places, restart: int, restarts: int) -> None:
        """Write down what the examples `rows`, at `places` in the batch, have come to."""
        plan, model, tensors = prepared
        self.show(len(rows) if restart == 0 else 0)
        if plan.keep == "last" and restarts == 1:
            self.out[rows] = tf.gather(flight.x, places).numpy()
            return
        # Scores decide between iterates and between restarts. Few sizes: a new one costs a convolution a new plan.
        padded = np.resize(places, _size_for(len(places), self.batch_size))
        pick = functools.partial(tf.gather, indices=padded)
        tensors, flight = self._each(pick, tensors), tf.nest.map_structure(pick, flight)
        found = named.call(_land, plan, model, tensors, *tf.nest.flatten(flight))
        found = Result(*(value[: len(places)] for value in found))
        if restart:
            found = merge(found, Result(*(tf.constant(a[rows]) for a in (self.out, self.score, self.done))))
        self.out[rows], self.score[rows], self.done[rows] = (value.numpy() for value in found)

    def _each(self, change: Callable, *tensors: named.Tensors) -> named.Tensors:
        """`change` on the tensors that have a row for each example; the first's others."""
        changed = zip(self.own, zip(*tensors, strict=True), strict=True)
        return named.Tensors(*(change(*values) if own else values[0] for own, values in changed))


class _WaitingRoom:
    """The examples that wait for a place, made ready in blocks: one by one, that would take longer than a step."""

    def __init__(self, rows: np.ndarray, take_off: Callable, restart: int, size: int) -> None:
        self.rows, self.take_off, self.restart, self.size = rows, take_off, restart, size
        self.ready: tuple[np.ndarray, named.Prepared, Flight] | None = None
        self.used = 0

    def __bool__(self) -> bool:
        return len(self.rows) > 0 or self.ready is not None

    def next_block(self) -> tuple[np.ndarray, named.Prepared, Flight]:
        """The next `size` rows, or those that are left."""
        rows, self.rows = self.rows[: self.size], self.rows[self.size :]
        return rows, *self.take_off(rows, self.restart)

    def take(self, most: int, each: Callable) -> tuple[np.ndarray, named.Prepared, Flight]:
        """Up to `most` rows of the current block."""
        if self.ready is None:
            self.ready, self.used = self.next_block(), 0
        rows, (plan, model, tensors), flight = self.ready
        part = slice(self.used, self.used + most)
        self.used += most
        if self.used >= len(rows):
            self.ready = None
        cut = named.Prepared(plan, model, each(lambda value: value[part], tensors))
        return rows[part], cut, tf.nest.map_structure(lambda value: value[part], flight)


def _begin(plan, model, t: named.Tensors, restart: Tensor) -> Flight:
    _, rule, space, _ = named.parts(plan, model, t)
    return begin(rule, named.first_point(plan, space, t, restart), t.steps)


def _advance(plan, model, t: named.Tensors, steps: Tensor, *flat: Tensor) -> tuple[Flight, Tensor, Tensor]:
    objective, rule, space, rank = named.parts(plan, model, t)
    return advance(objective, rule, space, _packed(rule, t, flat), steps, rank=rank, stop=True)


def _land(plan, model, t: named.Tensors, *flat: Tensor) -> Result:
    objective, rule, _, rank = named.parts(plan, model, t)
    return land(objective, _packed(rule, t, flat), rank)


def _packed(rule, t: named.Tensors, flat) -> Flight:
    return tf.nest.pack_sequence_as(begin(rule, t.x, 0), flat)


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


def _prepare(attack: functools.partial, x, y, rows: np.ndarray, rows_of: Callable) -> named.Prepared:
    prepare = functools.partial(attack.func.prepare, *attack.args, **attack.keywords)
    return prepare(*_arguments(x, y, rows), **rows_of(rows), **_place(attack, rows))


def _arguments(x, y, rows: np.ndarray) -> tuple:
    return (x[rows],) if y is None else (x[rows], y[rows])


def _place(attack: Callable, rows: np.ndarray) -> dict[str, np.ndarray]:
    wants = inspect.signature(attack).parameters
    return {"index": rows.astype(np.int32)} if "index" in wants else {}


def _per_example(options: Mapping[str, Any], count: int) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k in _BUDGETS and np.ndim(v) and np.shape(v)[0] == count > 1}


def _rows(options: Mapping[str, Any], rows: np.ndarray) -> dict[str, Any]:
    return {name: np.asarray(value)[rows] for name, value in options.items()}
