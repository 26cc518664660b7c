"""Inputs and labels as they come: arrays, lists, tensors, tables of pandas. What can be misread is refused."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from common.errors import UserError, one_line

Tensor = tf.Tensor
_MARK = "bad input: "
BY_NAME = "; of classes by name take np.unique(labels, return_inverse=True)[1]"


def to_array(values: Any, name: str = "x", remedy: str = "") -> np.ndarray:
    """`values` as an array, row by row in their order: of pandas without its index, of a tensor its numbers. What can
    be sliced like an array (a memory map, a data set of HDF5) stays as it is, and where it is.

    Errors: `ValueError` for anything but numbers, with the `remedy`, for masked entries and for rows of different
    lengths.
    """
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise ValueError(f"{name}: {np.ma.count_masked(values)} entries are masked; fill them or leave them out")
    if hasattr(values, "to_numpy"):
        values = values.to_numpy()
    elif not (isinstance(getattr(values, "dtype", None), np.dtype) and hasattr(values, "shape")):
        try:
            values = np.asarray(values)
        except ValueError as error:
            raise ValueError(f"{name}: no array can be made of it ({one_line(error, 100)})") from error
    if values.dtype == object:
        # What a table makes of columns of different kinds.
        try:
            if any(isinstance(value, str | bytes) for value in values.flat):
                raise TypeError("text")
            values = values.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: expected numbers; received {_some(values)}{remedy}") from error
    if values.dtype.kind not in "biuf" and values.dtype.name != "bfloat16":
        raise ValueError(f"{name}: expected numbers; received {_some(values)}{remedy}")
    if not values.shape:
        raise ValueError(f"{name}: expected an array with one row per example; received a single value")
    return values


def to_labels(labels: Any, count: int | None = None, classes: int | None = None, name: str = "labels") -> np.ndarray:
    """Class numbers int32 (N,) of `labels` (N,) or (N, 1): whole numbers, in whatever they come. `count`: how many
    there must be; `classes`: they must be below.

    Errors: `ValueError` with the remedy for text, fractions, one-hot rows, another count, and numbers of no class.
    """
    found = np.asarray(to_array(labels, name, BY_NAME))
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 1 or count not in (None, len(found)):
        wanted = f"({'N' if count is None else count},)"
        rows = "; take the argmax of one-hot rows" if found.ndim == 2 else ""
        raise ValueError(
            f"{name}: one target or label per example, {wanted}, is wanted; received shape {found.shape}{rows}"
        )
    if found.dtype.kind not in "biu":
        with np.errstate(invalid="ignore"):
            whole = np.isfinite(found) & (found == np.rint(found)) & (np.abs(found) < 2**31)
        if not whole.all():
            raise ValueError(f"{name}: expected whole class numbers; received {found[~whole][0]:g}")
    if len(found) and classes is not None and (found.min() < 0 or found.max() >= classes):
        raise ValueError(_out_of_range(name, classes, int(found.min()), int(found.max())))
    if len(found) and not (-(2**31) <= int(found.min()) <= int(found.max()) < 2**31):
        raise ValueError(f"{name}: expected class numbers; received {found.min()} to {found.max()}")
    return found.astype(np.int32)


def _out_of_range(name: str, classes: int, low: int, high: int) -> str:
    remedy = "; subtract 1 from classes that count from 1" if low >= 1 and high == classes else ""
    return f"{name} must be 0 to {classes - 1}; received {low} to {high}{remedy}"


def _some(values: np.ndarray) -> str:
    flat = np.ravel(np.asarray(values[:1]))
    text = repr(flat[0] if flat.size else values.dtype)
    return text if len(text) <= 40 else text[:37] + "..."


def label_column(labels: Any, classes: int | None = None) -> Tensor:
    """`to_labels` inside a graph: int32 (B,) of `labels` (B,) or (B, 1), whole numbers, below `classes` if given.

    Errors: `UserError` for another shape and for text; for other numbers what `require` raises.
    """
    if not tf.is_tensor(labels):
        labels = tf.constant(to_labels(labels))
    if labels.dtype == tf.string:
        raise UserError("labels: expected class numbers; received text")
    if labels.shape.rank == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape.rank != 1:
        rows = "; take the argmax of one-hot rows" if labels.shape.rank == 2 else ""
        raise UserError(
            f"labels: one target or label per example, (batch,), is wanted; received shape {tuple(labels.shape)}{rows}"
        )
    found = tf.cast(labels, tf.int32)
    if labels.dtype.is_floating:
        require(tf.reduce_all(tf.cast(found, labels.dtype) == labels), "labels must be whole class numbers")
    if classes is None:
        return found
    message = f"labels must be 0 to {classes - 1} (subtract 1 from classes that count from 1)"
    inside = tf.reduce_all((found >= 0) & (found < classes))
    require(inside, message, tf.reduce_min(found), tf.reduce_max(found))
    # Or a loss would come first with an error of its own, and on a GPU with NaN.
    return tf.clip_by_value(found, 0, classes - 1)


def require(condition: Tensor, message: str, *received: Tensor) -> None:
    """Raise `ValueError` with `message`, and with the lowest and highest that were `received`, unless `condition`.

    In a graph it is checked whenever that runs; what is then raised `user_error` can read.
    """
    if tf.inside_function():
        tf.debugging.Assert(condition, [_MARK + message, *received])
    elif not bool(condition):
        raise ValueError(message + _received([str(value.numpy()) for value in received]))


def user_error(error: Exception) -> UserError | None:
    """What `require`, or a `UserError` while it was traced, has to say about the input of a graph that failed with
    `error`, on one line; None for any other failure."""
    if isinstance(error, tf.errors.InvalidArgumentError):
        found = re.search(re.escape(f"[{_MARK}") + r"([^\]]*)\]((?: ?\[[^\[\]{}]*\])*)", error.message)
        return found and UserError(found[1] + _received(re.findall(r"\[([^\]]*)\]", found[2])))
    # AutoGraph puts its own error, with the whole way there, in the place of the one that was raised.
    found = (
        re.search(r"^\s*UserError: (.*)\s*\Z", str(error), re.MULTILINE)
        if hasattr(error, "ag_error_metadata")
        else None
    )
    return found and UserError(found[1])


def _received(values: Sequence[str]) -> str:
    return f"; received {' to '.join(values)}" if values else ""


def as_float(images: Tensor) -> Tensor:
    """8-bit images as float32 in [0, 1]; floats as they are."""
    return tf.cast(images, tf.float32) / 255.0 if images.dtype == tf.uint8 else tf.cast(images, tf.float32)
