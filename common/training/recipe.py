"""What the training of a network is told, and who keeps what comes of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an image classifier is trained: by SGD with Nesterov momentum, on batches that are shuffled and augmented.

    `learning_rate` is the highest; it is multiplied by a tenth at each of `lr_epochs` ("step") or falls along a cosine
    after `warmup_epochs`. `weight_decay` is L2 in the loss, over all weights. `strategy` and `precision` as in
    `common.training.devices.prepare`.
    """

    arch: str = "small_cnn"
    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 0.1
    lr_schedule: Literal["constant", "step", "cosine"] = "cosine"
    lr_epochs: tuple[int, ...] = ()
    warmup_epochs: float = 1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: Literal["none", "crop_flip", "crop_flip_jitter"] = "crop_flip"
    jit_compile: bool = False
    strategy: Literal["none", "mirrored", "multiworker"] = "none"
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"


class Journal(Protocol):
    """Who keeps a training: its `folder`, and in it `checkpoints` to go on from; only the `chief` of several workers
    writes. A script's run is one."""

    folder: Path
    checkpoints: Path
    chief: bool

    def log(self, text: str) -> None:
        """Tell the user."""

    def curve(self, **values: float) -> None:
        """Keep what was measured in an epoch."""

    def curves_until(self, epoch: int) -> None:
        """Forget what was measured in `epoch`, from 1, and after: the training goes on before it."""
