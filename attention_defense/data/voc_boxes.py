"""Where the objects of images are, from PASCAL VOC annotations."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.errors import UserError


def masks_from(folder: Path, images: Sequence[Path], size: tuple[int, int]) -> np.ndarray:
    """The union of all boxes of each of `images` in `<stem>.xml`, in a folder of `folder` that is called like the
    image's own or in `folder` itself, brought to `size` (H, W): bool (N, H, W), all False for an image without
    annotation.

    Errors: `UserError` naming the file for one that is damaged or that two images have by their names, and when not
    one image has an annotation.
    """
    masks = np.zeros((len(images), *size), bool)
    found: dict[Path, Path] = {}
    for mask, image in zip(masks, images, strict=True):
        # The one that says whose it is comes first.
        for place in (folder / image.parent.name / f"{image.stem}.xml", folder / f"{image.stem}.xml"):
            if place.is_file():
                if place in found:
                    raise UserError(
                        f"--boxes: {place}: of {found[place]} or of {image}? Put it into"
                        f" {folder / image.parent.name}, or call one of the images differently"
                    )
                found[place] = image
                for top, left, bottom, right in read_boxes(place):
                    mask[_cells(top, bottom, size[0]), _cells(left, right, size[1])] = True
                break
    if not found:
        raise UserError(f"--boxes: {folder}: no annotation for any image; expected such as {images[0].stem}.xml")
    return masks


def _cells(first: float, last: float, count: int) -> slice:
    """The pixels of `count` that the share from `first` to `last` touches, at least one."""
    start = min(int(first * count), count - 1)
    return slice(start, max(int(np.ceil(last * count)), start + 1))


def read_boxes(path: Path) -> list[tuple[float, float, float, float]]:
    """The boxes of an annotation as shares of the image: top, left, bottom, right in [0, 1].

    Errors: `UserError` for a file that is damaged, and for a box outside its image.
    """
    try:
        root = ElementTree.parse(path).getroot()
        width, height = (float(root.findtext(f"size/{side}")) for side in ("width", "height"))
        if not (width > 0 and height > 0):
            raise ValueError(f"an image of {width} x {height}")
        boxes = [
            tuple(float(box.findtext(edge)) for edge in ("ymin", "xmin", "ymax", "xmax"))
            for box in root.iterfind("object/bndbox")
        ]
    except (OSError, ElementTree.ParseError, TypeError, ValueError) as error:
        raise UserError(f"{path}: no PASCAL VOC annotation ({error}); expected size and object/bndbox") from error
    for top, left, bottom, right in boxes:
        # Edges count from 1 in some annotations and from 0 in others.
        if not (0 <= left < right <= width + 1 and 0 <= top < bottom <= height + 1):
            raise UserError(f"{path}: box {left} {top} {right} {bottom} outside {width} x {height}")
    return [
        (top / height, left / width, min(bottom / height, 1.0), min(right / width, 1.0))
        for top, left, bottom, right in boxes
    ]
