"""Shops: images of items 0 to N-1, and who had to do with which."""

import functools
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common import datasets
from common.datasets.images import SUFFIXES, list_images, read_image, visible
from common.errors import UserError
from multimedia_recsys.data import interactions as feedback_files
from multimedia_recsys.data.interactions import Interactions, simulated
from multimedia_recsys.data.products import CATEGORIES, products

EMBEDDED = "catalogue"
# Where the original layout keeps images.
IMAGES = "original_images/images"
# The sides of images that are looked at with ImageNet weights.
SIZE = 224


class Images:
    """The images of items 0 to N-1, held in memory or read when they are looked at."""

    def __init__(self, source: np.ndarray | Sequence[Path], size: int | None = None) -> None:
        """`source`: uint8 (N, H, W, C), or files, brought to `size` x `size`."""
        self._source, self._size = source, size

    def __len__(self) -> int:
        return len(self._source)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return self._source.shape[1:] if isinstance(self._source, np.ndarray) else (self._size, self._size, 3)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """uint8 (R, H, W, C). Errors: `UserError` naming a damaged file."""
        if isinstance(self._source, np.ndarray):
            return self._source[rows]
        return np.stack([datasets.scaled(read_image(self._source[row]).rgb, self._size) for row in rows])


@dataclass(frozen=True, eq=False)
class Catalog:
    """Items, feedback, and the shop's own `category` of each item, int32 (N,), where it is known.

    `file_names`: of each item's image; `sha256` over all of it (of folders: over the feedback, and names and sizes of
    the images).
    """

    name: str
    images: Images
    feedback: Interactions
    file_names: tuple[str, ...]
    sha256: str
    category: np.ndarray | None = None
    category_names: tuple[str, ...] = ()


class Training(NamedTuple):
    """Images uint8 (n, H, W, 3) and labels int32 (n,) that a classifier is trained and tested on: of the drawn
    catalogue and of fashion_mnist others than the items', of an image folder the items' own."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]


def load_catalog(
    dataset: str = EMBEDDED,
    *,
    data_dir: Path = Path("data"),
    seed: int = 0,
    interactions: Path | None = None,
    image_size: int | None = None,
    n_items: int = 1000,
    n_users: int = 2000,
) -> Catalog:
    """The shop called `dataset`, or in that folder: of the original layout or, with `interactions`, one of images.

    `image_size`: pixels a side to which images of folders are brought, by default 224; `n_items` and `n_users` of
    the drawn catalogue and of fashion_mnist.

    Errors: `UserError` for an unknown name and whatever is wrong with its files.
    """
    if dataset in (EMBEDDED, "fashion_mnist"):
        for name, value in (("interactions", interactions), ("image-size", image_size)):
            if value is not None:
                raise UserError(f"--{name}: is for folders of images; leave it out")
        if dataset == EMBEDDED:
            return _drawn(n_items, n_users, seed)
        return _clothes(data_dir, n_items, n_users, seed)
    root, size = Path(dataset), image_size or SIZE
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; a shop is catalogue, fashion_mnist or a folder")
    if interactions is not None:
        return _folder(root, interactions, seed, size)
    if not (root / IMAGES).is_dir():
        raise UserError(f"{root}: no {IMAGES}; expected the original layout, or give --interactions FILE.csv")
    return _layout(root, seed, size)


def load_training(
    dataset: str, *, data_dir: Path, seed: int, n_train: int | None, n_test: int | None, image_size: int | None
) -> Training:
    """What a classifier of the shop's categories learns from.

    Errors: `UserError` for a shop without categories of its own.
    """
    if dataset == EMBEDDED:
        parts = []
        for split, count in (("train", n_train or 3000), ("test", n_test or 1000)):
            drawn = products(count, seed=seed, split=split)
            parts += [drawn.images, drawn.category]
        return Training(*parts, CATEGORIES)
    root = Path(dataset)
    if (root / IMAGES).is_dir():
        raise UserError(
            f"{root}: has no categories to train on; use --model resnet50, or a .keras classifier of your own"
        )
    data = datasets.load(
        dataset,
        data_dir=data_dir,
        seed=seed,
        n_train=n_train,
        n_test=n_test,
        image_size=None if dataset == "fashion_mnist" else image_size or SIZE,
        progress=True,
    )
    x_train, x_test = _in_colour(data.x_train), _in_colour(data.x_test)
    return Training(x_train, data.y_train, x_test, data.y_test, data.class_names)


# One experiment asks for the same shop a dozen times in one process.
@functools.lru_cache(maxsize=1)
def _drawn(n_items: int, n_users: int, seed: int) -> Catalog:
    drawn = products(n_items, seed=seed)
    feedback = simulated((drawn.category, drawn.colour, drawn.style), n_users, seed=seed)
    return _in_memory(EMBEDDED, drawn.images, feedback, drawn.category, CATEGORIES)


def _clothes(data_dir: Path, n_items: int, n_users: int, seed: int) -> Catalog:
    """Test images of Fashion-MNIST; users prefer categories, light or dark, and small or large ones."""
    data = datasets.load("fashion_mnist", data_dir=data_dir, n_train=1, n_test=n_items)
    ink = data.x_test.astype(np.float32).reshape(len(data.x_test), -1)
    traits = [ink.sum(axis=1) / np.maximum((ink > 32).sum(axis=1), 1), (ink > 32).mean(axis=1)]
    thirds = [np.searchsorted(np.quantile(values, (1 / 3, 2 / 3)), values).astype(np.int32) for values in traits]
    feedback = simulated((data.y_test, *thirds), n_users, seed=seed)
    return _in_memory("fashion_mnist", _in_colour(data.x_test), feedback, data.y_test, data.class_names)


def _in_colour(images: np.ndarray) -> np.ndarray:
    """Grey images (N, H, W, 1) as (N, H, W, 3), so that files of attacked ones look like those of others."""
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def _in_memory(
    name: str, images: np.ndarray, feedback: Interactions, category: np.ndarray, names: tuple[str, ...]
) -> Catalog:
    digest = hashlib.sha256(images.tobytes())
    _add_feedback(digest, feedback)
    files = tuple(f"{item}.png" for item in range(len(images)))
    return Catalog(name, Images(images), feedback, files, digest.hexdigest(), category, names)


def _layout(root: Path, seed: int, size: int) -> Catalog:
    found = {}
    for entry in visible(root / IMAGES):
        path = Path(entry.path)
        if path.suffix.lower() not in SUFFIXES:
            continue
        if not path.stem.isdecimal() or str(int(path.stem)) != path.stem:
            raise UserError(f"{path}: its name is no item; expected 0{path.suffix}, 1{path.suffix}, and so on")
        if int(path.stem) in found:
            raise UserError(f"{path}: item {path.stem} has a second image, {found[int(path.stem)].name}; remove one")
        found[int(path.stem)] = path
    if not found:
        raise UserError(f"{root / IMAGES}: holds no images; expected <item>.jpg")
    items = max(found) + 1
    for item in range(items):
        if item not in found:
            raise UserError(f"{root / IMAGES}: no image of item {item}, but of {items - 1}; number items without gaps")
    paths = [found[item] for item in range(items)]
    feedback = feedback_files.read_feedback(root, items, seed=seed)
    return _of_files(root, paths, feedback, size)


def _folder(root: Path, interactions: Path, seed: int, size: int) -> Catalog:
    images, names = list_images(root, progress=True)
    paths = [image.path for image in images]
    stems = [path.name for path in paths]
    if len(set(stems)) < len(stems):
        double = next(name for name in stems if stems.count(name) > 1)
        raise UserError(f"{root}: two images are called {double}; rename one, for an item is known by that name")
    feedback = feedback_files.read_named(interactions, stems, seed=seed)
    category = np.array([image.label for image in images], np.int32)
    return _of_files(root, paths, feedback, size, category, names)


def _of_files(
    root: Path,
    paths: list[Path],
    feedback: Interactions,
    size: int,
    category: np.ndarray | None = None,
    names: tuple[str, ...] = (),
) -> Catalog:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(os.fsencode(path.relative_to(root)) + f"\0{path.stat().st_size}\n".encode())
    _add_feedback(digest, feedback)
    images = Images(paths, size)
    files = tuple(path.name for path in paths)
    return Catalog(root.name, images, feedback, files, digest.hexdigest(), category, names)


def _add_feedback(digest, feedback: Interactions) -> None:
    for array in (feedback.start, feedback.item, feedback.test):
        digest.update(np.ascontiguousarray(array).data)
