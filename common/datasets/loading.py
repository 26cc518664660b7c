"""Image data sets as arrays: by name, or from an `.npz`, an image folder or a tar of images."""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from common.datasets.downloads import NAMED, fetch, read_cifar10, read_idx
from common.datasets.images import (
    SPLITS,
    ImagePath,
    Labelled,
    LoadedImage,
    iterate_tar,
    list_images,
    list_tar,
    read_image,
    split,
)
from common.datasets.npz import NpzStream
from common.datasets.scenes import CLASS_NAMES, scenes
from common.errors import UserError
from common.files import npz_headers
from common.progress import log, track

NAMES = ("scenes", *NAMED)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
SCENES_TRAIN, SCENES_TEST = 4000, 1000

# A label of this size is an id or an underflow, not the index of a class.
MAX_CLASSES = 100_000
CHECKED_ROWS = 4096
_SHOWN_LABELS = 12

Listed = TypeVar("Listed", bound=Labelled)


class FileLabels(NamedTuple):
    """The labels of a file that are not simply 0 to classes - 1: int32 (classes,), `values[c]` is that of class c, and
    the `names` of all labels from 0 that the file speaks of, also of those that no image has."""

    values: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Arrays:
    """An image data set held in memory.

    `x_train`, `x_test`: uint8 (N, H, W, 1 or 3). `y_train`, `y_test`: int32 (N,), below `classes`; a class has images,
    and where labels of a file begin at 1 or have gaps, `file_labels` says which label it was. `sha256`: hash over
    all arrays and class names, so it changes with `n_train`. Scenes alone have `masks_*` bool (N, H, W), the object's
    visible pixels, and `boxes_*` int32 (N, 4) as top, left, bottom, right, the last two exclusive.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]
    sha256: str
    masks_train: np.ndarray | None = None
    masks_test: np.ndarray | None = None
    boxes_train: np.ndarray | None = None
    boxes_test: np.ndarray | None = None
    file_labels: FileLabels | None = None

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def for_outputs(self, outputs: int) -> "Arrays":
        """The data as a model of so many `outputs` knows them: with the labels of the file, gaps and all, when these
        are not as many as the classes. So answers a model that was trained elsewhere on such a file."""
        if self.file_labels is None or outputs == self.classes:
            return self
        values, names = self.file_labels
        y = {f"y_{part}": values[getattr(self, f"y_{part}")] for part in SPLITS}
        return dataclasses.replace(self, **y, class_names=names, file_labels=None)


def class_count(name: str) -> int:
    """Classes of a data set in `NAMES`, which needs no download."""
    return len(CLASS_NAMES if name == "scenes" else NAMED[name].class_names)


def load(
    dataset: str,
    *,
    data_dir: str | Path = "data",
    seed: int = 0,
    n_train: int | None = None,
    n_test: int | None = None,
    image_size: int | None = None,
    validation_share: float = 0.1,
    progress: bool = False,
) -> Arrays:
    """The data set of a name in `NAMES` or of a path.

    A path is an `.npz` with Keras keys (`x_train` (N, H, W), (N, H, W, 1) or (N, H, W, 3) in 0..255, or floating point
    in [0, 1], which is rounded to 8 bits; `y_train` (N,) or (N, 1); the same for `test`; `class_names` if wanted, by
    label or in the order of the labels; without them a class is called by its label, and labels that nothing has are no
    classes, which is said), a folder `<root>/<class>/<file>` or `<root>/{train,test}/<class>/<file>`, or a tar of such
    a folder, which is read without being unpacked.

    `data_dir`: where downloads are kept. `seed`: draws the scenes, the order of a folder's images and its split.
    `n_train`, `n_test`: at most that many; of named sets and `.npz` the first ones, of folders and tars the first of an
    order drawn from `seed`; scenes default to 4,000 and 1,000. `image_size`: pixels a side of scenes (default 32), and
    of folders and tars, whose images are scaled to a square; needed where their sizes differ.
    `validation_share`: the share of each class that a folder without `train` and `test` holds back as test part.
    `progress`: shown while many images are read.

    Errors: `UserError` for an unknown name, a missing or damaged file, and arrays that are not what they should be.
    """
    for option, value in (("n_train", n_train), ("n_test", n_test), ("image_size", image_size)):
        if value is not None and value < 1:
            raise UserError(f"{option}={value}: expected 1 or more")
    if seed < 0:
        raise UserError(f"seed={seed}: expected 0 or more")
    if dataset == "scenes":
        return _scenes(seed, n_train or SCENES_TRAIN, n_test or SCENES_TEST, image_size or 32)

    path = Path(dataset)
    if dataset not in NAMED and not path.exists():
        raise UserError(f"{dataset}: neither a data set ({', '.join(NAMES)}) nor a file or folder that exists")
    if dataset not in NAMED and (path.is_dir() or path.name.lower().endswith(TAR_SUFFIXES)):
        images, counts = _folder if path.is_dir() else _tar, {"train": n_train, "test": n_test}
        return _arrays(dataset, *images(path, seed, counts, image_size, validation_share, progress))
    if dataset not in NAMED and path.suffix.lower() != ".npz":
        raise UserError(f"{dataset}: unknown kind of file; expected .npz, a folder or a tar of images")
    counts = {"train": n_train, "test": n_test}
    file_labels = None
    if dataset in NAMED:
        parts, class_names = _named(dataset, data_dir, counts)
    else:
        parts, class_names, file_labels = _npz(path, counts)
    height, width = parts["x_train"].shape[1:3]
    if image_size is not None and (height, width) != (image_size, image_size):
        raise UserError(f"image_size={image_size}: {dataset} has {height} x {width} images; leave the option out")
    return _arrays(dataset, parts, class_names, file_labels)


def _arrays(
    name: str, parts: dict[str, np.ndarray], class_names: tuple[str, ...], file_labels: FileLabels | None = None
) -> Arrays:
    digest = hashlib.sha256(repr(class_names).encode())
    for key in sorted(parts):
        digest.update(f"{key} {parts[key].dtype.str} {parts[key].shape}".encode())
        digest.update(np.ascontiguousarray(parts[key]).data)
    return Arrays(name=name, class_names=class_names, sha256=digest.hexdigest(), file_labels=file_labels, **parts)


def _scenes(seed: int, n_train: int, n_test: int, size: int) -> Arrays:
    parts = {}
    for part, count in (("train", n_train), ("test", n_test)):
        drawn = scenes(count, seed=seed, size=size, split=part)
        fields = ("x", drawn.images), ("y", drawn.labels), ("masks", drawn.masks), ("boxes", drawn.boxes)
        parts |= {f"{field}_{part}": array for field, array in fields}
    return _arrays("scenes", parts, CLASS_NAMES)


def _named(
    name: str, data_dir: str | Path, counts: dict[str, int | None]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    paths = [fetch(source, data_dir) for source in NAMED[name].sources]
    if name == "mnist":
        return _npz(paths[0], counts, NAMED[name].class_names)[:2]
    if name == "cifar10":
        parts = read_cifar10(paths[0])
    else:
        parts = dict(zip(("x_train", "y_train", "x_test", "y_test"), map(read_idx, paths), strict=True))
    for part in SPLITS:
        x, y = parts[f"x_{part}"][: counts[part]], parts[f"y_{part}"][: counts[part]]
        parts[f"x_{part}"] = np.ascontiguousarray(x if x.ndim == 4 else x[..., None])
        parts[f"y_{part}"] = y.astype(np.int32)
    return parts, NAMED[name].class_names


def _npz(
    path: Path, counts: dict[str, int | None], known: tuple[str, ...] | None = None
) -> tuple[dict[str, np.ndarray], tuple[str, ...], FileLabels | None]:
    """The parts of a file and its classes; those `known` are all there, whatever the file has of them."""
    keys = npz_headers(path)
    for key in ("x_train", "y_train", "x_test", "y_test"):
        if key not in keys:
            raise UserError(f"{path}: no array {key!r}; expected the Keras keys x_train, y_train, x_test, y_test")
    class_names = known
    if known is None and "class_names" in keys:
        names = NpzStream(path, "class_names")
        if names.dtype.kind != "U" or len(names.shape) != 1 or not names.shape[0]:
            raise UserError(f"{path}[class_names]: {names.dtype} {names.shape}; expected strings, one per class")
        class_names = tuple(names.read().tolist())
    labels = {part: _labels(path, f"y_{part}") for part in SPLITS}
    names_of = _label_names(path, labels, class_names)
    values = np.arange(len(names_of)) if known else np.unique(np.concatenate(list(labels.values())))
    parts = {}
    for part in SPLITS:
        y = np.searchsorted(values, labels[part]).astype(np.int32)
        images = NpzStream(path, f"x_{part}")
        if images.shape[0] != len(y):
            raise UserError(f"{path}: {images.shape[0]} rows in x_{part}, {len(y)} in y_{part}; make them equal")
        parts[f"x_{part}"] = _images(images, counts[part])
        parts[f"y_{part}"] = y[: counts[part]]
    if parts["x_train"].shape[1:] != parts["x_test"].shape[1:]:
        shapes = " and ".join(f"{parts[f'x_{part}'].shape[1:]} in x_{part}" for part in SPLITS)
        raise UserError(f"{path}: images of {shapes}; bring them to one shape")
    chosen = tuple(names_of[value] for value in values)
    if len(values) == len(names_of):
        return parts, chosen, None
    _say_labels(path, values, names_of, named=class_names is not None)
    return parts, chosen, FileLabels(values, names_of)


def _label_names(path: Path, labels: dict[str, np.ndarray], class_names: tuple[str, ...] | None) -> tuple[str, ...]:
    """The names of all labels from 0 that a file speaks of: its class names, where these are by label; where they are
    as many as there are labels, their names in this order; otherwise the labels themselves.

    Errors: `UserError` for a label that has no name, or that is above those to train on.
    """
    values = np.unique(labels["train"])
    most = int(values[-1])
    names: Sequence[str] = class_names or list(map(str, range(most + 1)))
    if most >= len(names) and len(names) == len(values) and np.isin(labels["test"], values).all():
        by_label = dict(zip(values.tolist(), names, strict=True))
        return tuple(by_label.get(label, str(label)) for label in range(most + 1))
    for part, y in labels.items():
        if y.max() >= len(names):
            low = 0 if class_names else values[0]
            raise UserError(
                f"{path}[y_{part}]: label {y.max()}, expected {low} to {len(names) - 1}; correct the labels"
            )
    return tuple(names)


def _say_labels(path: Path, values: np.ndarray, names: tuple[str, ...], *, named: bool) -> None:
    def listed(labels: np.ndarray) -> str:
        shown = [f"{label} ({names[label]})" if named else str(label) for label in labels[:_SHOWN_LABELS].tolist()]
        return ", ".join([*shown, "..."] if len(labels) > _SHOWN_LABELS else shown)

    nobody = np.setdiff1d(np.arange(len(names)), values)
    log(f"{path}: {len(values)} classes, labelled {listed(values)}; no image has label {listed(nobody)}: no class")


def _labels(path: Path, key: str) -> np.ndarray:
    """int32 (N,), checked to be whole numbers from 0 to `MAX_CLASSES`."""
    stream = NpzStream(path, key)
    if stream.shape[1:] not in ((), (1,)):
        raise UserError(f"{path}[{key}]: shape {stream.shape}; expected (N,) or (N, 1), class indices and not one-hot")
    if stream.shape[0] == 0:
        raise UserError(f"{path}[{key}]: is empty; expected at least one label")
    if stream.dtype.kind not in "iuf":
        raise UserError(f"{path}[{key}]: dtype {stream.dtype}; expected whole numbers from 0")
    y = stream.read().reshape(-1)
    if stream.dtype.kind == "f" and not (np.isfinite(y).all() and (y == np.rint(y)).all()):
        raise UserError(f"{path}[{key}]: labels that are no whole numbers; save class indices as int32")
    if y.min() < 0 or y.max() >= MAX_CLASSES:
        raise UserError(f"{path}[{key}]: labels from {y.min()} to {y.max()}; expected 0 to {MAX_CLASSES - 1}")
    return y.astype(np.int32)


def _images(stream: NpzStream, count: int | None) -> np.ndarray:
    """The first `count` images (all for None) as uint8 (N, H, W, C)."""
    where = f"{stream.path}[{stream.name}]"
    shape = stream.shape if len(stream.shape) == 4 else (*stream.shape, 1)
    if len(shape) != 4 or shape[3] not in (1, 3):
        remedy = "transpose it to channels last" if len(shape) == 4 and shape[1] in (1, 3) else "reshape it"
        raise UserError(f"{where}: shape {stream.shape}; expected (N, H, W), (N, H, W, 1) or (N, H, W, 3); {remedy}")
    if 0 in shape:
        raise UserError(f"{where}: shape {stream.shape} is empty; expected at least one image")
    rows = min(shape[0], count or shape[0])
    if stream.dtype == np.uint8:
        return stream.read(rows).reshape(rows, *shape[1:])
    if stream.dtype.kind not in "iuf":
        raise UserError(f"{where}: dtype {stream.dtype}; expected uint8 in 0..255 or floating point in [0, 1]")
    images = np.empty((rows, *shape[1:]), np.uint8)
    done = 0
    for chunk in stream.iterate(CHECKED_ROWS, 0, rows):
        images[done : done + len(chunk)] = _to_bytes(chunk, where).reshape(-1, *shape[1:])
        done += len(chunk)
    return images


def _to_bytes(pixels: np.ndarray, where: str) -> np.ndarray:
    top = 255 if pixels.dtype.kind in "iu" else 1
    low, high = pixels.min(), pixels.max()
    # NaN fails every comparison, so the test is for what is right.
    if not (low >= 0 and high <= top):
        raise UserError(
            f"{where}: {pixels.dtype} values from {low!s} to {high!s}; expected 0..255 as uint8 or [0, 1] as floating"
            " point, without NaN; rescale it and save np.rint(255 * x).astype('uint8')"
        )
    return pixels.astype(np.uint8) if top == 255 else np.rint(pixels * np.float32(255)).astype(np.uint8)


def list_folder(
    root: Path | str,
    *,
    seed: int,
    n_train: int | None = None,
    n_test: int | None = None,
    validation_share: float = 0.1,
    progress: bool = False,
) -> tuple[dict[str, list[ImagePath]], tuple[str, ...]]:
    """The images of `load`'s image folder as `train` and `test` lists, in the order of `load`, and the class names.

    Reads headers only, so that a caller can stream what need not fit into memory. Errors: as `load`.
    """
    root = Path(root)
    if all((root / part).is_dir() for part in SPLITS):
        listed = {part: list_images(root / part, progress=progress) for part in SPLITS}
        class_names = listed["train"][1]
        labels = {name: label for label, name in enumerate(class_names)}
        unknown = set(listed["test"][1]) - set(class_names)
        if unknown:
            raise UserError(f"{root / 'test' / min(unknown)}: a class without training images; remove it or add some")
        members = {
            part: [image._replace(label=labels[image.class_name]) for image in images]
            for part, (images, _) in listed.items()
        }
    else:
        images, class_names = list_images(root, progress=progress)
        members = _divided(root, images, validation_share, seed)
    counts = {"train": n_train, "test": n_test}
    return {part: _chosen(members[part], counts[part], seed, part) for part in SPLITS}, class_names


def _folder(
    root: Path, seed: int, counts: dict[str, int | None], image_size: int | None, share: float, progress: bool
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    chosen, class_names = list_folder(
        root, seed=seed, n_train=counts["train"], n_test=counts["test"], validation_share=share, progress=progress
    )
    sizes = {(image.height, image.width) for images in chosen.values() for image in images}
    check_sizes(root, sizes, image_size)
    parts = {}
    for part, images in chosen.items():
        pixels = ((row, read_image(image.path)) for row, image in enumerate(images))
        parts[f"x_{part}"] = stack(root, pixels, len(images), image_size, progress=progress)
        parts[f"y_{part}"] = np.array([image.label for image in images], np.int32)
    return parts, class_names


def _tar(
    path: Path, seed: int, counts: dict[str, int | None], image_size: int | None, share: float, progress: bool
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    images, class_names = list_tar(path)
    if images[0].part is None:
        members = _divided(path, images, share, seed)
    else:
        members = {part: [image for image in images if image.part == part] for part in SPLITS}
        for part in SPLITS:
            if not members[part]:
                raise UserError(f"{path}: no images under {part}/; expected both train/ and test/, or neither")
        unknown = {image.class_name for image in members["test"]} - {image.class_name for image in members["train"]}
        if unknown:
            raise UserError(f"{path}: class {min(unknown)} has no training images; remove it or add some")
    chosen = [(part, _chosen(members[part], counts[part], seed, part)) for part in SPLITS]
    place = {image.name: row for row, image in enumerate(chosen[0][1] + chosen[1][1])}
    pixels = ((place[name], image) for name, image in iterate_tar(path, list(place)))
    stacked = stack(path, pixels, len(place), image_size, progress=progress)
    first = len(chosen[0][1])
    parts = {"x_train": stacked[:first], "x_test": stacked[first:]}
    parts |= {f"y_{part}": np.array([image.label for image in images], np.int32) for part, images in chosen}
    return parts, class_names


def _divided(where: Path, images: Sequence[Listed], share: float, seed: int) -> dict[str, list[Listed]]:
    is_test = split(images, share, seed)
    if not is_test.any():
        raise UserError(f"{where}: no class has two images, so none is left for testing; add images")
    return {
        part: [image for image, held in zip(images, is_test, strict=True) if held == (part == "test")]
        for part in SPLITS
    }


def _chosen(images: Sequence[Listed], count: int | None, seed: int, part: str) -> list[Listed]:
    order = np.random.default_rng([seed, SPLITS.index(part)]).permutation(len(images))
    return [images[index] for index in order[:count]]


def check_sizes(where: Path, sizes: set[tuple[int, int]], image_size: int | None) -> None:
    """Refuse images of differing `sizes` (height, width) that are not going to be scaled: a `UserError`."""
    if image_size is None and len(sizes) > 1:
        (low, high) = (" x ".join(map(str, size)) for size in (min(sizes), max(sizes)))
        raise UserError(f"{where}: images of differing sizes, {low} to {high}; give --image-size, such as 32")


def stack(
    where: Path,
    pixels: Iterable[tuple[int, LoadedImage]],
    count: int,
    image_size: int | None,
    *,
    progress: bool = False,
) -> np.ndarray:
    """RGB uint8 (count, H, W, 3), each image put in the row that comes with it, scaled to a square if `image_size` is
    given; alpha is left out. `progress` is shown if it takes long. Errors: as `check_sizes`."""
    images = None
    for row, image in track(pixels, f"reading {where.name}", total=count, shown=progress):
        rgb = image.rgb if image_size is None else scaled(image.rgb, image_size)
        if images is None:
            images = np.empty((count, *rgb.shape), np.uint8)
        check_sizes(where, {images.shape[1:3], rgb.shape[:2]}, image_size)
        images[row] = rgb
    return images


def scaled(rgb: np.ndarray, size: int) -> np.ndarray:
    """An 8-bit image (H, W) or (H, W, 3) brought to `size` x `size` pixels."""
    if rgb.shape[:2] == (size, size):
        return rgb
    from PIL import Image

    return np.asarray(Image.fromarray(rgb).resize((size, size), Image.Resampling.LANCZOS))
