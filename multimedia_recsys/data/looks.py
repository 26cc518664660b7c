"""What a network made of all pictures of a shop, as files; and which network that is."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from common.errors import UserError
from common.progress import blocks
from common.runs.model_input import InputOptions, check_input, look_at, reading
from common.runs.options import alias
from common.runs.record import Run
from multimedia_recsys.data.catalogues import Pictures, Shop, ShopOptions

if TYPE_CHECKING:
    import keras

    from multimedia_recsys.models.cnn import Seen

RESNET50 = "resnet50"
# The files of the original layout.
CLASSES, FEATURES = "classes.csv", "features.npy"
_COLUMNS = ("ImageID", "ClassStr", "ClassNum", "Prob")
# Pictures that are read and looked at together.
_BLOCK = 256
# Pictures that a network of others is tried on.
_TRIED = 128


@dataclass(kw_only=True)
class ClassifierOptions(InputOptions, ShopOptions):
    """Which network looks at the pictures."""

    model: Path | None = alias(default=None, known=(RESNET50,))
    """Classifier: a .keras file, a run of train_cnn.py, or resnet50 (ImageNet weights, downloaded once); by default
    that of train_cnn.py, trained if need be."""


class Looks(NamedTuple):
    """Of all items: `label` int32 (N,), its probability `prob` (N,), `features` float32 (N, D); classes' `names`."""

    label: np.ndarray
    prob: np.ndarray
    features: np.ndarray
    names: tuple[str, ...]

    @property
    def scale(self) -> float:
        """The largest absolute feature, by which recommenders divide: always that of the clean pictures, so that an
        attacked one rescales no other item."""
        return max(float(np.abs(self.features).max()), 1e-12)


def check_classifier(options: ClassifierOptions) -> None:
    """Refuse what can be refused before a picture is read. Errors: as `classifier`."""
    from common.evaluation.classifiers import load_classifier

    check_input(options, [options.model], [RESNET50])
    if options.model not in (None, Path(RESNET50)):
        look_at(options.model, lambda: load_classifier(options.model, **reading(options, options.model)))


def needs(options: ClassifierOptions) -> None:
    """What train_cnn.py would refuse, where it is to be run."""
    from multimedia_recsys.train_cnn import train_cnn

    if options.model != Path(RESNET50):
        train_cnn.expect(*_needed(options))


def classifier(options: ClassifierOptions, shop: Shop, run: Run) -> "tuple[keras.Model, tuple[str, ...]]":
    """The network that `options` name, and the names of its classes.

    Errors: `UserError` for one that is not there or does not take the shop's pictures.
    """
    from common.evaluation.classifiers import class_count, load_classifier
    from common.models import imagenet_classifier, imagenet_names
    from multimedia_recsys.train_cnn import train_cnn

    if options.model == Path(RESNET50):
        return imagenet_classifier(RESNET50, size=shop.pictures.shape[0]), imagenet_names()
    path = train_cnn.produce(*_needed(options), say=run.say)
    arguments = {**reading(options, path), "say": run.say}
    classes = class_count(load_classifier(path, **arguments))
    known = shop.category is not None and len(shop.category_names) == classes
    rows = np.unique(np.linspace(0, len(shop.pictures) - 1, min(len(shop.pictures), _TRIED)).astype(int))
    labels = shop.category[rows] if known else None
    model = load_classifier(path, shop.pictures.read(rows), labels, **arguments)
    return model, shop.category_names if known else tuple(map(str, range(classes)))


def _needed(options: ClassifierOptions) -> tuple[Path | None, ClassifierOptions, tuple[str, ...]]:
    """Arguments of `train_cnn.produce`."""
    # A model that is named may have learnt elsewhere; one found by default must be that of this shop.
    return options.model, options, ("dataset", "seed", "image_size") if options.model is None else ()


def see(model: "keras.Model", pictures: Pictures) -> "Seen":
    """What `model` makes of all `pictures`, a block in memory at a time."""
    from multimedia_recsys.models.cnn import Seen, look

    found = [
        look(model, pictures.read(np.arange(rows.start, rows.stop)))
        for rows in blocks(len(pictures), _BLOCK, "features")
    ]
    return Seen(*map(np.concatenate, zip(*found, strict=True)))


def write_looks(folder: Path, shop: Shop, seen: "Seen", names: Sequence[str], started: "Looks | None" = None) -> None:
    """Write `classes.csv` and `features.npy` of the original layout; `started`: before an attack."""
    from common.files import replacing

    rows = []
    for item, name in enumerate(shop.file_names):
        label = int(seen.label[item])
        row = [name, names[label], label, f"{seen.prob[item]:.6f}"]
        if started is not None:
            before = int(started.label[item])
            row += [names[before], before, f"{started.prob[item]:.6f}"]
        rows.append(row)
    columns = _COLUMNS if started is None else (*_COLUMNS, "ClassStrStart", "ClassNumStart", "ProbStart")
    with replacing(folder / CLASSES, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([columns, *rows])
    with replacing(folder / FEATURES) as file:
        np.save(file, seen.features.astype(np.float32), allow_pickle=False)


def read_looks(folder: Path, file_names: Sequence[str]) -> Looks:
    """What `write_looks` wrote, for a shop whose items' pictures have these names.

    Errors: `UserError` naming a file that is missing, damaged or of another shop, and the line of an item that is not
    in its place: `features.npy` says by its order alone whose features a row holds.
    """
    import pandas as pd

    items = len(file_names)
    try:
        table = pd.read_csv(
            folder / CLASSES, dtype=object, keep_default_na=False, encoding_errors="surrogateescape", index_col=False
        )
        label = table["ClassNum"].to_numpy().astype(np.int32)
        prob = table["Prob"].to_numpy().astype(np.float32)
        image = table["ImageID"].tolist()
    except FileNotFoundError:
        raise UserError(f"{folder / CLASSES}: no such file; make it by classify_extract.py") from None
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder / CLASSES}: not readable ({error}); make it anew by classify_extract.py") from error
    features = read_features(folder / FEATURES)
    for name, count in ((CLASSES, len(label)), (FEATURES, len(features))):
        if count != items:
            raise UserError(
                f"{folder / name}: {count} items, the shop has {items}; make it anew by classify_extract.py"
            )
    for row, (found, name) in enumerate(zip(image, file_names, strict=True)):
        if found not in (name, Path(name).stem):
            raise UserError(
                f"{folder / CLASSES}:{row + 2}: ImageID {found!r}, the shop has {name!r} there; bring {CLASSES} and"
                f" {FEATURES} into the order of the items, or make them anew by classify_extract.py"
            )
    if len(label) and label.min() < 0:
        raise UserError(f"{folder / CLASSES}: class {label.min()}; expected numbers from 0")
    names = {int(number): text for number, text in zip(label, table["ClassStr"], strict=True)}
    return Looks(label, prob, features, tuple(names.get(n, str(n)) for n in range(max(names) + 1)))


def check_looks(folder: Path) -> None:
    """Errors: `UserError` for a folder without the files of `write_looks`."""
    for name in (CLASSES, FEATURES):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: no such file; make it by classify_extract.py")


def read_features(path: Path) -> np.ndarray:
    """float32 (N, D) of a `.npy`. Errors: `UserError` for one that is missing, damaged, not finite or no matrix."""
    try:
        features = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; make it by classify_extract.py") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not a readable .npy ({error}); make it anew by classify_extract.py") from error
    if not isinstance(features, np.ndarray) or features.ndim != 2 or features.dtype.kind != "f":
        raise UserError(f"{path}: expected floating point numbers (items, features)")
    if not np.isfinite(features).all():
        raise UserError(f"{path}: holds values that are not finite; make it anew by classify_extract.py")
    return features.astype(np.float32)
