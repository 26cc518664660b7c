"""Locks of files whose labels begin at 1 or have gaps: no image is locked towards a class that no image has."""

import json
import os

import numpy as np
import pytest

from adv_lock.attacks.class_maps import by_label, class_maps
from adv_lock.attacks.locking import Recipe, lock_arrays, lock_images
from adv_lock.attacks.targeted import Attack
from adv_lock.data.locked import read_locked
from adv_lock.lock import lock
from adv_lock.unlock import unlock
from common import datasets, files
from common.datasets.images import list_images, read_image, write_png


def recipe_of(maps, targets):
    """A lock by an attack that notes its targets and answers with the brightness of the first pixel."""

    def perturb(images, target, steps=1):
        targets.update(int(label) for label in target)
        return np.full(images.shape, 0.01, np.float16)

    def answers(images):
        return images[:, 0, 0, 0].astype(np.int32) % maps.shape[1]

    return Recipe("basic", 0.5, 0.5, maps, 5.0, 0, Attack(perturb, answers, 1, lambda: "toy"))


def dataset(path, labels):
    x = np.random.default_rng(0).integers(20, 200, (len(labels), 12, 12, 3), dtype=np.uint8)
    np.savez(path, x_train=x, y_train=labels, x_test=x, y_test=labels)
    return datasets.load(str(path))


@pytest.mark.parametrize("values", [[1, 2, 3, 4], [2, 5]])
def test_locked_towards_classes_that_images_have(tmp_path, values):
    data = dataset(tmp_path / "d.npz", np.array(values * 3))
    targets = set()
    recipe = recipe_of(class_maps("seeded", data.classes, 1, 0), targets)
    lock_arrays(data, recipe, tmp_path / "run", tmp_path / "store", lambda text: None)
    assert targets <= set(range(len(values)))
    # What is shared has the labels of the file, and says which classes they are.
    stored = files.read_npz(tmp_path / "run" / "locked" / "locked.npz")
    assert stored["y_train"].tolist() == values * 3
    manifest = json.loads((tmp_path / "run" / "locked" / "manifest.json").read_text())
    assert manifest["classes"] == list(map(str, values)) and manifest["labels"] == values
    found = read_locked(tmp_path / "run", 12)
    assert found.y_train.tolist() == found.y_test.tolist() == data.y_train.tolist()
    assert found.class_names == data.class_names
    np.testing.assert_array_equal(found.original_test, data.x_test)


def test_class_maps_by_label_leave_what_no_image_has_as_it_is():
    maps = class_maps("seeded", 3, 2, 0)
    labels = np.array([1, 4, 5])
    wide = by_label(maps, labels, 7)
    assert wide.shape == (2, 7) and wide.dtype == np.int32
    for narrow, g in zip(maps, wide, strict=True):
        assert sorted(g) == list(range(7))
        assert [g[label] for label in labels] == [labels[target] for target in narrow]
        assert all(g[label] == label for label in (0, 2, 3, 6))


def test_a_lock_of_before_without_labels_is_read(tmp_path):
    data = dataset(tmp_path / "d.npz", np.array([0, 1] * 3))
    lock_arrays(
        data, recipe_of(class_maps("seeded", 2, 1, 0), set()), tmp_path / "run", tmp_path / "s", lambda text: None
    )
    path = tmp_path / "run" / "locked" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["labels"]
    path.write_text(json.dumps(manifest))
    assert read_locked(tmp_path / "run", 12).y_train.tolist() == [0, 1] * 3


def test_folders_with_names_that_are_no_utf_8_are_locked_and_restored(tmp_path):
    root, rng, written = tmp_path / "images", np.random.default_rng(0), {}
    for name in (b"anna", b"Jos\xe9", b"Jos\xe8"):
        for number in range(2):
            path = root / os.fsdecode(b"%b/%d\xe9.png" % (name, number))
            written[path] = rng.integers(20, 200, (12, 12, 3), dtype=np.uint8)
            write_png(path, written[path])
    images, names = list_images(root)
    is_test = np.arange(len(images)) % 2 == 1
    run = tmp_path / "run"
    recipe = recipe_of(class_maps("seeded", 3, 1, 0), set())
    lock_images(
        root,
        images,
        is_test,
        names,
        recipe,
        run,
        tmp_path / "parts",
        tmp_path / "store",
        lambda text: None,
        image_size=None,
    )
    found = read_locked(run, 12)
    assert found.class_names == names
    originals = [written[image.path] for image, test in zip(images, is_test, strict=True) if test]
    np.testing.assert_array_equal(found.original_test, np.stack(originals))


@pytest.mark.slow
def test_the_scripts_take_folders_whose_names_are_no_utf_8(workplace, base_model_of_two):
    root = workplace / os.fsdecode(b"pict\xfcres")
    for name in (b"anna", b"Jos\xe9"):
        for number in range(3):
            pixels = np.random.default_rng(number).integers(20, 200, (32, 32, 3), dtype=np.uint8)
            write_png(root / os.fsdecode(b"%b/%d\xe9.png" % (name, number)), pixels)
    lock(lock.options(dataset=str(root), model=base_model_of_two, steps=1))
    unlock(unlock.options(lock_data=workplace / "runs/adv_lock/lock" / root.name, out=workplace / "back"))
    for path in root.rglob("*.png"):
        restored = workplace / "back" / "original" / path.relative_to(root)
        np.testing.assert_array_equal(read_image(restored).rgb, read_image(path).rgb)


@pytest.mark.slow
def test_a_base_classifier_from_elsewhere_answers_with_the_labels_of_the_file(workplace, base_model):
    labels = np.array([2, 5, 9] * 4)
    x = np.random.default_rng(0).integers(20, 200, (len(labels), 32, 32, 3), dtype=np.uint8)
    np.savez(workplace / "d.npz", x_train=x, y_train=labels, x_test=x, y_test=labels)
    lock(lock.options(dataset="d.npz", model=base_model, steps=1))
    run = workplace / "runs/adv_lock/lock/d"
    assert files.read_npz(run / "locked" / "locked.npz")["y_train"].tolist() == labels.tolist()
    (g,) = files.read_npz(run / "key.npz")["class_maps"]
    assert {int(g[label]) for label in (2, 5, 9)} == {2, 5, 9} and (g[[2, 5, 9]] != [2, 5, 9]).all()
    assert [int(g[label]) for label in (0, 1, 3, 4, 6, 7, 8)] == [0, 1, 3, 4, 6, 7, 8]
    assert read_locked(run, 32).y_test.tolist() == labels.tolist()
