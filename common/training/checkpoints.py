"""Model files and training checkpoints, each complete or absent."""

import contextlib
import importlib
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from common import files
from common.errors import UserError, one_line

_NEWEST, _PREVIOUS, _DAMAGED = "checkpoint.npz", "checkpoint.previous.npz", "checkpoint.damaged.npz"
# Keras finds a layer by its registered name alone and imports nothing: with which module all of a package are. No
# file has a say in what is imported.
_REGISTERING = {
    "common": "common.models.imagenet",
    "face_mter": "face_mter.models.networks",
    "mobility_humid": "mobility_humid.models.certified",
    "multimedia_recsys": "multimedia_recsys.models.recommenders",
}
# Small variables that a model has in addition to the weights in its file, such as the states of its random layers.
_SLACK = 2**20


def save_model(model: keras.Model, path: Path | str) -> None:
    """Write `model` as a `.keras` file, whole or not at all."""
    # Keras insists on the ending.
    with files.taking_place(path, ".keras") as temporary:
        model.save(temporary)


def load_model(path: Path | str) -> keras.Model:
    """The model in a `.keras` file, without code from it (`safe_mode`) and without its compilation.

    Errors: `UserError` naming the file when it is missing, damaged, not a `.keras`, needs code to load, was
    never built or declares weights that it does not hold.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such model file'}; expected a .keras")
    if path.suffix != ".keras":
        raise UserError(f"{path}: expected a .keras model; save it with model.save('name.keras')")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: not a model that can be loaded safely (no .keras inside, or cut short)")
    try:
        with zipfile.ZipFile(path) as archive:
            files.check_sizes(path, archive)
            held = sum(member.file_size for member in archive.infolist())
            _register(archive.read("config.json").decode())
        with _refusing_more_than(held + _SLACK):
            model = keras.models.load_model(path, compile=False, safe_mode=True)
    except UserError:
        raise
    except Exception as error:  # Keras raises anything from ValueError to KeyError and zip errors here
        raise UserError(f"{path}: not a model that can be loaded safely ({one_line(error, 200)})") from error
    if not model.built:
        # It would draw new weights when it is first called, and compute with those.
        raise UserError(
            f"{path}: was saved before it was built, so it holds no weights; define it with keras.Input(shape), or"
            " call it once, and save it again"
        )
    return model


def _register(config: str) -> None:
    """Import what registers the suite's own layers that are named in `config`, the JSON of a model."""
    for package in set(re.findall(r'"registered_name":\s*"(\w+)>', config)) & set(_REGISTERING):
        importlib.import_module(_REGISTERING[package])


def check_images(model: keras.Model, path: Path | str, shape: Sequence[int]) -> None:
    """Errors: `UserError` naming `path` when its `model` takes other images than those of `shape` (height, width,
    channels)."""
    wanted = model.input_shape[1:]
    if any(side is not None and side != own for side, own in zip(wanted, shape, strict=False)):
        remedy = (
            "give --image-size as in its training"
            if wanted[-1] in (None, shape[-1])
            else "bring images or model to the same channels, which come last"
        )
        its, these = (" x ".join(map(str, sides)) for sides in (wanted, shape))
        raise UserError(f"{path}: takes images of {its}, these are {these}; {remedy}")


@contextlib.contextmanager
def _refusing_more_than(most: int) -> Iterator[None]:
    """Raise `MemoryError` for variables that would need more than `most` bytes together, before they take any."""
    declared = 0

    def create(create_variable: Callable, **arguments: Any) -> Any:
        nonlocal declared
        value = arguments["initial_value"]
        if callable(value):
            # Traced and never run: that gives the shape and allocates nothing.
            value = tf.function(value, autograph=False).get_concrete_function().structured_outputs
        declared += math.prod(value.shape) * value.dtype.size
        if declared > most:
            raise MemoryError(f"it declares {declared} bytes of weights and holds less than {most}")
        return create_variable(**arguments)

    with tf.variable_creator_scope(create):
        yield


class Checkpoint(NamedTuple):
    """What training resumes from: the finished `epoch`s and their `history`."""

    epoch: int
    history: list[dict[str, float]]


def save(folder: Path, model: keras.Model, optimizer: keras.Optimizer, history: list[dict[str, float]]) -> None:
    """Write weights, random states, optimiser and history to `folder`, keeping the checkpoint before it."""
    # The seeds of dropout and other random layers are among `variables` but in none of Keras's own weight files.
    arrays = {f"model_{i:05d}": np.asarray(v) for i, v in enumerate(model.variables)}
    arrays |= {f"optimizer_{i:05d}": np.asarray(v) for i, v in enumerate(optimizer.variables)}
    arrays["history"] = np.frombuffer(json.dumps(history).encode(), np.uint8)
    newest = folder / _NEWEST
    if newest.is_file():
        os.replace(newest, folder / _PREVIOUS)
    files.write_npz(newest, arrays, compress=False)


def restore(folder: Path, model: keras.Model, optimizer: keras.Optimizer) -> Checkpoint | None:
    """Assign the newest readable checkpoint of `folder`; None when there is none.

    Errors: `UserError` when a checkpoint belongs to another model or optimiser, or none of those there is readable.
    """
    unreadable = None
    for name in (_NEWEST, _PREVIOUS):
        if not (folder / name).is_file():
            continue
        try:
            arrays = files.read_npz(folder / name)
            history = [dict(logs) for logs in json.loads(arrays["history"].tobytes())]
        except (KeyError, TypeError, ValueError) as error:
            unreadable = unreadable or _unreadable(folder / name, error)
            continue
        _assign(folder / name, "model", model.variables, arrays)
        _assign(folder / name, "optimizer", optimizer.variables, arrays)
        if unreadable is not None:
            # Out of the way, or the next save would put the damaged one in the place of this, the only good one. Other
            # workers may do the same.
            with contextlib.suppress(OSError):
                os.replace(folder / _NEWEST, folder / _DAMAGED)
        return Checkpoint(len(history), history)
    if unreadable is not None:
        raise unreadable
    return None


def _unreadable(path: Path, error: Exception) -> UserError:
    return error if isinstance(error, UserError) else UserError(f"{path}: no checkpoint of a training; use --force")


def _assign(path: Path, kind: str, variables: list[Any], arrays: dict[str, np.ndarray]) -> None:
    stored = [arrays[name] for name in sorted(arrays) if name.startswith(kind + "_")]
    found, expected = [a.shape for a in stored], [tuple(v.shape) for v in variables]
    if found != expected:
        raise UserError(f"{path}: belongs to another {kind} ({_difference(found, expected)}); use --force")
    for variable, value in zip(variables, stored, strict=True):
        variable.assign(value)


def _difference(found: list[tuple[int, ...]], expected: list[tuple[int, ...]]) -> str:
    if len(found) != len(expected):
        return f"{len(found)} arrays, expected {len(expected)}"
    i = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
    return f"array {i} has shape {found[i]}, expected {expected[i]}"
