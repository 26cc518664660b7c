"""Undo a lock with its key: restores the original pixels bit for bit."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adv_lock.lock import expected, required
from common.errors import UserError
from common.progress import track
from common.runs.options import ComputeOptions, DataOptions, ExampleOptions, RunOptions
from common.runs.record import Run
from common.runs.script import script

if TYPE_CHECKING:
    from adv_lock.data.locked import Key


@dataclass(kw_only=True)
class Options(ComputeOptions, ExampleOptions, DataOptions, RunOptions):
    """The locked data and the key."""

    lock_data: Path | None = None
    """Run folder of lock.py or a `locked/` folder; by default the run of the same name, made if need be."""
    key: Path | None = None
    """The owner's key.npz; by default the one next to `locked/`."""


def refusals(options: Options) -> None:
    """What is refused before anything is read or locked."""
    from adv_lock.data import locked as locked_data

    if options.key is not None:
        locked_data.read_key(options.key)


def needs(options: Options) -> None:
    """What lock.py would refuse, where it is to be run."""
    expected(options.lock_data, options)


@script(app="adv_lock", name="unlock", refusals=refusals, needs=needs)
def unlock(options: Options, run: Run) -> None:
    """Write the originals to `original/` and check them against the hashes in the key."""
    from adv_lock.attacks import locking
    from adv_lock.data import locked as locked_data

    source = required(options.lock_data, options, run)
    source = source.parent if source.name == locking.LOCKED else source
    locked = source / locking.LOCKED
    manifest = locked_data.read_manifest(locked)
    path = options.key or source / locking.KEY
    if not path.is_file():
        raise UserError(f"--key: {path} is not there; name the key.npz that lock.py left with the owner")
    key = locked_data.read_key(path)
    out = run.folder / "original"
    restore = _arrays if (locked / locking.ARRAYS).is_file() else _images
    count = restore(locked, key, manifest, out)
    locked_bytes = sum(file.stat().st_size for file in locked.rglob("*") if file.is_file())
    digest = hashlib.sha256(json.dumps(key.about["originals_sha256"], sort_keys=True).encode())
    run.data(source.name, digest.hexdigest())
    run.artifact("original", out)
    run.headline("restored", 1.0, count, attack=manifest["method"])
    run.metrics(key_bytes_ratio=path.stat().st_size / locked_bytes)


def _arrays(locked: Path, key: "Key", manifest: dict, out: Path) -> int:
    import numpy as np

    from adv_lock.attacks.locking import ARRAYS, SPLITS
    from adv_lock.data.locked import original_blocks
    from common.datasets.npz import NpzStream, NpzWriter

    count = 0
    with NpzWriter(out / "original.npz") as writer:
        for split in SPLITS:
            labels = NpzStream(locked / ARRAYS, f"y_{split}").read()
            shape = NpzStream(locked / ARRAYS, f"x_{split}").shape
            rows = writer.member(f"x_{split}", shape, np.uint8)
            digest = hashlib.sha256()
            for _, original in original_blocks(locked, key, split):
                rows.append(original)
                digest.update(original.tobytes())
            writer.member(f"y_{split}", labels.shape, np.int32).append(labels)
            count += len(labels)
            if digest.hexdigest() != key.about["originals_sha256"].get(split):
                # Leaving by an exception abandons the file: nothing wrong may lie where the originals belong.
                raise UserError(
                    f"{key.path}: is not the key of these images; the restored images differ from the originals"
                )
    return count


def _images(locked: Path, key: "Key", manifest: dict, out: Path) -> int:
    from adv_lock.attacks import mixing
    from common import files
    from common.datasets.images import read_image, write_png

    differing = 0
    originals = key.about["originals_sha256"]
    for entry in track(manifest["files"], "unlocking"):
        image = read_image(files.inside(locked, entry["file"]))
        shift = key.residual(entry["file"])
        if shift.shape != image.rgb.shape:
            raise UserError(f"{key.path}: {entry['file']} has another size there; it is the key of other images")
        rgb = mixing.restore(image.rgb, shift)
        if hashlib.sha256(rgb.tobytes()).hexdigest() != originals.get(entry["file"]):
            differing += 1
            continue
        write_png(files.inside(out, entry["file"]), rgb, image.alpha, image.metadata)
    count = len(manifest["files"])
    if differing:
        raise UserError(f"{key.path}: is not the key of these images; {differing} of {count} differ from the originals")
    return count


if __name__ == "__main__":
    unlock.main()
