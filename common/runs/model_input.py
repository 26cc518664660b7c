"""Options and checks for a model that this suite did not train, which may take images in another range."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.runs.options import Budget
from common.runs.record import read_owner

IMAGENET_NAMES = ("efficientnet_lite0", "inception_v3", "resnet50")
"""Networks with ImageNet weights, as `common.models.IMAGENET` has them, which takes longer to import."""


@dataclass(kw_only=True)
class InputOptions:
    """The input range of a model that this suite did not train."""

    input_scale: Budget | None = None
    """Factor applied to images in [0, 1] in front of every model that this suite did not train: 255 for a model of
    0..255; by default 1, or 255 where its input dtype is integer. Models in run folders take [0, 1]."""
    input_offset: float | None = None
    """Offset added after --input-scale: 2 and -1 are for a model that takes [-1, 1]; by default 0."""


def is_run(model: Path) -> bool:
    """Whether `model`, a run folder or a file in one, was made by a script of this suite: it takes images in [0, 1]."""
    return read_owner(model if model.is_dir() else model.parent) is not None


def reading(options: InputOptions, model: Path) -> dict[str, Any]:
    """Arguments of `common.evaluation.classifiers` for `model`, a file or a run."""
    if is_run(model):
        return {"check_range": False}
    return {"input_scale": options.input_scale, "input_offset": options.input_offset or 0.0}


def look_at(model: Path, load: Callable[[], Any]) -> None:
    """Refuse `model` before anything is read or trained, as `load` does; of a run, whose files are whole, it is enough
    that there is one. Errors: `UserError` naming it."""
    if not is_run(model):
        load()
        return
    file = model / "model.keras" if model.is_dir() else model
    if not file.is_file():
        raise UserError(f"{file}: no such model file; expected a .keras or the run of a training")


def check_input(options: InputOptions, models: Iterable[Path | None], known: Iterable[str] = ()) -> None:
    """Errors: `UserError` for an `input_scale` that is not above 0, or a reading for none of `models` (None for those
    that are made, `known` by name with their preprocessing inside)."""
    if options.input_scale is None and not options.input_offset:
        return
    if options.input_scale == 0:
        raise UserError("--input-scale: must be above 0; 255 is for a model that takes images in 0..255")
    if all(model is None or str(model) in known or is_run(model) for model in models):
        raise UserError(
            "--input-scale, --input-offset: are for a model that this suite did not train; those of its runs take"
            " images in [0, 1]: leave them out"
        )
