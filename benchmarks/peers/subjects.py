"""The models and images that everything here is measured on."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from common.errors import UserError
from common.runs.record import Run

if TYPE_CHECKING:
    import keras

    from common.datasets import Arrays


TINY = "tiny_cnn"
"""A quarter of the work of `small_cnn`: four convolutions of 8 and 16 channels."""


class Subject(NamedTuple):
    """A classifier with logits, the `.keras` file that it is, and test images: `x` float32 (N, H, W, C) in [0, 1], `y`
    int32 (N,)."""

    label: str
    model: "keras.Model"
    path: Path
    x: np.ndarray
    y: np.ndarray


def open_subject(path: Path) -> "keras.Model":
    """The model in a `.keras` file, as it is, for other libraries read the file themselves.

    Errors: `UserError` for a file that does not do, as `common.evaluation.classifiers.load_network`, and for a model
    that takes whole numbers or batches of one size, or answers with a dictionary or a list.
    """
    from common.evaluation import classifiers
    from common.training import checkpoints

    classifiers.load_network(path)
    model = checkpoints.load_model(path)
    classifiers.check_graph(path, model)
    if not classifiers.is_plain(model):
        raise UserError(f"{path}: expected a model that takes floats in batches of any size and answers with a tensor")
    return model


def load_subject(label: str, path: Path, data: "Arrays") -> Subject:
    """The model in a `.keras` file with the test images of `data`.

    Errors: `UserError` for a file that does not do, and for a model that does not fit the images, takes them in another
    range, or answers with probabilities, from which a library that expects logits would get hardly any gradient.
    """
    from common.evaluation.input_range import better_reading
    from common.runs.model_input import is_run

    model = open_subject(path)
    x = data.x_test.astype(np.float32) / 255.0
    if tuple(model.input_shape[1:]) != x.shape[1:]:
        raise UserError(f"{path}: takes images of {tuple(model.input_shape[1:])}, {data.name} has {x.shape[1:]}")
    data = data.for_outputs(model.output_shape[-1])
    if model.output_shape[-1] < data.classes:
        raise UserError(f"{path}: has {model.output_shape[-1]} classes, {data.name} has {data.classes}")
    answers = np.asarray(model(x[:64], training=False))
    if answers.min() >= 0 and np.allclose(answers.sum(axis=1), 1, atol=1e-5):
        raise UserError(f"{path}: answers with probabilities; the libraries compared with need a model without softmax")
    better = None if is_run(path) else better_reading(model, data.x_test, data.y_test)
    if better is not None and better.sure:
        raise UserError(f"{path}: {better}, so that is what it takes; {better.remedy} and save what comes of it")
    return Subject(label, model, path, x, data.y_test.astype(np.int32))


def train_subject(
    label: str,
    data: "Arrays",
    run: Run,
    *,
    arch: str = "small_cnn",
    epochs: int = 3,
    seed: int = 0,
    method: str = "standard",
    eps: float = 0.0,
) -> Subject:
    """A network trained for a few epochs on `data`, by a method within an L-inf `eps`, its attacks of 5 steps, kept in
    the folder of `run` as `<label>.keras`; one that is there already is taken."""
    import keras

    from common.evaluation import predictions
    from common.models import NETWORKS, build, small_cnn
    from common.training import batches, checkpoints, loop
    from common.training.methods import make_method

    path = run.folder / f"{label}.keras"
    if path.is_file():
        return load_subject(label, path, data)
    scaled = data.x_train[:10_000].astype(np.float32) / 255.0
    mean, std = scaled.mean(axis=(0, 1, 2)), np.maximum(scaled.std(axis=(0, 1, 2)), 1e-3)
    networks = {**NETWORKS, TINY: functools.partial(small_cnn, width=8, blocks=2)}
    model = build(arch, data.x_train.shape[1:], data.classes, networks=networks, mean=mean, std=std, seed=seed)
    batch_size = min(64, len(data.x_train))
    rate = loop.learning_rate(
        "cosine", 0.05, epochs=epochs, steps_per_epoch=len(data.x_train) // batch_size, warmup_epochs=epochs / 10
    )
    made = make_method(method, eps=eps, steps=5)
    run.log(f"training {label}: {arch}, {len(data.x_train)} images, {epochs} epochs")
    loop.train(
        model,
        batches.batches(data.x_train, data.y_train, batch_size=batch_size, seed=seed),
        made.loss,
        keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
        epochs=epochs,
        seed=seed,
        adversary=made.adversary,
    )
    checkpoints.save_model(model, path)
    run.artifact(label, path)
    run.log(f"{label}: test accuracy {predictions.accuracy(model, data.x_test, data.y_test):.3f}")
    return load_subject(label, path, data)


def describe_peers(run: Run, peers: Sequence[type]) -> None:
    """Rows for the libraries that took part, with their versions; the machine is in `results.json`."""
    for peer in peers:
        run.row(model="peer", attack=peer.name, split=peer.version(), metric="installed", value=int(peer.available()))


def together(data: Sequence["Arrays"]) -> tuple[str, str]:
    """Name and SHA-256 of several data sets."""
    digest = hashlib.sha256("".join(part.sha256 for part in data).encode()).hexdigest()
    return ", ".join(part.name for part in data), data[0].sha256 if len(data) == 1 else digest
