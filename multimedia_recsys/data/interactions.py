"""Implicit feedback: which users had to do with which items, and one item of each user held out to be found again."""

import csv
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.errors import UserError, one_line
from common.files import check_text

if TYPE_CHECKING:
    import pandas as pd

# Files of the original layout: all feedback in one, or split beforehand.
POSITIVES, TRAINING, TEST = "pos.txt", "trainingset.tsv", "testset.tsv"
# Rows of feedback without a time have this one.
_NO_TIME = 0.0
# What an item of a file may be instead of the row of an image.
_ABSENT, _AMBIGUOUS = -1, -2


@dataclass(frozen=True, eq=False)
class Interactions:
    """Feedback of users 0..U-1 on items 0..`items`-1.

    User u's training items are `item[start[u]:start[u + 1]]`, ascending, each once: `start` int64 (U + 1,), `item`
    int32 (n,). `test` int32 (U,): the item held out, -1 for a user without.
    """

    items: int
    start: np.ndarray
    item: np.ndarray
    test: np.ndarray

    @property
    def users(self) -> int:
        """Number of users."""
        return len(self.test)

    def user(self) -> np.ndarray:
        """The user of each training interaction, int32 (n,)."""
        return np.repeat(np.arange(self.users, dtype=np.int32), np.diff(self.start))

    def popularity(self) -> np.ndarray:
        """Training interactions of each item, int64 (`items`,)."""
        return np.bincount(self.item, minlength=self.items)

    def seen(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places (row, item) of the training items of `users` (R,): int64 (n,) each, `row` counting in `users`."""
        counts = self.start[users + 1] - self.start[users]
        row = np.repeat(np.arange(len(users)), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return row, self.item[np.repeat(self.start[users], counts) + within].astype(np.int64)


def interactions(user: np.ndarray, item: np.ndarray, test: np.ndarray, *, items: int) -> Interactions:
    """Training pairs (`user`, `item`) (n,) and held-out items `test` (U,) as `Interactions`; pairs may repeat."""
    pair = np.unique(np.asarray(user, np.int64) * items + item)
    start = np.searchsorted(pair, np.arange(len(test) + 1) * items)
    return Interactions(items, start.astype(np.int64), (pair % items).astype(np.int32), test.astype(np.int32))


def leave_one_out(
    user: np.ndarray, item: np.ndarray, *, users: int, items: int, seed: int, time: np.ndarray | None = None
) -> Interactions:
    """Hold out one item of every user who has two or more: the latest by `time` (n,), or one drawn from `seed`.

    An item that a user had to do with more than once counts at its latest time, so the order of the rows changes
    nothing. Of an item that would be left without any training interaction one stays: a recommender could not know it.

    Errors: `UserError` when no user has two items.
    """
    pair, which = np.unique(np.asarray(user, np.int64) * items + item, return_inverse=True)
    user, item = pair // items, pair % items
    order = np.random.default_rng(seed).random(len(pair))
    if time is not None:
        order = np.full(len(pair), -np.inf)
        np.maximum.at(order, which, np.asarray(time, np.float64))
    by_user = np.lexsort((order, user))
    counts = np.bincount(user, minlength=users)
    last = by_user[np.cumsum(counts)[counts >= 2] - 1]
    held = np.zeros(len(pair), bool)
    held[last] = True
    kept = np.bincount(item[~held], minlength=items)
    orphans = np.flatnonzero(held & (kept[item] == 0))
    held[orphans[np.unique(item[orphans], return_index=True)[1]]] = False
    if not held.any():
        raise UserError("no user has two items of which others have one too; nothing can be held out to be found again")
    test = np.full(users, -1, np.int32)
    test[user[held]] = item[held]
    return interactions(user[~held], item[~held], test, items=items)


def read_feedback(root: Path, items: int, *, seed: int) -> Interactions:
    """Feedback of the original layout in `root`: `trainingset.tsv` and `testset.tsv` (one item a user), or `pos.txt`,
    of which one item a user is held out. Lines are `user<TAB>item`, `[<TAB>rating[<TAB>timestamp]]`, ids from 0.

    Errors: `UserError` naming file and line of an id that is none or out of range, of a second test item of a user and
    of one that is among the user's training items, and a user without feedback.
    """
    if (root / POSITIVES).is_file():
        user, item, time = read_pairs(root / POSITIVES, items)
        users = _numbered(root / POSITIVES, user)
        return leave_one_out(user, item, users=users, items=items, seed=seed, time=time)
    if not (root / TRAINING).is_file() or not (root / TEST).is_file():
        raise UserError(f"{root}: no {POSITIVES}, nor {TRAINING} with {TEST}; expected the feedback in either")
    user, item, _ = read_pairs(root / TRAINING, items)
    test_user, test_item, _ = read_pairs(root / TEST, items)
    users = _numbered(root / TRAINING, user)
    test = np.full(users, -1, np.int32)

    def refuse(rows: np.ndarray, reason: str) -> None:
        if len(rows):
            about = {"user": test_user[rows[0]], "item": test_item[rows[0]]}
            raise UserError(f"{root / TEST}:{rows[0] + 1}: {reason.format(**about)}")

    refuse(np.flatnonzero(test_user >= users), f"user {{user}} has no line in {TRAINING}; add some")
    _, first = np.unique(test_user, return_index=True)
    second = np.setdiff1d(np.arange(len(test_user)), first)
    refuse(second, "two lines of one user, {user}; expected one item held out for each")
    # What a user has is never recommended, so it could never be found again.
    known = np.isin(test_user * items + test_item, user * items + item)
    refuse(np.flatnonzero(known), f"item {{item}} of user {{user}} is in {TRAINING} too; take it out of either")
    test[test_user] = test_item
    return interactions(user, item, test, items=items)


def read_pairs(path: Path, items: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """User int64 (n,), item int64 (n,), time float64 (n,) or None of lines
    `user<TAB>item[<TAB>rating[<TAB>timestamp]]`.

    Errors: `UserError` naming file and line.
    """
    columns = _columns(path, separator="\t", names=("user", "item", "rating", "timestamp"))
    ids = [_whole(path, columns[name], name) for name in ("user", "item")]
    out = np.flatnonzero(ids[1] >= items)
    if len(out):
        raise UserError(f"{path}:{out[0] + 1}: item {ids[1][out[0]]}; there are images of 0 to {items - 1}")
    return *ids, _times(path, columns.get("timestamp"), first_line=1)


def read_named(path: Path, names: Sequence[str], *, seed: int) -> Interactions:
    """Feedback in a CSV with a header that has `user` and `item`, and `timestamp` if wanted; users have any ids, items
    are among `names`, the images' (with their endings, or without where that names one image).

    Ids are text, byte by byte as in the file; bytes that are no UTF-8 as in names of files.

    Errors: `UserError` naming file and line of an item without an image or with two, and of a line without a user.
    """
    import pandas as pd

    columns = _columns(path, separator=",")
    for name in ("user", "item"):
        if name not in columns:
            raise UserError(
                f"{path}: no column {name!r}; its first line is {','.join(columns)[:80]!r}, expected user,item or"
                " user,item,timestamp"
            )
    nobody = np.flatnonzero((columns["user"].str.strip() == "").to_numpy())
    if len(nobody):
        raise UserError(f"{path}:{nobody[0] + 2}: names no user; correct or remove the line")
    item = _rows_of(columns["item"], names)
    for rows, reason in ((item == _ABSENT, "has no image"), (item == _AMBIGUOUS, "is the name of two images")):
        if rows.any():
            row = int(rows.argmax())
            remedy = "; write the ending too" if item[row] == _AMBIGUOUS else ""
            raise UserError(f"{path}:{row + 2}: item {columns['item'].iloc[row]!r} {reason}{remedy}")
    user, ids = pd.factorize(columns["user"], sort=True)
    time = _times(path, columns.get("timestamp"), first_line=2)
    return leave_one_out(user, item, users=len(ids), items=len(names), seed=seed, time=time)


def _rows_of(item, names: Sequence[str]) -> np.ndarray:
    """Index of each of a column of items in `names`, or a code for what it is instead: int64 (n,)."""
    place: dict[str, int] = {}
    # Whole names come last, so that they win over another image's name without its ending.
    for spelt in ([Path(name).stem for name in names], names):
        found: dict[str, int] = {}
        for row, name in enumerate(spelt):
            found[name] = _AMBIGUOUS if name in found else row
        place |= found
    return item.map(place).fillna(_ABSENT).to_numpy(np.int64)


def _columns(path: Path, *, separator: str, names: Sequence[str] | None = None) -> "dict[str, pd.Series]":
    """The columns of a table as text, by name: those of its first line, or `names` where that has none.

    Errors: `UserError` for a file that is missing, empty or no such table, and naming a line with more fields than the
    first, unless they are empty.
    """
    import pandas as pd

    header = int(names is None)
    try:
        with open(path, "rb") as file:
            check_text(file.read(4), str(path))
            # Where a field holds a NUL, pandas would end it there.
            file.seek(0)
            if any(b"\0" in block for block in iter(lambda: file.read(2**20), b"")):
                raise UserError(f"{path}: holds NUL bytes; expected lines of text")
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            first = next(csv.reader(file, delimiter=separator), [])
        if names is None:
            names = [name.strip() for name in first]
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                path,
                sep=separator,
                header=None,
                # One more, for values after the last column: pandas would drop them silently.
                names=range(max(len(names), len(first)) + 1),
                dtype=object,
                keep_default_na=False,
                encoding_errors="surrogateescape",
                skip_blank_lines=False,
                index_col=False,
                on_bad_lines="error",
            )
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError, csv.Error, pd.errors.ParserError, pd.errors.ParserWarning) as error:
        reason = "its first line has too many fields" if isinstance(error, Warning) else one_line(error)
        raise UserError(f"{path}: not readable as a table ({reason})") from error
    table = table.iloc[header:].fillna("")
    if not len(table):
        raise UserError(f"{path}: is empty; expected a line for each interaction")
    if header:
        rest = table[len(names)]
        more = np.flatnonzero(((rest != "") & (rest.str.strip() != "")).to_numpy())
        if len(more):
            raise UserError(
                f"{path}:{more[0] + 2}: {rest.iloc[more[0]]!r} comes after the last column, {names[-1]}; name all"
                " columns, and write decimal points"
            )
    return {name: table[number] for number, name in reversed(list(enumerate(names)))}


def _whole(path: Path, column: "pd.Series", name: str) -> np.ndarray:
    """A column of ids from 0 in a file without a header, int64 (n,)."""
    import pandas as pd

    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    bad = np.flatnonzero(~(values >= 0) | (values != np.rint(values)) | (values >= 2**31))
    if len(bad):
        found = column.iloc[bad[0]]
        raise UserError(
            f"{path}:{bad[0] + 1}: {name} {found!r}; expected a whole number from 0, lines are user<TAB>item"
        )
    return values.astype(np.int64)


def _times(path: Path, column: "pd.Series | None", *, first_line: int) -> np.ndarray | None:
    """A column of times, float64 (n,); None for none, and where it never changes and says nothing of what came last."""
    import pandas as pd

    if column is None:
        return None
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    given = (column != "").to_numpy() & column.notna().to_numpy()
    bad = np.flatnonzero(given & ~np.isfinite(values))
    if len(bad):
        raise UserError(f"{path}:{bad[0] + first_line}: timestamp {column.iloc[bad[0]]!r}; expected a number")
    times = np.where(given, values, _NO_TIME)
    return times if np.ptp(times) > 0 else None


def _numbered(path: Path, user: np.ndarray) -> int:
    """The number of users, all of whom must occur."""
    users = int(user.max()) + 1
    absent = np.flatnonzero(np.bincount(user, minlength=users) == 0)
    if len(absent):
        raise UserError(
            f"{path}: user {absent[0]} has no line, but user {users - 1} has; number users from 0 without gaps"
        )
    return users


# How far tastes reach in log-odds: of all users in common and of each user, for an item's category (the first trait)
# and for each of its further traits; and how unequal items of the same traits are.
COMMON, OWN, FURTHER, TAIL = 0.9, 1.3, 0.8, 0.9
# Interactions of a user: at least these, and on average so many more.
LEAST, MORE = 5, 9


def simulated(traits: Sequence[np.ndarray], users: int, *, seed: int) -> Interactions:
    """Feedback of `users` on items with `traits`, int (N,) each, the category first; one item a user held out, drawn.

    A user takes items one after another, each with odds exp(taste for its traits + its popularity), never one twice.
    """
    rng = np.random.default_rng([seed, 0x5409])
    items = len(traits[0])
    utility = np.repeat(TAIL * rng.standard_normal((1, items)), users, axis=0)
    for place, trait in enumerate(traits):
        values = int(trait.max()) + 1
        taste = (OWN if place == 0 else FURTHER) * rng.standard_normal((users, values))
        if place == 0:
            # Evenly spread and shuffled: no category is much like another by chance.
            taste += COMMON * rng.permutation(np.linspace(-1.7, 1.7, values))
        utility += taste[:, trait]
    # The largest of utility + Gumbel noise are draws without replacement by those odds.
    utility += rng.gumbel(size=utility.shape)
    counts = np.minimum(LEAST + rng.geometric(1 / (1 + MORE), users) - 1, items - 1)
    ranked = np.argsort(-utility, axis=1)
    user = np.repeat(np.arange(users), counts)
    item = np.concatenate([line[:count] for line, count in zip(ranked, counts, strict=True)])
    return leave_one_out(user, item, users=users, items=items, seed=seed)
