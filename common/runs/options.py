"""Options of a script: their types, names and meanings, from the command line, a file and Python alike."""

import dataclasses
import difflib
import math
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Union, get_args, get_origin

import docstring_parser
import yaml
from jsonargparse.typing import NonNegativeInt, PositiveInt, register_type

from common.errors import UserError

# They steer one call and are no part of what a run was; config.yaml leaves them out, so it can be a --config itself.
STEERING = ("config", "resume", "force")
# What a script hands on when it calls the one that makes its input.
SHARED = ("dataset", "data_dir", "seed", "n_train", "n_test", "strategy", "precision", "deterministic")

if TYPE_CHECKING:
    Budget = LinfBudget = float
    Count = Natural = int
else:
    Count, Natural = PositiveInt, NonNegativeInt

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
        """An L-inf budget for images in [0, 1]: above 1 it was meant in grey levels."""

        def __new__(cls, value: Any) -> "LinfBudget":
            """Errors: `ValueError` as for `Budget`, and above 1."""
            number = super().__new__(cls, value)
            if number > 1:
                raise ValueError(f"{value} is above 1; did you mean {value}/255?")
            return number

    for kind in (Budget, LinfBudget):
        register_type(kind, serializer=float, deserializer=kind)
MEANINGS = {
    Budget: "a number >= 0 or a fraction such as 8/255",
    LinfBudget: "an L-inf budget in [0, 1] such as 8/255",
    Count: "a whole number >= 1",
    Natural: "a whole number >= 0",
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    types.NoneType: "null",
}


def alias(*names: str, default: Any, known: Sequence[str] = ()) -> Any:
    """A field of options that also answers to `names`, as on an original repository's command line.

    `known`: values of a path that are names of something else, such as a network with published weights.
    """
    return field(default=default, metadata={"alias": names, "known": tuple(known)})


@dataclass(kw_only=True)
class CommonOptions:
    """What every entry script understands.

    A subclass leaves out what it does not use with `without = ("strategy",)`, and names what does not change its
    results with `unhashed = ("batch_size",)`: a finished run is still good when only those differ. One whose script
    computes without TensorFlow says `needs_tensorflow = False` and is spared the seconds and the memory of its import.
    A path must be there when the run begins, unless it is `written`.
    """

    without: ClassVar[tuple[str, ...]] = ()
    unhashed: ClassVar[tuple[str, ...]] = ()
    needs_tensorflow: ClassVar[bool] = True
    written: ClassVar[tuple[str, ...]] = ("data_dir", "out")
    owner: ClassVar[Any] = None

    config: Path | None = None
    """YAML file of options, flat or in sections named after scripts, with `all` for every script."""
    dataset: str = "scenes"
    """Data set: a name, or a path to an .npz with Keras keys, an image folder or a tar."""
    data_dir: Path = Path("data")
    """Folder in which downloaded data sets are kept."""
    out: Path | None = None
    """Folder of the run, in place of runs/<app>/<script>/<name>."""
    name: str | None = None
    """Name of the run; by default the stem of --config, else demo, or that of a data set of your own."""
    seed: Natural = 0
    """Seed of every random draw."""
    seeds: tuple[Natural, ...] | None = None
    """Seeds such as 0,1,2: runs each in a folder of its own and writes mean and spread; --seed is not used then."""
    n_train: Count | None = None
    """Number of training examples; null takes all."""
    n_test: Count | None = None
    """Number of test examples; null takes all."""
    strategy: Literal["none", "mirrored", "multiworker"] = "none"
    """Distribution over devices of one machine (mirrored) or several machines (multiworker, by TF_CONFIG)."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Precision of the computation; weights stay float32."""
    deterministic: bool = False
    """Let TensorFlow use only operations that repeat bit for bit, on GPUs too; slower, and off with XLA."""
    resume: bool = False
    """Go on with an unfinished run of the same options."""
    force: bool = False
    """Start anew in the folder of an earlier run; what that one wrote goes once this one is finished."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that occurs twice, which YAML forbids and PyYAML lets pass."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
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


def run_name(options: CommonOptions) -> str:
    """`--name`, else the stem of `--config`, else `demo` for the embedded data and the stem of `--dataset` for others.

    The data set is part of it so that a folder of one's own does not collide with the demo run before it.
    """
    if options.name or options.config is not None:
        return options.name or options.config.stem
    embedded = next(f.default for f in dataclasses.fields(options) if f.name == "dataset")
    return "demo" if options.dataset == embedded else Path(options.dataset).stem


def field_docs(options_class: type) -> dict[str, str]:
    return {
        param.arg_name: " ".join((param.description or "").split())
        for ancestor in reversed(options_class.__mro__)
        if dataclasses.is_dataclass(ancestor)
        for param in docstring_parser.parse_from_object(ancestor).params
        if param.args[0] == "attribute"
    }


def meaning_of(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join(map(meaning_of, args))
    if origin is tuple:
        return f"{meaning_of(args[0])}, or several with commas"
    return MEANINGS.get(hint, getattr(hint, "__name__", str(hint)))


def as_sequence(hint: Any, value: Any) -> Any:
    """`0,1,2` and a lone 0 as lists where a tuple is wanted; anything else as it is."""
    if not any(get_origin(h) is tuple for h in (hint, *get_args(hint))) or value in (None, "null", ""):
        return value
    if isinstance(value, str):
        return [part.strip() for part in value.strip().strip("[]()").split(",")]
    return value if isinstance(value, list | tuple) else [value]


def bare(value: Any) -> Any:
    """A value without jsonargparse's restricted number types."""
    if isinstance(value, tuple):
        return tuple(map(bare, value))
    if isinstance(value, bool):
        return value
    return next((kind(value) for kind in (int, float) if isinstance(value, kind)), value)


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
    return "--" + name.replace("_", "-")


def suggestion(written: str, known: Iterable[str], spell: Callable[[str], str] = str) -> str:
    close = difflib.get_close_matches(written, known, 1)
    return f"; did you mean {spell(close[0])}?" if close else ""
