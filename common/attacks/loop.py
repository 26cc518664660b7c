"""The one loop: what an attack is made of, and the search that takes all of its gradients.

An `Attack` is a value: module-level functions and frozen dataclasses, so that equal attacks are equal and share one
compiled function. `search` runs it inside a graph or a training step; `common.attacks.attack.run` and
`common.attacks.dataset.run_dataset` check, compile and batch around it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from common.attacks.tensors import example_seeds, finite, restart_seeds
from common.attacks.threat_models import ThreatModel
from common.attacks.updates import UpdateRule

Tensor = tf.Tensor
Model = Callable[[Tensor], Tensor]
Inputs = Mapping[str, Tensor]
"""What an attack is given, by name: `x` (B, ...), the clean input; `low`, `high`, its box; `steps`, `seed`, `index`;
and what its parts ask for, such as `y`, `target`, `eps`, `alpha`, `mask`, or a paper's own. Each is a scalar, has one
row per example, or has a first dimension of 1."""
Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x (B, ...) -> value (B,) to raise, success (B,) bool."""
Selection = Callable[[Inputs, Tensor, Tensor, Tensor], Tensor]
"""inputs, x, value, success -> rank (B,): of several iterates the one of the highest rank is kept, none of rank minus
infinity."""
Stop = Callable[[Inputs, Tensor, Tensor, Tensor], Tensor]
"""inputs, x, value, success -> (B,) bool: the search of this example is over."""
Memory = dict[str, Any]


class Result(NamedTuple):
    """Adversarial examples `x` (B, ...), the `value` (B,) of the objective there, and whether it is a `success` (B,).
    `gradient` (B, ...) only for rounds that want it."""

    x: Tensor
    value: Tensor
    success: Tensor
    gradient: Any = ()


class Rounds(Protocol):
    """Several searches in a row, each of which may depend on what the ones before have found: restarts, a search for
    a constant, pruning. A memory is a nest of tensors with one row per example."""

    shared_parts: bool
    """Whether objective, threat model and update rule are the same in all rounds."""
    wants_gradient: bool
    """Whether `next` is told the objective's gradient at what a round has found."""

    def init(self, inputs: Inputs) -> Memory:
        """The memory before the first round."""

    def inputs(self, inputs: Inputs, memory: Memory, best: Result) -> Inputs:
        """What the parts of the attack, and its start, are given in this round."""

    def next(
        self, model: Model, inputs: Inputs, memory: Memory, found: Result, best: Result
    ) -> tuple[Memory, Result, Tensor]:
        """After a round that has `found` something: the memory, the best result of all rounds, and which examples
        (B,) bool have a further round."""


def clean(inputs: Inputs, threat_model: ThreatModel) -> Tensor:
    """Start from the clean input."""
    return inputs["x"]


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Objective, threat model, update rule, start, and which iterate to keep.

    `selection`: of all iterates the one of the highest rank is returned, the last one included; None returns the last.
    `stop` ends an example's search early. `prepare`: model, inputs -> further inputs, with one row per example each,
    that are computed once, before the first step. `output`: inputs, x -> what is returned for the point x. `check`:
    model, inputs -> None, called eagerly, raises `ValueError`. `fixed_size`: whether a graph is for one size of
    example; without it one graph serves all sizes of the same rank, and the last axis stays fixed. `numbered`: whether
    the parts are told of each `evaluation` (B,) its number in this round, from 0.
    """

    objective: Callable[[Model, Inputs], Objective]
    threat_model: Callable[[Inputs], ThreatModel]
    update: Callable[[Inputs, ThreatModel], UpdateRule]
    start: Callable[[Inputs, ThreatModel], Tensor] = clean
    selection: Selection | None = None
    stop: Stop | None = None
    rounds: Rounds | None = None
    prepare: Callable[[Model, Inputs], Inputs] | None = None
    output: Callable[[Inputs, Tensor], Tensor] | None = None
    check: Callable[[Model, Inputs], None] | None = None
    fixed_size: bool = True
    numbered: bool = False

    @property
    def scored(self) -> bool:
        """Whether the value of the last iterate counts too, so that its search ends with an evaluation."""
        return self.selection is not None or self.rounds is not None


def at_success(inputs: Inputs, x: Tensor, value: Tensor, success: Tensor) -> Tensor:
    """Stop where the goal is first reached."""
    return success


def best_loss(inputs: Inputs, x: Tensor, value: Tensor, success: Tensor) -> Tensor:
    """Keep the iterate of the highest value."""
    return value


def worst_case(inputs: Inputs, x: Tensor, value: Tensor, success: Tensor) -> Tensor:
    """Keep a success, if there is one, and among equals the highest value."""
    # The arc tangent keeps the order of the values within (-2, 2), so none outweighs a success; in double precision it
    # also tells large ones apart, which single precision rounds to the same end.
    return tf.atan(tf.cast(value, tf.float64)) + 4.0 * tf.cast(success, tf.float64)


@dataclass(frozen=True)
class Restarts:
    """`restarts` searches from starts of their own; the worst case of an example is kept, or what `selection` says.

    An example has no further one once `until` says of the best so far that its search is over. The start reads
    `restart` (B,), counted from 0. With `targeted` there are so many for each of the `candidates` (B, targets), one of
    which is the `target` class in each.
    """

    until: Stop | None = None
    targeted: bool = False
    selection: Selection | None = None
    wants_gradient = False

    @property
    def shared_parts(self) -> bool:
        return not self.targeted

    def init(self, inputs: Inputs) -> Memory:
        return {"restart": tf.zeros(tf.shape(inputs["x"])[:1], tf.int32)}

    def inputs(self, inputs: Inputs, memory: Memory, best: Result) -> Inputs:
        if not self.targeted:
            return {**inputs, **memory}
        place = tf.minimum(memory["restart"] // inputs["restarts"], inputs["candidates"].shape[1] - 1)
        target = tf.gather(inputs["candidates"], place, batch_dims=1)
        return {**inputs, **memory, "restarts": self.count(inputs), "target": target}

    def count(self, inputs: Inputs) -> Tensor:
        """How many searches an example may have."""
        return inputs["restarts"] * (inputs["candidates"].shape[1] if self.targeted else 1)

    def next(self, model: Model, inputs: Inputs, memory: Memory, found: Result, best: Result):
        restart = memory["restart"] + 1
        best = merge(inputs, found, best, self.selection or worst_case)
        again = restart < self.count(inputs)
        if self.until is not None:
            again &= ~self.until(inputs, best.x, best.value, best.success)
        return {"restart": restart}, best, again


def seeds_of(inputs: Inputs) -> Tensor:
    """The seeds (B, 2) of the examples in this restart."""
    if "restart" not in inputs:
        return example_seeds(tf.random.fold_in(inputs["seed"], 0), inputs["index"])
    return restart_seeds(inputs["seed"], inputs["index"], inputs["restart"], inputs["restarts"])


def value_and_gradient(objective: Objective, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value (B,), success (B,) and gradient (B, ...) of `objective` at x, the last one as it comes, finite or not.

    Errors: `ValueError` where no gradient reaches x.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        value, success = objective(x)
    gradient = tape.gradient(value, x)
    if gradient is None:
        raise ValueError("the objective does not depend on x: no gradient reaches the input")
    # A gather in the objective makes its gradient sparse.
    return value, success, tf.convert_to_tensor(gradient)


class AttackState(NamedTuple):
    """The searches of B examples under way.

    `x` (B, ...); `steps_left` (B,) int32, gradients that an example may still take in this round; `active` (B,) bool;
    the state of the `update` rule; `kept`, the iterate to keep so far, with a selection; the rounds' `memory` and their
    `best` result.
    """

    x: Tensor
    steps_left: Tensor
    active: Tensor
    update: Any
    kept: Any = ()
    memory: Any = ()
    best: Any = ()


def search(attack: Attack, model: Model, inputs: Inputs) -> Result:
    """What `attack` finds. Works eagerly, inside `tf.function` and inside a training step; no variable is created or
    changed, and nothing is checked. Where a gradient is not finite, a step is made of what is left of it
    (`tensors.finite`), so that what is returned is finite. No gradient passes through the result."""
    return search_counted(attack, model, inputs)[0]


def search_counted(attack: Attack, model: Model, inputs: Inputs) -> tuple[Result, Tensor]:
    """As `search`, and how many gradients of the batch it took: int32 scalar."""
    inputs = prepared(attack, model, inputs)
    state, gradients, _ = advance(attack, model, inputs, init(attack, inputs))
    return finalize(attack, model, inputs, state), gradients


def prepared(attack: Attack, model: Model, inputs: Inputs) -> Inputs:
    """`inputs` with those that are computed once."""
    return inputs if attack.prepare is None else {**inputs, **attack.prepare(model, inputs)}


def init(attack: Attack, inputs: Inputs) -> AttackState:
    """The searches before their first step."""
    memory, best, now = (), (), inputs
    if attack.rounds is not None:
        memory, best = attack.rounds.init(inputs), _nothing(inputs["x"], attack.rounds.wants_gradient)
        now = attack.rounds.inputs(inputs, memory, best)
    x, update = _begin(attack, now)
    steps = tf.broadcast_to(now["steps"], tf.shape(x)[:1])
    kept = () if attack.selection is None else _nothing(x, _wants_gradient(attack))
    active = tf.ones_like(steps, tf.bool) if attack.scored else steps > 0
    return AttackState(x, steps, active, update, kept, memory, best)


def advance(
    attack: Attack, model: Model, inputs: Inputs, state: AttackState, evaluations: Tensor | None = None
) -> tuple[AttackState, Tensor, Tensor]:
    """Up to so many further evaluations of the objective, or as many as it takes; ends once no example is active.

    Also how many gradients there were, and, of the examples in each, how many were active and no success yet: int32
    scalars.
    """
    rounds, stop, scored = attack.rounds, attack.stop, attack.scored
    # With one number of steps for all and no early end, all move at every step.
    together = stop is None and rounds is None and tf.convert_to_tensor(inputs["steps"]).shape.rank == 0
    alike = not attack.numbered and (rounds is None or rounds.shared_parts)
    shared = _parts(attack, model, inputs) if alike else None

    def step(count: Tensor, taken: Tensor, useful: Tensor, state: AttackState):
        now = inputs if rounds is None else rounds.inputs(inputs, state.memory, state.best)
        if attack.numbered:
            now = {**now, "evaluation": now["steps"] - state.steps_left}
        parts = shared or _parts(attack, model, now)
        x = state.x
        last = scored & (state.steps_left <= 0)
        wanted = _gradient_wanted(parts.rule, state, scored and not _wants_gradient(attack))
        value, success, gradient = _evaluated(parts, x, wanted)
        kept = state.kept
        if attack.selection is not None:
            kept = merge(now, _result(attack, x, value, success, gradient), kept, attack.selection)
        moving = state.active & ~last
        taken += tf.cast(tf.convert_to_tensor(wanted), tf.int32)
        useful += tf.where(wanted, tf.reduce_sum(tf.cast(moving & ~success, tf.int32)), 0)
        if stop is not None:
            moving &= ~stop(now, x, value, success)
        proposal, update = parts.rule.step(state.update, x, value, success, gradient)
        moved = parts.threat_model.project(proposal)
        if not together:
            moved = tf.where(_column(moving, moved), moved, x)
        # Budgets and masks of unknown shape hide it, and a loop's variables must keep theirs.
        moved = tf.ensure_shape(moved, x.shape)
        steps_left = tf.where(moving, state.steps_left - 1, state.steps_left if scored else 0)
        active = moving if scored else steps_left > 0
        ahead = AttackState(moved, steps_left, active, update, kept, state.memory, state.best)
        if rounds is not None:
            found = _result(attack, x, value, success, gradient) if attack.selection is None else kept
            ended = state.active & ~moving
            ahead = tf.cond(
                tf.reduce_any(ended),
                lambda: _next_round(attack, model, inputs, ahead, found, ended),
                lambda: ahead,
            )
        return count + 1, taken, useful, ahead

    zero = tf.constant(0)
    limit = (lambda count: True) if evaluations is None else (lambda count: count < evaluations)
    _, taken, useful, state = tf.while_loop(
        lambda count, taken, useful, state: tf.reduce_any(state.active) & limit(count),
        step,
        (zero, zero, zero, state),
        parallel_iterations=1,
    )
    return state, taken, useful


def finalize(attack: Attack, model: Model, inputs: Inputs, state: AttackState) -> Result:
    """What the searches have found."""
    if attack.scored:
        found = state.kept if attack.rounds is None else state.best
    else:
        found = Result(state.x, *attack.objective(model, inputs)(state.x))
    # Through the projections and the momentum an outer tape would differentiate every step of the attack.
    return found._replace(x=tf.stop_gradient(found_points(attack, inputs, state)))


def found_points(attack: Attack, inputs: Inputs, state: AttackState) -> Tensor:
    """The adversarial examples that the searches have found, (B, ...)."""
    if attack.rounds is not None:
        return state.best.x
    x = state.x if attack.selection is None else state.kept.x
    return x if attack.output is None else attack.output(inputs, x)


def merge(inputs: Inputs, a: Result, b: Result, selection: Selection = worst_case) -> Result:
    """Per example the one of higher rank, `a` on ties; a rank that is not a number loses."""
    rank_a, rank_b = (selection(inputs, *result[:3]) for result in (a, b))
    return choose(((rank_a >= rank_b) & (rank_a > float("-inf"))) | tf.math.is_nan(rank_b), a, b)


def choose(first: Tensor, a: Any, b: Any) -> Any:
    """`a` where `first` (B,) is true, else `b`: nests of tensors with one row per example."""

    def chosen(of_a: Tensor, of_b: Tensor) -> Tensor:
        # Either may hide its shape, and a loop's variables must keep theirs.
        shape = of_a.shape.merge_with(of_b.shape)
        return tf.ensure_shape(tf.where(tf.reshape(first, [-1] + [1] * (shape.rank - 1)), of_a, of_b), shape)

    return tf.nest.map_structure(chosen, a, b)


class _Parts(NamedTuple):
    objective: Objective
    threat_model: ThreatModel
    rule: UpdateRule


def _parts(attack: Attack, model: Model, inputs: Inputs) -> _Parts:
    threat_model = attack.threat_model(inputs)
    return _Parts(attack.objective(model, inputs), threat_model, attack.update(inputs, threat_model))


def _begin(attack: Attack, inputs: Inputs) -> tuple[Tensor, Any]:
    threat_model = attack.threat_model(inputs)
    # What a start is computed from may hide its shape.
    x = tf.ensure_shape(attack.start(inputs, threat_model), inputs["x"].shape)
    return x, attack.update(inputs, threat_model).init(x)


def _next_round(
    attack: Attack, model: Model, inputs: Inputs, state: AttackState, found: Result, ended: Tensor
) -> AttackState:
    """`state` with those examples that have `ended` a round at the start of their next, if they have one."""
    now = attack.rounds.inputs(inputs, state.memory, state.best)
    memory, best, again = attack.rounds.next(model, inputs, state.memory, _returned(attack, now, found), state.best)
    memory, best = choose(ended, memory, state.memory), choose(ended, best, state.best)
    following = attack.rounds.inputs(inputs, memory, best)
    x, update = _begin(attack, following)
    again = tf.ensure_shape(again & ended, ended.shape)
    kept = () if attack.selection is None else choose(again, _nothing(x, _wants_gradient(attack)), state.kept)
    return AttackState(
        choose(again, x, state.x),
        tf.where(again, following["steps"], state.steps_left),
        (state.active & ~ended) | again,
        choose(again, update, state.update),
        kept,
        memory,
        best,
    )


def _wants_gradient(attack: Attack) -> bool:
    return attack.rounds is not None and attack.rounds.wants_gradient


def _result(attack: Attack, x: Tensor, value: Tensor, success: Tensor, gradient: Tensor) -> Result:
    return Result(x, value, success, gradient if _wants_gradient(attack) else ())


def _returned(attack: Attack, inputs: Inputs, result: Result) -> Result:
    return result if attack.output is None else result._replace(x=attack.output(inputs, result.x))


def _nothing(x: Tensor, with_gradient: bool) -> Result:
    """Before anything was found: `x` itself, of the lowest value."""
    value = tf.fill(tf.shape(x)[:1], tf.constant(float("-inf"), tf.float32))
    return Result(x, value, tf.zeros_like(value, tf.bool), tf.zeros_like(x) if with_gradient else ())


def _gradient_wanted(rule: UpdateRule, state: AttackState, last_is_not: bool) -> Tensor | bool:
    """Whether any example takes a step from here that needs a gradient."""
    wanted = rule.needs_gradient(state.update) if callable(rule.needs_gradient) else rule.needs_gradient
    if last_is_not and wanted is not False:
        # After its last step an example is scored, and moves no more.
        wanted &= tf.reduce_any(state.active & (state.steps_left > 0))
    return wanted


def _evaluated(parts: _Parts, x: Tensor, wanted: Tensor | bool) -> tuple[Tensor, Tensor, Tensor]:
    """Value, success and gradient at x, zeros for a gradient that is not wanted."""

    def without() -> tuple[Tensor, Tensor, Tensor]:
        return *parts.objective(x), tf.zeros_like(x)

    if wanted is False:
        return without()

    def shaped(value: Tensor, success: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # A function of its own may lose them.
        return tf.ensure_shape(value, [None]), tf.ensure_shape(success, [None]), tf.ensure_shape(gradient, x.shape)

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value, success, gradient = value_and_gradient(parts.objective, x)
        return value, success, finite(gradient)

    if tf.inside_function():
        # Inlined into a loop's body, one and the same gradient takes 1.0 or 1.35 times as long as alone, by chance from
        # trace to trace (measured on convolutions with batch norm, CPU); as a function of its own it always takes 1.0.
        evaluate = tf.function(evaluate, autograph=False, experimental_attributes={"_noinline": True})
    if wanted is True:
        return shaped(*evaluate(x))
    return shaped(*tf.cond(wanted, lambda: evaluate(x), without))


def _column(flags: Tensor, x: Tensor) -> Tensor:
    return tf.reshape(flags, [-1] + [1] * (x.shape.rank - 1))
