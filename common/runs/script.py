"""Entry scripts: typed options, the function they are handed to, and the runs that one script needs of another.

@dataclass(kw_only=True)
class Options(RunOptions):
    eps: Budget = 1.5
    \"\"\"L2 radius at 32 x 32 x 3, in [0, 1] units.\"\"\"

@script(app="adv_lock", name="lock")
def lock(options: Options, run: Run) -> None: ...

if __name__ == "__main__":
    lock.main()
"""

import contextlib
import dataclasses
import functools
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

from common import progress
from common.errors import USER_ERRNOS, UserError
from common.files import printable
from common.runs import record
from common.runs.folder import Comparison, execute, execute_seeds, find_finished
from common.runs.option_parser import OptionParser
from common.runs.options import (
    HANDED_ON,
    RUN_CONTROL,
    ComputeOptions,
    RunOptions,
    dashed,
    plain_value,
    run_name,
    strategy_of,
    typed_text,
)
from common.runs.record import Run

Ending = Callable[[Path, Mapping[str, Any], Sequence[Mapping[str, Any]]], str]


class Script:
    """An entry script as a function: `lock(Options(...))` does the whole run and returns its results.

    `body` is the undecorated function, for callers that bring a `Run` of their own. `columns` are key columns of the
    script's own in `table.csv`. `ending` makes what the command line prints at the end from folder, results and table;
    by default `common.runs.tables.console`. `refusals` raises `UserError` for options with which `body` would fail, as
    far as they and the files that they name tell; `needs` calls `expect` of the scripts whose runs `body` would
    `require`.
    """

    names: ClassVar[set[str]] = set()

    def __init__(
        self,
        body: Callable[[Any, Run], None],
        app: str,
        name: str,
        columns: Sequence[str] = (),
        ending: Ending | None = None,
        refusals: Callable[[Any], None] | None = None,
        needs: Callable[[Any], None] | None = None,
    ) -> None:
        functools.update_wrapper(self, body)
        self.body, self.app, self.name = body, app, name
        self.columns, self.ending = tuple(columns), ending
        self.refusals, self.needs = refusals, needs
        self.names.add(name)
        self.parser = OptionParser(get_type_hints(body)["options"], name)
        self.fields = self.parser.fields

    def __call__(self, options: RunOptions, *, command: str | None = None) -> dict[str, Any]:
        """Run with `options`, in the folder that they name; the results are those of `results.json`.

        Errors: `UserError` for invalid options or an unusable run folder; exceptions of the body propagate.
        """
        options = self.options(**{name: getattr(options, name) for name in self.fields})
        if options.resume and options.force:
            raise UserError("--resume and --force exclude each other: continue the run, or start again")
        name = run_name(options)
        folder, identity, config = self._place(options, command)
        rules = {
            "comparison": self._comparison,
            "force": options.force,
            "chief": record.is_chief(strategy_of(options)),
        }
        seeds = getattr(options, "seeds", None)
        if seeds is None:
            rules["check"] = functools.partial(self.check, options)
            body = functools.partial(self._begin, options)
            return execute(folder, identity, config, body, resume=options.resume, **rules)
        if len(set(seeds)) < max(2, len(seeds)):
            raise UserError("--seeds: expected two or more different seeds; --seed takes a single one")

        def of_seed(seed: int, place: Path) -> RunOptions:
            out = place if options.out is not None else None
            return dataclasses.replace(options, seed=seed, seeds=None, out=out, name=f"{name}/seed-{seed}")

        def check() -> None:
            for seed in seeds:
                self.check(of_seed(seed, folder / f"seed-{seed}"))

        def child(seed: int, place: Path) -> dict[str, Any]:
            return self(of_seed(seed, place))

        return execute_seeds(folder, identity, config, child, check=check, **rules)

    @functools.cached_property
    def _comparison(self) -> Comparison:
        left_out = [name for name, f in self.fields.items() if not f.metadata.get("compared", True)]
        return Comparison(left_out, self.parser.renamed)

    def check(self, options: RunOptions, *, alone: bool = False) -> None:
        """Refuse what can be refused before anything is read, trained, downloaded or written; `alone`: regardless of
        what the scripts that make its input would refuse, for that input is made elsewhere.

        Errors: `UserError` for a path that is not there, and what `refusals` and `needs` raise.
        """
        for name, f in self.fields.items():
            value = getattr(options, name)
            if f.metadata.get("written") or name == "config":
                continue
            for path in value if isinstance(value, tuple) else (value,):
                if isinstance(path, Path) and str(path) not in f.metadata.get("known", ()) and not path.exists():
                    raise UserError(f"{dashed(name)}: {path}: no such file or folder")
        # An unfinished run is a better message than the file that it lacks.
        for refuse in (None if alone else self.needs, self.refusals):
            if refuse is not None:
                self._start(options)
                refuse(options)

    def options(self, **overrides: Any) -> Any:
        """Options with the defaults of the script, checked and converted as on the command line."""
        values = {self.parser.key(k, f"{k}: unknown option"): value for k, value in overrides.items()}
        return self.parser.build(values, script=self)

    def folder(self, options: RunOptions) -> Path:
        """Where a run with `options` is kept: `--out`, else `runs/<app>/<script>/<name>`."""
        if options.out is not None:
            return options.out
        name = run_name(options)
        if Path(name).is_absolute() or {"", ".", ".."} & set(name.split("/")) or "\0" in name:
            raise UserError(f"--name: {name!r} would leave runs/{self.app}/{self.name}; use --out for another place")
        return Path("runs", self.app, self.name, name)

    def _place(self, options: RunOptions, command: str | None = None) -> tuple[Path, record.Identity, dict[str, Any]]:
        """Folder, identity and stored config of a run with `options`."""
        identity = record.Identity(self.app, self.name, command or self.command(options), self.columns)
        return self.folder(options), identity, self._config(options) | {"name": run_name(options)}

    def _config(self, options: RunOptions) -> dict[str, Any]:
        return {k: plain_value(getattr(options, k)) for k in self.fields if k not in RUN_CONTROL}

    def command(self, options: RunOptions) -> str:
        """The command line of `options`: what differs from the defaults."""
        words = ["python", *self._words]
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
                # Or the message of what ended it would be printed on the line of a bar.
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
        return dataclasses.replace(self.parser.parse(argv, self._sections), script=self)

    @property
    def _sections(self) -> set[str]:
        """What a section of a file may be called: a loaded script, or a file in the same folder."""
        return self.names | {file.stem for file in Path(self.body.__code__.co_filename).parent.glob("*.py")}

    def require(
        self,
        given: Path | None,
        options: RunOptions,
        must_match: Sequence[str] = ("dataset", "seed"),
        *,
        log: Callable[[str], None] = progress.log,
        **overrides: Any,
    ) -> Path:
        """The finished run of this script that another script's `options` need.

        `given`, when there is one, is a folder or a file and is returned as it is. Otherwise the folder is
        `runs/<app>/<script>/<name>`, with the name of `options`. When no finished run is there the script runs, with
        its own section of the same file, the shared options that `options` change against theirs, the fields
        `must_match`, and `overrides`.

        Errors: `UserError` when `given` is missing or unfinished, when a field of `must_match` differs from the
        config of the run, and under the strategy multiworker when the script would have to run.
        """
        folder, wanted = self._found(given, options, must_match, overrides)
        if wanted is not None:
            doing = "continuing" if wanted.resume else "running"
            log(f"{folder}: no finished run there; {doing} {self.command(wanted)}")
            self(wanted)
        return folder

    def expect(
        self,
        given: Path | None,
        options: RunOptions,
        must_match: Sequence[str] = ("dataset", "seed"),
        **overrides: Any,
    ) -> None:
        """Refuse what `require` with the same arguments would refuse, and what the run would that it starts; for the
        `needs` of another script. Errors: as `require`."""
        wanted = self.planned(given, options, must_match, **overrides)
        if wanted is not None:
            # Its folder may be of another run, or a file may be where it should be.
            find_finished(*self._place(wanted), self._comparison, resume=wanted.resume)
            self.check(wanted)

    def planned(
        self,
        given: Path | None,
        options: RunOptions,
        must_match: Sequence[str] = ("dataset", "seed"),
        **overrides: Any,
    ) -> Any | None:
        """Options of the run that `require` with the same arguments would start; None where it is finished. Errors: as
        `require`."""
        return self._found(given, options, must_match, overrides)[1]

    def _found(
        self, given: Path | None, options: RunOptions, must_match: Sequence[str], overrides: Mapping[str, Any]
    ) -> tuple[Path, Any]:
        """What `require` returns, and, if that is still to be made, the options of its run."""
        expected = {name: overrides.get(name, getattr(options, name)) for name in must_match}
        if given is not None:
            self._check_given(given, expected)
            return given, None
        wanted = self.options_from(options, **({k: v for k, v in expected.items() if k in self.fields} | overrides))
        folder = self.folder(wanted)
        begun = record.read_owner(folder) is not None
        if begun and (folder / "results.json").exists():
            self._check_given(folder, expected)
            return folder, None
        if strategy_of(options) == "multiworker":
            raise UserError(f"{folder}: no finished run there; make it first on one machine: {self.command(wanted)}")
        return folder, dataclasses.replace(wanted, resume=begun)

    def options_from(self, options: RunOptions, **overrides: Any) -> Any:
        """Options of this script that go with another script's `options`: its own section of the same file, the
        shared options that were changed there, the same name, and `overrides`."""
        consumer, filed, base = options.script, {}, type(options)()
        if options.config is not None:
            filed = self.parser.read(options.config, self._sections, sections_only=True)
            if consumer is not None:
                own = consumer.parser.read(options.config, consumer._sections, sections_only=True)
                base = consumer.options(**own)
        handed_on = [name for name in HANDED_ON if name in self.fields and hasattr(options, name)]
        changed = {name: getattr(options, name) for name in handed_on if getattr(options, name) != getattr(base, name)}
        place = {"config": options.config, "name": options.name, "out": None, "seeds": None}
        place = {name: value for name, value in place.items() if name in self.fields}
        return self.options(**(filed | changed | overrides | place | {"resume": False, "force": False}))

    def _start(self, options: RunOptions) -> None:
        # Here and no sooner: to refuse an option or to show a finished run takes no TensorFlow.
        if isinstance(options, ComputeOptions) and "tensorflow" not in sys.modules:
            with quiet_start_up():
                import tensorflow as tf

                # Before anything computes, or TensorFlow takes all of a GPU's memory at once.
                for gpu in tf.config.list_physical_devices("GPU"):
                    tf.config.experimental.set_memory_growth(gpu, True)
            # Of a run with several models it would warn that many functions were traced, once each.
            tf.get_logger().setLevel("ERROR")
        if strategy_of(options) == "multiworker":
            from common.training import devices

            # What is refused may take a look at models, and workers meet before anything is computed.
            devices.workers()

    def _begin(self, options: RunOptions, run: Run) -> None:
        self._start(options)
        if isinstance(options, ComputeOptions) and options.deterministic:
            import keras
            import tensorflow as tf

            tf.config.experimental.enable_op_determinism()
            # Operations without a seed of their own are refused from here on unless there is a global one.
            keras.utils.set_random_seed(options.seed)
        self.body(options, run)

    def _main(self, argv: Sequence[str]) -> None:
        if {"-h", "--help"} & set(argv):
            summary = (self.body.__globals__.get("__doc__") or self.body.__doc__ or "").strip().split("\n")[0]
            print(self.parser.help(shlex.join(["python", *self._words]), summary), end="")
            return
        printing = [word for word in argv if word.replace("_", "-") == "--print-config"]
        options = self.parse([word for word in argv if word not in printing])
        if printing:
            print(record.dump(self._config(options)), end="")
            return
        results = self(options, command=shlex.join(["python", *self._words, *_without_control(argv)]))
        if record.is_chief(strategy_of(options)):
            from common.runs.tables import console

            folder = self.folder(options)
            print(printable((self.ending or console)(folder, results, record.read_table(folder))))

    def _end(self, message: str, status: int) -> None:
        print(f"{self.name}: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(status)

    @property
    def _words(self) -> list[str]:
        """What Python is told to run: the file, or the package whose `__main__` it is."""
        path = Path(self._path())
        return ["-m", ".".join(path.parent.parts)] if path.name == "__main__.py" else [path.as_posix()]

    def _path(self) -> str:
        path = Path(self.body.__code__.co_filename)
        for root in (record.ROOT, Path.cwd()):
            if path.is_absolute() and path.is_relative_to(root):
                return path.relative_to(root).as_posix()
        return path.name if path.is_absolute() else path.as_posix()

    def _check_given(self, given: Path, expected: Mapping[str, Any]) -> None:
        """Refuse a run, or a file in one, that is not there, not finished, or differs from `expected`."""
        if not given.exists():
            raise UserError(f"{given}: no such file or folder")
        folder = next((place for place in (given, *given.parents[:2]) if record.read_owner(place)), None)
        if folder is None:
            return
        if folder == given and not (folder / "results.json").exists():
            raise UserError(f"{folder}: holds an unfinished run; finish it with --resume")
        stored = self.parser.renamed(record.read_config(folder))
        if seeds := stored.get("seeds"):
            raise UserError(f"{folder}: holds several seeds; name one of them, such as {folder / f'seed-{seeds[0]}'}")
        for name, value in expected.items():
            if name in stored and stored[name] != plain_value(value):
                raise UserError(
                    f"{folder}: was run with {name} {typed_text(stored[name])}, this run has"
                    f" {typed_text(plain_value(value))}; make {name} the same, or choose another run or --name"
                )


def script(
    *,
    app: str,
    name: str,
    columns: Sequence[str] = (),
    ending: Ending | None = None,
    refusals: Callable[[Any], None] | None = None,
    needs: Callable[[Any], None] | None = None,
) -> Callable[[Callable[[Any, Run], None]], Script]:
    """Make a function of typed options and a `Run` the entry script `<app>/<name>`; the others as in `Script`."""
    return lambda body: Script(body, app, name, columns, ending, refusals, needs)


@contextlib.contextmanager
def quiet_start_up() -> Iterator[None]:
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


def _without_control(argv: Sequence[str]) -> list[str]:
    """The words that describe the run; --resume and --force belong to this call alone."""
    kept: list[str] = []
    control = False
    for word in argv:
        if control and word in ("true", "false"):
            continue
        control = word.partition("=")[0] in ("--resume", "--force")
        if not control:
            kept.append(word)
    return kept
