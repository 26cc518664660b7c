"""Options of a script: groups of typed fields, and what a value from a command line, a file or Python means for one."""

import dataclasses
import difflib
import math
import numbers
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import docstring_parser
import yaml

from common.errors import UserError

if TYPE_CHECKING:
    Budget = LinfBudget = float
    Count = Natural = int
else:

    class Budget(float):
        """A number >= 0, also written as a fraction: `8/255`."""

        def __new__(cls, value: Any) -> "Budget":
            """Errors: `ValueError` for what is no number, negative, infinite or NaN."""
            numerator, slash, denominator = str(value).partition("/")
            try:
                number = float(numerator) / float(denominator) if slash else float(numerator)
            except ZeroDivisionError:
                number = math.nan
            if not 0 <= number < math.inf:
                raise ValueError(f"{value} is no budget")
            return super().__new__(cls, number)

    class LinfBudget(Budget):
        """An L-inf budget for images in [0, 1]: above 1 it was meant in 1/255."""

        def __new__(cls, value: Any) -> "LinfBudget":
            """Errors: `ValueError` as for `Budget`, and above 1."""
            number = super().__new__(cls, value)
            if number > 1:
                raise ValueError(f"{value} is above 1; did you mean {value}/255?")
            return number

    class Natural(int):
        """A whole number >= 0."""

        def __new__(cls, value: Any) -> "Natural":
            """Errors: `ValueError` for what is no whole number, or negative."""
            number = _integer(value)
            if number < 0:
                raise ValueError(f"{value} is below 0")
            return super().__new__(cls, number)

    class Count(Natural):
        """A whole number >= 1."""

        def __new__(cls, value: Any) -> "Count":
            """Errors: `ValueError` as for `Natural`, and for 0."""
            number = super().__new__(cls, value)
            if number < 1:
                raise ValueError(f"{value} is below 1")
            return number


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, str | numbers.Integral):
        raise ValueError(f"{value!r} is no whole number")
    return int(value)


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, str | numbers.Real) or not math.isfinite(float(value)):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)


def _switch(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _path(value: Any) -> Path:
    if not isinstance(value, str | Path):
        raise ValueError(f"{value!r} is no path")
    return Path(value)


def _null(value: Any) -> None:
    if value not in (None, "null"):
        raise ValueError(f"{value!r} is not null")


# What a value of a type is called, and what makes one of a word or of a value.
KINDS: Mapping[Any, tuple[str, Callable[[Any], Any]]] = {
    Budget: ("a number >= 0 or a fraction such as 8/255", lambda value: float(Budget(value))),
    LinfBudget: ("an L-inf budget in [0, 1] such as 8/255", lambda value: float(LinfBudget(value))),
    Count: ("a whole number >= 1", lambda value: int(Count(value))),
    Natural: ("a whole number >= 0", lambda value: int(Natural(value))),
    int: ("a whole number", _integer),
    float: ("a finite number", _finite),
    bool: ("true or false", _switch),
    str: ("text", _text),
    Path: ("a path", _path),
    types.NoneType: ("null", _null),
}


def convert(hint: Any, value: Any) -> Any:
    """`value`, a word of a command line or what a file or Python has, as the type `hint` wants it.

    Errors: `ValueError` for a value that is none of that type.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        if not isinstance(value, str) or value not in args:
            raise ValueError(f"{value!r} is none of {args}")
        return value
    if origin is tuple:
        items = _items(value)
        if args[-1] is Ellipsis:
            return tuple(convert(args[0], item) for item in items)
        return tuple(convert(kind, item) for kind, item in zip(args, items, strict=True))
    if origin in (Union, types.UnionType):
        # null first: it is text too.
        for kind in sorted(args, key=lambda kind: kind is not types.NoneType):
            try:
                return convert(kind, value)
            except ValueError:
                continue
        raise ValueError(f"{value!r} is none of {args}")
    return KINDS[hint][1](value)


def _items(value: Any) -> Sequence[Any]:
    """The items of a list, of `0,1,2`, or a lone value."""
    if isinstance(value, str):
        inside = value.strip().strip("[]()")
        return [item.strip() for item in inside.split(",")] if inside else []
    return value if isinstance(value, list | tuple) else [value]


def meaning_of(hint: Any) -> str:
    """What is expected where the type is `hint`, in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(args)
    if origin in (Union, types.UnionType):
        return " or ".join(map(meaning_of, args))
    if origin is tuple and args[-1] is Ellipsis:
        return f"{meaning_of(args[0])}, or several with commas"
    if origin is tuple:
        return f"{len(args)} values with commas, each {meaning_of(args[0])}"
    return KINDS[hint][0]


def option(default: Any, *aliases: str, known: Sequence[str] = (), written: bool = False, compared: bool = True) -> Any:
    """A field of options that also answers to `aliases`, such as its name on an original repository's command line.

    `known`: values of a path that are names of something else, such as a network with published weights. A path must
    be there when the run begins unless it is `written`. One that is not `compared` has no influence on the results: a
    finished run is still good where only that differs.
    """
    metadata = {"aliases": aliases, "known": tuple(known), "written": written, "compared": compared}
    return field(default=default, metadata=metadata)


def internal(default: Any = None) -> Any:
    """A field that is no option: scripts set it, no command line and no file does."""
    return field(default=default, repr=False, compare=False, metadata={"internal": True})


@dataclass(kw_only=True)
class RunOptions:
    """The run"""

    config: Path | None = None
    """YAML file of options, flat or in sections named after scripts, with `all` for every script."""
    out: Path | None = option(None, written=True, compared=False)
    """Folder of the run; by default runs/<app>/<script>/<name>."""
    name: str | None = option(None, compared=False)
    """Name of the run; by default the stem of --config, else demo, or that of a data set of your own."""
    seed: Natural = 0
    """Seed of every random draw."""
    resume: bool = False
    """Continue an unfinished run of the same options."""
    force: bool = False
    """Start again in the folder of an earlier run, whose results are removed once this one is finished."""

    script: Any = internal()
    """The `Script` whose options these are."""


RUN_CONTROL = ("config", "resume", "force")
"""They control one call and do not describe the run: config.yaml leaves them out, so it can be a --config itself."""


@dataclass(kw_only=True)
class SeedsOptions:
    """Several seeds"""

    seeds: tuple[Natural, ...] | None = None
    """Seeds such as 0,1,2: runs each in a folder of its own and writes mean and spread; --seed is not used then."""


@dataclass(kw_only=True)
class DataOptions:
    """The data"""

    dataset: str = "scenes"
    """Data set: a name, or a path to an .npz with Keras keys, an image folder or a tar."""
    data_dir: Path = option(Path("data"), written=True, compared=False)
    """Folder in which downloaded data sets are kept."""


@dataclass(kw_only=True)
class ExampleOptions:
    """The number of examples"""

    n_train: Count | None = None
    """Number of training examples; null takes all."""
    n_test: Count | None = None
    """Number of test examples; null takes all."""


@dataclass(kw_only=True)
class ComputeOptions:
    """The computation, for scripts that need TensorFlow; the others are spared the seconds of its import"""

    deterministic: bool = False
    """Let TensorFlow use only operations that repeat bit for bit, on GPUs too; slower, and off with XLA."""


@dataclass(kw_only=True)
class DeviceOptions(ComputeOptions):
    """The devices"""

    strategy: Literal["none", "mirrored", "multiworker"] = "none"
    """Distribution over devices of one machine (mirrored) or several machines (multiworker, by TF_CONFIG)."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Precision of the computation; weights stay float32."""


@dataclass(kw_only=True)
class ScriptOptions(ComputeOptions, SeedsOptions, RunOptions):
    """What every script that computes by TensorFlow takes"""


@dataclass(kw_only=True)
class CommonOptions(DeviceOptions, ExampleOptions, DataOptions, ScriptOptions):
    """All groups, for a script that trains"""


# What a script hands on when it runs the one that makes its input.
HANDED_ON = ("dataset", "data_dir", "seed", "n_train", "n_test", "strategy", "precision", "deterministic")


def option_fields(options_class: type) -> dict[str, dataclasses.Field]:
    """The options of a class by name."""
    return {f.name: f for f in dataclasses.fields(options_class) if not f.metadata.get("internal")}


def strategy_of(options: RunOptions) -> str:
    """The distribution strategy, none where there is no choice."""
    return getattr(options, "strategy", "none")


class _Loader(yaml.SafeLoader):
    """Refuses a key that occurs twice, which YAML forbids and PyYAML lets pass."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Errors: `UserError` naming file and line."""
    try:
        document = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise UserError(f"--config: {path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise UserError(f"{path}:{line} not plain YAML: {getattr(error, 'problem', None) or error}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UserError(f"{path}: expected `key: value` lines, got {type(document).__name__}")
    return document


def run_name(options: RunOptions) -> str:
    """`--name`, else the stem of `--config`, else `demo` for the embedded data and the stem of `--dataset` for others.

    The data set is part of it so that a folder of your own does not collide with an earlier demo run.
    """
    if options.name or options.config is not None:
        return options.name or options.config.stem
    fields = option_fields(type(options))
    if "dataset" not in fields or options.dataset == fields["dataset"].default:
        return "demo"
    return Path(options.dataset).stem


def field_docs(options_class: type) -> dict[str, str]:
    """What each option means, by the texts below the fields."""
    return {
        param.arg_name: " ".join((param.description or "").split())
        for ancestor in reversed(options_class.__mro__)
        if dataclasses.is_dataclass(ancestor)
        for param in docstring_parser.parse_from_object(ancestor).params
        if param.args[0] == "attribute"
    }


def plain_value(value: Any) -> Any:
    """A value as YAML and JSON have it."""
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    return value.as_posix() if isinstance(value, Path) else value


def typed_text(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, list | tuple):
        return ",".join(map(typed_text, value))
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def dashed(name: str) -> str:
    """An option as it is typed: `n_test` -> `--n-test`."""
    return "--" + name.replace("_", "-")


def suggestion(written: str, known: Iterable[str], spell: Callable[[str], str] = str) -> str:
    """`; did you mean ...?` where one of `known` is close to what was written."""
    close = difflib.get_close_matches(written, known, 1)
    return f"; did you mean {spell(close[0])}?" if close else ""
