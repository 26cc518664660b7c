"""Files that are complete or absent, hashes, and names that stay in their folder."""

import contextlib
import hashlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from common.errors import UserError

# Above this many declared bytes an array is refused before it is read: 64 GiB is more than any data set named here.
MAX_DECLARED_BYTES = 64 * 2**30
# What zipfile and NumPy raise on a file that is not the archive it claims to be.
DAMAGE = (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError)


@contextlib.contextmanager
def replacing(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` that takes its place only once it is complete and on disk.

    Errors: `UserError` when the folder cannot be written; whatever the body raises leaves the old file untouched.
    """
    path = Path(path)
    encoding = None if "b" in mode else "utf-8"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
    try:
        with os.fdopen(handle, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        _remove(temporary)
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    except BaseException:
        _remove(temporary)
        raise
    _sync_folder(path.parent)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path, "w") as file:
        file.write(text)


def write_npz(path: Path | str, arrays: Mapping[str, np.ndarray], *, compress: bool = True) -> None:
    """Write an `.npz` of plain arrays, whole or not at all."""
    with replacing(path) as file:
        (np.savez_compressed if compress else np.savez)(file, **arrays)


def npz_headers(path: Path | str) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Names, shapes and dtypes in an `.npz`, read without its data.

    Errors: `UserError` for a missing, truncated or foreign file, for object arrays and for a declared size that
    cannot be honest (more than the file could unpack to).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected an .npz")
    headers = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if not member.filename.endswith(".npy"):
                    continue
                with archive.open(member) as file:
                    shape, dtype = read_npy_header(file, f"{path}[{member.filename}]")
                declared = int(np.prod(shape, dtype=np.float64)) * dtype.itemsize
                if declared > min(MAX_DECLARED_BYTES, member.file_size):
                    raise UserError(
                        f"{path}[{member.filename}]: declares {declared} bytes but holds {member.file_size};"
                        " the file is damaged or hostile"
                    )
                headers[member.filename.removesuffix(".npy")] = (shape, dtype)
    except (*DAMAGE, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a readable .npz ({error}); it may be truncated or of another format") from error
    return headers


def read_npy_header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype at the head of an open `.npy` stream, which is left at its first data byte."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise UserError(f"{where}: holds Python objects, which are never loaded; save plain arrays")
    if fortran and len(shape) > 1:
        raise UserError(f"{where}: is in Fortran order; save it with np.ascontiguousarray")
    return shape, dtype


def read_npz(path: Path | str) -> dict[str, np.ndarray]:
    """All arrays of an `.npz`, after `npz_headers` has checked it; never unpickles."""
    names = npz_headers(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except (*DAMAGE, ValueError) as error:
        raise UserError(f"{path}: not a readable .npz ({error}); it may be truncated") from error


def sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(folder: Path | str, name: str) -> Path:
    """`folder / name`, refused when a name from data would leave the folder."""
    folder = Path(folder)
    target = folder / name
    if not target.resolve().is_relative_to(folder.resolve()) or "\0" in name:
        raise UserError(f"{name!r}: would leave the folder {folder}; rename it in the data")
    return target


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
