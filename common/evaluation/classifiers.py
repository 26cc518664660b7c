"""Networks that others made, as every script takes them: read from a file, looked at, and refused in one line."""

import functools
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from common import progress
from common.arrays import as_float
from common.attacks import check_logits, logits_of, value_and_gradient
from common.errors import UserError, one_line
from common.evaluation import input_range
from common.evaluation.input_range import BYTES, UNIT, Reading
from common.models import has_graph, rewired
from common.training.checkpoints import check_images, load_model


def model_file(path: Path | str) -> Path:
    """The `.keras` file that `path` names: a file, or a run folder, whose `model.keras` is meant."""
    path = Path(path)
    return path / "model.keras" if path.is_dir() else path


def load_network(
    path: Path | str, *, input_scale: float | None = None, input_offset: float = 0.0
) -> tuple[keras.Model, Reading]:
    """The network in `path`, a `.keras` file or a run folder, with one input, float32 in [0, 1] for batches of any
    size, and one output; and the reading in which the network in the file is given its images.

    Images are multiplied by `input_scale`, by default 255 where the network wants whole numbers and else 1, and
    `input_offset` is added. Each call reads the file again, so the model is not shared.

    Errors: `UserError` naming the file that is missing, damaged, needs code to load, holds no weights, or has several
    inputs or outputs; and the input or output.
    """
    file = model_file(path)
    model = load_model(file)
    if not has_graph(model):
        if input_scale not in (None, 1.0) or input_offset:
            raise UserError(
                f"{file}: is a subclassed model, whose input cannot be rescaled; save a Sequential or functional one"
            )
        return model, UNIT
    for kind, names, tensors in (
        ("inputs", [tensor.name for tensor in model.inputs], model.inputs),
        ("outputs", _output_names(model), model.outputs),
    ):
        if len(tensors) > 1:
            listed = ", ".join(f"{name} {tensor.shape[1:]}" for name, tensor in zip(names, tensors, strict=True))
            raise UserError(
                f"{file}: has {len(tensors)} {kind} ({listed[:120]}); save a model with the one that is meant, such as"
                " keras.Model(model.inputs[0], model.outputs[0])"
            )
    (first,) = model.inputs
    scale = (UNIT if _takes_floats(first) else BYTES).scale if input_scale is None else input_scale
    reading = Reading(float(scale), float(input_offset))
    if reading == UNIT and is_plain(model):
        return model, reading
    # Whole numbers have no gradient, and a batch of another size would be refused in the midst of an attack.
    return input_range.rescaled(model, *reading), reading


def is_plain(model: keras.Model) -> bool:
    """Whether `model`, with one input and one output, takes floats in batches of any size and answers with a tensor,
    and not with a dictionary or list of one."""
    (first,) = model.inputs
    ends = () if isinstance(model, keras.Sequential) else (model.input, model.output)
    bare = all(isinstance(end, keras.KerasTensor) for end in ends)
    return _takes_floats(first) and first.shape[0] is None and bare


def _takes_floats(images: keras.KerasTensor) -> bool:
    return str(images.dtype).startswith(("float", "bfloat"))


def load_classifier(
    path: Path | str,
    images: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    *,
    classes: int | None = None,
    remedy: str = "give another model",
    input_scale: float | None = None,
    input_offset: float = 0.0,
    check_range: bool = True,
    log: Callable[[str], None] = progress.log,
) -> keras.Model:
    """The image classifier in `path`, a `.keras` file or a run folder, for attacks: images float32 (B, H, W, C) in
    [0, 1] -> (B, classes), with `input_scale` and `input_offset` as in `load_network`.

    Without `images`, uint8 (N, H, W, C) or float in [0, 1], all is checked that the file tells, so that it can be
    refused before anything is read, trained or downloaded. With them, also what it makes of the first, and, if
    `check_range`, whether it takes another range of images: as their `labels` tell, int (N,), or without those whether
    it has one answer to all. What leaves doubt is handed to `log`. The same file read twice is one model, so that
    attacks are compiled for it once; it must not be trained.

    Errors: `UserError` naming the file, as `load_network`, and for one that takes other images, answers with something
    else than one vector for each, has other than `classes` classes (`remedy` for one with more), has no
    gradient, hides a softmax that cannot be cut off, or takes images in another range.
    """
    file = model_file(path)
    stamp = file.stat().st_mtime_ns if file.exists() else 0
    model, reading = _kept(file, file.absolute(), stamp, input_scale, input_offset)
    check_graph(file, model)
    if len(model.input_shape) != 4 or len(model.output_shape) != 2:
        raise UserError(f"{file}: maps {model.input_shape} to {model.output_shape}; expected an image classifier")
    if images is None:
        return model
    check_images(model, file, images.shape[1:])
    answered = _answers(model, file, images[:8])
    if classes is not None:
        check_classes(file, answered, classes, remedy)
    if check_range and (doubt := input_range.check_range(file, model, images, labels, reading)) is not None:
        log(doubt)
    return model


def check_graph(path: object, model: keras.Model) -> None:
    """Errors: `UserError` naming `path` for a model that hides its layers."""
    if not has_graph(model):
        raise UserError(
            f"{path}: is a subclassed model; save a Sequential or functional one, such as"
            " keras.Model(images, model(images))"
        )


def check_answer(path: object, answer: Callable[[tf.Tensor], tf.Tensor], images: np.ndarray) -> None:
    """A look at what `answer` makes of a few `images` (N, H, W, C), uint8 or float in [0, 1].

    Errors: `UserError` naming `path` for one that fails, is not finite, or has no gradient to follow.
    """
    x = as_float(tf.constant(images))
    try:
        found = answer(x)
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise UserError(f"{path}: {one_line(error, 240)}") from error
    if not bool(tf.reduce_all(tf.math.is_finite(found))):
        raise UserError(f"{path}: outputs values that are not finite; train it again, or give another model")
    try:
        value_and_gradient(lambda x: (answer(x), ()), x)
    except (ValueError, LookupError) as error:
        raise UserError(
            f"{path}: has no gradient with respect to its images, which attacks need; something in it rounds them"
            " or casts them to whole numbers"
        ) from error


def class_count(model: keras.Model) -> int:
    """Classes that a classifier with one output tells apart: one unit is a binary logit."""
    return max(int(model.output_shape[-1]), 2)


def check_classes(path: object, told: int, wanted: int, remedy: str = "give another model") -> None:
    """Errors: `UserError` naming `path` for a model of `told` classes where there are `wanted`; `remedy`
    is for more of them."""
    if told != wanted:
        remedy = remedy if told > wanted else "a model that knows all of them is wanted"
        raise UserError(f"{path}: has {told} classes, the images have {wanted}; {remedy}")


@functools.lru_cache(maxsize=4)
def _kept(file: Path, place: Path, stamp: int, scale: float | None, offset: float) -> tuple[keras.Model, Reading]:
    """What `load_network` makes of `file`, which lies at `place`, as it was at `stamp`."""
    model, reading = load_network(file, input_scale=scale, input_offset=offset)
    if has_graph(model) and len(model.inputs[0].shape) == 3:
        # Grey images without an axis for that, as in Keras's own examples.
        images = keras.Input((*model.inputs[0].shape[1:], 1), dtype="float32")
        grey = keras.layers.Reshape(tuple(side or -1 for side in model.inputs[0].shape[1:]))(images)
        model = keras.Model(images, rewired(model, grey), name=model.name)
    return model, reading


def _output_names(model: keras.Model) -> list[str]:
    struct = None if isinstance(model, keras.Sequential) else model.output
    # Keras sorts the outputs by their keys.
    keys = {id(tensor): str(key) for key, tensor in struct.items()} if isinstance(struct, dict) else {}
    return [keys.get(id(tensor), tensor._keras_history.operation.name) for tensor in model.outputs]


def _answers(model: keras.Model, file: Path, images: np.ndarray) -> int:
    """The number of classes, after a look at the first answers."""
    try:
        classes = check_logits(model, as_float(tf.constant(images)))
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise UserError(f"{file}: {one_line(error, 240)}") from error
    check_answer(file, logits_of(model), images)
    return classes
