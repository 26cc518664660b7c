"""Model files and training checkpoints, each complete or absent."""

import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from common import files
from common.errors import UserError

_NEWEST, _PREVIOUS = "checkpoint.npz", "checkpoint.previous.npz"


def save_model(model: keras.Model, path: Path | str) -> None:
    """Write `model` as a `.keras` file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Keras insists on the ending, so files.replacing cannot name the temporary file.
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".keras", dir=path.parent)
    os.close(handle)
    try:
        model.save(temporary)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def load_model(path: Path | str) -> keras.Model:
    """The model in a `.keras` file, without code from it (`safe_mode`) and without its compilation.

    Errors: `UserError` naming the file when it is missing, damaged, not a `.keras` or needs code to load.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such model file; expected a .keras")
    if path.suffix != ".keras":
        raise UserError(f"{path}: expected a .keras model; save it with model.save('name.keras')")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: not a model that can be loaded safely (no .keras inside, or cut short)")
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises anything from ValueError to KeyError and zip errors here
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a model that can be loaded safely ({reason})") from error


class Checkpoint(NamedTuple):
    """What training goes on from: the finished `epoch`s and their `history`."""

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
        except UserError as error:
            unreadable = error
            continue
        _assign(folder / name, "model", model.variables, arrays)
        _assign(folder / name, "optimizer", optimizer.variables, arrays)
        history = json.loads(arrays["history"].tobytes())
        return Checkpoint(len(history), history)
    if unreadable is not None:
        raise unreadable
    return None


def _assign(path: Path, kind: str, variables: list[Any], arrays: dict[str, np.ndarray]) -> None:
    stored = [arrays[name] for name in sorted(arrays) if name.startswith(kind + "_")]
    shapes = [tuple(v.shape) for v in variables]
    if [a.shape for a in stored] != shapes:
        raise UserError(
            f"{path}: belongs to another {kind} ({len(stored)} arrays, expected {len(shapes)}); use --force"
        )
    for variable, value in zip(variables, stored, strict=True):
        variable.assign(value)
