"""Attacks on data sets of any size, with active-set batching: examples that are finished leave the batch, and pending
ones take their places."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from common.arrays import BY_NAME, to_array
from common.attacks.attack import NamedAttack, as_tensors, call, check, run_counted
from common.attacks.loop import Attack, AttackState, Inputs, Model, advance, found_points, init, prepared
from common.progress import Progress

Tensor = tf.Tensor

# Evaluations between two looks at who has finished: at most so many, and fewer when more of the batch than this is
# expected to finish in them.
_LONGEST = 8
_IDLE = 0.1


class AttackResult(NamedTuple):
    """Adversarial examples `x`, float32 (N, ...), and the number of input `gradients` of one example that they took,
    None where the attack is no named one.

    `utilisation`, of attacks that may stop early: the share of gradients that went into examples still short of their
    goal; the rest found a success, or filled up a batch.
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
    name: str | None = None,
) -> AttackResult:
    """`attack` on all of `x` (N, ...) with labels or targets `y` (N,) or (N, D), which attacks without do not look at.

    `attack` is a named one with its options, as in `functools.partial(pgd, model, eps=8/255, alpha=2/255, steps=40)`,
    or any function of `x`, `y` and, if it has such an argument, `index`, the places of the batch in the data set.
    Options of a named attack may have one row for each of the N examples. Of attacks that may stop early the model
    always works on full batches of unfinished examples. Neither that nor the batch size changes a success. `progress`
    is shown, under `name`, if it takes long. Rows are counted in their order, whatever index a table has.

    Errors: `ValueError` for what is no array of numbers, and for another number of labels or targets.
    """
    x, y = to_array(x), None if y is None else to_array(y, "labels", BY_NAME)
    if y is not None and len(y) != len(x):
        raise ValueError(f"one target or label per example, {len(x)} of them, is wanted; received shape {y.shape}")
    data = (x,) if y is None else (x, y)
    name = name or _name_of(attack)
    if isinstance(attack, functools.partial) and isinstance(attack.func, NamedAttack):
        *bound, finish = attack.func.bind(*attack.args, *data[: 1 + attack.func.labelled], **attack.keywords)
        result = run_dataset(*bound, name=name, batch_size=batch_size, progress=progress)
        return result if finish is None else result._replace(x=finish(result.x))
    indexed = "index" in inspect.signature(attack).parameters
    out = np.empty(np.shape(x), np.float32)
    with Progress(len(x), name, units="examples", shown=progress) as bar:
        for rows in _blocks(len(x), batch_size):
            out[rows] = attack(*(of[rows] for of in data), **({"index": rows.astype(np.int32)} if indexed else {}))
            bar.add(len(rows))
    return AttackResult(out)


def run_dataset(
    attack: Attack,
    model: Model,
    inputs: Mapping[str, Any],
    *,
    batch_size: int = 256,
    progress: bool = False,
    name: str = "attack",
) -> AttackResult:
    """`attack` on the data set `inputs`, named as for `common.attacks.attack.run`: those with N rows have one for each
    of the examples `x` (N, ...), all others are shared. Arrays stay where they are until a batch needs them.

    Errors: those of `run`, of a batch as it comes up.
    """
    data = _Data(inputs)
    with Progress(data.count, name, units="examples", shown=progress) as bar:
        if attack.stop is not None and data.count:
            return _Refill(attack, model, data, batch_size, bar.add).run()
        out, gradients = np.empty(data.shape, np.float32), 0
        for rows in _blocks(data.count, batch_size):
            out[rows], taken = run_counted(attack, model, data.rows(rows))
            gradients += int(taken) * len(rows)
            bar.add(len(rows))
        return AttackResult(out, gradients)


def _blocks(count: int, size: int) -> list[np.ndarray]:
    return [np.arange(first, min(first + size, count)) for first in range(0, count, size)]


def _name_of(attack: Callable[..., Tensor]) -> str:
    name = getattr(getattr(attack, "func", attack), "__name__", "attack")
    return "attack" if name == "<lambda>" else name


def with_rows(inputs: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Those of `inputs` that have one row for each of `count` examples; a seed is for all, even as a pair."""
    return {
        name: value
        for name, value in inputs.items()
        if name != "seed" and np.ndim(value) and np.shape(value)[0] == count
    }


def of_rows(
    attack: Callable[..., Tensor], rows: np.ndarray, count: int, index: np.ndarray | None = None
) -> Callable[..., Tensor]:
    """`attack`, as `attack_dataset` takes it, for `rows` (n,) of the `count` examples that its options have a row for,
    and that its draws are tied to, at their places or at those in `index` (count,)."""
    indexed = "index" in inspect.signature(attack).parameters
    places = rows if index is None else index[rows]
    if not (isinstance(attack, functools.partial) and isinstance(attack.func, NamedAttack)):
        return (lambda x, y, index, **more: attack(x, y, index=places[index], **more)) if indexed else attack
    own = {name: np.asarray(value)[rows] for name, value in with_rows(attack.keywords, count).items()}
    return functools.partial(attack, **({"index": places} if indexed else {}) | own)


class _Data:
    """The inputs of an attack on a data set, any rows of which can be had."""

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        given = {name: value for name, value in inputs.items() if value is not None}
        given["x"] = to_array(given["x"])
        self.count, self.shape = len(given["x"]), np.shape(given["x"])
        self.own = {
            name: to_array(value, "labels" if name in ("y", "target") else name)
            for name, value in with_rows(given, self.count).items()
        }
        self.own.setdefault("index", np.arange(self.count, dtype=np.int32))
        self.shared = {name: value for name, value in given.items() if name not in self.own}

    def rows(self, rows: np.ndarray) -> dict[str, Any]:
        return {**self.shared, **{name: value[rows] for name, value in self.own.items()}}


class _Batch(NamedTuple):
    """Active examples: the inputs that are their `own`, one row each, and their `state`."""

    own: dict[str, Tensor]
    state: AttackState


class _Refill:
    """One run of an attack that may stop early over a data set."""

    def __init__(self, attack: Attack, model: Model, data: _Data, batch_size: int, show: Callable[[int], None]) -> None:
        self.attack, self.model, self.data = attack, model, data
        self.batch_size, self.show = batch_size, show
        self.out = np.empty(data.shape, np.float32)
        self.gradients = self.useful = 0

    def run(self) -> AttackResult:
        queue = _Queue(self.data.count, self._initialise, self.batch_size)
        slots, batch = queue.first()
        active, left = batch.state.active.numpy(), batch.state.steps_left.numpy()
        places = sources = np.zeros(0, np.int32)
        finishing = len(slots)
        while len(slots):
            limit = _until_next_look(left[slots >= 0], finishing / len(slots))
            arriving = {"places": tf.constant(places), "sources": tf.constant(sources)}
            batch, gradients, useful = self._call(_advance, batch, queue.ready, arriving, tf.constant(limit))
            active, left = batch.state.active.numpy(), batch.state.steps_left.numpy()
            self.gradients += int(gradients) * len(slots)
            self.useful += int(useful)
            leaving = np.flatnonzero(~active & (slots >= 0)).astype(np.int32)
            finishing = max(len(leaving) / limit, finishing / 2)
            places = sources = leaving[:0]
            if not len(leaving):
                continue
            self._keep(batch, slots[leaving], leaving)
            fresh, sources = queue.take(len(leaving))
            places = leaving[: len(fresh)]
            slots, left = slots.copy(), left.copy()
            slots[leaving] = -1
            slots[places], left[places] = fresh, queue.left[sources]
            kept = _compacted(slots, self.batch_size)
            if len(kept) < len(slots):
                # Arrivals have the lowest of the free places, so nothing below theirs is dropped.
                slots, left = slots[kept], left[kept]
                batch = _picked(batch, kept)
        return AttackResult(self.out, self.gradients, self.useful / self.gradients if self.gradients else 1.0)

    def _initialise(self, rows: np.ndarray) -> _Batch:
        tensors = as_tensors(self.data.rows(rows))
        check(self.attack, self.model, tensors)
        # What an attack of one batch may leave to broadcasting has a row for each example here.
        own, state = call(_initialised, self.attack, self.model, tensors, own=tuple(sorted(self.data.own)))
        self.shared = {name: value for name, value in tensors.items() if name not in own}
        return _Batch(own, state)

    def _call(self, function: Callable, batch: _Batch, *more: Any) -> Any:
        return call(function, self.attack, self.model, {**batch.own, **self.shared}, batch, *more)

    def _keep(self, batch: _Batch, rows: np.ndarray, places: np.ndarray) -> None:
        """Write down what the examples `rows`, at `places` in the batch, have come to."""
        leaving = _picked(batch, places)
        self.out[rows] = found_points(self.attack, {**self.shared, **leaving.own}, leaving.state).numpy()
        self.show(len(rows))


class _Queue:
    """The examples that wait for a place, initialised in blocks: one by one, that would take longer than a step."""

    def __init__(self, count: int, initialise: Callable[[np.ndarray], _Batch], size: int) -> None:
        self.later, self.initialise, self.size = np.arange(count), initialise, size
        self.rows, self.used = self.later[:0], 0

    def first(self) -> tuple[np.ndarray, _Batch]:
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
        fresh, rest = self.initialise(rows), slice(self.used, None)
        if self.used < len(self.rows):
            fresh = tf.nest.map_structure(lambda old, new: tf.concat([old[rest], new], axis=0), self.ready, fresh)
        self.rows, self.ready, self.used = np.concatenate([self.rows[rest], rows]), fresh, 0
        self.left = fresh.state.steps_left.numpy()


def _picked(batch: _Batch, places: np.ndarray) -> _Batch:
    return tf.nest.map_structure(lambda value: tf.gather(value, places), batch)


def _initialised(attack: Attack, model: Model, inputs: Inputs, *, own: tuple[str, ...]):
    ready = prepared(attack, model, inputs)
    # A computed input may have replaced a given one.
    mine = {name: value for name, value in ready.items() if name in own or value is not inputs.get(name)}
    return mine, init(attack, ready)


def _advance(
    attack: Attack,
    model: Model,
    inputs: Inputs,
    batch: _Batch,
    ready: _Batch,
    arriving: dict[str, Tensor],
    limit: Tensor,
) -> tuple[_Batch, Tensor, Tensor]:
    """New examples are added, then all continue for some evaluations."""

    def joined(old: Tensor, new: Tensor) -> Tensor:
        changed = tf.tensor_scatter_nd_update(old, arriving["places"][:, None], tf.gather(new, arriving["sources"]))
        return tf.ensure_shape(changed, old.shape)

    batch = tf.nest.map_structure(joined, batch, ready)
    state, gradients, useful = advance(attack, model, {**inputs, **batch.own}, batch.state, limit)
    return _Batch(batch.own, state), gradients, useful


def _until_next_look(left: np.ndarray, finishing: float) -> int:
    """Evaluations in which about `_IDLE` of the batch will finish, at a share of `finishing` in each or by having no
    more steps `left` (B,)."""
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
