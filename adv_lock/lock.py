"""Lock images with a small wrong-class signal: a model trained on them learns the signal, not the content."""

import itertools
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adv_lock.train_base import is_folder, load, train_base
from common.errors import UserError
from common.progress import track
from common.runs.model_input import InputOptions, check_input, look_at, reading
from common.runs.options import Budget, Count, DataOptions, ExampleOptions, RunOptions, ScriptOptions, option
from common.runs.record import Run
from common.runs.script import script

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np

    from adv_lock.attacks.locking import Recipe, Report
    from common.datasets import FileLabels

_EXAMPLES = 8
# Images that a base classifier is looked at with; a few where its range is known, or each may be a full photograph.
_TRIED, _FEW = 128, 8


@dataclass(kw_only=True)
class Options(InputOptions, ExampleOptions, DataOptions, ScriptOptions):
    """What to lock, how, and with which base classifier."""

    dataset: str = option("scenes", "orig_data")
    """Images to lock: a data set's name, an .npz with Keras keys, or a folder <root>/<class>/<file>, whose images
    keep size, alpha and metadata."""
    out: Path | None = option(None, "lock_data", written=True, compared=False)
    """Folder of the run; by default runs/adv_lock/lock/<name>. Its `locked/` may be shared."""
    model: Path | None = option(None, "resume_path")
    """Base classifier, any Keras classifier in a .keras file; by default that of train_base.py, which is run if need
    be."""
    lock_method: Literal["basic", "mixup", "horiz", "mixandcat"] = "basic"
    """One class map (basic), two mixed (mixup), two side by side (horiz), or two mixtures side by side (mixandcat)."""
    eps: Budget = 1.5
    """L2 radius for a 32 x 32 x 3 image with values in [0, 1]; grows with the root of the number of values."""
    attack_lr: Budget = 0.25
    """Length of an attack step, in the units of --eps."""
    steps: Count = option(20, "attack_steps")
    """Steps of the attack towards each class map."""
    alpha: Budget = 0.5
    """Share of the columns that come from the left image (horiz, mixandcat), in [0, 1]."""
    lambd: Budget = 0.5
    """Weight of the first image of a mixture (mixup, mixandcat), in [0, 1]."""
    robust_to: tuple[Literal["jpeg", "grey", "blur", "resize"], ...] = ()
    """What the base classifier must see the wrong class through as well: JPEG of quality 10, no colour, a Gaussian of
    0.8 pixels, half the size and back; each costs as much time as the attack without any."""
    class_maps: Literal["seeded", "paper"] = "seeded"
    """Permutations of the classes: disjoint ones without fixed points, or the paper's four for CIFAR-10."""
    image_size: Literal["keep"] | Count = "keep"
    """Images of a folder keep their size, or become squares of this side in pixels."""
    attack_store: Path = option(Path("runs/adv_lock/attacks"), written=True, compared=False)
    """Folder in which attacks are kept for other lock methods and for --resume: 2 bytes a value and class map; those on
    a folder of images that would take over 4 GB are not kept."""


def refusals(options: Options) -> None:
    """What is refused before anything is read or trained."""
    from common.evaluation.classifiers import load_classifier

    _check(options)
    check_input(options, [options.model])
    if options.model is not None:
        look_at(options.model, lambda: load_classifier(options.model, **reading(options, options.model)))


def needs(options: Options) -> None:
    """What train_base.py would refuse, where it is to be run."""
    train_base.expect(*_needed(options))


@script(app="adv_lock", name="lock", refusals=refusals, needs=needs)
def lock(options: Options, run: Run) -> None:
    """Lock train and test images; writes `locked/` to share and `key.npz` to keep."""
    from adv_lock.attacks import locking
    from common.evaluation import plots

    if is_folder(options.dataset):
        report, examples = _lock_folder(options, run)
    else:
        report, examples = _lock_arrays(options, run)
    locked, key = run.folder / locking.LOCKED, run.folder / locking.KEY
    run.artifact("locked", locked)
    run.artifact("key", key)
    run.figure("examples", plots.image_rows, examples, title=f"{options.lock_method}, L2 {options.eps:g}")
    _record(options, run, report, key.stat().st_size / sum(f.stat().st_size for f in locked.rglob("*") if f.is_file()))
    panel = " --panel photos" if is_folder(options.dataset) else ""
    run.log(
        "what trainers can still learn from it is measured by python adv_lock/audit.py --lock-data"
        f" {shlex.quote(str(run.folder))}{panel}"
    )


def _lock_arrays(options: Options, run: Run) -> "tuple[Report, dict]":

    from adv_lock.attacks import locking
    from common.datasets.npz import NpzStream

    data = load(options)
    run.data(data.name, data.sha256)
    rows = _tried(options, len(data.y_test))
    some = (data.x_test[row] for row in rows), data.y_test[rows]
    recipe = _recipe(options, run, data.classes, some, data.file_labels)
    # A base classifier from elsewhere may know the classes by the labels of the file.
    data = data.for_outputs(recipe.class_maps.shape[1])
    report = locking.lock_arrays(data, recipe, run.folder, options.attack_store, run.log)
    stored = NpzStream(run.folder / locking.LOCKED / locking.ARRAYS, "x_test").read(_EXAMPLES)
    return report, _examples(list(data.x_test[:_EXAMPLES]), list(stored))


def _lock_folder(options: Options, run: Run) -> "tuple[Report, dict]":
    import hashlib
    import os

    import numpy as np

    from adv_lock.attacks import locking
    from common import datasets, files
    from common.datasets.images import read_image

    root = Path(options.dataset)
    counts = {"n_train": options.n_train, "n_test": options.n_test}
    parts, class_names = datasets.list_folder(root, seed=options.seed, **counts, progress=True)
    images = [*parts["train"], *parts["test"]]
    is_test = np.repeat([False, True], [len(parts["train"]), len(parts["test"])])
    if len(class_names) < 2:
        raise UserError(f"{root}: holds one class only; a lock needs a second class to point to")
    digest = hashlib.sha256()
    for image in track(images, "hashing", units="files"):
        digest.update(os.fsencode(image.path.relative_to(root)) + f"\0{files.sha256(image.path)}\n".encode())
    run.data(root.name, digest.hexdigest())
    rows = _tried(options, len(images))
    some = [images[row] for row in rows]
    labels = np.array([one.label for one in some], np.int32)
    # One at a time: photographs may be large.
    recipe = _recipe(options, run, len(class_names), ((read_image(one.path).rgb for one in some), labels))
    size = None if options.image_size == "keep" else int(options.image_size)
    report = locking.lock_images(
        root,
        images,
        is_test,
        class_names,
        recipe,
        run.folder,
        run.checkpoints / "images",
        options.attack_store,
        run.log,
        image_size=size,
    )
    chosen = np.arange(len(images))[-_EXAMPLES:]
    names = locking.locked_names(root, images)
    stored = [read_image(run.folder / locking.LOCKED / names[i]).rgb for i in chosen]
    originals = [locking.read_pixels(images[i].path, size) for i in chosen]
    return report, _examples(originals, stored)


def _examples(originals: list, stored: list) -> dict:
    """Rows for a figure: images before and after, and what was added, ten times stronger, around grey."""
    import numpy as np

    # A full-size photograph is shown by its middle: scaled down, the lock would not be seen at all.
    middles = [tuple(slice(max(0, n // 2 - 64), n // 2 + 64) for n in image.shape[:2]) for image in originals]
    before = [image[middle] for image, middle in zip(originals, middles, strict=True)]
    after = [image[middle] for image, middle in zip(stored, middles, strict=True)]
    added = [np.clip(0.5 + 10 * (b / 255.0 - a / 255.0), 0, 1) for a, b in zip(before, after, strict=True)]
    return {"original": before, "locked": after, "difference x 10": added}


def _warn(run: Run, success: float) -> None:
    if success < 0.5:
        run.log(
            f"the base classifier predicts the wrong class for only {100 * success:.0f} % of the locked images, so the"
            " lock is weak: raise --eps or --steps, or give a --model that was trained on more such images"
        )


def _record(options: Options, run: Run, report: "Report", key_bytes_ratio: float) -> None:
    import numpy as np

    rates = {
        "base_accuracy": np.concatenate(report.base_right),
        "success_train": report.of("success", "train"),
        "success_test": report.of("success", "test"),
    }
    for metric, hits in rates.items():
        split = "train" if metric.endswith("train") else "test"
        columns = {"attack": options.lock_method, "norm": "l2", "eps": options.eps, "split": split}
        run.headline(metric, float(hits.mean()), len(hits), **columns)
    quality = {
        "psnr_mean": report.of("psnr").mean(),
        "psnr_min": report.of("psnr").min(),
        "ssim_mean": report.of("ssim").mean(),
        "l2_max": report.of("share").max() * options.eps,
        "images_per_second": len(report.of("l2")) / max(report.seconds, 1e-9),
        "key_bytes_ratio": key_bytes_ratio,
    }
    for metric, value in quality.items():
        run.row(attack=options.lock_method, norm="l2", eps=options.eps, metric=metric, value=float(value))
    run.metrics(**{metric: float(value) for metric, value in quality.items()})
    _warn(run, float(rates["success_train"].mean()))


def required(lock_data: Path | None, options: RunOptions, run: Run) -> Path:
    """The lock run that another script works on: `lock_data`, or the one of the same name, made if need be."""
    return run.require(lock, *_lock_needed(lock_data, options))


def expected(lock_data: Path | None, options: RunOptions) -> None:
    """What `required` would refuse."""
    lock.expect(*_lock_needed(lock_data, options))


def _lock_needed(lock_data: Path | None, options: RunOptions) -> tuple[Path | None, RunOptions, tuple[str, ...]]:
    """Arguments of `lock.require`."""
    # Locked data that are named bring their own data set and seed; only those found by default must match.
    sizes = [name for name in ("n_train", "n_test") if getattr(options, name) is not None]
    if lock_data is not None and options.dataset != lock.options().dataset:
        raise UserError("--dataset: the locked images come with --lock-data; leave it out")
    return lock_data, options, ("dataset", "seed", *sizes) if lock_data is None else ()


def _needed(options: Options) -> tuple[Path | None, Options, tuple[str, ...]]:
    """Arguments of `train_base.require`."""
    # A model that is named may have learnt elsewhere; one found by default must be that of these data.
    return options.model, options, ("dataset", "seed") if options.model is None else ()


def _check(options: Options) -> None:
    if not options.eps > 0:
        raise UserError(f"--eps: must be above 0; received {options.eps:g}. It is an L2 radius, 0.5 to 1.5 are usual")
    if not options.attack_lr > 0:
        raise UserError(f"--attack-lr: must be above 0; received {options.attack_lr:g}")
    if options.image_size != "keep" and not is_folder(options.dataset):
        raise UserError(f"--image-size: is for folders of images; {options.dataset} is locked at its own size")
    if options.attack_store.exists() and not options.attack_store.is_dir():
        raise UserError(f"--attack-store: {options.attack_store} is a file; name a folder")
    for name in ("alpha", "lambd"):
        if not getattr(options, name) <= 1:
            raise UserError(f"--{name}: must be at most 1; received {getattr(options, name)}")


def _tried(options: Options, count: int) -> "np.ndarray":
    """Rows of `count` images, int (N,), that the base classifier is looked at with."""
    import numpy as np

    # That of train_base.py takes images in [0, 1].
    return np.unique(np.linspace(0, count - 1, min(count, _FEW if options.model is None else _TRIED)).astype(int))


def _recipe(
    options: Options,
    run: Run,
    classes: int,
    some: "tuple[Iterable[np.ndarray], np.ndarray]",
    file_labels: "FileLabels | None" = None,
) -> "Recipe":
    """What images of `classes` are locked by; `some` of them, uint8 (H, W, C) each, read one by one, with their
    labels, show how the base classifier takes them."""
    from adv_lock.attacks.class_maps import MAPS_NEEDED, by_label, class_maps
    from adv_lock.attacks.locking import Recipe
    from adv_lock.attacks.targeted import at_size, targeted_attack
    from common.evaluation.classifiers import class_count, load_classifier

    # Before the base classifier is trained: a method that the class count forbids need not cost those minutes.
    maps = class_maps(options.class_maps, classes, MAPS_NEEDED[options.lock_method], options.seed)
    path = run.require(train_base, *_needed(options))
    arguments = {**reading(options, path), "log": run.log}
    model = load_classifier(path, **arguments)
    images, labels = some
    told = class_count(model)
    if file_labels is not None and told == len(file_labels.names) != classes:
        maps, labels, classes = by_label(maps, file_labels.values, told), file_labels.values[labels], told
    # Images of another size than the network's are locked too. One that takes any size is tried on a few.
    seen = at_size(itertools.islice(images, _FEW if None in model.input_shape[1:3] else None), model)
    model = load_classifier(
        path, seen, labels[: len(seen)], classes=classes, remedy="give another --model", **arguments
    )
    settings = {"eps": options.eps, "alpha": options.attack_lr, "steps": options.steps}
    attack = targeted_attack(model, **settings, views=options.robust_to)
    return Recipe(options.lock_method, options.alpha, options.lambd, maps, options.eps, options.seed, attack)


if __name__ == "__main__":
    lock.main()
