"""Questions to a verifier: are these two drivers one and the same, on these days?"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import UserError, one_line
from common.files import check_text
from mobility_humid.data.layout import Layout
from mobility_humid.data.trips import KINDS, PROFILE_FEATURES, TripSet, padded

DATES = ("first_from", "first_to", "second_from", "second_to")
COLUMNS = ("first", "second", *DATES)
Span = tuple[str, str]
"""First and last day, ISO dates; empty for no limit."""
_ALWAYS = ("", "")


class Question(NamedTuple):
    """Are the drivers `first` and `second` one? Only their trips on those days count, days in between included; of a
    driver asked about twice without any, the earlier half of the days is compared with the later."""

    first: str
    second: str
    first_days: Span = _ALWAYS
    second_days: Span = _ALWAYS


def read_questions(path: Path | str) -> list[Question]:
    """The questions in a CSV file with a header: columns first and second, the drivers' names, and optional ISO dates
    first_from, first_to, second_from and second_to.

    Errors: `UserError` naming file and line for columns that are missing or unknown, an empty name, and no date.
    """
    raw = Path(path).read_bytes()
    check_text(raw[:4], str(path))
    try:
        reader = csv.DictReader(io.StringIO(raw.decode("utf-8-sig"), newline=""), skipinitialspace=True)
        names = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = names
        rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: is no CSV file in UTF-8 ({one_line(error, 80)})") from error
    if missing := [name for name in COLUMNS[:2] if name not in names]:
        raise UserError(f"{path}: no column {missing[0]!r}; expected first and second, the names of two drivers")
    if unknown := [name for name in names if name not in COLUMNS]:
        raise UserError(f"{path}: unknown column {unknown[0]!r}; expected some of {', '.join(COLUMNS)}")
    found = [_question(path, line, row) for line, row in enumerate(rows, 2)]
    if not found:
        raise UserError(f"{path}: asks nothing; expected a line for each pair of drivers")
    return found


def _question(path: Path | str, line: int, row: dict[str, str | None]) -> Question:
    value = {name: (row.get(name) or "").strip() for name in COLUMNS}
    if None in row or not (value["first"] and value["second"]):
        raise UserError(f"{path}: line {line}: expected the names of two drivers, in as many fields as the header has")
    for name in DATES:
        if value[name]:
            try:
                np.datetime64(value[name], "D")
            except ValueError:
                raise UserError(
                    f"{path}: line {line}: {name} is {value[name]!r}; expected a date such as 2026-11-28"
                ) from None
    return Question(
        value["first"],
        value["second"],
        (value["first_from"], value["first_to"]),
        (value["second_from"], value["second_to"]),
    )


def later_against_earlier(trips: TripSet, count: int) -> list[Question]:
    """Each of the first `count` drivers' later half of the days against everyone's earlier half."""
    early, late = _halves(trips)
    names = trips.drivers[:count]
    return [Question(first, second, early, late) for second in names for first in names]


def _halves(trips: TripSet) -> tuple[Span, Span]:
    if len(trips.days) < 2:
        raise UserError(f"trips of {trips.days[0]} alone; a driver is compared with herself on two days or more")
    middle = len(trips.days) // 2
    return ("", trips.days[middle - 1]), (trips.days[middle], "")


def draw_sides(
    trips: TripSet, questions: Sequence[Question], layout: Layout, draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of each question `draws` samples of both drivers' trips: their numbers, int32 (n * draws, 2, kinds, per_kind), in
    order of time, -1 for none, and profiles float32 (n * draws, 2, 11), means over the days, with gaps.

    Errors: `UserError` for a driver who is not there, or has no such trip on those days.
    """
    number = {name: place for place, name in enumerate(trips.drivers)}
    ends = np.searchsorted(trips.driver, np.arange(len(trips.drivers) + 1))
    days, rng = np.array(trips.days), np.random.default_rng([seed, 0x1D])
    drawn = np.full((len(questions) * draws, 2, len(layout.kinds), layout.per_kind), -1, np.int32)
    profiles = np.zeros((len(questions) * draws, 2, len(PROFILE_FEATURES)), np.float32)
    for place, question in enumerate(questions):
        rows = slice(place * draws, (place + 1) * draws)
        spans = [question.first_days, question.second_days]
        if question.first == question.second and spans == [_ALWAYS, _ALWAYS]:
            spans = _halves(trips)
        for side, (name, (begin, end)) in enumerate(zip(question[:2], spans, strict=True)):
            if name not in number:
                raise UserError(f"no driver {name!r} among the {len(number)} of these trips; expected one of them")
            meant = (days >= begin) & ((days <= end) if end else True)
            own = np.arange(ends[number[name]], ends[number[name] + 1])
            own = own[meant[trips.day[own]]]
            for column, kind in enumerate(layout.kinds):
                of_kind = own[trips.kind[own] == kind]
                if not len(of_kind):
                    when = f" from {begin or 'the first day'} to {end or 'the last'}" if begin or end else ""
                    raise UserError(f"driver {name!r} has no {KINDS[kind]} trips{when}; the model compares them")
                for row in range(rows.start, rows.stop):
                    size = min(len(of_kind), layout.per_kind)
                    drawn[row, side, column, :size] = np.sort(rng.choice(of_kind, size, replace=False))
            with np.errstate(invalid="ignore"):
                of_days = trips.profiles[number[name]][meant]
                there = np.isfinite(of_days)
                total = np.where(there, of_days, 0).sum(axis=0)
                profiles[rows, side] = np.where(there.any(axis=0), total / np.maximum(there.sum(axis=0), 1), np.nan)
    return drawn, profiles


def samples(
    trips: TripSet, drawn: np.ndarray, profiles: np.ndarray, layout: Layout, missing: Sequence[float]
) -> np.ndarray:
    """What was drawn, as a model takes it: float32 (n, rows, length, features); where a profile has a gap, `missing`
    (11,)."""
    table = padded(trips, layout.length, speed=layout.features > 3)
    own = np.where(np.isfinite(profiles), profiles, np.float32(missing)) if layout.profile else None
    return layout.assemble(table, layout.rows(drawn), own)
