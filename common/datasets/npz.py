"""Arrays in .npz files that do not fit into memory: read and written in blocks."""

import contextlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

import numpy as np

from common.errors import UserError
from common.files import npz_headers, read_npy_header, replacing

if TYPE_CHECKING:
    pass
from common.files import refusing_damage


class NpzStream:
    """One array of an `.npz`, read in rows without ever holding the whole.

    `shape` and `dtype` (of native byte order) are known at once. Errors: `UserError` naming file and array for one that
    is missing, damaged or hostile; damage inside the data shows while iterating.
    """

    def __init__(self, path: Path | str, name: str):
        self.path, self.name = Path(path), name
        headers = npz_headers(self.path)
        if name not in headers:
            raise UserError(f"{path}: no array {name!r}; it holds {', '.join(sorted(headers)) or 'none'}")
        self.shape, stored = headers[name]
        self.dtype = stored.newbyteorder("=")
        if not self.shape:
            raise UserError(f"{path}[{name}]: a single value; expected an array with rows")

    def iterate(self, chunk_rows: int, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Rows `start` to `stop` (default: the end) as writable arrays of `chunk_rows` rows, the last one shorter."""
        if chunk_rows < 1:
            raise ValueError(f"chunk_rows: expected 1 or more, received {chunk_rows}")
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        with (
            refusing_damage(f"{self.path}[{self.name}]"),
            zipfile.ZipFile(self.path) as archive,
            archive.open(f"{self.name}.npy") as file,
        ):
            shape, stored = read_npy_header(file, f"{self.path}[{self.name}]")
            file.seek(start * _row_bytes(shape, stored), os.SEEK_CUR)
            for first in range(start, stop, chunk_rows):
                rows = np.empty((min(chunk_rows, stop - first), *shape[1:]), stored)
                _fill(file, rows)
                # Only a read past the end makes zipfile compare the checksum.
                if first + len(rows) == shape[0] and file.read(1):
                    raise ValueError("more data than its header declares")
                yield rows.astype(self.dtype, copy=False)

    def read(self, stop: int | None = None) -> np.ndarray:
        """Rows up to `stop` (default: all) as one array."""
        stop = slice(stop).indices(self.shape[0])[1]
        if stop == 0:
            return np.empty((0, *self.shape[1:]), self.dtype)
        with contextlib.closing(self.iterate(stop, 0, stop)) as chunks:
            return next(chunks)


class NpzMember:
    """An array under way in an `NpzWriter`."""

    def __init__(self, file: IO[bytes], name: str, shape: tuple[int, ...], dtype: np.dtype):
        self._file, self.name, self.shape, self.dtype, self.rows = file, name, shape, dtype, 0

    def append(self, rows: np.ndarray) -> None:
        """Write further rows (R, *shape[1:]).

        Errors: `ValueError` for another row shape or dtype, more rows than announced, or a member that is closed.
        """
        rows = np.asarray(rows)
        if rows.shape[1:] != self.shape[1:] or rows.ndim != len(self.shape) or rows.dtype != self.dtype:
            raise ValueError(
                f"{self.name}: expected rows {self.dtype} (R, {', '.join(map(str, self.shape[1:]))}),"
                f" received {rows.dtype} {rows.shape}"
            )
        if self.rows + len(rows) > self.shape[0]:
            raise ValueError(f"{self.name}: {self.rows + len(rows)} rows, announced were {self.shape[0]}")
        if rows.size:
            self._file.write(np.ascontiguousarray(rows).data)
        self.rows += len(rows)


class NpzWriter:
    """Writes an `.npz` array by array and row by row; the file appears, complete, when the context ends.

    Arrays follow one another: `member` ends the one before. The same rows give the same bytes, however they were
    chunked. Errors: `ValueError` for an array left with fewer rows than announced; then no file is written and an old
    one stays.
    """

    def __init__(self, path: Path | str, level: int = 4):
        """`level`: deflate from 1 (fast) to 9 (small)."""
        self.path, self.level = Path(path), level
        self._member: NpzMember | None = None

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        file = self._stack.enter_context(replacing(self.path))
        self._archive = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=self.level)
        return self

    def __exit__(self, *error: object) -> bool | None:
        if error[0] is None:
            try:
                self._finish()
                self._archive.close()
            except BaseException as failure:
                self._abandon(type(failure), failure, failure.__traceback__)
                raise
            return self._stack.__exit__(None, None, None)
        return self._abandon(*error)

    def member(self, name: str, shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> NpzMember:
        """Begin the array `name` of `shape` (rows first).

        Errors: `ValueError` for a name used before, objects, or when the array before is short of rows.
        """
        self._finish()
        dtype = np.dtype(dtype)
        if dtype.hasobject or not shape:
            raise ValueError(f"{name}: expected rows of plain numbers, received {dtype} {shape}")
        if f"{name}.npy" in self._archive.namelist():
            raise ValueError(f"{name}: written before")
        file = self._archive.open(f"{name}.npy", "w", force_zip64=True)
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(file, header)
        self._member = NpzMember(file, name, tuple(shape), dtype)
        return self._member

    def _finish(self) -> None:
        member, self._member = self._member, None
        if member is None:
            return
        member._file.close()
        if member.rows != member.shape[0]:
            raise ValueError(f"{member.name}: {member.rows} rows, announced were {member.shape[0]}")

    def _abandon(self, *error: object) -> bool | None:
        with contextlib.suppress(Exception):
            if self._member is not None:
                self._member._file.close()
            self._archive.close()
        return self._stack.__exit__(*error)


def _row_bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize


def _fill(file: IO[bytes], rows: np.ndarray) -> None:
    """Read `rows` full, in pieces, so that no second copy of a large chunk arises."""
    if not rows.size:
        return
    view = memoryview(rows.reshape(-1).view(np.uint8))
    done = 0
    while done < len(view):
        count = file.readinto(view[done : done + 2**20])
        if not count:
            raise EOFError("the data ends early")
        done += count
