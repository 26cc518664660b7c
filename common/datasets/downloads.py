"""MNIST, Fashion-MNIST and CIFAR-10: downloaded once, checked by SHA-256, parsed as plain bytes."""

import gzip
import math
import tarfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import UserError, one_line
from common.files import sha256
from common.progress import Progress

TF_KERAS = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
DIGITS = tuple("0123456789")
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Source(NamedTuple):
    """A file of a data set: its place under the data folder, its URL and the SHA-256 of its bytes."""

    file: str
    url: str
    sha256: str


class Named(NamedTuple):
    """A data set known by name: its files in the order its parser takes them, and its classes."""

    sources: tuple[Source, ...]
    class_names: tuple[str, ...]


def _fashion(name: str, digest: str) -> Source:
    return Source(f"fashion_mnist/{name}.gz", f"{TF_KERAS}{name}.gz", digest)


NAMED = {
    "mnist": Named(
        (
            Source(
                "mnist.npz",
                f"{TF_KERAS}mnist.npz",
                "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
            ),
        ),
        DIGITS,
    ),
    "fashion_mnist": Named(
        (
            _fashion("train-images-idx3-ubyte", "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            _fashion("train-labels-idx1-ubyte", "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            _fashion("t10k-images-idx3-ubyte", "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            _fashion("t10k-labels-idx1-ubyte", "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ),
        CLOTHES,
    ),
    "cifar10": Named(
        (
            Source(
                "cifar-10-binary.tar.gz",
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ),
        ),
        THINGS,
    ),
}

CIFAR_TRAIN = tuple(f"cifar-10-batches-bin/data_batch_{batch}.bin" for batch in range(1, 6))
CIFAR_TEST = ("cifar-10-batches-bin/test_batch.bin",)
CIFAR_RECORD = 1 + 3 * 32 * 32


class _Megabytes:
    """A `Progress` as pooch wants a bar to be, which is told the bytes that have come since, and all in the end."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._bytes = progress, 0

    @property
    def total(self) -> int | None:
        return self._progress.total

    @total.setter
    def total(self, size: int) -> None:
        # A server need not say how much there is.
        self._progress.total = math.ceil(size / 1e6) or None

    def update(self, size: int) -> None:
        self._bytes += size
        self._progress.update(math.ceil(self._bytes / 1e6))

    def reset(self) -> None:
        self._bytes = 0

    def close(self) -> None:
        """The context of `progress` does that."""


def fetch(source: Source, data_dir: Path | str) -> Path:
    """The file of `source` under `data_dir`, downloaded if it is not there; a file that is there is never replaced.

    Errors: `UserError` for another SHA-256 than the known one, before or after a download, and for a failed download.
    """
    path = Path(data_dir) / source.file
    if path.exists():
        found = sha256(path) if path.is_file() else "no file"
        if found != source.sha256:
            raise UserError(
                f"{path}: SHA-256 is {found}, expected {source.sha256}; delete it to download it again from"
                f" {source.url}, or name your own copy by its path"
            )
        return path

    import pooch

    try:
        with Progress(None, f"downloading {path.name}", units="MB") as progress:
            bar = _Megabytes(progress)
            pooch.retrieve(source.url, f"sha256:{source.sha256}", fname=path.name, path=path.parent, progressbar=bar)
    except (OSError, ValueError) as error:
        reason = "another SHA-256 than expected" if isinstance(error, ValueError) else type(error).__name__
        raise UserError(
            f"{source.url}: download failed ({reason}); put the file at {path}, or name your own copy by its path"
        ) from error
    return path


def parse_idx(data: bytes, where: str) -> np.ndarray:
    """An array of bytes in IDX format (big-endian sizes, then uint8 data); read-only, of any rank.

    Errors: `UserError` naming `where` for another format or element type and for a size that does not fit the data.
    """
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != 8:
        raise UserError(f"{where}: not an IDX file of bytes; download it again")
    start = 4 + 4 * data[3]
    shape = tuple(np.frombuffer(data[4:start], ">u4").tolist()) if len(data) >= start else ()
    if len(data) < start or math.prod(shape) != len(data) - start:
        raise UserError(f"{where}: declares {shape} but holds {max(len(data) - start, 0)} bytes; download it again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def read_idx(path: Path | str) -> np.ndarray:
    """`parse_idx` of a gzip file."""
    try:
        with gzip.open(path) as file:
            return parse_idx(file.read(), str(path))
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a readable gzip file ({one_line(error)}); download it again") from error


def parse_cifar10(data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 32, 32, 3) and labels int32 (N,) of a batch in CIFAR-10's binary version.

    A record is one byte of label, then 32 x 32 bytes each of red, green and blue. Errors: `UserError` naming `where`
    for a length that is no whole number of records, none at all, or a label above 9.
    """
    if not data or len(data) % CIFAR_RECORD:
        raise UserError(
            f"{where}: {len(data)} bytes are no whole number of {CIFAR_RECORD}-byte records; download it again"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, CIFAR_RECORD)
    labels = records[:, 0].astype(np.int32)
    if labels.max() >= len(THINGS):
        raise UserError(f"{where}: label {labels.max()}, expected 0 to {len(THINGS) - 1}; download it again")
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def read_cifar10(path: Path | str) -> dict[str, np.ndarray]:
    """`x_train`, `y_train`, `x_test`, `y_test` from the archive of CIFAR-10's binary version, in its own order.

    Errors: `UserError` for an archive that is damaged or lacks a batch.
    """
    batches = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                if member.name in CIFAR_TRAIN + CIFAR_TEST and member.isfile():
                    where = f"{path}[{member.name}]"
                    batches[member.name] = parse_cifar10(archive.extractfile(member).read(), where)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a readable tar ({one_line(error)}); download it again") from error
    missing = [name for name in CIFAR_TRAIN + CIFAR_TEST if name not in batches]
    if missing:
        raise UserError(f"{path}: lacks {missing[0]}; expected the binary version of CIFAR-10")
    arrays = {}
    for part, names in (("train", CIFAR_TRAIN), ("test", CIFAR_TEST)):
        for axis, key in enumerate("xy"):
            arrays[f"{key}_{part}"] = np.concatenate([batches[name][axis] for name in names])
    return arrays
