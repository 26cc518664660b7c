"""The GradientTape training loop that every paper shares: any loss, an optional adversary in the step, any strategy.

    history = train(model, batches(x, y, batch_size=128, seed=0), cross_entropy, optimizer, epochs=20)

Adversarial training differs in one argument, `adversary`, a function from a batch to the batch to train on.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from functools import partial
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from common.arrays import label_column, user_error
from common.attacks.logits import training_logits
from common.errors import UserError
from common.progress import Progress, duration, values_text
from common.training import checkpoints
from common.training.batches import Batch, Epochs, Tensor

Terms = Mapping[str, Tensor]
Loss = Callable[[keras.Model, Batch], tuple[Terms, Terms]]
"""model, batch -> the scalar terms whose sum is minimised, and scalars that are only logged."""
Adversary = Callable[[keras.Model, Batch, Tensor], Batch]
"""model, batch, seed (2,) -> the batch to train on; no gradient flows through it."""
Evaluate = Callable[[], Mapping[str, float]]
# Seconds: of epochs that are quicker not each has a line of its own.
_LINE_APART = 1.0


def cross_entropy(model: keras.Model, batch: Batch) -> tuple[Terms, Terms]:
    """Mean cross-entropy of (x, y) with logits, `y` (B,) or (B, 1); logs the accuracy on the batch.

    Errors: as `logits_and_labels`.
    """
    logits, y = logits_and_labels(model, *batch)
    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits))
    correct = tf.argmax(logits, axis=1, output_type=tf.int32) == y
    return {"cross_entropy": loss}, {"accuracy": tf.reduce_mean(tf.cast(correct, tf.float32))}


def logits_and_labels(model: keras.Model, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """What a classifier is trained on: logits float32 (B, classes) of `model` in training mode, labels int32 (B,).

    Errors: `UserError` for a model that answers with probabilities, and for labels that are no class numbers.
    """
    logits = training_logits(model)(x)
    return logits, label_column(y, logits.shape[1])


def learning_rate(
    kind: Literal["constant", "step", "cosine"],
    base: float,
    *,
    epochs: int,
    steps_per_epoch: int,
    milestones: Iterable[int] = (),
    factor: float = 0.1,
    warmup_epochs: float = 0,
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """A schedule in optimiser steps: `base` throughout, times `factor` at each of `milestones` (epochs), or a cosine
    to zero at the last step, after a linear rise over `warmup_epochs`."""
    if kind == "step":
        milestones = sorted(milestones)
        if not milestones:
            raise UserError(
                "--lr-schedule step: needs --lr-epochs, the epochs at which the learning rate is divided by ten"
            )
        boundaries = [epoch * steps_per_epoch for epoch in milestones]
        values = [base * factor**k for k in range(len(boundaries) + 1)]
        return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)
    if kind == "cosine":
        warmup = int(warmup_epochs * steps_per_epoch)
        steps = max(epochs * steps_per_epoch - warmup, 1)
        start = 0.0 if warmup else base
        return keras.optimizers.schedules.CosineDecay(start, steps, 0.0, warmup_target=base, warmup_steps=warmup)
    return base


def train(
    model: keras.Model,
    epoch_batches: Epochs,
    loss: Loss,
    optimizer: keras.Optimizer,
    *,
    epochs: int,
    adversary: Adversary | None = None,
    weight_decay: float = 0.0,
    evaluate: Evaluate | None = None,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    checkpoint_folder: Path | None = None,
    resume: bool = False,
    seed: int = 0,
    strategy: tf.distribute.Strategy | None = None,
    jit_compile: bool = False,
    steps_per_call: int = 1,
    chief: bool = True,
    verbose: bool = True,
) -> list[dict[str, float]]:
    """Train `model` in place for `epochs`; the logged means of every epoch.

    `weight_decay` is L2 in the loss, 0.5 * weight_decay * ||w||^2 over every trainable variable, as in torch.optim.SGD;
    Keras optimisers' own decay is decoupled from momentum and some ten times weaker. `evaluate` runs after each epoch;
    what it measures is logged, never used. `callbacks` are Keras callbacks; a resumed run starts them again. With
    `checkpoint_folder` every epoch is saved there, and `resume` continues after the last: the weights become those of
    an undisturbed run. Of several workers only the `chief` saves, in a folder that all of them can read. `jit_compile`
    hands each replica's step to XLA. With `steps_per_call` so many steps run without Python in between, useful where
    one takes about a millisecond; callbacks then see only the last batch of each call. With `verbose` a bar or lines
    show how far the whole training is, and a line stays for each epoch (for epochs below a second, one a second).

    Errors: `UserError` when the loss stops being finite, when a checkpoint does not fit, when there is no batch, and
    for what `loss` and `adversary` say of batches that they cannot use.
    """
    strategy = strategy or tf.distribute.get_strategy()
    # What the loss is the sum of is for the curves; a line has no room for it.
    unlisted = {"learning_rate", "weight_decay"}

    def noted(model: keras.Model, batch: Batch) -> tuple[Terms, Terms]:
        terms, watched = loss(model, batch)
        unlisted.update(terms)
        return terms, watched

    step = compiled_step(
        model,
        noted,
        optimizer,
        adversary=adversary,
        weight_decay=weight_decay,
        seed=seed,
        strategy=strategy,
        jit_compile=jit_compile,
    )
    calls = _in_groups(step, steps_per_call) if steps_per_call > 1 else _one_by_one(step)
    history: list[dict[str, float]] = []
    if resume and checkpoint_folder and (restored := checkpoints.restore(checkpoint_folder, model, optimizer)):
        history = list(restored.history)
    _check_agreement(strategy, len(history))
    listeners = keras.callbacks.CallbackList([*callbacks], model=model, epochs=epochs, verbose=0)
    model.stop_training = False
    listeners.on_train_begin()
    first, lined = len(history), -math.inf
    with Progress(None, "training", units="steps", shown=verbose) as progress:
        for epoch in range(first, epochs):
            listeners.on_epoch_begin(epoch)
            begun, dataset = time.monotonic(), epoch_batches(epoch)
            progress.title = f"epoch {epoch + 1}/{epochs}"
            if (steps := int(dataset.cardinality())) > 0:
                if epoch == first:
                    progress.skip(epoch * steps)
                progress.total = progress.done + (epochs - epoch) * steps
            before = progress.done
            try:
                logs = _run_epoch(calls, dataset, progress, unlisted, listeners, strategy)
            except Exception as error:
                if (found := user_error(error)) is None:
                    raise
                raise found from None
            # If the number of steps in an epoch was unknown, it is known now.
            progress.total = progress.done + (epochs - epoch - 1) * (progress.done - before)
            if not math.isfinite(logs["loss"]):
                raise UserError(f"the loss is {logs['loss']} in epoch {epoch + 1}; lower the learning rate")
            logs["learning_rate"] = float(tf.convert_to_tensor(optimizer.learning_rate))
            if evaluate is not None:
                logs |= {name: float(value) for name, value in evaluate().items()}
            history.append(logs)
            # Listeners first: a curve may then hold an epoch that the checkpoint lacks, but never lack one that it has.
            listeners.on_epoch_end(epoch, dict(logs))
            if checkpoint_folder and chief:
                checkpoints.save(checkpoint_folder, model, optimizer, history)
            ends, now = model.stop_training or epoch + 1 == epochs, time.monotonic()
            if ends or now - lined >= _LINE_APART:
                shown = {name: value for name, value in logs.items() if name not in unlisted}
                progress.line(_epoch_line(progress.title, shown, now - begun, None if ends else progress.seconds_left))
                lined = now
            if model.stop_training:
                break
    listeners.on_train_end()
    return history


def _check_agreement(strategy: tf.distribute.Strategy, epoch: int) -> None:
    """Refuse workers that resume from different epochs: their weights differ, and no step would show it."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return

    @tf.function
    def sums() -> list[Tensor]:
        own = strategy.run(lambda: (tf.constant(epoch, tf.int64), tf.constant(epoch**2, tf.int64)))
        return [strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None) for value in own]

    total, squares = map(int, sums())
    # By Cauchy and Schwarz equal only if all are; and the same answer in every worker, so that none is left waiting.
    if strategy.num_replicas_in_sync * squares != total**2:
        raise UserError("the workers found checkpoints of different epochs; give all of them the same run folder")


def compiled_step(
    model: keras.Model,
    loss: Loss,
    optimizer: keras.Optimizer,
    *,
    adversary: Adversary | None = None,
    weight_decay: float = 0.0,
    seed: int = 0,
    strategy: tf.distribute.Strategy | None = None,
    jit_compile: bool = False,
) -> Callable[[Any], dict[str, Tensor]]:
    """One step of `train`, with its arguments: a batch, or a distributed one, -> the means that are logged."""
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        optimizer.build(model.trainable_variables)
    replicas = strategy.num_replicas_in_sync
    base_seed = tf.constant([seed, 0], tf.int32)

    def backward(batch: Batch, step_seed: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        if adversary is not None:
            batch = tf.nest.map_structure(tf.stop_gradient, adversary(model, batch, step_seed))
        with tf.GradientTape() as tape:
            terms, watched = loss(model, batch)
            if weight_decay:
                squares = tf.add_n([tf.nn.l2_loss(tf.cast(v, tf.float32)) for v in model.trainable_variables])
                terms = {**terms, "weight_decay": weight_decay * squares}
            total = tf.add_n([tf.cast(term, tf.float32) for term in terms.values()])
            # Keras optimisers sum over replicas; the mean over the global batch is wanted.
            scaled = optimizer.scale_loss(total / replicas)
        gradients = tape.gradient(scaled, model.trainable_variables)
        return gradients, {"loss": total, **(terms if len(terms) > 1 else {}), **watched}

    if jit_compile:
        # The optimiser stays outside: it sums over replicas, which XLA cannot reach.
        backward = tf.function(backward, jit_compile=True, reduce_retracing=True)

    def replica_step(batch: Batch) -> dict[str, Tensor]:
        place = tf.distribute.get_replica_context().replica_id_in_sync_group
        step_seed = tf.random.fold_in(base_seed, tf.cast(optimizer.iterations, tf.int32))
        gradients, logs = backward(batch, tf.random.fold_in(step_seed, place))
        if replicas > 1 and isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            gradients = _all_or_none_finite(gradients)
        optimizer.apply(gradients, model.trainable_variables)
        return logs

    def step(batch: Any) -> dict[str, Tensor]:
        logs = strategy.run(replica_step, args=(batch,))
        return {name: strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None) for name, value in logs.items()}

    return tf.function(step, reduce_retracing=True)


def gradient_norms(model: keras.Model, loss: Loss, batch: Batch) -> dict[str, float]:
    """L2 norm, over all weights, of the gradient of each term of `loss` on a batch as its adversary leaves it, by
    `gradient_norm_<term>`. A term that is switched off has none. The model is left as it was."""
    averages = [np.asarray(value) for value in model.non_trainable_variables]
    with tf.GradientTape(persistent=True) as tape:
        terms, _ = loss(model, batch)
    for variable, value in zip(model.non_trainable_variables, averages, strict=True):
        variable.assign(value)
    norms = {}
    for name, term in terms.items():
        gradients = tape.gradient(term, model.trainable_variables)
        norms[f"gradient_norm_{name}"] = float(tf.linalg.global_norm([g for g in gradients if g is not None]))
    return norms


def _all_or_none_finite(gradients: list[Tensor]) -> list[Tensor]:
    """`gradients`, the first of them infinite where any replica's overflowed.

    A `LossScaleOptimizer` looks at the first replica of each worker alone: an overflow elsewhere would reach the
    weights, and workers that disagree would wait for each other for ever.
    """
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g in gradients])
    overflows = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(~finite, tf.float32))
    first, *others = gradients
    return [tf.where(overflows > 0, tf.constant(math.inf, first.dtype), first), *others]


Calls = Callable[[Iterator[Any], int], Iterator[tuple[int, Callable[[], dict[str, Tensor]]]]]
"""batches, their number or a negative one for unknown -> how many each call takes, and the call: what they log,
summed."""


def _one_by_one(step: Callable[[Any], dict[str, Tensor]]) -> Calls:
    return lambda batches, total: ((1, partial(step, batch)) for batch in batches)


def _in_groups(step: Callable[[Any], dict[str, Tensor]], size: int) -> Calls:
    """`size` batches to a call, as many as are left to the last one; of an unknown number, one by one."""

    @tf.function(reduce_retracing=True)
    def several(batches: Any, count: Tensor) -> dict[str, Tensor]:
        sums = step(next(batches))
        for _ in tf.range(count - 1):
            logs = step(next(batches))
            sums = {name: value + logs[name] for name, value in sums.items()}
        return sums

    def calls(batches: Iterator[Any], total: int) -> Iterator[tuple[int, Callable[[], dict[str, Tensor]]]]:
        if total < 0:
            yield from _one_by_one(step)(batches, total)
        for first in range(0, total, size):
            taken = min(size, total - first)
            yield taken, partial(several, batches, tf.constant(taken))

    return calls


def _run_epoch(
    calls: Calls,
    dataset: tf.data.Dataset,
    progress: Progress,
    unlisted: Set[str],
    listeners: keras.callbacks.CallbackList,
    strategy: tf.distribute.Strategy,
) -> dict[str, float]:
    sums: dict[str, Tensor] = {}
    count = 0
    for taken, call in calls(iter(strategy.experimental_distribute_dataset(dataset)), int(dataset.cardinality())):
        listeners.on_train_batch_begin(count)
        logs = call()
        sums = {name: sums[name] + value for name, value in logs.items()} if sums else logs
        count += taken
        listeners.on_train_batch_end(count - 1)
        progress.add(taken, partial(_means, {name: sums[name] for name in sums if name not in unlisted}, count))
    if not count:
        raise UserError("an epoch holds no batch; give more data or a smaller batch")
    return _means(sums, count)


def _epoch_line(title: str, logs: Mapping[str, float], seconds: float, left: float | None) -> str:
    text = f"{title}: {values_text(logs)}; {duration(seconds)}"
    return text if left is None else f"{text}, {duration(left)} left"


def _means(sums: Mapping[str, Tensor], count: int) -> dict[str, float]:
    return {name: float(value) / count for name, value in sums.items()}
