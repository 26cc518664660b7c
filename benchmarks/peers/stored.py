"""What an interrupted run has measured is not measured again."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

Measured = TypeVar("Measured", bound=NamedTuple)


def stored(path: Path, kind: type[Measured], measure: Callable[[], Measured]) -> Measured:
    """The arrays and numbers of a `kind` of tuple as they are in `path`, an `.npz`, else as they are measured now."""
    from common.files import read_npz, write_npz

    if not path.is_file():
        write_npz(path, {name: np.asarray(value) for name, value in measure()._asdict().items()})
    arrays = read_npz(path)
    return kind(*(arrays[name] if arrays[name].ndim else arrays[name].item() for name in kind._fields))
