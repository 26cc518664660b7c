"""Reading a lock run back: what is shared, and, with the key, what it hides."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adv_lock.attacks import mixing
from adv_lock.attacks.locking import ARRAYS, KEY, LOCKED, MANIFEST, SPLITS, WRITTEN, residual_name
from common import files
from common.datasets import scaled
from common.datasets.images import read_image
from common.datasets.npz import NpzStream
from common.errors import UserError
from common.progress import track

_ROWS = 500


class Key(NamedTuple):
    """What the owner keeps: `about` the lock, class maps int32 (maps, classes), and where the differences are."""

    path: Path
    about: dict[str, Any]
    class_maps: np.ndarray
    archive: np.lib.npyio.NpzFile

    def residual(self, name: str) -> np.ndarray:
        """The 8-bit difference of one locked image of a folder, uint8 (H, W, 3).

        Errors: `UserError` for an image that the key does not know.
        """
        member = residual_name(name)
        if member not in self.archive.files:
            raise UserError(f"{self.path}: knows no {name}; it is the key of other images")
        return self.archive[member]


@dataclass(frozen=True)
class LockedData:
    """A locked set for training: uint8 (N, H, W, C), labels int32 (N,); the originals are those before the lock.
    `method` also names what the lock was crafted to hold through."""

    name: str
    sha256: str
    method: str
    eps: float
    class_names: tuple[str, ...]
    class_maps: np.ndarray
    locked_train: np.ndarray
    y_train: np.ndarray
    locked_test: np.ndarray
    y_test: np.ndarray
    original_test: np.ndarray
    original_train: Any
    """Function of no argument: the original training images, restored when they are asked for."""
    written_test: np.ndarray | None = None
    """Towards which class each test image was moved, int32 (N,); None for a key of before that does not say."""


def read_manifest(locked: Path) -> dict[str, Any]:
    """The manifest of a `locked/` folder, after every file was found with its SHA-256.

    Errors: `UserError` naming the file that is missing, changed or would lie outside the folder.
    """
    path = locked / MANIFEST
    if not path.is_file():
        raise UserError(f"{path}: not there; expected the locked/ folder that lock.py writes")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        entries = [(files.inside(locked, entry["file"]), entry["sha256"]) for entry in manifest["files"]]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: damaged ({error}); take a new copy") from error
    for file, digest in track(entries, "checking", units="files"):
        if not file.is_file():
            raise UserError(f"{file}: is missing, the manifest names it; take a new copy")
        if files.sha256(file) != digest:
            raise UserError(f"{file}: is not the file that was locked (SHA-256 differs); take a new copy")
    return manifest


def read_key(path: Path) -> Key:
    """The owner's key. Errors: `UserError` when it is missing or damaged."""
    headers = files.npz_headers(path)
    for name in ("about", "class_maps"):
        if name not in headers:
            raise UserError(f"{path}: holds no {name}; expected the key.npz of lock.py")
    about = json.loads(NpzStream(path, "about").read().tobytes())
    # The headers are checked above, once: doing so for every image would read a folder's key over and over.
    return Key(path, about, NpzStream(path, "class_maps").read(), np.load(path, allow_pickle=False))


def original_blocks(locked: Path, key: Key, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of (locked, original) images of an array set, uint8 (B, H, W, C) each, in order."""
    stored = NpzStream(locked / ARRAYS, f"x_{split}")
    shifts = NpzStream(key.path, f"{split}_difference")
    if stored.shape != shifts.shape:
        raise UserError(f"{key.path}: is the key of other data ({shifts.shape}, the locked images are {stored.shape})")
    for rows, shift in zip(stored.iterate(_ROWS), shifts.iterate(_ROWS), strict=True):
        yield rows, mixing.restore(rows, shift)


def read_locked(run: Path, image_size: int, upload: Callable[[np.ndarray], np.ndarray] | None = None) -> LockedData:
    """The locked data of a lock run and their originals; images of a folder are brought to `image_size` pixels, after
    `upload`, at full size, if there is one: uint8 (H, W, 3) -> such an image of any size.

    Errors: `UserError` for a folder that is no lock run, is not whole, or whose key is elsewhere.
    """
    run = run.parent if run.name == LOCKED else run
    locked = run / LOCKED
    manifest = read_manifest(locked)
    if not (run / KEY).is_file():
        raise UserError(f"{run / KEY}: not there; without the key the clean images to measure on cannot be restored")
    key = read_key(run / KEY)
    if holds_arrays(run):
        content = _read_arrays(locked, key, manifest)
    else:
        content = _read_images(locked, key, manifest, image_size, upload)
    # Keys of before do not say.
    views = key.about.get("robust_to", ())
    results = json.loads((run / "results.json").read_text()) if (run / "results.json").is_file() else {}
    return LockedData(
        name=results.get("dataset") or run.name,
        sha256=results.get("data_sha256") or files.sha256(locked / MANIFEST),
        method=manifest["method"] + (f" through {', '.join(views)}" if views else ""),
        eps=key.about["eps"],
        class_names=tuple(manifest["classes"]),
        class_maps=key.class_maps,
        written_test=key.archive[WRITTEN] if WRITTEN in key.archive.files else None,
        **content,
    )


def holds_arrays(run: Path) -> bool:
    """Whether a lock run is one of arrays, not of a folder of images."""
    return ((run if run.name == LOCKED else run / LOCKED) / ARRAYS).is_file()


def _read_arrays(locked: Path, key: Key, manifest: dict) -> dict[str, Any]:
    def both(split: str) -> tuple[np.ndarray, np.ndarray]:
        blocks = list(original_blocks(locked, key, split))
        return np.concatenate([rows for rows, _ in blocks]), np.concatenate([original for _, original in blocks])

    locked_test, original_test = both("test")
    # A lock of before has no labels in its manifest, and classes in their place.
    labels = np.array(manifest.get("labels", range(len(manifest["classes"]))))
    y = {split: NpzStream(locked / ARRAYS, f"y_{split}").read() for split in SPLITS}
    if not all(np.isin(values, labels).all() for values in y.values()):
        raise UserError(f"{locked / ARRAYS}: labels that {MANIFEST} does not name; take a new copy")
    y = {split: np.searchsorted(labels, values).astype(np.int32) for split, values in y.items()}
    return {
        "locked_train": NpzStream(locked / ARRAYS, "x_train").read(),
        "y_train": y["train"],
        "locked_test": locked_test,
        "y_test": y["test"],
        "original_test": original_test,
        "original_train": lambda: both("train")[1],
    }


def _read_images(
    locked: Path, key: Key, manifest: dict, image_size: int, upload: Callable[[np.ndarray], np.ndarray] | None
) -> dict[str, Any]:
    groups = {split: [entry for entry in manifest["files"] if entry["split"] == split] for split in SPLITS}
    if not groups["test"]:
        raise UserError(f"{locked}: no image was held out for testing; lock classes of two or more images")

    def images(split: str, original: bool) -> np.ndarray:
        small = []
        for entry in track(groups[split], f"reading {split}"):
            pixels = read_image(files.inside(locked, entry["file"])).rgb
            if original:
                pixels = mixing.restore(pixels, key.residual(entry["file"]))
            small.append(scaled(pixels if upload is None else upload(pixels), image_size))
        return np.stack(small)

    labels = {split: np.array([entry["label"] for entry in groups[split]], np.int32) for split in SPLITS}
    return {
        "locked_train": images("train", False),
        "y_train": labels["train"],
        "locked_test": images("test", False),
        "y_test": labels["test"],
        "original_test": images("test", True),
        "original_train": lambda: images("train", True),
    }
