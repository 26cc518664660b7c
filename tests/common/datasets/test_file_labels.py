"""Labels of an .npz that begin at 1 or have gaps: only what images have is a class, and the mapping is said."""

import numpy as np
import pytest
from PIL import Image

from common import datasets
from common.errors import UserError


def npz(path, train, test=None, names=None, dtype=np.int64):
    arrays = {}
    for part, labels in (("train", train), ("test", train if test is None else test)):
        rng = np.random.default_rng(0)
        arrays[f"x_{part}"] = rng.integers(0, 255, (len(labels), 4, 4, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = np.array(labels, dtype)
    if names is not None:
        arrays["class_names"] = np.array(names)
    np.savez(path, **arrays)
    return str(path)


def said(capsys):
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("labels", [[1, 2, 3, 4], [2, 5], [0, 1, 9], [7]])
def test_only_labels_that_images_have_are_classes(tmp_path, capsys, labels, dtype, column):
    given = np.array(labels * 3, dtype)
    data = datasets.load(npz(tmp_path / "a.npz", given[:, None] if column else given, dtype=dtype))
    assert data.class_names == tuple(map(str, labels)) and data.classes == len(labels)
    assert data.y_train.dtype == np.int32
    # The label is the class's name, so nothing of the mapping is lost.
    assert [int(data.class_names[y]) for y in data.y_train] == given.astype(int).tolist()
    assert data.file_labels.values.tolist() == labels
    (line,) = said(capsys)
    assert line.startswith(
        f"{tmp_path / 'a.npz'}: {len(labels)} classes, labelled {', '.join(map(str, labels))}; no image"
    )


def test_labels_from_0_without_gaps_are_the_classes_and_nothing_is_said(tmp_path, capsys):
    data = datasets.load(npz(tmp_path / "a.npz", [0, 1, 2, 2]))
    assert data.class_names == ("0", "1", "2") and data.y_train.tolist() == [0, 1, 2, 2]
    assert data.file_labels is None and data.for_outputs(7) is data and not said(capsys)


def test_labels_are_those_of_the_whole_file(tmp_path):
    path = npz(tmp_path / "a.npz", [2, 5, 9, 2, 5, 9])
    assert datasets.load(path, n_train=2, n_test=2).class_names == ("2", "5", "9")


def test_a_class_that_only_test_images_have_is_one(tmp_path):
    data = datasets.load(npz(tmp_path / "a.npz", [2, 5, 5], [3, 2]))
    assert data.class_names == ("2", "3", "5") and data.y_test.tolist() == [1, 0]
    with pytest.raises(UserError, match=r"a.npz\[y_test\]: label 6, expected 2 to 5; correct the labels"):
        datasets.load(npz(tmp_path / "a.npz", [2, 5, 5], [6, 2]))


@pytest.mark.parametrize(
    ("labels", "names", "found", "words"),
    [
        # By label, where these are names for all of them.
        ([0, 2], ["ant", "bee", "cow"], ("ant", "cow"), "labelled 0 (ant), 2 (cow); no image has label 1 (bee)"),
        ([1, 2], ["ant", "bee", "cow"], ("bee", "cow"), "no image has label 0 (ant)"),
        # In order, where there are as many and one at least is beyond them.
        ([1, 2, 3], ["ant", "bee", "cow"], ("ant", "bee", "cow"), "labelled 1 (ant), 2 (bee), 3 (cow)"),
        ([2, 5], ["ant", "bee"], ("ant", "bee"), "labelled 2 (ant), 5 (bee)"),
    ],
)
def test_class_names_go_by_label_or_by_order(tmp_path, capsys, labels, names, found, words):
    data = datasets.load(npz(tmp_path / "a.npz", labels * 2, names=names))
    assert data.class_names == found and data.y_train.tolist() == list(range(len(labels))) * 2
    (line,) = said(capsys)
    assert words in line


@pytest.mark.parametrize(("labels", "test"), [([0, 3], None), ([0, 1, 2, 4], None), ([0, 1], [0, 3])])
def test_labels_beyond_the_class_names_are_refused(tmp_path, labels, test):
    with pytest.raises(UserError, match=r"a.npz\[y_.*\]: label [34], expected 0 to 2; correct the labels"):
        datasets.load(npz(tmp_path / "a.npz", labels, test, names=["ant", "bee", "cow"]))


def test_a_model_from_elsewhere_knows_the_labels_of_the_file(tmp_path):
    data = datasets.load(npz(tmp_path / "a.npz", [2, 5, 2]))
    assert data.for_outputs(2) is data
    other = data.for_outputs(6)
    assert other.y_train.tolist() == [2, 5, 2] and other.class_names == tuple("012345") and other.sha256 == data.sha256
    # Trailing classes that the file names and no image has count for such a model.
    named = datasets.load(npz(tmp_path / "a.npz", [0, 1], names=["ant", "bee", "cow"]))
    assert named.classes == 2 and named.for_outputs(3).class_names == ("ant", "bee", "cow")


def test_folders_are_classes_whatever_they_are_called(tmp_path, capsys):
    for name in ("2", "5"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (4, 4)).save(tmp_path / "images" / name / f"{number}.png")
    data = datasets.load(str(tmp_path / "images"))
    assert data.class_names == ("2", "5") and data.file_labels is None and not said(capsys)
