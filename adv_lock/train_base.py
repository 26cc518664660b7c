"""Train the base classifier F on clean data: the surrogate model that a lock is crafted against."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError
from common.runs import training_options
from common.runs.options import Count, DataOptions, ExampleOptions, ScriptOptions
from common.runs.record import Run
from common.runs.script import script

if TYPE_CHECKING:
    from common.datasets import Arrays

FOLDER_SIZE = 32
"""Side, in pixels, at which the images of a folder are learnt from unless --image-size says otherwise."""


@dataclass(kw_only=True)
class FittingOptions(training_options.FittingOptions, ExampleOptions, DataOptions, ScriptOptions):
    """How a network is trained."""

    arch: str = "small_cnn"
    """Network: small_cnn, resnet20..110, resnet18, resnet50, preresnet20..110, densenet100bc, densenet190bc,
    vgg11, vgg13, vgg16, vgg19, alexnet, or efficientnet_lite0, which begins with ImageNet weights."""
    image_size: Count | None = None
    """Side, in pixels, to which the images of a folder are scaled for training; by default 32."""


@dataclass(kw_only=True)
class Options(FittingOptions):
    """The base classifier."""


def refusals(options: Options) -> None:
    """What is refused before anything is read."""
    from adv_lock.models.networks import NETWORKS
    from common.training import fit

    fit.check(options.recipe, NETWORKS)


@script(app="adv_lock", name="train_base", refusals=refusals)
def train_base(options: Options, run: Run) -> None:
    """Train F and save it as `model.keras`."""
    from adv_lock.models.networks import NETWORKS
    from common.evaluation import predictions
    from common.training import fit

    data = load(options, options.image_size)
    run.data(data.name, data.sha256)
    model, history = fit.fit(
        options.recipe,
        run,
        data.x_train,
        data.y_train,
        data.classes,
        lambda model: {"test_accuracy": predictions.accuracy(model, data.x_test, data.y_test, progress=True)},
        title="base classifier",
        seed=options.seed,
        networks=NETWORKS,
    )
    run.save_model(model)
    run.headline("test_accuracy", history[-1]["test_accuracy"], len(data.x_test), model=options.arch, split="test")


def load(options: "Options", image_size: int | None = None) -> "Arrays":
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
    """Whether `dataset` is a folder of images; a name goes before a folder that is called like it."""
    from common import datasets

    return dataset not in datasets.NAMES and Path(dataset).is_dir()


def _folder_size(dataset: str) -> int | None:
    from common import datasets

    path = Path(dataset)
    return FOLDER_SIZE if dataset not in datasets.NAMES and path.exists() and path.suffix != ".npz" else None


if __name__ == "__main__":
    train_base.main()
