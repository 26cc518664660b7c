"""Extract class, probability and features of every item's image, in the files of the original layout."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.runs.model_input import IMAGENET_NAMES, InputOptions, check_input, look_at, reading
from common.runs.options import DeviceOptions, ExampleOptions, ScriptOptions, option
from common.runs.record import Run
from common.runs.script import script
from multimedia_recsys.train_cnn import CATALOG_FIELDS, CatalogOptions, load_catalog, train_cnn

if TYPE_CHECKING:
    import keras

    from multimedia_recsys.data.catalog import Catalog


# Images that a network of others is tried on.
_TRIED = 128


@dataclass(kw_only=True)
class ClassifierOptions(InputOptions, CatalogOptions):
    """Which network extracts classes and features."""

    model: Path | None = option(None, known=IMAGENET_NAMES)
    """Classifier: a .keras file, a run of train_cnn.py, inception_v3 or resnet50 (ImageNet weights, downloaded
    once) or efficientnet_lite0 (installed); by default that of train_cnn.py, trained if need be."""


@dataclass(kw_only=True)
class Options(ClassifierOptions, DeviceOptions, ExampleOptions, ScriptOptions):
    """Which network extracts classes and features."""


def check_classifier(options: ClassifierOptions) -> None:
    """Refuse what can be refused before an image is read. Errors: as `classifier`."""
    from common.evaluation.classifiers import load_classifier

    check_input(options, [options.model], IMAGENET_NAMES)
    if options.model is not None and str(options.model) not in IMAGENET_NAMES:
        look_at(options.model, lambda: load_classifier(options.model, **reading(options, options.model)))


def classifier_needs(options: ClassifierOptions) -> None:
    """What train_cnn.py would refuse, where it is to be run."""
    if str(options.model) not in IMAGENET_NAMES:
        train_cnn.expect(*_needed(options))


def classifier(options: ClassifierOptions, catalog: "Catalog", run: Run) -> "tuple[keras.Model, tuple[str, ...]]":
    """The network that `options` name, and the names of its classes.

    Errors: `UserError` for one that is not there or does not take the shop's images.
    """
    import numpy as np

    from common.evaluation.classifiers import class_count, load_classifier
    from common.models import imagenet_classifier, imagenet_names

    if str(options.model) in IMAGENET_NAMES:
        return imagenet_classifier(str(options.model), size=catalog.images.shape[0]), imagenet_names()
    path = run.require(train_cnn, *_needed(options))
    arguments = {**reading(options, path), "log": run.log}
    classes = class_count(load_classifier(path, **arguments))
    known = catalog.category is not None and len(catalog.category_names) == classes
    rows = np.unique(np.linspace(0, len(catalog.images) - 1, min(len(catalog.images), _TRIED)).astype(int))
    labels = catalog.category[rows] if known else None
    model = load_classifier(path, catalog.images.read(rows), labels, **arguments)
    return model, catalog.category_names if known else tuple(map(str, range(classes)))


def _needed(options: ClassifierOptions) -> tuple[Path | None, ClassifierOptions, tuple[str, ...]]:
    """Arguments of `train_cnn.require`."""
    # A model that is named may have learnt elsewhere; one found by default must be that of this shop.
    return options.model, options, ("dataset", "seed", "image_size") if options.model is None else ()


@script(app="multimedia_recsys", name="classify_extract", refusals=check_classifier, needs=classifier_needs)
def classify_extract(options: Options, run: Run) -> None:
    """Look at all images; writes `original_images/classes.csv` and `original_images/features.npy`."""
    import numpy as np

    from multimedia_recsys.data.visual_features import write_visual
    from multimedia_recsys.models.cnn import extract_all

    catalog = load_catalog(options)
    run.data(catalog.name, catalog.sha256)
    model, names = classifier(options, catalog, run)
    extracted = extract_all(model, catalog.images)
    folder = run.folder / "original_images"
    write_visual(folder, catalog, extracted, names)
    run.artifact("looks", folder)
    counts = np.bincount(extracted.label, minlength=len(names))
    run.metrics(items=len(extracted.label), features=extracted.features.shape[1], classes_seen=int((counts > 0).sum()))
    for label in np.flatnonzero(counts):
        run.row(model=names[label], metric="items", value=int(counts[label]))
    if catalog.category is not None and names == catalog.category_names:
        run.headline(
            "agreement", float(np.mean(extracted.label == catalog.category)), len(extracted.label), split="items"
        )


def required(given: Path | None, options: CatalogOptions, run: Run, *also: str) -> Path:
    """The folder of looks that another script works on: `given`, a run or such a folder, or that of the same name."""
    return _visual_in(run.require(classify_extract, given, options, (*CATALOG_FIELDS, *also)))


def expected(given: Path | None, options: CatalogOptions, *also: str) -> None:
    """What `required` would refuse, and a folder that holds no looks."""
    from multimedia_recsys.data.visual_features import check_visual

    classify_extract.expect(given, options, (*CATALOG_FIELDS, *also))
    if given is not None:
        check_visual(_visual_in(given))


def _visual_in(path: Path) -> Path:
    return path / "original_images" if (path / "original_images").is_dir() else path


if __name__ == "__main__":
    classify_extract.main()
