"""What the base classifier, the thief and the clean reference share: their options and data."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError
from common.runs.options import CommonOptions, Count
from common.training import fit

FOLDER_SIZE = 32
"""Side, in pixels, at which the pictures of a folder are learnt from unless --image-size says otherwise."""

if TYPE_CHECKING:
    from common.datasets import Arrays


@dataclass(kw_only=True)
class FittingOptions(fit.FittingOptions):
    """How a network is trained."""

    arch: str = "small_cnn"
    """Network: small_cnn, resnet20..110, resnet18, resnet50, preresnet20..110, densenet100bc, densenet190bc,
    vgg11, vgg13, vgg16, vgg19 or alexnet."""
    image_size: Count | None = None
    """Side, in pixels, to which the pictures of a folder are scaled for training; by default 32."""


def load(options: CommonOptions, image_size: int | None = None) -> "Arrays":
    """The data set that `options` name, in memory; refuses data of a single class."""
    from common import datasets

    data = datasets.load(
        options.dataset,
        data_dir=options.data_dir,
        seed=options.seed,
        n_train=options.n_train,
        n_test=options.n_test,
        image_size=image_size or _folder_size(options.dataset),
        progress=True,
    )
    if data.classes < 2:
        raise UserError(f"{options.dataset}: holds one class only; a lock needs a second class to point to")
    return data


def is_folder(dataset: str) -> bool:
    """Whether `dataset` is a folder of pictures; a name goes before a folder that is called like it."""
    from common import datasets

    return dataset not in datasets.NAMES and Path(dataset).is_dir()


def _folder_size(dataset: str) -> int | None:
    from common import datasets

    path = Path(dataset)
    return FOLDER_SIZE if dataset not in datasets.NAMES and path.exists() and path.suffix != ".npz" else None
