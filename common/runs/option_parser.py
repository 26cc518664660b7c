"""The options of one script from a command line, a YAML file and Python, and its `--help`."""

import argparse
import dataclasses
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from common.errors import UserError
from common.runs import options as groups
from common.runs.options import (
    Budget,
    CommonOptions,
    LinfBudget,
    convert,
    dashed,
    field_docs,
    meaning_of,
    option_fields,
    read_yaml,
    suggestion,
    typed_text,
)


class OptionParser:
    """The options of the script `name`, dataclass `options_class`; `fields` and `hints`, their types, by name."""

    def __init__(self, options_class: type, name: str) -> None:
        self.options_class, self.name = options_class, name
        self.fields = option_fields(options_class)
        hints = get_type_hints(options_class)
        self.hints = {name: hints[name] for name in self.fields}
        self.spellings = {name: name for name in self.fields}
        self.spellings |= {other: f.name for f in self.fields.values() for other in f.metadata.get("aliases", ())}

    def parse(self, argv: Sequence[str], sections: Iterable[str] = ()) -> Any:
        """Options from a command line and the file that its `--config` names, whose sections may be called `sections`.

        Errors: `UserError` in one line that names the option, or the file and its key.
        """
        typed = self._words(argv)
        origins = {name: dashed(name) for name in typed}
        if "config" in typed:
            path = Path(typed["config"])
            filed = self.read(path, sections)
            origins = {name: f"{path}: {name}" for name in filed} | origins
            typed = filed | typed
        return self.build(typed, origins)

    def build(self, values: Mapping[str, Any], origins: Mapping[str, str] | None = None, **internal: Any) -> Any:
        """Options with `values`, each converted and checked, and else the defaults; messages name a value by `origins`.

        Errors: `UserError` for a value that is none of its type.
        """
        built = {}
        for name, value in values.items():
            hint, default = self.hints[name], self.fields[name].default
            try:
                built[name] = convert(hint, value)
            except ValueError as error:
                raise self._refused(name, value, origins or {}) from error
            # No choice at all from a list of choices is a mistake, unless that is the default.
            if built[name] == () != default and _choices(hint):
                raise self._refused(name, value, origins or {})
        return self.options_class(**built, **internal)

    def key(self, written: Any, refusal: str, spell: Callable[[str], str] = str) -> str:
        """The field that an option or key as written means; `refusal` begins the message where there is none."""
        key = str(written).replace("-", "_")
        if key not in self.spellings:
            raise UserError(refusal + suggestion(key, [*self.spellings, "help", "print_config"], spell))
        return self.spellings[key]

    def renamed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config of an earlier run with the names that options have today."""
        todays = {key: value for key, value in config.items() if self.spellings.get(key, key) == key}
        return todays | {self.spellings[key]: value for key, value in config.items() if key not in todays}

    def read(self, path: Path, sections: Iterable[str] = (), *, sections_only: bool = False) -> dict[str, Any]:
        """The keys of a YAML file that are for this script; of a flat file none, if `sections_only`.

        Errors: `UserError` naming file and key.
        """
        document = read_yaml(path)
        if not any(isinstance(value, dict) for value in document.values()):
            return {} if sections_only else self._layer(path, document)
        known = {"all", self.name, *sections}
        for key, value in document.items():
            if not isinstance(value, dict | None):
                raise UserError(f"{path}: {key}: is outside the sections; move it into one of them or into all")
            if key not in known:
                raise UserError(f"{path}: {key}: no such script" + suggestion(str(key), known))
        foreign = set(option_fields(CommonOptions)) - set(self.fields)
        shared = {k: v for k, v in (document.get("all") or {}).items() if str(k).replace("-", "_") not in foreign}
        return self._layer(path, shared) | self._layer(path, document.get(self.name) or {})

    def help(self, program: str, summary: str) -> str:
        """The text of `--help`."""
        parser = argparse.ArgumentParser(
            prog=program, usage="%(prog)s [options]", description=summary.replace("%", "%%"), add_help=False
        )
        headings: dict[str, Any] = {}
        meanings = field_docs(self.options_class)
        # A script's own options first; an option keeps its group where a script gives it another default.
        shared = [of for of in self.options_class.__mro__ if of.__module__ == groups.__name__]
        home = {name: place for place, of in enumerate(shared) for name in of.__annotations__}
        for name, f in sorted(self.fields.items(), key=lambda item: home.get(item[0], -1)):
            heading = shared[home[name]].__doc__.split(",")[0].lower() if name in home else "this script"
            if heading not in headings:
                headings[heading] = parser.add_argument_group(heading)
            text, hint = self._help_of(name, f, meanings.get(name, "")).replace("%", "%%"), self.hints[name]
            if hint is bool:
                headings[heading].add_argument(dashed(name), action="store_true", help=text)
                continue
            metavar = f"{{{','.join(_choices(hint))}}}" if _choices(hint) else name.upper()
            headings[heading].add_argument(dashed(name), metavar=metavar, help=text)
        calls = parser.add_argument_group("this call")
        calls.add_argument("--print-config", action="store_true", help="Print the options as YAML and end.")
        calls.add_argument("--help", action="store_true", help="Print this and end.")
        return parser.format_help()

    def _help_of(self, name: str, f: dataclasses.Field, meaning: str) -> str:
        hint, told = self.hints[name], []
        if _choices(hint) and get_origin(hint) is tuple:
            told.append("one, or several with commas")
        elif hint is not bool and not _choices(hint):
            told.append(meaning_of(hint).replace(" or null", "").replace(meaning_of(Budget), "a number >= 0"))
        # Where the default is null, off or empty, the text says what that means.
        if f.default is not None and f.default is not False and f.default != ():
            fractions = LinfBudget in (hint, *get_args(hint))
            told.append(f"default: {_in_255ths(f.default) if fractions else typed_text(f.default)}")
        text = meaning + (f" ({'; '.join(told)})" if told else "")
        if others := f.metadata.get("aliases"):
            text += f" Also {', '.join(map(dashed, others))}."
        return text

    def _words(self, argv: Sequence[str]) -> dict[str, str]:
        """The words of a command line by field, as they were typed.

        Not by argparse, which takes the value in `--bbox -122.5,37.6,-122.3,37.8` for an option.
        """
        values: dict[str, str] = {}
        words = list(argv)
        while words:
            word = words.pop(0)
            option, equals, value = word.partition("=")
            if not option.startswith("--"):
                raise UserError(f"{word!r}: unexpected; options begin with --")
            name = self.key(option[2:], f"{option}: unknown option", dashed)
            if not equals and self.hints[name] is bool:
                value = words.pop(0) if words and words[0].lower() in ("true", "false") else "true"
            elif not equals and (not words or words[0].startswith("--")):
                raise UserError(f"{option}: expected {meaning_of(self.hints[name])} after it")
            elif not equals:
                value = words.pop(0)
            values[name] = value
        return values

    def _layer(self, path: Path, written: Mapping[Any, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in written.items():
            name = self.key(key, f"{path}: {key}: unknown key")
            if name in values:
                raise UserError(f"{path}: {key}: occurs twice, in two spellings")
            if name == "config":
                raise UserError(f"{path}: config: a file cannot name another one; use --config")
            values[name] = value
        return values

    def _refused(self, name: str, value: Any, origins: Mapping[str, str]) -> UserError:
        got = typed_text(value) if isinstance(value, str | list | tuple) else repr(value)
        # A budget of images given in 1/255, as in half of the literature.
        meant = LinfBudget in (self.hints[name], *get_args(self.hints[name])) and got.replace(".", "", 1).isdigit()
        remedy = f"; did you mean {got}/255?" if meant and float(got) > 1 else ""
        return UserError(f"{origins.get(name, name)}: expected {meaning_of(self.hints[name])}, got {got[:80]}{remedy}")


def _choices(hint: Any) -> tuple[str, ...]:
    """The values among which an option chooses one, or several; none where it takes any others too."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    kinds = {kind for kind in get_args(hint) if kind not in (types.NoneType, Ellipsis)}
    return _choices(kinds.pop()) if len(kinds) == 1 else ()


def _in_255ths(value: Any) -> str:
    """A budget in [0, 1] as it is typed: `8/255`."""
    if isinstance(value, tuple):
        return ",".join(map(_in_255ths, value))
    levels = 255 * value
    return f"{levels:.6g}/255" if 0 < value < 1 and abs(levels - round(levels, 3)) < 1e-9 else typed_text(value)
