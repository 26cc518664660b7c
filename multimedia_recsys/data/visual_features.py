"""Extracted class probabilities and features of all items, on disk."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from common.errors import UserError
from common.files import replacing, write_text
from multimedia_recsys.data.catalog import Catalog

# The files of the original layout, and of attacked images the scale of the clean ones.
CLASSES, FEATURES, SCALE = "classes.csv", "features.npy", "scale.txt"
_COLUMNS = ("ImageID", "ClassStr", "ClassNum", "Prob")


class Extracted(NamedTuple):
    """What a network makes of images: `label` int32 (N,), its probability `prob` float32 (N,), `features` (N, D)."""

    label: np.ndarray
    prob: np.ndarray
    features: np.ndarray


class VisualFeatures(NamedTuple):
    """Of all items: `label` int32 (N,), its probability `prob` (N,), `features` float32 (N, D); classes' `names`."""

    label: np.ndarray
    prob: np.ndarray
    features: np.ndarray
    names: tuple[str, ...]
    clean_scale: float | None = None
    """Of attacked images: the scale of the clean ones."""

    @property
    def scale(self) -> float:
        """The largest absolute feature, by which recommenders divide: always that of the clean images, so that an
        attacked one rescales no other item."""
        return max(float(np.abs(self.features).max()), 1e-12) if self.clean_scale is None else self.clean_scale


def write_visual(
    folder: Path, catalog: Catalog, extracted: Extracted, names: Sequence[str], started: VisualFeatures | None = None
) -> None:
    """Write `classes.csv` and `features.npy` of the original layout; `started`: before an attack."""
    rows = []
    for item, name in enumerate(catalog.file_names):
        label = int(extracted.label[item])
        row = [name, names[label], label, f"{extracted.prob[item]:.6f}"]
        if started is not None:
            before = int(started.label[item])
            row += [names[before], before, f"{started.prob[item]:.6f}"]
        rows.append(row)
    columns = _COLUMNS if started is None else (*_COLUMNS, "ClassStrStart", "ClassNumStart", "ProbStart")
    with replacing(folder / CLASSES, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([columns, *rows])
    with replacing(folder / FEATURES) as file:
        np.save(file, extracted.features.astype(np.float32), allow_pickle=False)
    if started is not None:
        write_text(folder / SCALE, f"{started.scale!r}\n")


def read_visual(folder: Path, file_names: Sequence[str]) -> VisualFeatures:
    """What `write_visual` wrote, for a shop whose items' images have these names.

    Errors: `UserError` naming a file that is missing, damaged or of another shop, and the line of an item that is not
    in its place: `features.npy` says by its order alone whose features a row holds.
    """
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
        raise UserError(f"{folder / CLASSES}: not readable ({error}); run classify_extract.py again") from error
    features = read_features(folder / FEATURES)
    for name, count in ((CLASSES, len(label)), (FEATURES, len(features))):
        if count != items:
            raise UserError(f"{folder / name}: {count} items, the shop has {items}; run classify_extract.py again")
    for row, (found, name) in enumerate(zip(image, file_names, strict=True)):
        if found not in (name, Path(name).stem):
            raise UserError(
                f"{folder / CLASSES}:{row + 2}: ImageID {found!r}, the shop has {name!r} there; bring {CLASSES} and"
                f" {FEATURES} into the order of the items, or run classify_extract.py again"
            )
    if len(label) and label.min() < 0:
        raise UserError(f"{folder / CLASSES}: class {label.min()}; expected numbers from 0")
    names = {int(number): text for number, text in zip(label, table["ClassStr"], strict=True)}
    clean_scale = None
    if (folder / SCALE).is_file():
        try:
            clean_scale = float((folder / SCALE).read_text("utf-8"))
        except ValueError as error:
            raise UserError(f"{folder / SCALE}: expected a number ({error}); run the attack again") from error
    return VisualFeatures(
        label, prob, features, tuple(names.get(n, str(n)) for n in range(max(names) + 1)), clean_scale
    )


def check_visual(folder: Path) -> None:
    """Errors: `UserError` for a folder without the files of `write_visual`."""
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
        raise UserError(f"{path}: not a readable .npy ({error}); run classify_extract.py again") from error
    if not isinstance(features, np.ndarray) or features.ndim != 2 or features.dtype.kind != "f":
        raise UserError(f"{path}: expected floating point numbers (items, features)")
    if not np.isfinite(features).all():
        raise UserError(f"{path}: holds values that are not finite; run classify_extract.py again")
    return features.astype(np.float32)
