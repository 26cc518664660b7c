"""Files that are complete or absent, hashes, and names that stay in their folder."""

import contextlib
import hashlib
import json
import os
import re
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from common.errors import UserError, one_line

if TYPE_CHECKING:
    pass

# Above this many declared bytes an array is refused before it is read: 64 GiB is more than any data set named here.
MAX_DECLARED_BYTES = 64 * 2**30
# Deflate cannot shrink anything by more than 1032 to 1, so a member that claims more is lying about its size.
MAX_DEFLATE_RATIO = 1032
# What zipfile and NumPy raise on a file that is not the archive it claims to be.
DAMAGE = (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError)
# How Python holds a byte that is no UTF-8 in the name of a file.
_SURROGATE = re.compile("[\ud800-\udfff]")


@contextlib.contextmanager
def taking_place(path: Path | str, ending: str = ".part") -> Iterator[Path]:
    """An empty temporary file next to `path`, its name ending in `ending`, for the body to write to; it replaces
    `path` only once the body has ended and all of it is on disk.

    Errors: `UserError` when the folder cannot be written; whatever the body raises leaves the old file untouched.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=ending, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
    try:
        yield Path(temporary)
        _sync(temporary)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


@contextlib.contextmanager
def replacing(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """`taking_place` with the temporary file opened; text is UTF-8, but that names of files keep their own bytes."""
    how = {} if "b" in mode else {"encoding": "utf-8", "errors": "surrogateescape"}
    with taking_place(path) as temporary, open(temporary, mode, **how) as file:
        yield file


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8, names of files in their own bytes, whole or not at all."""
    with replacing(path, "w") as file:
        file.write(text)


def json_text(value: Any, *, indent: int) -> str:
    """`value` as JSON that is UTF-8 and ends in a line feed; names of files that are none come back as they were.

    Errors: `ValueError` for a number that is not finite.
    """
    text = json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"


def printable(text: str) -> str:
    """`text` with what cannot be printed as UTF-8, such as bytes in the name of a file that are none, as `\\udce9`."""
    return text.encode("utf-8", "backslashreplace").decode()


def check_text(start: bytes, where: str) -> None:
    """Refuse a file of text whose first bytes say that a character takes two or four of them: `UserError`."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        raise UserError(f"{where}: is text in UTF-16 or 32, as spreadsheets may save it; convert it to UTF-8")


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
            check_sizes(path, archive)
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
    except (*DAMAGE, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a readable .npz ({error}); it may be truncated or of another format") from error
    return headers


def check_sizes(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse an archive whose directory claims sizes that cannot come out of the file.

    Errors: `UserError` naming the member.
    """
    size = path.stat().st_size
    for member in archive.infolist():
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{path}[{member.filename}]: not stored or deflated; save it with NumPy or Keras")
        most = member.compress_size * (1 if member.compress_type == zipfile.ZIP_STORED else MAX_DEFLATE_RATIO)
        if member.compress_size > size or member.file_size > most + 1024:
            raise UserError(
                f"{path}[{member.filename}]: {member.file_size} bytes cannot come out of"
                f" {min(member.compress_size, size)}; the file is damaged or hostile"
            )


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
    except (*DAMAGE, ValueError, RuntimeError) as error:
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


def read_lines(path: Path | str) -> list[str]:
    """The lines of a file of text up to its last one with something on it, whether they end in line feeds, carriage
    returns or both; bytes that are no UTF-8 are kept as in names of files.

    Errors: `UserError` for a file that cannot be read, or is no text.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    check_text(content, str(path))
    if b"\0" in content:
        raise UserError(f"{path}: is not text, it holds NUL bytes")
    text = content.decode("utf-8-sig", "surrogateescape").replace("\r\n", "\n").replace("\r", "\n")
    return text.rstrip().split("\n")


def png_names(names: Sequence[str]) -> list[str]:
    """`<path without ending>.png` for each of the paths `names`, all different; where two would share that name, the
    old ending is a part of it."""
    plain = [PurePosixPath(name).with_suffix(".png").as_posix() for name in names]
    count = Counter(plain)
    taken = {name for name in plain if count[name] == 1}
    found = []
    for name, png in zip(names, plain, strict=True):
        if count[png] > 1:
            stem = f"{png.removesuffix('.png')}_{PurePosixPath(name).suffix[1:].lower()}"
            tries = (f"{stem}{number}.png" for number in ("", *range(2, len(plain) + 2)))
            png = next(candidate for candidate in tries if candidate not in taken)
            taken.add(png)
        found.append(png)
    return found


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path | str) -> None:
    """Wait until the file, or the names in the folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def refusing_damage(where: str) -> Iterator[None]:
    """Read inside: what a damaged or hostile file raises is a `UserError` that names it by `where`."""
    try:
        yield
    except UserError:
        raise
    except (*DAMAGE, ValueError, RuntimeError) as error:
        raise UserError(
            f"{where}: cannot be read ({one_line(error)}); the file is damaged or hostile, download it again"
        ) from error
