"""The options of a script that trains an image classifier."""

from dataclasses import dataclass, fields
from typing import Literal

from common.runs.options import Budget, Count, DeviceOptions
from common.training.recipe import Recipe


@dataclass(kw_only=True)
class FittingOptions(DeviceOptions):
    """How a network is trained."""

    arch: str = "small_cnn"
    """Network: small_cnn, resnet20, resnet32, resnet44, resnet56, resnet110, resnet18, resnet50, or efficientnet_lite0,
    which begins with ImageNet weights."""
    epochs: Count = 20
    """Passes over the training images."""
    batch_size: Count = 128
    """Images a step, over all devices."""
    learning_rate: Budget = 0.1
    """Highest learning rate."""
    lr_schedule: Literal["constant", "step", "cosine"] = "cosine"
    """Decay of the learning rate: none, by a factor of ten at each of --lr-epochs, or along a cosine to zero."""
    lr_epochs: tuple[Count, ...] = ()
    """Epochs at which the step schedule divides the learning rate by ten."""
    warmup_epochs: Budget = 1
    """Epochs over which the cosine schedule first rises to the learning rate."""
    momentum: Budget = 0.9
    """Nesterov momentum of the SGD, in [0, 1)."""
    weight_decay: Budget = 5e-4
    """L2 weight decay, in the loss, over all weights."""
    augment: Literal["none", "crop_flip", "crop_flip_jitter"] = "crop_flip"
    """Random crops of the image padded by 4 and mirroring; jitter adds colour (25 %) and rotation (2 degrees)."""
    jit_compile: bool = False
    """Compile the training step with XLA; on a CPU it is then slower."""

    @property
    def recipe(self) -> Recipe:
        """The same for the library."""
        return Recipe(**{field.name: getattr(self, field.name) for field in fields(Recipe)})
