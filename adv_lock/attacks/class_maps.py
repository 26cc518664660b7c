"""The wrong classes that a lock writes into images: permutations of the classes without fixed points."""

from typing import Literal, get_args

import numpy as np

from common.errors import UserError

Method = Literal["basic", "mixup", "horiz", "mixandcat"]
METHODS: tuple[Method, ...] = get_args(Method)
MAPS_NEEDED = {"basic": 1, "mixup": 2, "horiz": 2, "mixandcat": 4}

# The paper's four maps for CIFAR-10. The second leaves class 9 and the fourth class 7 as they are, and two pairs of
# maps agree on a class, so part of the image keeps its true class there.
PAPER_MAPS = np.array(
    [
        [8, 3, 1, 0, 2, 4, 9, 6, 7, 5],
        [4, 2, 3, 5, 7, 1, 8, 0, 6, 9],
        [6, 2, 9, 1, 0, 7, 5, 3, 4, 8],
        [3, 9, 6, 1, 5, 8, 4, 7, 0, 2],
    ],
    np.int32,
)


def class_maps(kind: Literal["seeded", "paper"], classes: int, count: int, seed: int) -> np.ndarray:
    """`count` class maps g, int32 (count, classes), each a permutation: class y is locked towards g[y].

    `seeded` maps have no fixed point and never agree: g_a(y) != y and g_a(y) != g_b(y). They are distinct shifts along
    one random cycle through all classes, so map k does not depend on `count`.

    Errors: `UserError` when so many disjoint maps do not exist, or the paper's are asked for other than ten classes.
    """
    if classes < 2:
        raise UserError("the data hold one class only; a lock needs a second class to point to")
    if kind == "paper":
        if classes != PAPER_MAPS.shape[1]:
            raise UserError(f"class_maps: the paper's maps are for 10 classes, the data have {classes}; use seeded")
        return PAPER_MAPS[:count]
    if count > classes - 1:
        needs = ", ".join(method for method in METHODS if MAPS_NEEDED[method] <= classes - 1)
        raise UserError(
            f"lock_method: {count} disjoint class maps need at least {count + 1} classes, the data have {classes};"
            f" choose {needs}"
        )
    random = np.random.default_rng([seed, classes])
    cycle = random.permutation(classes)
    place = np.argsort(cycle)
    shifts = 1 + random.permutation(classes - 1)
    return np.stack([cycle[(place + shift) % classes] for shift in shifts[:count]]).astype(np.int32)


def by_label(maps: np.ndarray, labels: np.ndarray, outputs: int) -> np.ndarray:
    """Class maps int32 (count, classes) as maps of a model's `outputs`, of which `labels` (classes,) are the classes;
    the others, which no image has, stay as they are: int32 (count, `outputs`)."""
    wide = np.tile(np.arange(outputs, dtype=np.int32), (len(maps), 1))
    wide[:, labels] = labels[maps]
    return wide


def inverse(class_map: np.ndarray) -> np.ndarray:
    """The map that undoes `class_map` (classes,)."""
    return np.argsort(class_map).astype(np.int32)
