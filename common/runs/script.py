"""Entry scripts: typed options from the command line and YAML, and the function they are handed to.

    @dataclass(kw_only=True)
    class Options(CommonOptions):
        eps: Budget = 1.5
        \"\"\"L2 radius at 32 x 32 x 3, in [0, 1] units.\"\"\"

    @script(app="adv_lock", name="lock")
    def lock(options: Options, run: Run) -> None: ...

    if __name__ == "__main__":
        lock.main()

Types are checked by jsonargparse, for values from the command line, a file and Python alike.
"""

import contextlib
import dataclasses
import errno
import functools
import math
import os
import shlex
import sys
import tempfile
from argparse import Action, ArgumentError
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from common import progress
from common.errors import UserError
from common.files import printable, write_text
from common.runs import record
from common.runs.folder import execute, execute_seeds, settle
from common.runs.options import (
    SHARED,
    STEERING,
    CommonOptions,
    LinfBudget,
    as_sequence,
    bare,
    dashed,
    field_docs,
    meaning_of,
    plain_value,
    read_yaml,
    run_name,
    suggestion,
    typed_text,
)
from common.runs.record import Run

# What a full disk, a quota or missing rights raise: the user can put them right.
USER_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}
Ending = Callable[[Path, Mapping[str, Any], Sequence[Mapping[str, Any]]], str]


class Script:
    """An entry script as a function: `lock(Options(...))` does the whole run and returns its results.

    `body` is the undecorated function, for those who bring a `Run` of their own. `ending` makes what the command line
    prints when all is done, from folder, results and table; by default `common.runs.report.console`. `refusals` raises
    `UserError` for options with which `body` cannot end well, as far as they and the files that they name tell;
    `needs` calls `expect` of the scripts whose runs `body` would `produce`.
    """

    names: ClassVar[set[str]] = set()

    def __init__(
        self,
        body: Callable[[Any, Run], None],
        app: str,
        name: str,
        ending: Ending | None = None,
        refusals: Callable[[Any], None] | None = None,
        needs: Callable[[Any], None] | None = None,
    ) -> None:
        functools.update_wrapper(self, body)
        self.body, self.app, self.name, self.ending = body, app, name, ending
        self.refusals, self.needs = refusals, needs
        self.names.add(name)
        self.options_class: type[CommonOptions] = get_type_hints(body)["options"]
        self.options_class.owner = self
        hints = get_type_hints(self.options_class)
        left_out = self.options_class.without
        self.fields = {f.name: f for f in dataclasses.fields(self.options_class) if f.name not in left_out}
        self.hints = {name: hints[name] for name in self.fields}
        self._names = {name: name for name in self.fields}
        self._names |= {other: f.name for f in self.fields.values() for other in f.metadata.get("alias", ())}

    def __call__(self, options: CommonOptions, *, command: str | None = None) -> dict[str, Any]:
        """Run with `options`, in the folder that they name; the results are those of `results.json`.

        Errors: `UserError` for options or folders that do not do, beside what the body raises.
        """
        options = self.options(**{name: getattr(options, name) for name in self.fields})
        if options.resume and options.force:
            raise UserError("--resume and --force exclude each other: go on, or start anew")
        name = run_name(options)
        folder, identity, config = self._place(options, command)
        rules = {
            "uncompared": options.unhashed,
            "force": options.force,
            "chief": record.is_chief(options.strategy),
        }
        if options.seeds is None:
            rules["check"] = functools.partial(self.check, options)
            body = functools.partial(self._begin, options)
            return execute(folder, identity, config, body, resume=options.resume, **rules)
        if len(set(options.seeds)) < max(2, len(options.seeds)):
            raise UserError("--seeds: expected two or more different seeds; --seed takes a single one")

        def of_seed(seed: int, place: Path) -> CommonOptions:
            out = place if options.out is not None else None
            return dataclasses.replace(options, seed=seed, seeds=None, out=out, name=f"{name}/seed-{seed}")

        def check() -> None:
            for seed in options.seeds:
                self.check(of_seed(seed, folder / f"seed-{seed}"))

        def child(seed: int, place: Path) -> dict[str, Any]:
            return self(of_seed(seed, place))

        return execute_seeds(folder, identity, config, child, check=check, **rules)

    def check(self, options: CommonOptions, *, alone: bool = False) -> None:
        """Refuse what can be refused before anything is read, made, trained, downloaded or written; `alone`: whatever
        the scripts that make its input would refuse, for someone else makes that.

        Errors: `UserError` for a path that is not there, and what `refusals` and `needs` raise.
        """
        for name, f in self.fields.items():
            value = getattr(options, name)
            if name in (*options.written, "config"):
                continue
            for path in value if isinstance(value, tuple) else (value,):
                if isinstance(path, Path) and str(path) not in f.metadata.get("known", ()) and not path.exists():
                    raise UserError(f"{dashed(name)}: {path}: no such file or folder")
        # A run that is not finished says more than the file that it lacks.
        for refuse in (None if alone else self.needs, self.refusals):
            if refuse is not None:
                self._start(options)
                refuse(options)

    def options(self, **overrides: Any) -> Any:
        """Options with the defaults of the script, checked and converted as on the command line."""
        return self._build({self._key(k, f"{k}: unknown option"): value for k, value in overrides.items()}, {})

    def folder(self, options: CommonOptions) -> Path:
        """Where a run with `options` is kept: `--out`, else `runs/<app>/<script>/<name>`."""
        if options.out is not None:
            return options.out
        name = run_name(options)
        if Path(name).is_absolute() or {"", ".", ".."} & set(name.split("/")) or "\0" in name:
            raise UserError(f"--name: {name!r} would leave runs/{self.app}/{self.name}; use --out for another place")
        return Path("runs", self.app, self.name, name)

    def _place(
        self, options: CommonOptions, command: str | None = None
    ) -> tuple[Path, record.Identity, dict[str, Any]]:
        """Folder, identity and stored config of a run with `options`."""
        config = {k: plain_value(getattr(options, k)) for k in self.fields if k not in STEERING}
        identity = record.Identity(self.app, self.name, command or self.command(options))
        return self.folder(options), identity, config | {"name": run_name(options)}

    def command(self, options: CommonOptions) -> str:
        """The command line of `options`: what differs from the defaults."""
        words = ["python", self._path()]
        for name, f in self.fields.items():
            value = getattr(options, name)
            if name not in ("resume", "force") and value != f.default:
                words += [dashed(name), typed_text(value)]
        return shlex.join(words)

    def main(self, argv: Sequence[str] | None = None) -> None:
        """Parse, run, print the figures; ends the process with 0, 2 (the user can put it right) or 130 (Ctrl-C)."""
        argv = list(sys.argv[1:] if argv is None else argv)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        try:
            try:
                self._main(argv)
            finally:
                # Or what ends it would be said on the line of a bar.
                progress.close_all()
            sys.stdout.flush()
        except UserError as error:
            self._end(str(error), 2)
        except KeyboardInterrupt:
            self._end("interrupted; continue with --resume", 130)
        except BrokenPipeError:
            # Python flushes stdout once more on its way out.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except OSError as error:
            if error.errno not in USER_ERRNOS:
                raise
            self._end(f"{error.filename or 'output'}: {error.strerror}; free some space or choose another --out", 2)
        sys.exit(0)

    def parse(self, argv: Sequence[str]) -> Any:
        """Options from a command line and the file that its `--config` names. Errors: `UserError` in one line."""
        typed = self._typed(argv)
        origins = {name: dashed(name) for name in typed}
        if "config" in typed:
            path = Path(typed["config"])
            filed = self._filed(path)
            origins = {name: f"{path}: {name}" for name in filed} | origins
            typed = filed | typed
        return self._build(typed, origins)

    def produce(
        self,
        given: Path | None,
        options: CommonOptions,
        must_match: Sequence[str] = ("dataset", "seed"),
        *,
        say: Callable[[str], None] = progress.say,
        **overrides: Any,
    ) -> Path:
        """The finished run of this script that another script's `options` need.

        `given`, when there is one, is a folder or a file and is returned as it is. Otherwise the folder is
        `runs/<app>/<script>/<name>`, with the name of `options`. When nothing is finished there the script runs, with
        its own section of the same file, the shared options that `options` change against theirs, the fields
        `must_match`, and `overrides`.

        Errors: `UserError` when `given` is missing or unfinished, when a field of `must_match` differs from the
        config of the run, and under the strategy multiworker when the run would have to be made.
        """
        folder, wanted = self._found(given, options, must_match, overrides)
        if wanted is not None:
            doing = "going on with" if wanted.resume else "running"
            say(f"{folder}: no finished run there; {doing} {self.command(wanted)}")
            self(wanted)
        return folder

    def expect(
        self,
        given: Path | None,
        options: CommonOptions,
        must_match: Sequence[str] = ("dataset", "seed"),
        **overrides: Any,
    ) -> None:
        """Refuse what `produce` with the same arguments would refuse, the run that it would make included; for the
        `needs` of another script. Errors: as `produce`."""
        wanted = self.planned(given, options, must_match, **overrides)
        if wanted is not None:
            # Its folder may be of another run, or lie where a file does.
            settle(*self._place(wanted), uncompared=wanted.unhashed, resume=wanted.resume)
            self.check(wanted)

    def planned(
        self,
        given: Path | None,
        options: CommonOptions,
        must_match: Sequence[str] = ("dataset", "seed"),
        **overrides: Any,
    ) -> Any | None:
        """Options of the run that `produce` with the same arguments would make; None where it is there. Errors: as
        `produce`."""
        return self._found(given, options, must_match, overrides)[1]

    def _found(
        self, given: Path | None, options: CommonOptions, must_match: Sequence[str], overrides: Mapping[str, Any]
    ) -> tuple[Path, Any]:
        """What `produce` returns, and, if that is still to be made, the options of its run."""
        expected = {name: overrides.get(name, getattr(options, name)) for name in must_match}
        if given is not None:
            _check_given(given, expected)
            return given, None
        wanted = self.options_from(options, **({k: v for k, v in expected.items() if k in self.fields} | overrides))
        folder = self.folder(wanted)
        begun = record.read_owner(folder) is not None
        if begun and (folder / "results.json").exists():
            _check_given(folder, expected)
            return folder, None
        if options.strategy == "multiworker":
            raise UserError(f"{folder}: no finished run there; make it first on one machine: {self.command(wanted)}")
        return folder, dataclasses.replace(wanted, resume=begun)

    def options_from(self, options: CommonOptions, **overrides: Any) -> Any:
        """Options of this script that go with another script's `options`: its own section of the same file, the
        shared options that were changed there, the same name, and `overrides`."""
        consumer, filed, base = options.owner, {}, type(options)()
        if options.config is not None:
            filed = self._filed(options.config, sections_only=True)
            if consumer is not None:
                base = consumer.options(**consumer._filed(options.config, sections_only=True))
        changed = {name: getattr(options, name) for name in SHARED if getattr(options, name) != getattr(base, name)}
        values = filed | {name: value for name, value in changed.items() if name in self.fields} | overrides
        place = {"config": options.config, "name": options.name, "out": None, "seeds": None}
        return self.options(**(values | place | {"resume": False, "force": False}))

    def _start(self, options: CommonOptions) -> None:
        # Here and no sooner: a wrong option or the look at a finished run needs no TensorFlow.
        if options.needs_tensorflow and "tensorflow" not in sys.modules:
            with _quiet_start_up():
                import tensorflow as tf

                # Before anything computes, or TensorFlow takes all of a GPU's memory at once.
                for gpu in tf.config.list_physical_devices("GPU"):
                    tf.config.experimental.set_memory_growth(gpu, True)
            # A run with several models has many functions traced once each, which is no fault.
            tf.get_logger().setLevel("ERROR")

    def _begin(self, options: CommonOptions, run: Run) -> None:
        self._start(options)
        if options.deterministic:
            import keras
            import tensorflow as tf

            tf.config.experimental.enable_op_determinism()
            # Operations without a seed of their own are refused from here on unless there is a global one.
            keras.utils.set_random_seed(options.seed)
        self.body(options, run)

    def _main(self, argv: Sequence[str]) -> None:
        if {"-h", "--help"} & set(argv):
            self._parser.print_help()
            return
        printing = [word for word in argv if word.replace("_", "-") == "--print-config"]
        options = self.parse([word for word in argv if word not in printing])
        if printing:
            print(record.dump({k: plain_value(getattr(options, k)) for k in self.fields if k not in STEERING}), end="")
            return
        results = self(options, command=shlex.join(["python", self._path(), *_without_steering(argv)]))
        if record.is_chief(options.strategy):
            from common.runs.report import console

            folder = self.folder(options)
            print(printable((self.ending or console)(folder, results, record.read_table(folder))))

    def _end(self, message: str, status: int) -> None:
        print(f"{self.name}: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(status)

    def _path(self) -> str:
        path = Path(self.body.__code__.co_filename)
        for root in (record.ROOT, Path.cwd()):
            if path.is_absolute() and path.is_relative_to(root):
                return path.relative_to(root).as_posix()
        return path.name if path.is_absolute() else path.as_posix()

    def _key(self, written: Any, refusal: str, spell: Callable[[str], str] = str) -> str:
        """The field that an option or key as written means; `refusal` begins the message where there is none."""
        key = str(written).replace("-", "_")
        if key not in self._names:
            raise UserError(refusal + suggestion(key, [*self._names, "help", "print_config"], spell))
        return self._names[key]

    def _typed(self, argv: Sequence[str]) -> dict[str, str]:
        """The words of a command line by field, as they were typed."""
        values: dict[str, str] = {}
        words = list(argv)
        while words:
            word = words.pop(0)
            option, equals, value = word.partition("=")
            if not option.startswith("--"):
                raise UserError(f"{word!r}: not expected here; options start with --")
            name = self._key(option[2:], f"{option}: unknown option", dashed)
            if not equals and self.hints[name] is bool:
                value = words.pop(0) if words and words[0].lower() in ("true", "false") else "true"
            elif not equals and (not words or words[0].startswith("--")):
                raise UserError(f"{option}: expected {meaning_of(self.hints[name])} after it")
            elif not equals:
                value = words.pop(0)
            values[name] = value
        return values

    def _filed(self, path: Path, *, sections_only: bool = False) -> dict[str, Any]:
        """The keys of a YAML file that are for this script; of a flat file none, if `sections_only`.

        Errors: `UserError` naming file and key.
        """
        document = read_yaml(path)
        if not any(isinstance(value, dict) for value in document.values()):
            return {} if sections_only else self._layer(path, document)
        # A section belongs to a script that is loaded, or to a file beside this one.
        known = {"all", *self.names, *(file.stem for file in Path(self.body.__code__.co_filename).parent.glob("*.py"))}
        for key, value in document.items():
            if not isinstance(value, dict | None):
                raise UserError(f"{path}: {key}: stands beside sections; put it into one of them or into all")
            if key not in known:
                raise UserError(f"{path}: {key}: no such script" + suggestion(str(key), known))
        foreign = {f.name for f in dataclasses.fields(CommonOptions)} - set(self.fields)
        shared = {k: v for k, v in (document.get("all") or {}).items() if str(k).replace("-", "_") not in foreign}
        return self._layer(path, shared) | self._layer(path, document.get(self.name) or {})

    def _layer(self, path: Path, written: Mapping[Any, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in written.items():
            name = self._key(key, f"{path}: {key}: unknown key")
            if name in values:
                raise UserError(f"{path}: {key}: occurs twice, in two spellings")
            if name == "config":
                raise UserError(f"{path}: config: a file cannot name another one; use --config")
            values[name] = value
        return values

    def _build(self, values: Mapping[str, Any], origins: Mapping[str, str]) -> Any:
        values = {name: as_sequence(self.hints[name], value) for name, value in values.items()}
        try:
            parsed = self._parser.parse_object(values).as_dict()
        except ArgumentError as error:
            for name, value in values.items():
                try:
                    self._parser.parse_object({name: value})
                except ArgumentError:
                    raise self._refused(name, value, origins) from error
            raise UserError(" ".join(str(error).split())) from error
        parsed = {name: bare(parsed[name]) for name in self.fields}
        for name, value in parsed.items():
            infinite = isinstance(value, float) and not math.isfinite(value)
            # A choice from a list is one of some; where none will do, the default says so.
            chosen = get_origin(next(iter(get_args(self.hints[name])), None)) is Literal
            missing = chosen and value == () and self.fields[name].default != ()
            if infinite or missing:
                raise self._refused(name, value, origins)
        return self.options_class(**parsed)

    def _refused(self, name: str, value: Any, origins: Mapping[str, str]) -> UserError:
        got = typed_text(value) if isinstance(value, str | list | tuple) else repr(value)
        # The budget of a picture given in grey levels, as in half of the literature.
        meant = self.hints[name] is LinfBudget and got.replace(".", "", 1).isdigit()
        remedy = f"; did you mean {got}/255?" if meant else ""
        return UserError(f"{origins.get(name, name)}: expected {meaning_of(self.hints[name])}, got {got[:80]}{remedy}")

    @functools.cached_property
    def _parser(self) -> ArgumentParser:
        summary = (self.body.__globals__.get("__doc__") or self.body.__doc__ or "").strip().split("\n")[0]
        parser = ArgumentParser(
            prog=f"python {self._path()}",
            usage="%(prog)s [options]",
            description=summary,
            exit_on_error=False,
            formatter_class=_HelpFormatter,
        )
        common = {f.name for f in dataclasses.fields(CommonOptions)}
        own, shared = parser.add_argument_group("this script"), parser.add_argument_group("every script")
        meanings = field_docs(self.options_class)
        for name, f in self.fields.items():
            hint = self.hints[name]
            kind = "" if get_origin(hint) is Literal else meaning_of(hint).replace(" or null", "") + "; "
            meaning = f"{meanings.get(name, '')} ({kind}default: {typed_text(f.default)})"
            if others := f.metadata.get("alias"):
                meaning += f" Also {', '.join(map(dashed, others))}."
            switch = {"nargs": "?", "const": True} if hint is bool else {}
            group = shared if name in common else own
            group.add_argument(dashed(name), type=hint, default=f.default, help=meaning, **switch)
        shared.add_argument("--print-config", action="store_true", help="Print the resolved options as YAML and end.")
        return parser


class Parts:
    """Runs of other scripts under the name of the one that joins them: made, gone on with or, under --force, made anew.

    `results` are those of all parts so far.
    """

    def __init__(self, options: CommonOptions, run: Run, *, shared: Sequence[str] = ()) -> None:
        """`shared`: further options, common to the app's scripts, that each part takes from `options`."""
        self.options, self.run, self.shared = options, run, shared
        self.name = run_name(options)
        self.results: list[dict[str, Any]] = []
        # What --force has begun anew: --resume after an interruption must take none that was finished before it.
        self._renewed = run.checkpoints / "renewed.txt"

    def __call__(self, producer: Script, *place: str, **settings: Any) -> Path:
        """The finished run `<own name>/<place>`, its other settings from its section of the config."""
        name = "/".join((self.name, *place))
        wanted = part_options(self.options, producer, *place, shared=self.shared, **settings)
        self.run.say(f"-- {producer.name} {name}")
        anew = self._begins_anew(f"{producer.app} {producer.name} {name}")
        try:
            self.results.append(producer(dataclasses.replace(wanted, force=anew, resume=not anew)))
        except UserError:
            if anew and not self.results and self.run.chief:
                # Refused at once: there is nothing to go on from.
                self._renewed.unlink()
                self._renewed.parent.rmdir()
            raise
        return producer.folder(wanted)

    def _begins_anew(self, part: str) -> bool:
        if not (self.options.force or self._renewed.is_file()):
            return False
        renewed = self._renewed.read_text(encoding="utf-8").splitlines() if self._renewed.is_file() else []
        if part in renewed:
            return False
        if self.run.chief:
            self._renewed.parent.mkdir(exist_ok=True)
            write_text(self._renewed, "".join(f"{line}\n" for line in (*renewed, part)))
        return True

    @property
    def minutes(self) -> float:
        """What all parts took, whichever process ran them: the joining run itself, resumed, takes seconds."""
        return sum(result["seconds"] for result in self.results) / 60


def part_options(
    options: CommonOptions, producer: Script, *place: str, shared: Sequence[str] = (), **settings: Any
) -> Any:
    """Options of the run `<own name>/<place>` that `Parts` makes: `shared` from `options`, `settings`, and the rest
    from the producer's section of the config."""
    name = "/".join((run_name(options), *place))
    own = {field: getattr(options, field) for field in shared if field in producer.fields}
    return producer.options_from(dataclasses.replace(options, name=name), **(own | settings))


def script(
    *,
    app: str,
    name: str,
    ending: Ending | None = None,
    refusals: Callable[[Any], None] | None = None,
    needs: Callable[[Any], None] | None = None,
) -> Callable[[Callable[[Any, Run], None]], Script]:
    """Make a function of typed options and a `Run` the entry script `<app>/<name>`; the others as in `Script`."""
    return lambda body: Script(body, app, name, ending, refusals, needs)


class _HelpFormatter(DefaultHelpFormatter):
    def _get_help_string(self, action: Action) -> str:
        # jsonargparse would add the names of Python types; the help has said what is expected in words.
        return action.help or ""


@contextlib.contextmanager
def _quiet_start_up() -> Iterator[None]:
    """Hold back what C++ libraries write to stderr meanwhile; show it only if the block fails.

    TensorFlow greets with ten lines that no setting silences, and they would bury the one line an error consists of.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            yield
        except BaseException:
            notes.seek(0)
            os.write(kept, notes.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _check_given(given: Path, expected: Mapping[str, Any]) -> None:
    """Refuse a run, or a file in one, that is not there, not finished, or differs from `expected`."""
    if not given.exists():
        raise UserError(f"{given}: no such file or folder")
    folder = next((place for place in (given, *given.parents[:2]) if record.read_owner(place)), None)
    if folder is None:
        return
    if folder == given and not (folder / "results.json").exists():
        raise UserError(f"{folder}: holds an unfinished run; finish it with --resume")
    stored = record.read_config(folder)
    if seeds := stored.get("seeds"):
        raise UserError(f"{folder}: holds several seeds; name one of them, such as {folder / f'seed-{seeds[0]}'}")
    for name, value in expected.items():
        if name in stored and stored[name] != plain_value(value):
            raise UserError(
                f"{folder}: was run with {name} {typed_text(stored[name])}, this run has"
                f" {typed_text(plain_value(value))}; make {name} the same, or choose another run or --name"
            )


def _without_steering(argv: Sequence[str]) -> list[str]:
    """The words that say what a run was; --resume and --force say how this call came to it."""
    kept: list[str] = []
    steered = False
    for word in argv:
        if steered and word in ("true", "false"):
            continue
        steered = word.partition("=")[0] in ("--resume", "--force")
        if not steered:
            kept.append(word)
    return kept
