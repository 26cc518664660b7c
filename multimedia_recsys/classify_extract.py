"""Class, probability and feature of every item's picture, in the files of the original layout."""

from dataclasses import dataclass
from pathlib import Path

from common.runs.record import Run
from common.runs.script import script
from multimedia_recsys.data.catalogues import SHOP_FIELDS, ShopOptions, load_shop
from multimedia_recsys.data.looks import (
    ClassifierOptions,
    check_classifier,
    check_looks,
    classifier,
    needs,
    see,
    write_looks,
)


@dataclass(kw_only=True)
class Options(ClassifierOptions):
    """What looks at the pictures."""


@script(app="multimedia_recsys", name="classify_extract", refusals=check_classifier, needs=needs)
def classify_extract(options: Options, run: Run) -> None:
    """Look at all pictures; writes `original_images/classes.csv` and `original_images/features.npy`."""
    import numpy as np

    shop = load_shop(options)
    run.data(shop.name, shop.sha256)
    model, names = classifier(options, shop, run)
    seen = see(model, shop.pictures)
    folder = run.folder / "original_images"
    write_looks(folder, shop, seen, names)
    run.artifact("looks", folder)
    counts = np.bincount(seen.label, minlength=len(names))
    run.metrics(items=len(seen.label), features=seen.features.shape[1], classes_seen=int((counts > 0).sum()))
    for label in np.flatnonzero(counts):
        run.row(model=names[label], metric="items", value=int(counts[label]))
    if shop.category is not None and names == shop.category_names:
        right = float(np.mean(seen.label == shop.category))
        run.metrics(agreement=right, agreement_n=len(seen.label))
        run.rate("agreement", right, len(seen.label), split="items")


def produced(given: Path | None, options: ShopOptions, run: Run, *also: str) -> Path:
    """The folder of looks that another script works on: `given`, a run or such a folder, or that of the same name."""
    return _looks_in(classify_extract.produce(given, options, (*SHOP_FIELDS, *also), say=run.say))


def expected(given: Path | None, options: ShopOptions, *also: str) -> None:
    """What `produced` would refuse, and a folder that holds no looks."""
    classify_extract.expect(given, options, (*SHOP_FIELDS, *also))
    if given is not None:
        check_looks(_looks_in(given))


def _looks_in(path: Path) -> Path:
    return path / "original_images" if (path / "original_images").is_dir() else path


if __name__ == "__main__":
    classify_extract.main()
