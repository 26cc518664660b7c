"""How often a class of items is recommended, and which classes make an attack's origin and target."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from common.errors import UserError


class Pair(NamedTuple):
    """An attack's classes: items of `origin` are to be taken for `target`."""

    origin: int
    target: int


def chr_at(lists: np.ndarray, label: np.ndarray, classes: int, k: int) -> np.ndarray:
    """Category hit ratio CHR@K of each class: the share of all places of the top-`k` lists that its items take.

    `lists` int (U, >= k), -1 for an empty place; `label` int (N,), the class of each item; float64 (`classes`,).
    """
    top = _top(lists, k)
    return np.bincount(label[top[top >= 0]], minlength=classes) / top.size


def shares_by_user(lists: np.ndarray, label: np.ndarray, of: int, k: int) -> np.ndarray:
    """Which share of each user's top-`k` list the items of class `of` take, float64 (U,); their mean is CHR@K."""
    top = _top(lists, k)
    return ((top >= 0) & (label[top] == of)).mean(axis=1)


def ncdcg_at(lists: np.ndarray, label: np.ndarray, classes: int, k: int) -> np.ndarray:
    """Normalised category DCG of each class: the mean over users of the discounted places, 1 / log2(place + 2), that
    its items take in the top `k`, over those of a list that begins with min(its size, `k`) of them: float64
    (`classes`,).
    """
    top = _top(lists, k)
    discount = 1 / np.log2(np.arange(k) + 2.0)
    filled = top >= 0
    gain = np.bincount(label[top[filled]], np.broadcast_to(discount, top.shape)[filled], minlength=classes)
    most = np.minimum(np.bincount(label, minlength=classes), k)
    ideal = np.concatenate([[np.inf], np.cumsum(discount)])[most]
    return gain / len(top) / ideal


def _top(lists: np.ndarray, k: int) -> np.ndarray:
    check_length(lists.shape[1], k)
    return lists[:, :k]


def check_length(length: int, k: int) -> None:
    """Errors: `UserError` for lists of `length` that have no top `k`."""
    if length < k:
        raise UserError(f"lists of {length} items; CHR@{k} needs {k}: make longer ones or lower --top-k")


def propose(chr_of: np.ndarray, label: np.ndarray, features: np.ndarray, *, fewest: int = 10) -> tuple[Pair, Pair]:
    """A near and a far pair. Origins are the third of the classes that are recommended least for each of their items,
    targets the third that are recommended most. Near: the two whose mean features are closest; far: the same origin and
    the target farthest from it.

    `chr_of` (classes,); `label` (N,) and `features` (N, D) of the items. Classes of under `fewest` items are left out.

    Errors: `UserError` when there are not three classes to choose from.
    """
    counts = np.bincount(label, minlength=len(chr_of))
    known = np.flatnonzero(counts >= fewest)
    if len(known) < 3:
        raise UserError(f"{len(known)} classes of {fewest} items or more; an attack needs three to choose from")
    known = known[np.argsort(chr_of[known] / counts[known], kind="stable")]
    third = len(known) // 3
    origins, targets = known[:third], known[-max(third, 2) :]
    means = {kind: features[label == kind].mean(axis=0) for kind in known}
    apart = np.array([[np.linalg.norm(means[one] - means[other]) for other in targets] for one in origins])
    origin, nearest = np.unravel_index(apart.argmin(), apart.shape)
    pairs = [Pair(int(origins[origin]), int(targets[place])) for place in (nearest, apart[origin].argmax())]
    return pairs[0], pairs[1]


def parse_class(text: str, names: Sequence[str], option: str) -> int:
    """The class of that name or number.

    Errors: `UserError` naming the option, also for a name of two classes, as `crane` is in ImageNet.
    """
    if names.count(text) > 1:
        numbers = ", ".join(str(number) for number, name in enumerate(names) if name == text)
        raise UserError(f"{option}: {text!r} is the name of the classes {numbers}; give a number")
    if text in names:
        return names.index(text)
    if text.isdigit() and int(text) < len(names):
        return int(text)
    raise UserError(
        f"{option}: {text!r} is no class; they are {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
    )
