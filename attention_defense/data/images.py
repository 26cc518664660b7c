"""The pictures of this app: labelled, and where known with the place of their object."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from common.errors import UserError
from common.runs.model_input import InputOptions
from common.runs.options import CommonOptions, Count, alias
from common.runs.record import Run

if TYPE_CHECKING:
    import numpy as np

    from common.datasets import Arrays

AttackName = Literal[
    "fgsm",
    "step_ll",
    "r_step_ll",
    "iter_ll",
    "pgd20",
    "margin20",
    "pgd100",
    "attention",
    "displace",
    "gated",
    "adaptive",
    "noise",
]
IMAGENET_NAMES = ("inception_v3", "resnet50")
"""Networks with published weights, as `common.models.IMAGENET` has them."""
# What an attack, an analysis and an explanation must have in common with the training of their model.
PICTURE_FIELDS = ("dataset", "seed", "image_size")


@dataclass(kw_only=True)
class PictureOptions(CommonOptions):
    """Which pictures."""

    image_size: Count | None = None
    """Side, in pixels, to which the pictures of a folder are scaled, and at which scenes are drawn."""


@dataclass(kw_only=True)
class TestedOptions(InputOptions, PictureOptions):
    """Pictures to judge a model by; see also --n-test."""

    without: ClassVar[tuple[str, ...]] = ("strategy", "precision", "n_train")

    model: Path | None = alias(default=None, known=IMAGENET_NAMES)
    """Classifier: a .keras file, a run of train.py, inception_v3 or resnet50 (ImageNet weights, downloaded once); by
    default that of train.py, trained if need be."""
    class_list: Path | None = None
    """Text file with the classes of --model in its order, one folder name (ImageNet: wnid) a line; by default the
    folders of the data set, sorted."""
    boxes: Path | None = None
    """Folder of PASCAL VOC annotations, <picture's name>.xml, for the objects of an image folder."""
    layer: str | None = None
    """Layer whose attention is looked at; by default the last with a map of at least 7 x 7 cells."""
    batch_size: Count = 100
    """Pictures looked at or attacked at a time."""


class Tested(NamedTuple):
    """`x` uint8 (N, H, W, C); `y` int32 (N,); `masks` bool (N, H, W), the pixels of the objects, all False where an
    object is not known, or None where none is; `class_names` of the model. `by_label`: labels and class names for a
    model that knows the classes by the labels of their file, where these are others."""

    x: "np.ndarray"
    y: "np.ndarray"
    masks: "np.ndarray | None"
    class_names: tuple[str, ...]
    by_label: "tuple[np.ndarray, tuple[str, ...]] | None" = None

    def for_outputs(self, outputs: int) -> "Tested":
        """The same with the labels that a model of so many `outputs` answers with."""
        if self.by_label is None or len(self.by_label[1]) != outputs or outputs == len(self.class_names):
            return self
        y, class_names = self.by_label
        return Tested(self.x, y, self.masks, class_names)


def load(options: PictureOptions, run: Run, *, n_train: int | None) -> "Arrays":
    """The data set that `options` name, with `n_train` training pictures, recorded in `run`."""
    from common import datasets

    data = datasets.load(
        options.dataset,
        data_dir=options.data_dir,
        seed=options.seed,
        n_train=n_train,
        n_test=options.n_test,
        image_size=options.image_size,
        progress=True,
    )
    run.data(data.name, data.sha256)
    return data


def load_tested(options: TestedOptions, run: Run) -> Tested:
    """The test pictures with their objects, and labels in the order of the model's classes.

    Errors: `UserError` for a class that is not on the list, and a damaged annotation.
    """
    check_tested(options)
    # Nothing is learnt here, and of a folder only the pictures that are judged need be read.
    data = load(options, run, n_train=1)
    y, names, masks = data.y_test, data.class_names, data.masks_test
    if options.boxes is not None:
        masks = _boxed(options, data.x_test.shape[1:3])
    if options.class_list is not None:
        y, names = relabelled(y, names, options.class_list)
        return Tested(data.x_test, y, masks, names)
    other = None if data.file_labels is None else data.for_outputs(len(data.file_labels.names))
    by_label = None if other is None else (other.y_test, other.class_names)
    return Tested(data.x_test, y, masks, names, by_label)


def check_tested(options: TestedOptions) -> None:
    """Refuse what can be refused before a picture is read. Errors: as `load_tested`, and boxes that belong to none."""
    from common import datasets
    from common.files import read_lines

    if options.boxes is not None and (options.dataset in datasets.NAMES or not Path(options.dataset).is_dir()):
        raise UserError(f"--boxes: belong to an image folder; {options.dataset} is none")
    if options.class_list is not None:
        read_lines(options.class_list)


def _boxed(options: TestedOptions, size: tuple[int, int]) -> "np.ndarray":
    from attention_defense.data.boxes import masks_from
    from common import datasets

    counts = {"n_train": 1, "n_test": options.n_test}
    listed, _ = datasets.list_folder(options.dataset, seed=options.seed, **counts, progress=True)
    return masks_from(options.boxes, [picture.path for picture in listed["test"]], size)


def relabelled(y: "np.ndarray", names: tuple[str, ...], class_list: Path) -> "tuple[np.ndarray, tuple[str, ...]]":
    """Labels `y` (N,) of folders `names` as places in `class_list`, and that list.

    A line is the name of a folder, or begins with one that holds no blank, as ImageNet's lists do.

    Errors: `UserError` for a file that is no list, and for a folder that is not on it or on two of its lines.
    """
    import numpy as np

    from common.files import read_lines

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
