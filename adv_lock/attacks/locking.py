"""Locking a data set block by block: what is shared, what the owner keeps, and how good the lock is."""

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adv_lock.attacks import mixing
from adv_lock.attacks.targeted import Attack, PerturbationCache, attacked
from common import files
from common.datasets import Arrays, scaled
from common.datasets.images import ImagePath, read_image, write_png
from common.datasets.npz import NpzWriter
from common.evaluation import quality
from common.progress import Progress, track

LOCKED, KEY, MANIFEST, ARRAYS = "locked", "key.npz", "manifest.json", "locked.npz"
WRITTEN = "test_written"
"""In the key: the class towards which each test image was moved."""
SPLITS = ("train", "test")

_BLOCK = 500
# Pixels attacked at once: some twenty float32 copies of a block live at a time, so this bounds memory near 0.5 GB
# until a single image is larger than that.
_PIXELS_AT_ONCE = 2 * 2**20
# Attacks are kept for the other lock methods while all of a set fit here; those on photographs rarely do.
_STORE_BYTES = 4 * 2**30
# What PSNR, infinite there, counts as for an image that the lock left as it was.
_PSNR_UNCHANGED = 100.0
_TIMED_STEPS, _TIMED_SIZES = 2, 3


class Recipe(NamedTuple):
    """How images are locked: method, its shares, class maps int32 (maps, classes), L2 radius, seed and attack."""

    method: str
    alpha: float
    lambd: float
    class_maps: np.ndarray
    eps: float
    seed: int
    attack: Attack


class Estimate(NamedTuple):
    """Of images as stored, (N,): `success` bool, `psnr` in dB, `ssim`, `l2`, `share`, that of the radius used, and
    `written` int32, the class towards which the first map moved it."""

    success: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray
    l2: np.ndarray
    share: np.ndarray
    written: np.ndarray


@dataclass
class Report:
    """What locking measured, split by split, and the seconds that its attacks took."""

    seconds: float = 0.0
    measured: dict[str, list[Estimate]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    base_right: list[np.ndarray] = field(default_factory=list)

    def of(self, name: str, *splits: str) -> np.ndarray:
        """One measurement over the images of `splits`, by default of all."""
        return np.concatenate([getattr(part, name) for split in splits or SPLITS for part in self.measured[split]])


def lock_arrays(data: Arrays, recipe: Recipe, folder: Path, store_folder: Path, log: Callable[[str], None]) -> Report:
    """Lock both splits of `data` into `folder/locked/locked.npz`, with `folder/key.npz` to undo it.

    The train split is locked by its labels, the test split by what the base classifier answers, as an owner must who
    has no labels yet; the labels stored are the true ones in both, as the data set's own file has them.
    """
    report = Report()
    store = PerturbationCache(store_folder, recipe.attack)
    labels = np.arange(data.classes) if data.file_labels is None else data.file_labels.values
    labels = labels.astype(np.int32)
    splits = {"train": (data.x_train, data.y_train), "test": (data.x_test, data.y_test)}
    hashes = {split: hashlib.sha256() for split in splits}
    count = len(data.x_train) + len(data.x_test)
    log(_announcement(recipe, {data.x_train.shape[1:3]: count}, lambda size: data.x_train[:_BLOCK]))
    with (
        Progress(count, "locking") as progress,
        NpzWriter(folder / LOCKED / ARRAYS) as shared,
        NpzWriter(folder / KEY) as key,
    ):
        for split, (x, y) in splits.items():
            stored_rows = shared.member(f"x_{split}", x.shape, np.uint8)
            difference_rows = key.member(f"{split}_difference", x.shape, np.uint8)
            for first in range(0, len(x), _BLOCK):
                rows = slice(first, first + _BLOCK)
                stored = _lock_block(recipe, store, split, x[rows], y[rows], report)
                stored_rows.append(stored)
                difference_rows.append(mixing.residual(x[rows], stored))
                hashes[split].update(np.ascontiguousarray(x[rows]).tobytes())
                progress.add(len(stored))
            shared.member(f"y_{split}", y.shape, np.int32).append(labels[y])
        _write_key(key, recipe, {split: digest.hexdigest() for split, digest in hashes.items()}, report)
    report.seconds = store.seconds
    _write_manifest(folder, recipe, data.class_names, [{"file": ARRAYS}], labels)
    return report


def lock_images(
    root: Path,
    images: Sequence[ImagePath],
    is_test: np.ndarray,
    class_names: Sequence[str],
    recipe: Recipe,
    folder: Path,
    parts: Path,
    store_folder: Path,
    log: Callable[[str], None],
    *,
    image_size: int | None,
) -> Report:
    """Lock `images` under `root` into `folder/locked/<class>/<name>.png`, with `folder/key.npz` to undo it.

    An interrupted run resumes from `parts`.

    Images are turned upright and keep size (unless `image_size` in pixels makes them square), alpha and metadata.
    They are read, attacked and written in blocks of one size. An image written before an interruption is not
    attacked again. `is_test` (N,) marks those locked by the base classifier's answer.
    """
    report = Report()
    names = locked_names(root, images)
    sizes = [(image_size, image_size) if image_size else (p.height, p.width) for p in images]
    values = 3 * sum(height * width for height, width in sizes)
    needed = 2 * values * len(recipe.class_maps)
    store = PerturbationCache(store_folder if needed <= _STORE_BYTES else None, recipe.attack)
    waiting = [
        block
        for block in track(list(_blocks_of_one_size(sizes, is_test)), "checking what is locked", units="blocks")
        if not all(_finished(folder, parts, names[i], images[i].path) for i in block)
    ]
    if waiting:
        counts = Counter(sizes[i] for block in waiting for i in block)
        examples = {sizes[block[0]]: block[:1] for block in reversed(waiting)}
        log(_announcement(recipe, counts, lambda size: _read(images, examples[size], image_size)[0]))
    with Progress(len(images), "locking") as progress:
        progress.skip(len(images) - sum(map(len, waiting)))
        for block in waiting:
            _lock_files(recipe, store, images, block, names, folder, parts, is_test, image_size)
            progress.add(len(block))
    _join_parts(recipe, report, folder, parts, names, is_test)
    _remove_stale_files(folder / LOCKED, names)
    entries = [
        {"file": name, "split": SPLITS[int(test)], "label": int(image.label)}
        for name, image, test in zip(names, images, is_test, strict=True)
    ]
    _write_manifest(folder, recipe, class_names, entries, np.arange(len(class_names)))
    return report


def locked_names(root: Path, images: Sequence[ImagePath]) -> list[str]:
    """`<class>/<stem>.png` for each image; where two would share that name, with a suffix that tells them apart."""
    return files.png_names([image.path.relative_to(root).as_posix() for image in images])


def residual_name(name: str) -> str:
    """What the difference of a locked image is called in the key, whose names have to be UTF-8."""
    return f"difference/{files.printable(name)}"


def read_pixels(path: Path, image_size: int | None) -> np.ndarray:
    """The upright RGB pixels of an image as they are locked, uint8 (H, W, 3)."""
    rgb = read_image(path).rgb
    return scaled(rgb, image_size) if image_size else rgb


def _lock_block(
    recipe: Recipe, store: PerturbationCache, split: str, x: np.ndarray, y: np.ndarray, report: Report
) -> np.ndarray:
    """The stored images of one block, after measuring them on the way."""
    answers = recipe.attack.answers(x)
    if split == "test":
        report.base_right.append(answers == y)
    classes = answers if split == "test" else y
    perturbations = [store.perturbation(x, g[classes]) for g in recipe.class_maps]
    mixed = mixing.mix(recipe.method, attacked(x, perturbations), alpha=recipe.alpha, lambd=recipe.lambd)
    radius = mixing.budget(recipe.eps, x.shape[1:])
    stored = mixing.round_within(x, mixed, radius)
    seen = recipe.attack.answers(stored)
    wanted = recipe.class_maps[:, classes]
    distances = mixing.distances(x, stored)
    report.measured[split].append(
        Estimate(
            # The paper's maps have fixed points: an answer that did not change is no success.
            success=((seen == wanted) & (wanted != classes)).any(axis=0),
            psnr=np.minimum(quality.psnr(x, stored), _PSNR_UNCHANGED),
            ssim=quality.ssim(x, stored),
            l2=distances,
            share=distances / radius,
            written=wanted[0].astype(np.int32),
        )
    )
    return stored


def _lock_files(
    recipe: Recipe,
    store: PerturbationCache,
    images: Sequence[ImagePath],
    block: Sequence[int],
    names: Sequence[str],
    folder: Path,
    parts: Path,
    is_test: np.ndarray,
    image_size: int | None,
) -> None:
    x, alphas, metadata = _read(images, block, image_size)
    labels = np.array([images[i].label for i in block], np.int32)
    split = SPLITS[int(is_test[block[0]])]
    report, before = Report(), store.seconds
    stored = _lock_block(recipe, store, split, x, labels, report)
    seconds = (store.seconds - before) / len(block)
    for k, i in enumerate(block):
        target = files.inside(folder / LOCKED, names[i])
        write_png(target, stored[k], alphas[k], metadata[k])
        # Success is measured on the file as anyone reads it, not on the array in memory.
        reloaded = read_image(target).rgb
        if not np.array_equal(reloaded, stored[k]):
            raise RuntimeError(f"{target}: reads back other pixels than were written")
        part = {name: values[k : k + 1] for name, values in report.measured[split][0]._asdict().items()}
        part["difference"] = mixing.residual(x[k], stored[k])
        part["original"] = _text(hashlib.sha256(x[k].tobytes()).hexdigest())
        part["base_right"] = report.base_right[0][k : k + 1] if report.base_right else np.zeros(0, bool)
        part["hashes"] = _text(files.sha256(images[i].path) + files.sha256(target))
        part["seconds"] = np.array(seconds)
        files.write_npz(_part(parts, names[i]), part)


def _join_parts(
    recipe: Recipe, report: Report, folder: Path, parts: Path, names: Sequence[str], is_test: np.ndarray
) -> None:
    originals = {}
    with NpzWriter(folder / KEY) as key:
        for name, test in track(list(zip(names, is_test, strict=True)), "writing the key"):
            part = files.read_npz(_part(parts, name))
            residual = part["difference"]
            key.member(residual_name(name), residual.shape, np.uint8).append(residual)
            originals[name] = part["original"].tobytes().decode()
            report.measured[SPLITS[int(test)]].append(Estimate(*(part[name] for name in Estimate._fields)))
            report.base_right.append(part["base_right"])
            report.seconds += float(part["seconds"])
        _write_key(key, recipe, originals, report)


def _blocks_of_one_size(sizes: Sequence[tuple[int, int]], is_test: np.ndarray) -> Iterator[list[int]]:
    groups: dict[tuple, list[int]] = {}
    for i, size in enumerate(sizes):
        groups.setdefault((size, bool(is_test[i])), []).append(i)
    for (size, _), members in groups.items():
        step = max(1, min(_BLOCK, _PIXELS_AT_ONCE // math.prod(size)))
        for first in range(0, len(members), step):
            yield members[first : first + step]


def _read(images: Sequence[ImagePath], block: Sequence[int], image_size: int | None) -> tuple:
    read = [read_image(images[i].path) for i in block]
    if image_size:
        rgb = [scaled(image.rgb, image_size) for image in read]
        alphas = [None if image.alpha is None else scaled(image.alpha, image_size) for image in read]
    else:
        rgb, alphas = [image.rgb for image in read], [image.alpha for image in read]
    return np.stack(rgb), alphas, [image.metadata for image in read]


def _announcement(
    recipe: Recipe, counts: Mapping[tuple[int, int], int], example: Callable[[tuple[int, int]], np.ndarray]
) -> str:
    """How long it will take: a few steps of the attack timed on the commonest sizes, the others by their pixels.

    `counts`: images of each (height, width); `example`: such a size -> images to time.
    """
    pixels = seconds = 0.0
    shown = []
    for size in sorted(counts, key=lambda size: -counts[size])[:_TIMED_SIZES]:
        batch = example(size)
        targets = np.zeros(len(batch), np.int32)
        recipe.attack.perturb(batch, targets, steps=1)
        started = time.perf_counter()
        recipe.attack.perturb(batch, targets, steps=_TIMED_STEPS)
        step = (time.perf_counter() - started) / _TIMED_STEPS / len(batch)
        per_image = step * recipe.attack.steps * len(recipe.class_maps)
        shown.append(f"{size[1]} x {size[0]}: about {_duration(per_image)} an image")
        pixels += math.prod(size)
        seconds += per_image
    total = seconds / pixels * sum(math.prod(size) * count for size, count in counts.items())
    if len(counts) > _TIMED_SIZES:
        shown.append(f"and {len(counts) - _TIMED_SIZES} other sizes")
    images = sum(counts.values())
    return f"locking {images} images ({'; '.join(shown)}), about {_duration(total)} in all unless attacked before"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.3g} min"


def _remove_stale_files(locked: Path, names: Sequence[str]) -> None:
    """What an earlier, interrupted lock of other images left must not be shared with these."""
    known = {files.inside(locked, name) for name in names}
    for path in [path for path in locked.rglob("*") if path.is_file() and path not in known]:
        path.unlink()


def _part(parts: Path, name: str) -> Path:
    return files.inside(parts, name + ".npz")


def _finished(folder: Path, parts: Path, name: str, source: Path) -> bool:
    part, target = _part(parts, name), files.inside(folder / LOCKED, name)
    if not (part.is_file() and target.is_file()):
        return False
    found = files.read_npz(part)
    # A part of before may lack what is measured today.
    if not {*Estimate._fields} <= set(found):
        return False
    hashes = found["hashes"].tobytes().decode()
    return hashes == files.sha256(source) + files.sha256(target)


def _write_key(key: NpzWriter, recipe: Recipe, originals: dict[str, str], report: Report) -> None:
    about = {name: getattr(recipe, name) for name in ("method", "alpha", "lambd", "eps", "seed")}
    about["robust_to"] = recipe.attack.views
    for name, array in {
        "class_maps": recipe.class_maps,
        # Labels do not tell it: test images are locked by what the base classifier answers.
        WRITTEN: report.of("written", "test") if report.measured["test"] else np.zeros(0, np.int32),
        "about": _text(json.dumps({**about, "originals_sha256": originals}, sort_keys=True)),
    }.items():
        key.member(name, array.shape, array.dtype).append(array)


def _write_manifest(
    folder: Path, recipe: Recipe, class_names: Sequence[str], entries: list[dict], labels: np.ndarray
) -> None:
    locked = folder / LOCKED
    manifest = {
        "method": recipe.method,
        "budget": {"norm": "l2", "eps_at_32x32x3": recipe.eps, "unit": "pixel values in [0, 1]"},
        "versions": {name: version(name) for name in ("adversarial-suite", "tensorflow", "keras")},
        "classes": list(class_names),
        "labels": labels.tolist(),
        "files": [{**entry, "sha256": files.sha256(locked / entry["file"])} for entry in entries],
    }
    files.write_text(locked / MANIFEST, files.json_text(manifest, indent=1))


def _text(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)
