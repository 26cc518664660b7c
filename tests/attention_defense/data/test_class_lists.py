"""Lists of a model's classes, labels as a model from elsewhere knows them, and whose annotation a file is."""

import os

import numpy as np
import pytest

from attention_defense.data import images as images
from attention_defense.data.images import relabelled
from attention_defense.data.voc_boxes import masks_from
from common.errors import UserError

FOLDERS = ("polar bear", "zebra", os.fsdecode(b"Jos\xe9"))


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_a_class_is_a_whole_line_or_its_first_word(tmp_path, ending, start):
    lines = [b"zebra striped horse", b"", b"grizzly bear", b"polar bear", b"Jos\xe9"]
    (tmp_path / "classes.txt").write_bytes(start + ending.encode().join(lines) + ending.encode())
    y, names = relabelled(np.array([0, 1, 2, 0]), FOLDERS, tmp_path / "classes.txt")
    assert y.tolist() == [2, 0, 3, 2]
    assert names == ("zebra", "grizzly", "polar bear", FOLDERS[2])


def test_a_class_that_is_listed_twice_names_its_line(tmp_path):
    (tmp_path / "classes.txt").write_text("zebra\npolar bear\n\nzebra again\n")
    with pytest.raises(UserError, match=r"classes.txt:4: 'zebra' is there a second time"):
        relabelled(np.array([0]), ("zebra",), tmp_path / "classes.txt")
    # Of classes that the data have not, two may begin alike.
    (tmp_path / "classes.txt").write_text("black bear\nblack cat\nzebra\n")
    assert relabelled(np.array([0]), ("zebra",), tmp_path / "classes.txt")[0].tolist() == [2]


def test_labels_for_a_model_that_knows_those_of_the_file():
    test_set = images.TestSet(
        np.zeros((2, 4, 4, 1)), np.array([0, 1]), None, ("2", "5"), (np.array([2, 5]), tuple("012345"))
    )
    assert test_set.for_outputs(2) is test_set and test_set.for_outputs(7) is test_set
    other = test_set.for_outputs(6)
    assert other.y.tolist() == [2, 5] and other.class_names == tuple("012345")


BOX = (
    "<a><size><width>10</width><height>10</height></size><object><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>{0}</xmax>"
    "<ymax>{0}</ymax></bndbox></object></a>"
)


def test_an_annotation_of_two_images_is_refused(tmp_path):
    images = [tmp_path / "images" / name for name in ("cat/1.jpg", "dog/1.jpg", "dog/2.jpg")]
    boxes = tmp_path / "boxes"
    (boxes / "dog").mkdir(parents=True)
    (boxes / "1.xml").write_text(BOX.format(5))
    with pytest.raises(UserError, match=r"1.xml: of .*cat/1.jpg or of .*dog/1.jpg\? Put it into .*dog"):
        masks_from(boxes, images, (10, 10))
    # One that says whose it is comes before one that does not.
    (boxes / "dog" / "1.xml").write_text(BOX.format(9))
    assert masks_from(boxes, images, (10, 10)).sum(axis=(1, 2)).tolist() == [16, 64, 0]
