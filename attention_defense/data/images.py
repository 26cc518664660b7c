"""The images of this app: labelled, and where known with the place of their object."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from attention_defense.data.voc_boxes import masks_from
from common import datasets
from common.datasets import Arrays
from common.errors import UserError
from common.files import read_lines


class TestSet(NamedTuple):
    """`x` uint8 (N, H, W, C); `y` int32 (N,); `masks` bool (N, H, W), the pixels of the objects, all False where an
    object is not known, or None where none is; `class_names` of the model. `by_label`: labels and class names for a
    model that knows the classes by the labels of their file, where these are others."""

    x: np.ndarray
    y: np.ndarray
    masks: np.ndarray | None
    class_names: tuple[str, ...]
    by_label: tuple[np.ndarray, tuple[str, ...]] | None = None

    def for_outputs(self, outputs: int) -> "TestSet":
        """The same with the labels that a model of so many `outputs` answers with."""
        if self.by_label is None or len(self.by_label[1]) != outputs or outputs == len(self.class_names):
            return self
        y, class_names = self.by_label
        return TestSet(self.x, y, self.masks, class_names)


def make_test_set(data: Arrays, *, class_list: Path | None = None, masks: np.ndarray | None = None) -> TestSet:
    """The test images of `data` with the `masks` of their objects, by default those that it has, and labels in the
    order of the model's classes: of `class_list`, or the data set's own.

    Errors: `UserError` for a class that is not on the list.
    """
    y, names = data.y_test, data.class_names
    masks = data.masks_test if masks is None else masks
    if class_list is not None:
        y, names = relabelled(y, names, class_list)
        return TestSet(data.x_test, y, masks, names)
    other = None if data.file_labels is None else data.for_outputs(len(data.file_labels.names))
    by_label = None if other is None else (other.y_test, other.class_names)
    return TestSet(data.x_test, y, masks, names, by_label)


def boxed(dataset: str, boxes: Path, *, seed: int, n_test: int | None, size: tuple[int, int]) -> np.ndarray:
    """Masks bool (N, height, width) of the test images of the folder `dataset` from the annotations in `boxes`.

    Errors: `UserError` for a damaged annotation.
    """
    listed, _ = datasets.list_folder(dataset, seed=seed, n_train=1, n_test=n_test, progress=True)
    return masks_from(boxes, [image.path for image in listed["test"]], size)


def relabelled(y: np.ndarray, names: tuple[str, ...], class_list: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels `y` (N,) of folders `names` as places in `class_list`, and that list.

    A line is the name of a folder, or begins with one that holds no blank, as ImageNet's lists do.

    Errors: `UserError` for a file that is no list, and for a folder that is not on it or on two of its lines.
    """
    known, place, listed = set(names), {}, []
    if len(known) < len(names):
        raise UserError(f"--class-list: {class_list}: two classes of the data set have one name")
    for number, line in enumerate(read_lines(class_list), 1):
        # A name may begin or end with a blank, but hardly does.
        name = next((spelt for spelt in (line, line.strip()) if spelt in known), (line.split() or [""])[0])
        if not name:
            continue
        if name in known and name in place:
            raise UserError(f"--class-list: {class_list}:{number}: {name!r} is there a second time; remove one")
        place[name] = len(listed)
        listed.append(name)
    missing = sorted(known - set(place))
    if missing:
        raise UserError(f"--class-list: {class_list}: no class {missing[0]!r}, which the data set has")
    return np.array([place[name] for name in names], np.int32)[y], tuple(listed)
