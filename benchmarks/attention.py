"""A training step of AAD against the sum of its parts, each timed alone on the same batch."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.runs.options import Count, LinfBudget, ScriptOptions
from common.runs.record import Run
from common.runs.script import script

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

BOUND = 1.15
LEARNING_RATE = 0.01


@dataclass(kw_only=True)
class Options(ScriptOptions):
    """What is measured, on which networks, and how often."""

    archs: tuple[str, ...] = ("small_cnn", "cifarnet")
    """Networks of attention_defense/."""
    batch_size: Count = 64
    """Images of 32 x 32 a step."""
    repeats: Count = 11
    """Repetitions, of which the median counts; each runs every part once."""
    eps: LinfBudget = 8 / 255
    """Radius of Step-LL, in [0, 1]."""


def refusals(options: Options) -> None:
    """What is refused before anything is measured."""
    from attention_defense.models.networks import NETWORKS
    from common.models import check_name

    for arch in options.archs:
        check_name(arch, NETWORKS)


@script(app="benchmarks", name="attention", refusals=refusals)
def attention(options: Options, run: Run) -> None:
    """Time the whole step and its parts in turn, and compare with the target."""
    import hashlib

    import numpy as np
    import tensorflow as tf

    from benchmarks.peers import timing
    from common.datasets.scenes import scenes
    from common.progress import Progress

    drawn = scenes(options.batch_size, seed=options.seed)
    run.data("scenes", hashlib.sha256(np.ascontiguousarray(drawn.images).data).hexdigest())
    x, y = tf.constant(drawn.images, tf.float32) / 255, tf.constant(drawn.labels)
    met = []
    for arch in options.archs:
        contenders = {name: _timed(part) for name, part in _parts(options, arch, x, y).items()}
        run.log(f"{arch}: {', '.join(contenders)}")
        with Progress((options.repeats + 1) * len(contenders), arch, units="calls") as progress:
            for contender in contenders.values():
                contender()
                progress.add()
            seconds = timing.interleaved(contenders, options.repeats, show=progress.add)
        for name, taken in seconds.items():
            spread = timing.Spread.of(taken)
            run.row(model=arch, split=name, metric="seconds", value=spread.median, low=spread.low, high=spread.high)
        alone = [name for name in seconds if name != "step"]
        seconds["parts"] = [sum(each) for each in zip(*(seconds[name] for name in alone), strict=True)]
        spread = timing.ratio(seconds, "step", "parts")
        run.row(model=arch, metric="step_over_parts", value=spread.median, low=spread.low, high=spread.high)
        run.metrics(**{f"{arch}_step_over_parts": spread.median})
        met.append(spread.median <= BOUND)
    run.metrics(targets=len(met), targets_met=sum(met))


def _parts(options: Options, arch: str, x: "tf.Tensor", y: "tf.Tensor") -> "dict[str, Callable[[], tf.Tensor]]":
    """The whole step; and, each compiled and timed alone, what it has to do: the attack, the classification of images
    and attacked images with its gradient, the answers to both with what is attended hidden, with theirs, the maps of
    both with the gradient of their difference, which is one of second order, and the update."""
    import keras
    import tensorflow as tf

    from attention_defense.models import losses
    from attention_defense.models.grad_cam import Attention, resized, softmax_map
    from attention_defense.models.networks import NETWORKS
    from attention_defense.training.defence import method
    from common.training.loop import compiled_step

    mean, std = [0.5] * 3, [0.25] * 3

    def network() -> "keras.Model":
        return NETWORKS[arch](x.shape[1:], 10, mean=mean, std=std, seed=options.seed)

    def optimizer() -> "keras.Optimizer":
        return keras.optimizers.SGD(LEARNING_RATE, momentum=0.9, nesterov=True)

    way, model, stepped = method("aad", eps=options.eps), network(), network()
    step = compiled_step(stepped, way.loss, optimizer(), adversary=way.adversary)
    seed = tf.zeros([2], tf.int32)
    attack = tf.function(lambda x: way.adversary(model, (x, y), seed)[2])
    images, labels = tf.concat([x, attack(x)], axis=0), tf.concat([y, y], axis=0)
    answer, cam = Attention(model)(images, labels)
    blank = losses.occlude(images, losses.soft_mask(resized(softmax_map(cam), x.shape[1:3]), 10.0))

    def with_gradients(loss: "Callable[[], tf.Tensor]") -> "Callable[[], tf.Tensor]":
        @tf.function
        def whole() -> "tf.Tensor":
            with tf.GradientTape() as tape:
                value = loss()
            gradients = tape.gradient(value, model.trainable_variables)
            # All of them, or unused ones would not be computed.
            return tf.add_n([tf.reduce_sum(g) for g in gradients if g is not None])

        return whole

    def classification() -> "tf.Tensor":
        logits = model(images, training=True)
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))

    def rectification() -> "tf.Tensor":
        return losses.rectification(tf.nn.softmax(answer), tf.nn.softmax(model(blank, training=False)))

    def preservation() -> "tf.Tensor":
        seen = resized(softmax_map(Attention(model)(images, labels).cam), x.shape[1:3])
        return losses.preservation(*tf.split(seen, 2))

    own, held = optimizer(), [tf.zeros(w.shape) for w in model.trainable_variables]
    own.build(model.trainable_variables)

    @tf.function
    def update() -> "tf.Tensor":
        own.apply(held, model.trainable_variables)
        return tf.constant(0)

    return {
        "step": lambda: step((x, y))["loss"],
        "attack": lambda: attack(x),
        "classification": with_gradients(classification),
        "hidden pictures": with_gradients(rectification),
        "maps": with_gradients(preservation),
        "update": update,
    }


def _timed(part: "Callable[[], tf.Tensor]") -> Callable[[], float]:
    def seconds() -> float:
        started = time.perf_counter()
        part().numpy()
        return time.perf_counter() - started

    return seconds


if __name__ == "__main__":
    attention.main()
