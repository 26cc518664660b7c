"""The one loop. An attack is an objective, a space, a rule and a rank; see `common/README.md`."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import tensorflow as tf

from common.attacks.tensors import finite
from common.attacks.threat_models import Space
from common.attacks.updates import Rule

Tensor = tf.Tensor
Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x (B, ...) -> score (B,) to raise, done (B,) bool: the goal is reached."""
Rank = Callable[[Tensor, Tensor, Tensor], Tensor]
"""x, score, done -> (B,): of several iterates the one of the highest rank is kept."""


class Result(NamedTuple):
    """Adversarial examples `x` (B, ...), their `score` (B,) and whether the goal is reached, `done` (B,)."""

    x: Tensor
    score: Tensor
    done: Tensor


def highest(x: Tensor, score: Tensor, done: Tensor) -> Tensor:
    """Rank by the score alone."""
    return score


def strongest(x: Tensor, score: Tensor, done: Tensor) -> Tensor:
    """Rank successes above failures, then by the score."""
    # The arc tangent keeps the order of the scores within (-2, 2), so none outweighs a success; in double precision it
    # also tells large ones apart, which single precision rounds to the same end.
    return tf.atan(tf.cast(score, tf.float64)) + 4.0 * tf.cast(done, tf.float64)


def search(
    objective: Objective,
    rule: Rule,
    space: Space,
    x: Tensor,
    steps: int | Tensor,
    *,
    rank: Rank | None = None,
    stop: bool = False,
) -> Result:
    """Raise `objective` from `x` (B, ...) for `steps` gradients, a scalar or (B,), inside `space`.

    With `rank` every iterate is scored, the last one included, and the best is returned; without it, the last. With
    `stop` an example stays where it first reaches its goal, and the loop ends once all have. Works eagerly, inside
    `tf.function` and inside a training step; no variable is created or changed. Where the gradient is not finite a step
    is made of what is left of it (`geometry.finite`), so what is returned is finite.
    """
    flight, _, _ = advance(objective, rule, space, begin(rule, x, steps), steps, rank=rank, stop=stop)
    return land(objective, flight, rank)


class Flight(NamedTuple):
    """Attacks under way: where each of the B examples stands, and all that the next step needs to know.

    `x` (B, ...); `best`, the iterate to keep so far; `state` of the rule; `left` (B,) int32, the gradients that an
    example may still take: 0 once it is finished.
    """

    x: Tensor
    best: Result
    state: Any
    left: Tensor


def begin(rule: Rule, x: Tensor, steps: int | Tensor) -> Flight:
    """Attacks that start from `x` (B, ...) and may take `steps` gradients, a scalar or (B,)."""
    nothing = tf.fill(tf.shape(x)[:1], tf.constant(float("-inf"), tf.float32))
    left = tf.broadcast_to(tf.cast(steps, tf.int32), tf.shape(x)[:1])
    return Flight(x, Result(x, nothing, tf.zeros_like(nothing, tf.bool)), rule.init(x), left)


def advance(
    objective: Objective,
    rule: Rule,
    space: Space,
    flight: Flight,
    steps: int | Tensor,
    *,
    rank: Rank | None = None,
    stop: bool = False,
) -> tuple[Flight, Tensor, Tensor]:
    """Up to `steps` further gradients, a scalar or (B,); ends early once no example has any left.

    Also how many there were, and of the examples in each, how many were under way and not at their goal: int32 scalars.
    """
    evaluate = partial(_evaluate, objective, rule.needs_grad)
    if tf.inside_function():
        # Inlined into a loop's body, one and the same gradient takes 1.0 or 1.35 times as long as alone, by chance from
        # trace to trace (measured on convolutions with batch norm, CPU); as a function of its own it always takes 1.0.
        evaluate = tf.function(evaluate, autograph=False, experimental_attributes={"_noinline": True})
    # With one number of steps for all and no early end, all move at every step.
    together = not stop and tf.convert_to_tensor(steps).shape.rank == 0

    def one_step(step: Tensor, useful: Tensor, flight: Flight):
        x, best, state, left = flight
        score, done, gradient = evaluate(x)
        if rank is not None:
            best = merge(Result(x, score, done), best, rank)
        under_way = left > 0
        useful += tf.reduce_sum(tf.cast(under_way & ~done, tf.int32))
        if stop:
            under_way &= ~done
        gradient = space.tangent(x, gradient)
        # Budgets and masks of unknown shape hide it, and a loop's variables must keep theirs.
        gradient.set_shape(x.shape)
        proposal, state = rule.step(state, x, score, done, gradient)
        moved = space.project(proposal)
        if not together:
            moved = tf.where(_column(under_way, moved), moved, x)
        moved.set_shape(x.shape)
        return step + 1, useful, Flight(moved, best, state, tf.where(under_way, left - 1, 0))

    taken, useful, flight = tf.while_loop(
        lambda step, useful, flight: tf.reduce_any((step < steps) & (flight.left > 0)),
        one_step,
        (tf.constant(0), tf.constant(0), flight),
        parallel_iterations=1,
    )
    return flight, taken, useful


def land(objective: Objective, flight: Flight, rank: Rank | None = None) -> Result:
    """What the attacks have found: with `rank` the best iterate, for which the last is scored too; else the last."""
    last = Result(flight.x, *objective(flight.x))
    return last if rank is None else merge(last, flight.best, rank)


def merge(a: Result, b: Result, rank: Rank = strongest) -> Result:
    """Per example the one of higher rank, `a` on ties; a rank that is not a number loses."""
    rank_a, rank_b = rank(*a), rank(*b)
    return choose((rank_a >= rank_b) | tf.math.is_nan(rank_b), a, b)


def choose(first: Tensor, a: Result, b: Result) -> Result:
    """`a` where `first` (B,) is true, else `b`."""
    return Result(*(tf.where(_column(first, of_a), of_a, of_b) for of_a, of_b in zip(a, b, strict=True)))


def _evaluate(objective: Objective, needs_grad: bool, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not needs_grad:
        return *objective(x), tf.zeros_like(x)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        score, done = objective(x)
    gradient = tape.gradient(score, x)
    if gradient is None:
        raise ValueError("the objective does not depend on x: no gradient reaches the input")
    # A gather in the objective makes its gradient sparse.
    return score, done, finite(tf.convert_to_tensor(gradient))


def _column(flags: Tensor, x: Tensor) -> Tensor:
    return tf.reshape(flags, [-1] + [1] * (x.shape.rank - 1))
