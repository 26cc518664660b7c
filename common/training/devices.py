"""Where a run computes: number precision and the distribution strategy."""

import functools
import json
import os

import keras
import tensorflow as tf

from common.errors import UserError, one_line


def prepare(strategy: str = "none", precision: str = "float32") -> tf.distribute.Strategy:
    """Set the precision of layers built from now on, and return the strategy.

    `strategy`: `none` one device; `mirrored` all GPUs of this machine; `multiworker` all machines in `TF_CONFIG`.
    Models and optimisers must be built in the returned strategy's scope.

    Errors: `UserError` for `multiworker` without a usable `TF_CONFIG`, or when the cluster cannot be joined.
    """
    keras.config.set_dtype_policy(precision)
    if strategy == "mirrored":
        return tf.distribute.MirroredStrategy()
    return workers() if strategy == "multiworker" else tf.distribute.get_strategy()


@functools.cache
def workers() -> tf.distribute.Strategy:
    """The strategy over the machines in `TF_CONFIG`; a process joins them once, and before it computes anything.

    Errors: as `prepare`.
    """
    _check_cluster()
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (ValueError, tf.errors.OpError) as error:
        reason = one_line(error, 200)
        raise UserError(
            f"--strategy multiworker: cannot join the cluster of TF_CONFIG ({reason}); check the addresses and the"
            " index of this machine"
        ) from error


def check_batch_size(strategy: tf.distribute.Strategy, batch_size: int) -> int:
    """The number of devices of `strategy`; each counts the same in the mean, so each needs as many examples.

    Errors: `UserError` for a batch size that is no multiple of it.
    """
    replicas = strategy.num_replicas_in_sync
    if batch_size % replicas:
        raise UserError(f"--batch-size: expected a multiple of the {replicas} devices; received {batch_size}")
    return replicas


def scaled_for(precision: str, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """`optimizer`, with the loss scaling that gradients in half precision need to not vanish."""
    return keras.optimizers.LossScaleOptimizer(optimizer) if precision == "mixed_float16" else optimizer


def _check_cluster() -> None:
    try:
        workers = json.loads(os.environ.get("TF_CONFIG", ""))["cluster"]["worker"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            "--strategy multiworker: TF_CONFIG must hold the cluster as JSON, e.g."
            ' {"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
        ) from error
    if not workers:
        raise UserError("--strategy multiworker: TF_CONFIG names no worker")
