"""What a line of GPS points says instead of what it should, so that a refusal names the true cause."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from common.errors import UserError

# Unix seconds from 1970 to 2100, and the earliest that a satellite's receiver may have told.
LATEST, EARLIEST = 4_102_444_800, 631_152_000

_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")
_SMALLER_UNITS = (("milliseconds", 1e3), ("microseconds", 1e6), ("nanoseconds", 1e9))
_SHOWN = 60


class Days(NamedTuple):
    """A way to write dates as numbers that might pass for seconds: those of our years lie from `low` to `high`, and
    count days, or, where they are `spelt`, spell a date."""

    low: float
    high: float
    spelt: bool = False

    def among(self, time: np.ndarray) -> np.ndarray:
        """Which of `time` (n,) are no seconds, bool (n,): in a file of such dates 0 is none either, but a blank."""
        return time < self.high


# The years 1970 to 2100: in days since 1900, as spreadsheets count, or since 1858 (modified Julian); in MATLAB's days;
# in Julian days; and spelt as 20130701. Read as seconds all of them lie in the year 1970.
_COUNTS = (
    Days(25_569, 88_070),
    Days(719_529, 767_011),
    Days(2_440_587, 2_488_070),
    Days(19_700_101, 21_001_232, spelt=True),
)
# Distinct times of a driver within a day, at the least; of seconds there are hardly two within one.
_DENSE = 3


def days_in(time: np.ndarray, driver: np.ndarray) -> Days | None:
    """How most of `time` (n,), numbers with their fractions or not a number, write dates; None for what may be seconds.
    `driver` int (n,) says whose they are."""
    known = np.isfinite(time)
    for days in _COUNTS:
        with np.errstate(invalid="ignore"):
            among = known & (time >= days.low) & (time < days.high)
        if among.any() and 2 * among.sum() >= known.sum():
            found = _spell_dates(time[among]) if days.spelt else _count_days(time[among], driver[among])
            if found:
                return days
    return None


def _spell_dates(time: np.ndarray) -> bool:
    month, day = time // 100 % 100, time % 100
    return bool(((time % 1 == 0) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)).all())


def _count_days(time: np.ndarray, driver: np.ndarray) -> bool:
    """Whether the fractions of `time` are hours and minutes: finer than a clock's, or many to a whole number."""

    def whole(values: np.ndarray) -> np.ndarray:
        return np.abs(values - np.rint(values)) < 1e-3

    if whole(10 * time).all():
        return False
    if whole(1000 * time).mean() <= 0.5:
        return True
    order = np.lexsort((time, driver))
    time, other = time[order], np.append(True, np.diff(driver[order]) != 0)
    moments, units = (np.sum(other | (np.diff(of, prepend=of[:1]) != 0)) for of in (time, np.floor(time)))
    return bool(moments >= _DENSE * units)


def carriage_returns(where: str) -> UserError:
    """The refusal of a file that has no line feed."""
    return UserError(
        f"{where}: its lines end in carriage returns alone, as on old Macs; convert them, such as by tr '\\r' '\\n'"
    )


def of_fields(fields: Sequence[str], width: int, separator: str) -> str:
    """What is wrong with a line that was cut into `fields`, but has not `width` of them."""
    if not fields:
        return "a line has an open quote or a carriage return inside"
    if len(fields) == width + 1 and not fields[-1].strip():
        return f"lines end in a {separator!r} that the first line has not; remove it"
    count = f"a line has {len(fields)} field{'s' * (len(fields) != 1)} where {width} are expected"
    if separator == "," and len(fields) > width:
        count += "; write decimal points and no decimal commas, and quote a text with a comma"
    return count


def of_value(reason: str, line: Mapping[str, Any], days: Days | None) -> str:
    """What is wrong with a `line`, field -> value, that is left out for `reason`; `days`: see `days_in`."""
    shown = {field: _text(value)[:_SHOWN] for field, value in line.items()}
    if reason == "number":
        field = next((field for field in ("lat", "lon") if not np.isfinite(_number(line[field]))), "lat")
        text = shown[field]
        comma = _DECIMAL_COMMA.fullmatch(text)
        return f"{field} {text!r} " + ("has a decimal comma; write a point" if comma else "is no number of degrees")
    if reason == "time":
        return f"time {shown['time']!r}{_of_time(shown['time'], days)}; expected Unix seconds or ISO times"
    if reason == "place":
        lat, lon = (_number(line[field]) for field in ("lat", "lon"))
        if abs(lon) <= 90 and abs(lat) <= 180:
            return f"lat {shown['lat']} is no latitude, but lon {shown['lon']} would be: exchange the two columns"
        return f"lat {shown['lat']}, lon {shown['lon']} are no degrees"
    if reason == "occupied":
        return f"occupied {shown['occupied']!r}; expected 0 or 1"
    return "no driver is named"


def _of_time(text: str, days: Days | None) -> str:
    number = _number(text)
    if days is not None and number < days.high:
        return " is a date without a time of day" if days.spelt else " counts days, as spreadsheets do"
    for unit, factor in _SMALLER_UNITS:
        if EARLIEST <= number / factor < LATEST:
            return f" counts {unit}"
    return " has a decimal comma" if _DECIMAL_COMMA.fullmatch(text) else ""


def _text(value: Any) -> str:
    """A value as a file has it, also where it was read as a number."""
    return np.format_float_positional(value, trim="-") if isinstance(value, float) else str(value).strip()


def _number(value: Any) -> float:
    """The number that a value is, not a number for none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")
