"""What the training of a network is told, and the journal that keeps its measurements."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """What every training is told.

    `learning_rate` is the highest; it is multiplied by a tenth at each of `lr_epochs` ("step") or decays along a cosine
    after `warmup_epochs`. `weight_decay` is L2 in the loss, over all weights. `strategy` and `precision` as in
    `common.training.devices.prepare`.
    """

    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 0.1
    lr_schedule: Literal["constant", "step", "cosine"] = "cosine"
    lr_epochs: tuple[int, ...] = ()
    warmup_epochs: float = 1
    weight_decay: float = 5e-4
    jit_compile: bool = False
    strategy: Literal["none", "mirrored", "multiworker"] = "none"
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"


@dataclass(frozen=True, kw_only=True)
class Recipe(TrainingRecipe):
    """How an image classifier is trained: by SGD with Nesterov momentum, on batches that are shuffled and augmented."""

    arch: str = "small_cnn"
    momentum: float = 0.9
    augment: Literal["none", "crop_flip", "crop_flip_jitter"] = "crop_flip"


class Journal(Protocol):
    """The record of a training: its `folder`, and in it the `checkpoints` to resume from; of several workers only the
    `chief` writes. A script's run is one."""

    folder: Path
    checkpoints: Path
    chief: bool

    def log(self, text: str) -> None:
        """Tell the user."""

    def curve(self, **values: float) -> None:
        """Keep the measurements of an epoch."""

    def curves_until(self, epoch: int) -> None:
        """Drop the measurements of `epoch`, from 1, and later ones: the training resumes before it."""
