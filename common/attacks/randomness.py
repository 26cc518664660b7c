"""Models that gradients do not tell the truth about: random ones, by their mean, and steps without a slope."""

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

from common.attacks.loop import Inputs, Model, Objective, seeds_of
from common.attacks.tensors import example_seeds, folded

Tensor = tf.Tensor


class RandomModel:
    """A model that draws: `function`, x (B, ...), seeds (B, 2) int32 -> logits (B, classes), all of whose randomness
    comes from the seeds, one pair for each example. Called without seeds it draws the same for the same places."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function = function

    def __call__(self, x: Tensor, seeds: Tensor | None = None) -> Tensor:
        if seeds is None:
            seeds = example_seeds(tf.zeros([2], tf.int32), tf.range(tf.shape(x)[0]))
        return self.function(x, seeds)

    def several(self, x: Tensor, seeds: Tensor, draws: int) -> tuple[Tensor, Tensor]:
        """`x` and seeds for so many draws of each example, side by side: (B * draws, ...), (B * draws, 2)."""
        number = tf.tile(tf.range(draws), [tf.shape(x)[0]])
        return tf.repeat(x, draws, axis=0), folded(tf.repeat(seeds, draws, axis=0), number)


@dataclass(frozen=True)
class Expected:
    """The mean of an `objective` over `draws` of a model that draws, anew in each evaluation (Athalye et al. 2018,
    EoT); success: more than half of them are one. The draws of a `RandomModel` follow from the seed, the example's
    place and the number of the evaluation; those of any other model are its own."""

    objective: Callable[[Model, Inputs], Objective]
    draws: int

    def __call__(self, model: Model, inputs: Inputs) -> Objective:
        seeds = folded(seeds_of(inputs), inputs.get("evaluation", tf.zeros_like(inputs["index"])))
        own = {name: tf.repeat(inputs[name], self.draws, axis=0) for name in ("y", "target") if name in inputs}

        def objective(x: Tensor) -> tuple[Tensor, Tensor]:
            if isinstance(model, RandomModel):
                many, drawn = model.several(x, seeds, self.draws)
                drawing: Model = lambda x: model(x, drawn)  # noqa: E731
            else:
                many, drawing = tf.repeat(x, self.draws, axis=0), model
            value, success = self.objective(drawing, {**inputs, **own})(many)
            each = [-1, self.draws]
            share = tf.reduce_mean(tf.cast(tf.reshape(success, each), tf.float32), axis=1)
            return tf.reduce_mean(tf.reshape(value, each), axis=1), share > 0.5

        return objective


def bpda(function: Callable[[Tensor], Tensor], substitute: Callable[[Tensor], Tensor] = tf.identity) -> Callable:
    """`function`, x -> y, with the slope of `substitute`, x -> a tensor of the shape of y, by default of x itself, in
    place of its own (Athalye et al. 2018, BPDA): for rounding, counting or choosing before a network."""

    @tf.custom_gradient
    def passed(x: Tensor):
        def gradient(slope: Tensor) -> Tensor:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                smooth = substitute(x)
            return tape.gradient(smooth, x, output_gradients=slope)

        return function(x), gradient

    return passed
