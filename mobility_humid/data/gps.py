"""GPS points from files: CSV, Parquet, or a folder or archive of one of the forms in `forms`; one driver at a time.

A driver's id is text, byte by byte as in the file: `007` is not `7`, and `1E5` is not `100000`.
Lines that cannot be used are left out and counted by reason, never fatal; a file without a single good line is refused.
But for cabspotting's, with a file a driver, points may come in any order: they pass through a temporary file, so memory
holds a block of the input, or one of 256 groups of drivers, and never the fleet.
"""

import bz2
import contextlib
import csv
import datetime
import gzip
import hashlib
import io
import itertools
import lzma
import math
import os
import re
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pandas as pd

from common import progress
from common.errors import UserError
from common.files import DAMAGE, check_text, sha256
from mobility_humid.data import forms, misreadings
from mobility_humid.data.forms import Form, Layout

COLUMNS = tuple(forms.NAMES)
FORMS = f"a .csv (or .csv.gz), a .parquet, or a folder, tar or zip of {', '.join(form.words for form in forms.FORMS)}"
# Why a line is left out: a field too many or too few, no number, no Unix or ISO time of this and the last century, no
# latitude and longitude, neither 0 nor 1, or no name.
MALFORMED = ("fields", "number", "time", "place", "occupied", "driver")
# Unix seconds from 1970 to 2100: what lies outside is no time, but milliseconds or a counter.
LATEST = misreadings.LATEST
# A file of many: a century of points, one a second, is smaller.
MAX_DRIVER_BYTES = 2**30

_BLOCK_BYTES = 8 * 2**20
_BATCH_ROWS = 2**17
_GROUPS = 256
_TAR = re.compile(r"\.(tar(\.\w+)?|tgz|tbz2?|txz)$")
_CSV = re.compile(r"\.(csv|txt)(\.(gz|xz|bz2))?$")
# A field in quotes that need not be there; between spaces a quote means nothing and makes the line a bad one.
_QUOTED = {
    separator: re.compile(rb'(^|%b)"([^"\r\n%b]*)"(?=%b|\r?$)' % ((separator.encode(),) * 3), re.MULTILINE)
    for separator in ",;\t"
} | {" ": re.compile(rb"(?!)()()")}
_RECORD = np.dtype([("driver", "i4"), ("time", "i8"), ("lat", "f8"), ("lon", "f8"), ("occupied", "i1")])
# What the modules that unpack raise on bytes that are damaged or end too soon.
_DAMAGE = (*DAMAGE, lzma.LZMAError, tarfile.TarError)


class Track(NamedTuple):
    """The points of one driver, in any order. n points.

    `time` int64 (n,), seconds since 1970 in UTC; `lat`, `lon` float64 (n,) in degrees; `occupied` bool (n,), a
    passenger is on board, or None for a fleet that does not say.
    """

    driver: str
    time: np.ndarray
    lat: np.ndarray
    lon: np.ndarray
    occupied: np.ndarray | None


class _Rows(NamedTuple):
    """Good points: `driver` int64 (n,) numbers into `names`, the rest as in `Track`; `occupied` int8."""

    driver: np.ndarray
    names: list[str]
    time: np.ndarray
    lat: np.ndarray
    lon: np.ndarray
    occupied: np.ndarray | None


class Reader:
    """The drivers in `source` as an iterable of `Track`s, to be gone through once.

    `columns`: names of the columns of CSV or Parquet files, where they differ from those that are known
    (`forms.NAMES`), or their numbers from 1 for CSV without a header; without `occupied` the tracks say nothing of
    passengers. Times are Unix seconds or ISO 8601 text; text without an offset is in `zone`, and
    the hour that a clock shows twice is taken for its first pass. Numbers that count days, as spreadsheets do, are no
    times. Ids keep bytes that are no UTF-8 as Python's file names do, by `surrogateescape`; blanks around one are no
    part of it. `spool`: the folder for the temporary file. `progress` is shown if it takes long.

    `counts`: good points, and the lines left out by reason; `sha256`: of the file's bytes, or of a folder's names and
    contents, taken as they are read. Both are complete once all drivers are through.

    Errors: `UserError` for a source that is missing, damaged, truncated, of another form or empty, for a file without
    a good line, saying what its lines look like, and for a missing column.
    """

    def __init__(
        self,
        source: Path | str,
        *,
        columns: Mapping[str, str] | None = None,
        zone: datetime.tzinfo = datetime.UTC,
        spool: Path | None = None,
        progress: bool = False,
    ) -> None:
        self.source, self.zone, self.spool, self.progress = Path(source), zone, spool, progress
        self.columns = dict(columns or {})
        if unknown := [name for name in self.columns if name not in COLUMNS]:
            raise UserError(f"--columns: no field {unknown[0]!r}; there are {', '.join(COLUMNS)}")
        self.name = self.source.name
        self.counts = Counter({"points": 0} | {f"malformed_{reason}": 0 for reason in MALFORMED})
        self.sha256 = ""
        # What was wrong with the first line of each reason, and the days that its numbers count where they are no
        # seconds: the last rows of a file are too few to show it by themselves.
        self._examples: dict[str, str] = {}
        self._days: misreadings.Days | None = None

    def __iter__(self) -> Iterator[Track]:
        name = self.source.name.lower()
        if self.source.is_dir():
            return self._tracks(self._folder())
        if not self.source.is_file():
            raise UserError(f"{self.source}: no such file or folder; expected {FORMS}")
        if _TAR.search(name):
            return self._tracks(self._tar())
        if name.endswith(".zip"):
            return self._tracks(self._zip())
        if name.endswith((".parquet", ".pq")):
            return self._spooled(self._parquet())
        if name.endswith(".gpx") or (not self.columns and forms.form_of([self.source.name]) is forms.CABSPOTTING):
            return self._tracks(self._single())
        if _CSV.search(name):
            return self._spooled(self._csv())
        raise UserError(f"{self.source}: of a form that is not read; expected {FORMS}")

    def _tracks(self, files: Iterator["_File"]) -> Iterator[Track]:
        """The drivers of files of one form: of cabspotting's one each, of others by way of the temporary file."""
        first = next(files)
        files = itertools.chain([first], files)
        if first.form is forms.CABSPOTTING:
            return self._one_of_each(map(self._cab, files))
        return self._spooled(itertools.chain.from_iterable(map(self._rows, files)))

    def _form(self, paths: Sequence[str]) -> tuple[Form, int]:
        """The form of the files at `paths`, and how many folders they have in common."""
        form = forms.TABLES if self.columns else forms.form_of(paths)
        paths = [path for path in paths if form is not None and forms.belongs(form, path)]
        if not paths:
            raise UserError(
                f"{self.source}: holds no {forms.TABLES.words if self.columns else 'file to read'}; expected {FORMS}"
            )
        return form, forms.depth_of(paths)

    def _single(self) -> Iterator["_File"]:
        content = self._content(self.source)
        self.sha256 = hashlib.sha256(content).hexdigest()
        form, apart = self._form([self.source.name])
        yield _File(form, form.driver(self.source.name, apart), content, str(self.source))

    def _content(self, path: Path) -> bytes:
        if path.stat().st_size > MAX_DRIVER_BYTES:
            raise _too_large(str(path), path.stat().st_size)
        try:
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error

    def _folder(self) -> Iterator["_File"]:
        digest = hashlib.sha256()
        found = {path.relative_to(self.source).as_posix(): path for path in self.source.rglob("*") if path.is_file()}
        form, apart = self._form(list(found))
        paths = sorted(path for path in found if forms.belongs(form, path))
        for path in progress.track(paths, f"reading {self.name}", units="files", shown=self.progress):
            content = self._content(found[path])
            digest.update(os.fsencode(path) + f"\0{hashlib.sha256(content).hexdigest()}\n".encode())
            yield _File(form, form.driver(path, apart), content, str(found[path]))
        self.sha256 = digest.hexdigest()

    def _tar(self) -> Iterator["_File"]:
        form, apart = self._form_of_tar()
        with self._unpacked() as stream, tarfile.open(fileobj=stream, mode="r|", bufsize=2**17) as archive:
            for member in archive:
                # Nothing is written, so a name cannot leave any folder; links are no files and are passed over.
                if not member.isfile() or not forms.belongs(form, member.name):
                    continue
                where = f"{self.source}[{member.name}]"
                if member.size > MAX_DRIVER_BYTES:
                    raise _too_large(where, member.size)
                yield _File(form, form.driver(member.name, apart), archive.extractfile(member).read(), where)
            while stream.read(2**20):
                pass
            # A tar ends in empty blocks; one cut off between two files shows it by nothing else.
            if stream.last.strip(b"\0"):
                raise tarfile.ReadError("no end mark")

    def _form_of_tar(self) -> tuple[Form, int]:
        """By the names in it: the first file of cabspotting's says all, for others all are gone through."""
        names = []
        with self._unpacked() as stream, tarfile.open(fileobj=stream, mode="r|", bufsize=2**17) as archive:
            for member in archive:
                if member.isfile():
                    names.append(member.name)
                    if not self.columns and forms.belongs(forms.CABSPOTTING, member.name):
                        return forms.CABSPOTTING, 0
        return self._form(names)

    def _zip(self) -> Iterator["_File"]:
        try:
            with zipfile.ZipFile(self.source) as archive:
                members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
                form, apart = self._form(list(members))
                paths = [path for path in members if forms.belongs(form, path)]
                for path in progress.track(paths, f"reading {self.name}", units="files", shown=self.progress):
                    where, info = f"{self.source}[{path}]", members[path]
                    if info.file_size > MAX_DRIVER_BYTES:
                        raise _too_large(where, info.file_size)
                    if info.flag_bits & 1:
                        raise UserError(f"{where}: is encrypted; unpack it")
                    yield _File(form, form.driver(path, apart), archive.read(info), where)
        except _DAMAGE as error:
            raise self._damaged(error) from error
        self.sha256 = sha256(self.source)

    def _csv(self) -> Iterator[_Rows]:
        with self._unpacked() as stream:
            yield from self._table(stream, str(self.source))

    def _table(self, stream: IO[bytes], where: str, driver: str | None = None) -> Iterator[_Rows]:
        """The rows of a table, of one `driver` where it has no column for that."""
        start = stream.readline(_BLOCK_BYTES)
        check_text(start, where)
        header = start.decode("utf-8-sig", "surrogateescape").rstrip("\r\n")
        if "\r" in header:
            raise misreadings.carriage_returns(where)
        separator = max(",;\t", key=header.count)
        if separator not in header and " " in header.strip():
            separator = " "
        names = [name.strip() for name in next(csv.reader([header], delimiter=separator), [])]
        place = forms.places_in(self.columns, len(names), where)
        before = b"" if place is None else start
        lower = [name.lower() for name in names]
        trips = place is None and forms.POLYLINE in lower
        if trips:
            others = {name: lower.index(name) for name in (forms.POLYLINE, forms.MISSING) if name in lower}
            place = self._named(names, where, missing=("lat", "lon", "occupied"))
            place = {field: names.index(name) for field, name in place.items()} | others
        elif place is None:
            place = self._named(names, where, missing=("occupied",) if driver is None else ("occupied", "driver"))
            place = {field: names.index(name) for field, name in place.items()}
        layout, first = Layout(separator, len(names), place), True
        while block := before + stream.read(_BLOCK_BYTES):
            before = b""
            block += stream.readline(_BLOCK_BYTES)
            if trips:
                yield self._checked(self._left_out(*forms.polylines(block, separator, place, len(names)), layout))
                continue
            if first:
                layout = layout._replace(text_time=_is_text_time(block, layout))
                first = False
            yield _of_one(self._parsed(block, layout), driver)

    def _rows(self, file: "_File") -> Iterator[_Rows]:
        """The rows of one of many files, of whichever form but cabspotting's."""
        content = forms.without_head(file.content, file.form.head)
        if file.form is forms.TABLES:
            yield from self._table(io.BytesIO(content), file.where, file.driver)
        elif file.form is forms.GPX:
            yield _of_one(self._checked(forms.gpx_points(content, file.where)), file.driver)
        elif content.strip():
            yield _of_one(self._parsed(content, file.form.layout), file.driver)

    def _parquet(self) -> Iterator[_Rows]:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise UserError(
                f"{self.source}: reading Parquet needs pyarrow; pip install pyarrow, or bring a CSV"
            ) from None
        try:
            with pq.ParquetFile(self.source) as file:
                named = self._named(file.schema_arrow.names, str(self.source))
                with self._bar(file.metadata.num_rows, "rows") as bar:
                    for batch in file.iter_batches(_BATCH_ROWS, columns=list(named.values())):
                        columns = {field: batch.column(name) for field, name in named.items()}
                        ids = _ids(columns.pop("driver"), f"{self.source}[{named['driver']}]")
                        yield self._checked({field: column.to_pandas() for field, column in columns.items()} | ids)
                        bar.add(len(batch))
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.source}: not a readable Parquet file ({reason}); get it again") from error
        self.sha256 = sha256(self.source)

    def _named(self, names: list[str], where: str, missing: Sequence[str] = ("occupied",)) -> dict[str, str]:
        """Field -> column for the fields that `names` have; those `missing` may be, unless they are asked for."""
        lower, named = [name.lower() for name in names], {}
        for field in COLUMNS:
            known = [self.columns[field]] if field in self.columns else forms.NAMES[field]
            found = next((name for name in known if name in names), None)
            if found is None and field not in self.columns:
                found = next((names[lower.index(name)] for name in known if name in lower), None)
            if found is not None:
                named[field] = found
            elif field in self.columns or field not in missing:
                shown = ", ".join([*names[:12], "..."] if len(names) > 12 else names) or "none"
                remedy = f"name the column with --columns {field}=..."
                if any(_is_number(name) for name in names):
                    remedy = "its first line is no header: give numbers, as in --columns driver=1,time=2,lon=3,lat=4"
                raise UserError(f"{where}: no column {known[0]!r}; there are {shown}; {remedy}")
        return named

    def _spooled(self, blocks: Iterator[_Rows]) -> Iterator[Track]:
        """The rows of `blocks` by driver, by way of a temporary file in which groups of drivers lie together."""
        numbers: dict[str, int] = {}
        sizes, typed = [], False
        with tempfile.TemporaryFile(dir=self.spool) as file:
            for rows in blocks:
                number = np.zeros(len(rows.names), np.int32)
                for i in np.flatnonzero(np.bincount(rows.driver, minlength=len(number))):
                    number[i] = numbers.setdefault(rows.names[i], len(numbers))
                records = np.zeros(len(rows.time), _RECORD)
                records["driver"] = number[rows.driver]
                records["time"], records["lat"], records["lon"] = rows.time, rows.lat, rows.lon
                if rows.occupied is not None:
                    typed, records["occupied"] = True, rows.occupied
                group = records["driver"] % _GROUPS
                file.write(records[np.argsort(group, kind="stable")].tobytes())
                sizes.append(np.bincount(group, minlength=_GROUPS))
            if not numbers:
                raise self._nothing(str(self.source), self.counts)
            names = list(numbers)
            counts = np.array(sizes)
            ends = np.cumsum(counts.ravel()).reshape(counts.shape)
            groups = range(min(_GROUPS, len(names)))
            for group in progress.track(groups, "sorting by driver", units="groups", shown=self.progress):
                parts = []
                for count, end in zip(counts[:, group], ends[:, group], strict=True):
                    file.seek(int(end - count) * _RECORD.itemsize)
                    parts.append(np.frombuffer(file.read(int(count) * _RECORD.itemsize), _RECORD))
                records = np.concatenate(parts)
                del parts
                order = np.argsort(records["driver"], kind="stable")
                cuts = np.flatnonzero(np.diff(records["driver"][order])) + 1
                for rows in np.split(order, cuts):
                    own = records[rows]
                    occupied = own["occupied"].astype(bool) if typed else None
                    yield Track(names[own["driver"][0]], own["time"], own["lat"], own["lon"], occupied)

    def _one_of_each(self, tracks: Iterator[Track]) -> Iterator[Track]:
        seen = set()
        for track in tracks:
            if track.driver in seen:
                raise UserError(f"{self.source}: new_{track.driver}.txt occurs twice; pack the folder again")
            seen.add(track.driver)
            yield track

    def _cab(self, file: "_File") -> Track:
        before = self.counts.copy()
        # What one file holds says nothing about the next.
        self._examples, self._days = {}, None
        rows = self._parsed(file.content, file.form.layout)
        if not len(rows.time):
            if b"\r" in file.content.strip() and b"\n" not in file.content:
                raise misreadings.carriage_returns(file.where)
            check_text(file.content, file.where)
            raise self._nothing(file.where, self.counts - before, file.form)
        return Track(file.driver, rows.time, rows.lat, rows.lon, rows.occupied.astype(bool))

    def _nothing(self, where: str, counts: Counter[str], form: Form | None = None) -> UserError:
        found = {key.removeprefix("malformed_"): n for key, n in counts.items() if n}
        reasons = ", ".join(f"{n} lines with a bad {reason}" for reason, n in found.items())
        # The commonest fault is that of the file, others are those of a line.
        cause = self._examples.get(max(found, key=found.__getitem__), "") if found else ""
        if form is forms.CABSPOTTING:
            cause += f"{'; ' if cause else ''}expected `lat lon occupied unixtime`, or remove the file"
        return UserError(
            f"{where}: holds no good line ({reasons or 'it is empty'}); {cause or 'expected a line for each point'}"
        )

    def _parsed(self, block: bytes, layout: Layout) -> _Rows:
        fields = _fast(block, layout)
        if fields is None:
            fields = self._left_out(*_careful(block, layout), layout)
        if "days" in fields:
            fields["time"] = forms.seconds_of_days(fields.pop("days"))
        return self._checked(fields)

    def _left_out(self, fields: dict[str, pd.Series], wrong: list[list[str]], layout: Layout) -> dict[str, pd.Series]:
        """`fields`, after the lines that are `wrong` were counted."""
        self.counts["malformed_fields"] += len(wrong)
        if wrong:
            self._examples.setdefault("fields", misreadings.of_fields(wrong[0], layout.width, layout.separator))
        return fields

    def _checked(self, fields: Mapping[str, pd.Series]) -> _Rows:
        """Numbers for what `fields` say, without the rows that do not say it."""
        time = self._seconds(fields["time"])
        lat, lon = (
            pd.to_numeric(fields[name], errors="coerce").to_numpy(float, na_value=np.nan) for name in ("lat", "lon")
        )
        occupied = names = None
        driver = np.zeros(len(time), np.int64)
        if "driver" in fields:
            driver, names = _numbered(fields["driver"])
        self._days = self._days or misreadings.days_in(time, driver)
        with np.errstate(invalid="ignore"):
            bad = {
                "number": ~(np.isfinite(lat) & np.isfinite(lon)),
                "time": ~((time >= 0) & (time < LATEST)),
                "place": ~((np.abs(lat) <= 90) & (np.abs(lon) <= 180)),
            }
            if self._days is not None:
                bad["time"] |= self._days.among(time)
            time = np.floor(time)
        if "occupied" in fields:
            occupied = _states(fields["occupied"])
            bad["occupied"] = occupied < 0
        if "driver" in fields:
            bad["driver"] = driver < 0
        good = np.ones(len(time), bool)
        for reason, rows in bad.items():
            # A line is counted once, for the first thing that is wrong with it.
            own = np.flatnonzero(good & rows)
            if len(own) and reason not in self._examples:
                line = {field: values.iloc[own[0]] for field, values in fields.items()}
                self._examples[reason] = misreadings.of_value(reason, line, self._days)
            self.counts[f"malformed_{reason}"] += len(own)
            good[own] = False
        self.counts["points"] += int(good.sum())
        if good.all():
            good = slice(None)
        kept = None if occupied is None else occupied[good]
        return _Rows(driver[good], names or [], time[good].astype(np.int64), lat[good], lon[good], kept)

    def _seconds(self, values: pd.Series) -> np.ndarray:
        """Unix seconds with their fractions, float64, not a number for what is no time."""
        if not pd.api.types.is_datetime64_any_dtype(values.dtype):
            seconds = pd.to_numeric(values, errors="coerce").to_numpy(float, na_value=np.nan, copy=True)
            if (text := np.isnan(seconds)).any() and not pd.api.types.is_numeric_dtype(values.dtype):
                seconds[text] = self._seconds(_dates(values[text], self._localised))
            return seconds
        if values.dt.tz is None:
            values = self._localised(values)
        seconds = values.dt.as_unit("s").astype("int64").to_numpy(float)
        return np.where(values.isna(), np.nan, seconds)

    def _localised(self, values: pd.Series) -> pd.Series:
        first_pass = np.ones(len(values), bool)
        local = values.dt.tz_localize(self.zone, ambiguous=first_pass, nonexistent="shift_forward")
        return local.dt.tz_convert("UTC")

    def _bar(self, total: int, units: str) -> progress.Progress:
        return progress.Progress(total, f"reading {self.name}", units=units, shown=self.progress)

    @contextlib.contextmanager
    def _unpacked(self) -> "Iterator[_Stream]":
        """The file's bytes, unpacked where they are packed and hashed on their way in."""
        try:
            size = math.ceil(self.source.stat().st_size / 1e6)
            with open(self.source, "rb") as raw, self._bar(size, "MB") as bar:
                hashing = _Hashing(raw, lambda taken: bar.update(math.ceil(taken / 1e6)))
                with _Stream(hashing) as stream:
                    yield stream
                    while hashing.read(2**20):
                        pass
                self.sha256 = hashing.digest.hexdigest()
        except _DAMAGE as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> UserError:
        reason = " ".join(str(error).split()) or type(error).__name__
        return UserError(f"{self.source}: cannot be read to its end ({reason}); it may be truncated, get it again")


class _File(NamedTuple):
    """One file of many: of which `form`, whose points, its bytes, and its name in messages."""

    form: Form
    driver: str | None
    content: bytes
    where: str


def _too_large(where: str, size: int) -> UserError:
    return UserError(f"{where}: {size} bytes are too many for one driver; split the file")


def _of_one(rows: _Rows, driver: str | None) -> _Rows:
    """`rows`, of `driver` where they say of nobody."""
    return rows if rows.names or driver is None else rows._replace(names=[driver])


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


class _Hashing(io.RawIOBase):
    """A file that takes the SHA-256 of what is read from it, once and from front to back; `show` is told how many bytes
    that are."""

    def __init__(self, raw: IO[bytes], show: Callable[[int], None]) -> None:
        self._raw, self._show, self.digest = raw, show, hashlib.sha256()
        self.head = raw.read(6)
        raw.seek(0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._raw.readinto(buffer)
        self.digest.update(memoryview(buffer)[:count])
        self._show(self._raw.tell())
        return count


class _Stream(io.BufferedReader):
    """The unpacked bytes of a file; `last` is the end of what was read."""

    def __init__(self, hashing: _Hashing) -> None:
        buffered = io.BufferedReader(hashing, 2**18)
        unpackers = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open))
        unpack = next((unpack for magic, unpack in unpackers if hashing.head.startswith(magic)), None)
        super().__init__(unpack(buffered, "rb") if unpack else buffered, 2**18)
        self.last = b""

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.last = data[-512:] or self.last
        return data


def _fast(block: bytes, layout: Layout) -> dict[str, pd.Series] | None:
    """The fields of a block by pandas' parser, or None where it might see less, or more, than the careful one."""
    lines = block.count(b"\n") + (not block.endswith(b"\n"))
    # Where a field holds one, pandas would end it there.
    if b"\0" in block:
        return None
    if b'"' in block:
        block = _QUOTED[layout.separator].sub(rb"\1\2", block)
        if b'"' in block:
            return None
    if block.count(layout.separator.encode()) != (layout.width - 1) * lines:
        return None
    # Objects, since pandas reads categories, too, as numbers where it can: `007` and `7` would be one driver.
    kinds: dict[str, Any] = {"driver": object, "occupied": object, "time": object if layout.text_time else float}
    try:
        frame = pd.read_csv(
            io.BytesIO(block),
            sep=layout.separator,
            header=None,
            names=range(layout.width),
            usecols=sorted(set(layout.place.values())),
            dtype={place: kinds.get(field, float) for field, place in layout.place.items()},
            index_col=False,
            quoting=csv.QUOTE_NONE,
            keep_default_na=False,
            encoding_errors="surrogateescape",
            engine="c",
            low_memory=False,
        )
    except (ValueError, OverflowError):
        return None
    if len(frame) != lines or not np.isfinite(frame.select_dtypes("number").to_numpy()).all():
        return None
    return {field: frame[place] for field, place in layout.place.items()}


def _careful(block: bytes, layout: Layout) -> tuple[dict[str, pd.Series], list[list[str]]]:
    """The fields of a block as text, line by line, and those of the lines that have too few or too many of them."""
    rows = [_split(line, layout) for line in block.decode("utf-8", "surrogateescape").split("\n") if line.strip()]
    good = [row for row in rows if len(row) == layout.width]
    fields = {field: pd.Series([row[place] for row in good], dtype=object) for field, place in layout.place.items()}
    return fields, [row for row in rows if len(row) != layout.width]


def _split(line: str, layout: Layout) -> list[str]:
    if layout.separator == " ":
        return line.split()
    try:
        return next(csv.reader([line.rstrip("\r")], delimiter=layout.separator))
    except csv.Error:
        return []


def _is_text_time(block: bytes, layout: Layout) -> bool:
    """Whether no time among the first lines is a number."""
    fields, _ = _careful(b"\n".join(block.split(b"\n", 1000)[:1000]), layout)
    return not pd.to_numeric(fields["time"], errors="coerce").notna().any()


def _dates(text: pd.Series, localised: Callable[[pd.Series], pd.Series]) -> pd.Series:
    """ISO 8601 text as dates, with a zone or without one as they all are; where they differ, all in UTC."""
    with contextlib.suppress(ValueError):
        return pd.to_datetime(text, format="ISO8601", errors="coerce")
    aware = text.str.contains(r"T?\d\d:.*(?:Z|[+-]\d\d(?::?\d\d)?)\s*$", na=False)
    dates = pd.to_datetime(text, format="ISO8601", errors="coerce", utc=True)
    return dates.where(aware, localised(dates.dt.tz_localize(None)))


def _states(values: pd.Series) -> np.ndarray:
    """0 or 1, int8, and -1 for what is neither."""
    codes, found = pd.factorize(values.astype(object))
    # The last entry is for code -1, a missing value.
    return np.array([*map(_state, found), -1], np.int8)[codes]


def _state(value: Any) -> int:
    text = str(value).strip().lower()
    if text in ("false", "true"):
        return int(text == "true")
    try:
        number = float(text)
    except ValueError:
        return -1
    return int(number) if number in (0, 1) else -1


def _numbered(values: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Drivers as numbers into a list of names, -1 for no name; a NUL, which text in NumPy ends at, makes it none."""
    codes, found = pd.factorize(values, sort=True)
    names = [str(name).strip() for name in found]
    number = np.array([*(i if name and "\0" not in name else -1 for i, name in enumerate(names)), -1], np.int64)
    return number[codes], names


def _ids(column: Any, where: str) -> dict[str, pd.Series]:
    """The drivers in a Parquet column of any type as text, the same with and without missing ones among them.

    Errors: `UserError` for what is no single value, and for floating point numbers so large that neighbours are one.
    """
    # By way of a dictionary each id is turned into text once, and missing ones make no integers floats.
    if not hasattr(column, "dictionary"):
        try:
            column = column.dictionary_encode()
        except NotImplementedError:
            raise UserError(f"{where}: holds {column.type}; expected ids, text or whole numbers") from None
    texts = [_id(value, where) for value in column.dictionary.to_pylist()]
    codes = column.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)
    return {"driver": pd.Series(np.array([*texts, None], object)[codes], dtype=object)}


def _id(value: Any, where: str) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if not isinstance(value, float):
        return None if value is None else str(value)
    if not math.isfinite(value):
        return None
    if abs(value) >= 2**53:
        raise UserError(f"{where}: {value:.0f} has lost its last digits to floating point; write ids as text or int64")
    # What pandas makes of whole numbers once one of them is missing.
    return str(int(value) if value.is_integer() else value)
