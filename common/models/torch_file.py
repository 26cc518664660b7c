"""Tensors out of a weight file of PyTorch's old format, read as data: nothing in it is imported, called or built."""

import io
import math
import pickletools
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from common.errors import UserError, one_line

_MAGIC = 0x1950A86A20F9469CFC6C
_TYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
}
_TENSOR, _DICTIONARY = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Named(NamedTuple):
    """A class or function that the file names; only its name is ever used."""

    name: str


class _Storage(NamedTuple):
    """A run of numbers that lies in the second half of the file."""

    kind: str
    key: str
    count: int


class _View(NamedTuple):
    """A tensor of `shape` within a storage, from `offset` on; `strides` in numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_file(path: Path | str) -> dict[str, np.ndarray]:
    """The tensors of a dictionary that `torch.save` wrote in its format before 1.6, by name.

    The file is a program for a stack machine. Of its instructions those are understood that such a dictionary needs,
    and what would call a function only notes which: a file that wants anything else is refused.

    Errors: `UserError` naming the file when it is missing, damaged, of the later format, or holds anything but tensors
    that lie within their storage.
    """
    path = Path(path)
    try:
        # In memory, for every number of these is wanted and a length that lies then only finds an end.
        file = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        magic, *_, tensors, keys = (_understood(file) for _ in range(5))
        if magic != _MAGIC:
            raise ValueError("another magic number")
        views = {name: view for name, view in tensors.items() if isinstance(view, _View)}
        if len(views) != len(tensors):
            raise ValueError("not all of it are tensors")
        storages = {view.storage.key: view.storage for view in views.values()}
        numbers = {key: _numbers(file, storages[key]) for key in keys}
        return {name: _array(view, numbers[view.storage.key]) for name, view in views.items()}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise UserError(
            f"{path}: no weight file of PyTorch's old format that holds tensors alone ({one_line(error, 120)})"
        ) from error


def _understood(file: IO[bytes]) -> Any:
    """What the next program of `file` leaves, with names in the place of classes and views in that of tensors."""
    stack: list[Any] = []
    marks: list[int] = []
    memory: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        begun = marks.pop()
        taken = stack[begun:]
        del stack[begun:]
        return taken

    for operation, argument, _ in pickletools.genops(file):
        match operation.name:
            case "PROTO" | "STOP":
                pass
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case name if name in _VALUES:
                stack.append(argument)
            case name if name in _TUPLES:
                taken = tuple(stack[-_TUPLES[name] :])
                stack[-len(taken) :] = [taken]
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "APPENDS":
                taken = since_mark()
                stack[-1].extend(taken)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                stack[-1][key] = value
            case "SETITEMS":
                taken = since_mark()
                stack[-1].update(zip(taken[::2], taken[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memory[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memory[argument])
            case "GLOBAL":
                stack.append(_Named(argument))
            case "BINPERSID":
                stack.append(_storage(*stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_result(function, arguments))
            case "BUILD":
                # Attributes of a dictionary: versions of its parts, which nothing here reads.
                stack.pop()
            case other:
                raise ValueError(f"instruction {other}")
    (left,) = stack
    return left


def _storage(kind: str, of: _Named, key: str, device: str, count: int, view: None) -> _Storage:
    module, _, name = of.name.partition(" ")
    if (kind, module) != ("storage", "torch") or name not in _TYPES or view is not None:
        raise ValueError(f"{kind} of {of.name}")
    return _Storage(_TYPES[name], key, count)


def _result(function: _Named, arguments: tuple) -> Any:
    if function == _Named(_DICTIONARY) and not arguments:
        return {}
    if function != _Named(_TENSOR):
        raise ValueError(f"{getattr(function, 'name', function)} is wanted")
    storage, offset, shape, strides, *_ = arguments
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if min((offset, *shape, *strides)) < 0 or last >= storage.count or math.prod(shape) > storage.count:
        raise ValueError("a tensor is larger than what it lies in")
    return _View(storage, offset, shape, strides)


def _numbers(file: IO[bytes], storage: _Storage) -> np.ndarray:
    (count,) = np.frombuffer(file.read(8), "<i8")
    if count != storage.count:
        raise ValueError(f"a storage of {count} numbers was announced with {storage.count}")
    kind = np.dtype(storage.kind)
    return np.frombuffer(file.read(count * kind.itemsize), kind, count)


def _array(view: _View, numbers: np.ndarray) -> np.ndarray:
    steps = [stride * numbers.itemsize for stride in view.strides]
    return np.array(np.lib.stride_tricks.as_strided(numbers[view.offset :], view.shape, steps))
