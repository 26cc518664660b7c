"""Train the image classifier of the recommender: standard or adversarial."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from common.errors import UserError
from common.runs.options import Budget, Count, DataOptions, ExampleOptions, LinfBudget, ScriptOptions, option
from common.runs.record import Run
from common.runs.script import script
from common.runs.training_options import FittingOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from common.models import Builder
    from multimedia_recsys.data.catalog import Catalog


@dataclass(kw_only=True)
class CatalogOptions(DataOptions):
    """Which shop."""

    dataset: str = "catalogue"
    """Shop: catalogue (drawn), fashion_mnist (simulated users), a folder of the original layout, or, with
    --interactions, an image folder <root>/<class>/<file>."""
    interactions: Path | None = None
    """CSV with columns user,item and perhaps timestamp, for an image folder; an item is the name of its image, its
    ending left out if wanted."""
    image_size: Count | None = None
    """Pixels a side to which images of folders are brought; by default 224."""
    n_items: Count = 1000
    """Items of the drawn catalogue and of fashion_mnist."""
    n_users: Count = 2000
    """Simulated users of the drawn catalogue and of fashion_mnist."""


CATALOG_FIELDS = ("dataset", "seed", "interactions", "image_size", "n_items", "n_users")
"""What must be the same in all runs on one shop."""


@dataclass(kw_only=True)
class Options(CatalogOptions, FittingOptions, ExampleOptions, ScriptOptions):
    """The classifier of the shop's categories."""

    arch: str = "product_cnn"
    """Network: product_cnn (a small_cnn of four blocks, 128 features), small_cnn, resnet18, resnet20,
    resnet50, ..., or efficientnet_lite0, which begins with ImageNet weights."""
    method: Literal["standard", "pgd"] = "standard"
    """Plain training, or on PGD examples alone."""
    eps: LinfBudget = 4 / 255
    """Radius of the PGD examples (L-inf), in [0, 1]."""
    steps: Count = option(4, "pgd_steps")
    """Steps of PGD, of 2 x radius / steps each."""
    epochs: Count = 8
    """Passes over the training images."""
    batch_size: Count = 64
    """Images a step, over all devices."""
    learning_rate: Budget = 0.1
    """Highest learning rate."""


def load_catalog(options: CatalogOptions) -> "Catalog":
    """The shop that `options` name. Errors: as `catalog.load_catalog`."""
    from multimedia_recsys.data import catalog

    return catalog.load_catalog(**{name: getattr(options, name) for name in (*CATALOG_FIELDS, "data_dir")})


def networks() -> "Mapping[str, Builder]":
    """The networks that there are."""
    import functools

    from common.models import NETWORKS, small_cnn

    return {"product_cnn": functools.partial(small_cnn, blocks=4), **NETWORKS}


def refusals(options: Options) -> None:
    """What is refused before anything is read."""
    from common.training import fit

    if options.method == "pgd" and not options.eps > 0:
        raise UserError(f"--eps: must be above 0; received {options.eps:g}")
    fit.check(options.recipe, networks())


@script(app="multimedia_recsys", name="train_cnn", refusals=refusals)
def train_cnn(options: Options, run: Run) -> None:
    """Train on the shop's categories, test on other images, save `model.keras`."""
    import hashlib

    import numpy as np

    from common.evaluation import plots
    from common.evaluation.predictions import accuracy
    from common.training import fit
    from common.training.methods import make_method
    from multimedia_recsys.data.catalog import load_training

    names = ("dataset", "data_dir", "seed", "n_train", "n_test", "image_size")
    data = load_training(**{name: getattr(options, name) for name in names})
    digest = hashlib.sha256()
    for array in (data.x_train, data.y_train, data.x_test, data.y_test):
        digest.update(np.ascontiguousarray(array).data)
    run.data(options.dataset, digest.hexdigest())
    model, history = fit.fit(
        options.recipe,
        run,
        data.x_train,
        data.y_train,
        len(data.class_names),
        lambda model: {"test_accuracy": accuracy(model, data.x_test, data.y_test, progress=True)},
        title=f"{options.method} classifier",
        seed=options.seed,
        method=make_method(options.method, eps=options.eps, steps=options.steps),
        networks=networks(),
    )
    right = history[-1]["test_accuracy"]
    run.headline("test_accuracy", right, len(data.y_test), model=options.method, split="test")
    run.save_model(model)
    curves = {name: [epoch[name] for epoch in history] for name in ("accuracy", "test_accuracy")}
    n = {"accuracy": len(data.y_train), "test_accuracy": len(data.y_test)}
    run.figure("training", plots.accuracy_curves, curves, title=f"{options.method}: {options.arch}", n=n)


if __name__ == "__main__":
    train_cnn.main()
