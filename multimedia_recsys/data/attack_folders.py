"""Attacked images as files: `<attack>_<origin>_<target>_<budget>_images/` with images, classes and features."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.datasets.images import read_image, write_png
from common.errors import UserError, one_line
from common.files import inside, png_names
from common.progress import blocks, track
from multimedia_recsys.data.catalog import Catalog
from multimedia_recsys.data.categories import Pair
from multimedia_recsys.data.visual_features import VisualFeatures, read_visual

# Images that are changed and written together: what an interruption costs at most.
_CHUNK = 64


class Attack(NamedTuple):
    """A finished attack: its `name`, its classes `pair`, the attacked `items` int64 (m,), `features` float32 (N, D) of
    all items and `label` int32 (N,), their classes after it; `folder`, where its images lie."""

    name: str
    pair: Pair
    items: np.ndarray
    features: np.ndarray
    label: np.ndarray
    folder: Path


def write_images(
    folder: Path, catalog: Catalog, items: np.ndarray, change: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> None:
    """Write `change(images, items)` uint8 (n, H, W, 3) for all `items` as PNG; those that are there already stay.

    Errors: `UserError` for an image whose name would leave the folder.
    """
    paths = image_paths(folder, catalog, items)
    missing = np.array([item for item, path in paths.items() if not path.is_file()], np.int64)
    for rows in blocks(len(missing), _CHUNK, "changing"):
        chunk = missing[rows]
        for item, image in zip(chunk, change(catalog.images.read(chunk), chunk), strict=True):
            write_png(paths[int(item)], image)


def read_images(folder: Path, catalog: Catalog, items: np.ndarray) -> np.ndarray:
    """What `write_images` wrote, as the files hold it: uint8 (m, H, W, 3)."""
    paths = image_paths(folder, catalog, items)
    images = [read_image(path).rgb for path in track(list(paths.values()), "reading")]
    if any(image.shape != catalog.images.shape for image in images):
        raise UserError(f"{folder}: images of another size than the shop's; make them by the same --image-size")
    return np.stack(images)


def image_paths(folder: Path, catalog: Catalog, items: np.ndarray) -> dict[int, Path]:
    """Where the changed image of each of `items` is written, each in a file of its own that cannot leave `folder`."""
    names = png_names([Path(name).name for name in catalog.file_names])
    return {int(item): inside(folder, names[item]) for item in items}


def read_attack(folder: Path, pair: Pair, file_names: Sequence[str]) -> Attack:
    """The attack from one class to another in `folder`, on a shop whose items' images have these names.

    Errors: `UserError` for one of another shop.
    """
    visual: VisualFeatures = read_visual(folder, file_names)
    try:
        attacked = np.loadtxt(folder / "items.csv", dtype=np.int64, ndmin=1)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'items.csv'}: not readable ({one_line(error)}); run the attack again") from error
    if len(attacked) == 0 or attacked.min() < 0 or attacked.max() >= len(file_names):
        raise UserError(f"{folder / 'items.csv'}: items that the shop does not have; run the attack again")
    return Attack(folder.name.removesuffix("_images"), pair, attacked, visual.features, visual.label, folder)
