"""The one loop. An attack is an objective, a space, a rule and a rank; see DESIGN section 3 in `common/README.md`."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import tensorflow as tf

from common.attacks.rules import Rule
from common.attacks.spaces import Space

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
    """Raise `objective` from `x` (B, ...) for `steps` gradients inside `space`.

    With `rank` every iterate is scored, the last one included, and the best is returned; without it, the last. With
    `stop` an example stays where it first reaches its goal, and the loop ends once all have. Works eagerly, inside
    `tf.function` and inside a training step; no variable is created or changed.
    """
    evaluate = partial(_evaluate, objective, rule.needs_grad)
    if tf.inside_function():
        # Inlined into a loop's body, one and the same gradient takes 1.0 or 1.35 times as long as alone, by chance from
        # trace to trace (measured on convolutions with batch norm, CPU); as a function of its own it always takes 1.0.
        evaluate = tf.function(evaluate, autograph=False, experimental_attributes={"_noinline": True})

    def advance(step: Tensor, x: Tensor, best: Result, state, stopped: Tensor):
        score, done, gradient = evaluate(x)
        if rank is not None:
            best = merge(Result(x, score, done), best, rank)
        gradient = space.tangent(x, gradient)
        # Budgets and masks of unknown shape hide it, and a loop's variables must keep theirs.
        gradient.set_shape(x.shape)
        proposal, state = rule.step(state, x, score, done, gradient)
        moved = space.project(proposal)
        if stop:
            moved = tf.where(_column(done, moved), x, moved)
            stopped = tf.reduce_all(done)
        moved.set_shape(x.shape)
        return step + 1, moved, best, state, stopped

    nothing = tf.fill(tf.shape(x)[:1], tf.constant(float("-inf"), tf.float32))
    best = Result(x, nothing, tf.zeros_like(nothing, tf.bool))
    _, x, best, _, _ = tf.while_loop(
        lambda step, x, best, state, stopped: (step < steps) & ~stopped,
        advance,
        (tf.constant(0), x, best, rule.init(x), tf.constant(False)),
        parallel_iterations=1,
    )
    last = Result(x, *objective(x))
    return last if rank is None else merge(last, best, rank)


def merge(a: Result, b: Result, rank: Rank = strongest) -> Result:
    """Per example the one of higher rank, `a` on ties; a rank that is not a number loses."""
    rank_a, rank_b = rank(*a), rank(*b)
    take_a = (rank_a >= rank_b) | tf.math.is_nan(rank_b)
    return Result(
        tf.where(_column(take_a, a.x), a.x, b.x),
        tf.where(take_a, a.score, b.score),
        tf.where(take_a, a.done, b.done),
    )


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
    return score, done, tf.convert_to_tensor(gradient)


def _column(flags: Tensor, x: Tensor) -> Tensor:
    return tf.reshape(flags, [-1] + [1] * (x.shape.rank - 1))
