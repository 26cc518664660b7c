"""Folders of photographs: sizes, alpha, metadata, memory, going on; lock.py and unlock.py on them, and refusals."""

import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from adv_lock.attacks import locking, mixing
from adv_lock.attacks.class_maps import class_maps
from adv_lock.attacks.targeted import Attack, targeted_attack
from adv_lock.data.locked import read_key, read_locked
from adv_lock.lock import lock
from adv_lock.unlock import unlock
from common import datasets
from common.datasets.images import ImagePath, read_image
from common.errors import UserError

LOCK = {"steps": 2, "attack_lr": 0.5, "eps": 1.0}
ORIENTATION = 0x0112


def image(seed, height, width, channels=3):
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (4, 4, channels), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def photos(tmp_path):
    return drawn(tmp_path / "photos")


def drawn(root):
    """Two classes, mixed sizes, one turned by EXIF, one with alpha, and two files that differ by their ending only."""
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(image(i, 40, 60)).save(root / name / f"{i}.png")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x010F] = "Camera & Sons"
    Image.fromarray(image(7, 50, 70)).save(root / "cat" / "turned.jpg", exif=exif, quality=95)
    Image.fromarray(image(8, 48, 48, 4), "RGBA").save(root / "dog" / "alpha.png", pnginfo=_text("Title", "A dog"))
    Image.fromarray(image(9, 33, 35)).save(root / "dog" / "same.png")
    Image.fromarray(image(10, 35, 33)).save(root / "dog" / "same.jpg", quality=95)
    return root


def _text(key, value):
    info = PngImagePlugin.PngInfo()
    info.add_text(key, value)
    return info


@pytest.fixture(scope="module")
def attack(classifier_of_two):
    """One for all locks without a script, so that it is compiled once for images of any size."""
    return targeted_attack(classifier_of_two, eps=1.0, alpha=0.5, steps=2)


def lock_photos(root, folder, attack, *, log=lambda _: None, image_size=None):
    """Lock the photographs under `root` into `folder` without a script, their parts and attacks beside it."""
    parts, names = datasets.list_folder(root, seed=0)
    images = [*parts["train"], *parts["test"]]
    is_test = np.arange(len(images)) >= len(parts["train"])
    recipe = locking.Recipe("basic", 0.5, 0.5, class_maps("seeded", len(names), 1, 0), 1.0, 0, attack)
    places = (folder.with_name(folder.name + "_parts"), folder.with_name(folder.name + "_store"))
    return locking.lock_images(root, images, is_test, names, recipe, folder, *places, log, image_size=image_size)


@pytest.fixture(scope="module")
def locked(tmp_path_factory, attack):
    """Photographs and their lock, its report and what was said."""
    folder = tmp_path_factory.mktemp("locked")
    said = []
    report = lock_photos(drawn(folder / "photos"), folder / "run", attack, log=said.append)
    return folder / "photos", folder / "run", report, said


def listed_and_there(run):
    manifest = json.loads((run / "locked/manifest.json").read_text())
    there = {path.relative_to(run / "locked").as_posix() for path in (run / "locked").rglob("*") if path.is_file()}
    return {entry["file"] for entry in manifest["files"]}, there - {"manifest.json"}


def test_sizes_alpha_and_metadata_are_kept(locked):
    photos, run, report, said = locked
    check_locked(photos, run)
    assert report.of("share").max() <= 1.0
    (line,) = said
    assert "locking 12 images" in line and "an image" in line


def check_locked(photos, run):
    manifest = json.loads((run / "locked/manifest.json").read_text())
    names = {entry["file"] for entry in manifest["files"]}
    assert {"dog/same_png.png", "dog/same_jpg.png", "cat/turned.png", "dog/alpha.png"} <= names
    assert len(names) == 12 and {entry["split"] for entry in manifest["files"]} == {"train", "test"}
    for name in names:
        source = _source(photos, name)
        before, after = read_image(source), read_image(run / "locked" / name)
        assert after.rgb.shape == before.rgb.shape
        distance = mixing.distances(before.rgb[None], after.rgb[None])[0]
        assert 0 < distance <= mixing.budget(1.0, before.rgb.shape)
        assert (before.alpha is None) == (after.alpha is None)
    assert read_image(run / "locked/cat/turned.png").rgb.shape == (70, 50, 3)
    turned = Image.open(run / "locked/cat/turned.png")
    assert turned.getexif()[0x010F] == "Camera & Sons" and turned.getexif().get(ORIENTATION, 1) == 1
    alpha = Image.open(run / "locked/dog/alpha.png")
    assert alpha.text["Title"] == "A dog"
    assert (np.asarray(alpha)[..., 3] == np.asarray(Image.open(photos / "dog/alpha.png"))[..., 3]).all()


def _source(photos, name):
    stem = name.removesuffix(".png")
    for candidate in (stem + ".png", stem + ".jpg", stem[:-4] + "." + stem[-3:]):
        if (photos / candidate).is_file():
            return photos / candidate
    raise AssertionError(name)


def test_the_key_restores_the_decoded_pixels(locked):
    photos, run, _, _ = locked
    key = read_key(run / "key.npz")
    names, _ = listed_and_there(run)
    for name in names:
        shared = read_image(run / "locked" / name).rgb
        assert (mixing.restore(shared, key.residual(name)) == read_image(_source(photos, name)).rgb).all()


def test_interruption_loses_no_finished_image(tmp_path, locked, attack, monkeypatch):
    photos, whole, _, _ = locked
    real, calls = locking._lock_files, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(locking, "_lock_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lock_photos(photos, tmp_path / "run", attack)
    calls.clear()
    monkeypatch.setattr(locking, "_lock_files", lambda *args: calls.append(args) or real(*args))
    lock_photos(photos, tmp_path / "run", attack)
    # Groups of one size and split, three of them finished before the interruption.
    groups = {
        (read_image(whole / "locked" / entry["file"]).rgb.shape, entry["split"])
        for entry in json.loads((whole / "locked/manifest.json").read_text())["files"]
    }
    assert len(calls) == len(groups) - 3 and len(groups) >= 5
    for name in listed_and_there(whole)[0]:
        assert (whole / "locked" / name).read_bytes() == (tmp_path / "run/locked" / name).read_bytes()


def test_images_of_an_earlier_try_are_not_shared(tmp_path, photos, attack, monkeypatch):
    real, calls = locking._lock_files, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(locking, "_lock_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lock_photos(photos, tmp_path / "run", attack)
    done = next((tmp_path / "run/locked").rglob("*.png"))
    _source(photos, done.relative_to(tmp_path / "run/locked").as_posix()).unlink()
    monkeypatch.setattr(locking, "_lock_files", real)
    lock_photos(photos, tmp_path / "run", attack)
    listed, there = listed_and_there(tmp_path / "run")
    assert there == listed and len(listed) == 11


def test_images_can_be_made_square(tmp_path, photos, attack):
    lock_photos(photos, tmp_path / "run", attack, image_size=24)
    assert {read_image(path).rgb.shape for path in (tmp_path / "run").rglob("*.png")} == {(24, 24, 3)}


def test_locked_folders_can_be_trained_on(locked):
    check_training_data(read_locked(locked[1], 16))


def check_training_data(data):
    assert data.locked_train.shape[1:] == data.original_test.shape[1:] == (16, 16, 3)
    assert len(data.y_train) + len(data.y_test) == 12
    assert data.class_names == ("cat", "dog") and set(data.y_train) == {0, 1}


def test_large_images_are_locked_few_at_a_time():
    """What bounds the memory: a block has images of one size and split, and only so many pixels."""
    sizes = [(1024, 1024)] * 7 + [(40, 60)] * 1203 + [(5000, 5000)] * 2
    is_test = np.arange(len(sizes)) % 3 == 0
    blocks = list(locking._blocks_of_one_size(sizes, is_test))
    assert sorted(i for block in blocks for i in block) == list(range(len(sizes)))
    for block in blocks:
        assert len({(sizes[i], is_test[i]) for i in block}) == 1
        height, width = sizes[block[0]]
        assert len(block) == 1 or (len(block) <= 500 and len(block) * height * width <= 2 * 2**20)


def locked_run(photos, base_model_of_two, **settings):
    results = lock(lock.options(**{**LOCK, "dataset": str(photos), "model": base_model_of_two, **settings}))
    return results, photos.parent / "runs/adv_lock/lock" / settings.get("name", photos.name)


@pytest.fixture(scope="module")
def scripted(tmp_path_factory, base_model_of_two):
    """Photographs that lock.py has locked, its results and its run."""
    folder = tmp_path_factory.mktemp("scripted")
    photos = drawn(folder / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return photos, *locked_run(photos, base_model_of_two)


@pytest.mark.slow
def test_the_script_keeps_sizes_alpha_and_metadata_and_cleans_up(scripted):
    photos, results, run = scripted
    check_locked(photos, run)
    check_training_data(read_locked(run, 16))
    assert results["metrics"]["l2_max"] <= 1.0
    assert not (run / "checkpoints").exists()
    log = (run / "log.txt").read_text()
    assert "locking 12 images" in log and "an image" in log


@pytest.mark.slow
def test_unlock_restores_the_decoded_pixels(workplace, scripted):
    photos, _, run = scripted
    unlock(unlock.options(lock_data=run / "locked", name="back"))
    out = workplace / "runs/adv_lock/unlock/back/original"
    restored = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert len(restored) == 12
    for name in restored:
        before, after = read_image(_source(photos, name)), read_image(out / name)
        assert (after.rgb == before.rgb).all()
        assert before.alpha is None or (after.alpha == before.alpha).all()


@pytest.mark.slow
def test_a_resumed_run_ends_like_an_undisturbed_one(workplace, scripted, base_model_of_two, monkeypatch):
    photos, _, whole = scripted
    real, calls = locking._lock_files, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(locking, "_lock_files", interrupted)
    settings = {"out": workplace / "broken", "attack_store": workplace / "b"}
    with pytest.raises(KeyboardInterrupt):
        locked_run(photos, base_model_of_two, **settings)
    monkeypatch.setattr(locking, "_lock_files", real)
    locked_run(photos, base_model_of_two, **settings, resume=True)
    for path in sorted((whole / "locked").rglob("*.png")):
        assert path.read_bytes() == (workplace / "broken/locked" / path.relative_to(whole / "locked")).read_bytes()


@pytest.mark.slow
def test_a_run_resumed_with_fewer_and_square_images_shares_no_others(workplace, photos, base_model_of_two, monkeypatch):
    monkeypatch.setattr(locking, "_BLOCK", 3)
    real, calls = locking._lock_files, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(locking, "_lock_files", interrupted)
    settings = {"name": "run", "image_size": 24}
    with pytest.raises(KeyboardInterrupt):
        locked_run(photos, base_model_of_two, **settings)
    run = workplace / "runs/adv_lock/lock/run"
    done = next((run / "locked").rglob("*.png"))
    _source(photos, done.relative_to(run / "locked").as_posix()).unlink()
    monkeypatch.setattr(locking, "_lock_files", real)
    locked_run(photos, base_model_of_two, **settings, resume=True)
    listed, there = listed_and_there(run)
    assert there == listed
    assert {read_image(path).rgb.shape for path in run.rglob("locked/*/*.png")} == {(24, 24, 3)}


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, monkeypatch):
    """Streamed: twice the images, the same peak of Python's own allocations (pixels are NumPy's, counted too)."""

    monkeypatch.setattr(locking, "_PIXELS_AT_ONCE", 512 * 512)

    def perturb(images, target, steps=1):
        return np.full(images.shape, 0.004, np.float16)

    attack = Attack(perturb, lambda images: np.zeros(len(images), np.int32), 1, lambda: "fake")
    recipe = locking.Recipe("basic", 0.5, 0.5, np.array([[1, 0]], np.int32), 1.0, 0, attack)

    def peak(count):
        root = tmp_path / f"in{count}"
        for name in ("a", "b"):
            (root / name).mkdir(parents=True)
            for i in range(count // 2):
                Image.fromarray(image(i, 512, 512)).save(root / name / f"{i}.jpg")
        parts, names = datasets.list_folder(root, seed=0)
        images = [*parts["train"], *parts["test"]]
        is_test = np.arange(len(images)) >= len(parts["train"])
        tracemalloc.start()
        locking.lock_images(
            root,
            images,
            is_test,
            names,
            recipe,
            tmp_path / f"out{count}",
            tmp_path / f"parts{count}",
            tmp_path / "s",
            lambda _: None,
            image_size=None,
        )
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    small, large = peak(4), peak(12)
    assert large < 1.2 * small


def refuse(photos, base_model_of_two, message):
    before = sorted(photos.rglob("*"))
    with pytest.raises(UserError, match=message) as caught:
        locked_run(photos, base_model_of_two)
    assert "\n" not in str(caught.value)
    assert sorted(photos.rglob("*")) == before


def test_a_text_file_named_png_is_refused(workplace, photos, base_model_of_two):
    (photos / "cat/notes.png").write_text("no image")
    refuse(photos, base_model_of_two, "cat/notes.png: not a readable image")


def test_a_truncated_image_is_refused(workplace, photos, base_model_of_two):
    path = photos / "cat/turned.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refuse(photos, base_model_of_two, "cat/turned.jpg: not a readable image")


def test_one_class_is_refused(workplace, photos, base_model_of_two):
    for path in (photos / "dog").iterdir():
        path.unlink()
    (photos / "dog").rmdir()
    refuse(photos, base_model_of_two, "one class only")


def test_two_classes_refuse_what_needs_two_maps(workplace, photos, base_model_of_two):
    with pytest.raises(UserError, match="choose basic"):
        locked_run(photos, base_model_of_two, lock_method="mixup")


def test_the_budget_of_a_photograph_scales_with_its_size():
    assert mixing.budget(1.0, (3000, 4000, 3)) == pytest.approx(np.sqrt(3000 * 4000 / 1024))


def test_names_never_collide(tmp_path):
    (tmp_path / "a").mkdir()
    names = ["x.JPG", "x.jpg", "x.png", "x_jpg.png", "y.jpg"]
    images = [ImagePath(tmp_path / "a" / name, 0, "a", 1, 1) for name in names]
    locked = locking.locked_names(tmp_path, images)
    assert len(set(locked)) == 5 and locked[-1] == "a/y.png" and locked[3] == "a/x_jpg.png"


def test_image_size_is_for_folders(workplace, base_model):
    with pytest.raises(UserError, match="--image-size: is for folders"):
        lock(lock.options(**LOCK, n_train=20, n_test=10, model=base_model, image_size=16))
