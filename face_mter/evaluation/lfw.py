"""The protocol of LFW (Huang et al. 2007): verification pairs in folds, from a list or drawn, and ten-fold accuracy."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from common.errors import UserError
from common.evaluation.statistics import best_threshold
from common.files import read_lines
from face_mter.data.faces import Faces, attack_pairs
from face_mter.evaluation.verification import genuine_pairs


class FoldedPairs(NamedTuple):
    """`pairs` int32 (n, 2) of images, `same` int32 (n,) of 0 and 1, `fold` int32 (n,) from 0, and how many pairs of a
    list were left out because their images are not there."""

    pairs: np.ndarray
    same: np.ndarray
    fold: np.ndarray
    left_out: int


class TenFold(NamedTuple):
    """`accuracy`: mean of the accuracies `folds` (k,), each at its threshold of `thresholds` (k,); `error`: the
    standard error of that mean; `right` bool (n,): which pairs were answered rightly, for an interval by person with
    `common.evaluation.statistics.rate`."""

    accuracy: float
    error: float
    folds: np.ndarray
    thresholds: np.ndarray
    right: np.ndarray


def ten_fold(scores: np.ndarray, same: np.ndarray, folds: np.ndarray) -> TenFold:
    """The protocol of LFW (Huang et al. 2007): each fold is answered with the threshold that is best on all others.

    `scores` (n,), `same` int (n,) of 0 and 1, `folds` int (n,) with any numbers. Of equally good thresholds it is that
    of `common.evaluation.statistics.best_threshold`.

    Errors: `UserError` for fewer than two folds, or when all others of a fold have pairs of one kind only.
    """
    scores, same = np.asarray(scores), np.asarray(same, np.int64)
    names = np.unique(folds)
    if len(names) < 2:
        raise UserError(f"{len(names)} folds of pairs; expected 2 or more: bring more pairs")
    thresholds = np.array([best_threshold(scores[folds != name], same[folds != name]) for name in names])
    right = (scores >= thresholds[np.searchsorted(names, folds)]) == same
    accuracy = np.array([np.mean(right[folds == name]) for name in names])
    error = np.std(accuracy, ddof=1) / np.sqrt(len(names))
    return TenFold(float(np.mean(accuracy)), float(error), accuracy, thresholds, right)


def read_pairs(path: str | Path, faces: Faces) -> FoldedPairs:
    """The pairs of a list in the format of LFW's `pairs.txt` whose images are among `faces`.

    Its first line has the number of folds and of pairs of each kind in a fold; a fold is that many lines `name i j` and
    then as many `name i other j`, image i being `<name>/<name>_<i with four digits>` with any ending.

    Errors: `UserError` naming the line that is no such pair, or that means either of two files of one name but for
    their endings; for a file that is missing or has too few or too many lines, and when no image of any pair is
    there.
    """
    head, *lines = read_lines(path)
    sizes = [_number(field) for field in head.split()]
    if len(sizes) != 2 or min(sizes) < 1:
        raise UserError(f"{path}: line 1 is {head[:80]!r}; expected the numbers of folds and of pairs, as in '10 300'")
    folds, kind = sizes
    if len(lines) != folds * 2 * kind:
        raise UserError(f"{path}: {len(lines)} pairs, line 1 says 2 x {folds} x {kind}; download it again")
    place: dict[str, int] = {}
    double: set[str] = set()
    for row, file in enumerate(faces.files):
        name = str(PurePosixPath(file).with_suffix(""))
        double |= {name} & place.keys()
        place[name] = row
    listed = [
        _listed_pair(line, index // kind % 2 == 0, f"{path}: line {index + 2}") for index, line in enumerate(lines)
    ]
    for index, pair in enumerate(listed):
        if both := double.intersection(pair):
            raise UserError(
                f"{path}: line {index + 2}: {faces.name} has two images {min(both)!r}, of two endings; remove one"
            )
    pairs = np.array([[place.get(image, -1) for image in pair] for pair in listed], np.int32)
    there, index = (pairs >= 0).all(axis=1), np.arange(len(pairs))
    if not there.any():
        raise UserError(f"{path}: no pair has both its images in {faces.name}; give the list of this data set")
    same, fold = (index // kind % 2 == 0).astype(np.int32), (index // (2 * kind)).astype(np.int32)
    return FoldedPairs(pairs[there], same[there], fold[there], int(np.sum(~there)))


def make_folds(
    faces: Faces, people: Sequence[int] | np.ndarray, count: int, *, seed: int, folds: int = 10
) -> FoldedPairs:
    """`count` pairs of each kind in each of `folds`, as LFW has 300, drawn by `seed`; no identity is in two folds.

    Pairs are distinct, and people about equally often in them, as far as their images go.

    Errors: `UserError` when there are too few people, or images of them, for that.
    """
    people = np.random.default_rng([seed, 0]).permutation(np.asarray(people, np.int64))
    # Those with pairs of their own are dealt first, so that every fold has its share of them.
    people = people[np.argsort(faces.counts[people] < 2, kind="stable")]
    if len(people) < 2 * folds:
        raise UserError(
            f"{faces.name}: {len(people)} people for {folds} folds; expected {2 * folds}: bring more people, or hold"
            " more of them back by evaluation_share"
        )
    of_one = genuine_pairs(faces.person)
    pairs = []
    for fold in range(folds):
        mine = np.sort(people[fold::folds])
        drawn = np.random.default_rng([seed, 1, fold]).permutation(of_one[np.isin(faces.person[of_one[:, 0]], mine)])
        if len(drawn) < count:
            raise UserError(
                f"{faces.name}: {len(drawn)} pairs of one person in a fold of {len(mine)} people; expected {count}: ask"
                " for fewer pairs by n_folded, or bring more images"
            )
        # The first pair of everyone, then the second of everyone who has two, and so on.
        drawn = drawn[np.argsort(_rank(faces.person[drawn[:, 0]]), kind="stable")]
        pairs += [drawn[:count], attack_pairs(faces, mine, count, seed=[seed, 2, fold], ordered=False)]
    index = np.arange(2 * folds * count)
    same, fold = (index // count % 2 == 0).astype(np.int32), (index // (2 * count)).astype(np.int32)
    return FoldedPairs(np.concatenate(pairs), same, fold, 0)


def _rank(values: np.ndarray) -> np.ndarray:
    """For each value how often it occurred before, int64 (n,)."""
    order = np.argsort(values, kind="stable")
    _, first, count = np.unique(values[order], return_index=True, return_counts=True)
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values)) - np.repeat(first, count)
    return rank


def _number(field: str) -> int:
    """The number that a field is, -1 for none."""
    return int(field) if field.isascii() and field.isdigit() and len(field) < 10 else -1


def _listed_pair(line: str, same: bool, where: str) -> tuple[str, str]:
    fields = [field.strip() for field in line.split("\t")] if "\t" in line else line.split()
    form = "<name> <i> <j>" if same else "<name> <i> <other name> <j>"
    if len(fields) != (3 if same else 4):
        raise UserError(f"{where} has {len(fields)} fields; expected {form}, separated by tabs")
    sides = [(fields[0], fields[1]), (fields[0 if same else 2], fields[-1])]
    if min(_number(number) for _, number in sides) < 1:
        raise UserError(f"{where} is {line.strip()[:80]!r}; expected {form} with numbers from 1")
    first, second = (f"{name}/{name}_{int(number):04d}" for name, number in sides)
    if first == second if same else sides[0][0] == sides[1][0]:
        raise UserError(f"{where} pairs {sides[0][0]!r} with itself; expected two {'images' if same else 'people'}")
    return first, second
