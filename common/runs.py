"""One run, one folder: what a script measures, where that is kept, and when a folder may be used again.

A folder belongs to a run from the moment its `config.yaml` is written, and is finished once it has a `results.json`.
`.lock` is held with `flock`, so a killed process leaves nothing behind that has to be removed by hand.
"""

import contextlib
import csv
import datetime
import fcntl
import importlib.metadata
import io
import json
import math
import numbers
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from common.errors import UserError
from common.files import json_text, printable, write_text
from common.progress import say

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("seed", "model", "attack", "norm", "eps", "split", "metric", "value", "n", "low", "high")
NUMBERS = ("value", "n", "low", "high")
# Where a run lies and where its data lie: two runs that differ in these alone have the same results.
UNCOMPARED = ("out", "name", "data_dir")

# What every run writes, the results first; `--force` sets it aside until the new run is finished.
_WRITTEN = ("results.json", "table.csv", "metrics.csv", "log.txt", "checkpoints", "tensorboard", "config.yaml")
_BEFORE = ".before"


def wilson(successes_or_rate: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a rate over `n` independent trials, as fractions in [0, 1].

    An integer counts successes, a float is a rate: `wilson(1, 10)` is one of ten, `wilson(1.0, 10)` all ten.

    Errors: `ValueError` for a rate outside [0, 1], more successes than trials, or a confidence outside (0, 1).
    """
    counted = isinstance(successes_or_rate, numbers.Integral)
    if n == 0 and successes_or_rate == 0:
        return 0.0, 1.0
    rate = successes_or_rate / n if counted and n > 0 else float(successes_or_rate)
    if n <= 0 or not 0 <= rate <= 1:
        raise ValueError(f"wilson: {successes_or_rate} of {n} trials is no rate")
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


class Identity(NamedTuple):
    """Whose run it is: `adv_lock`, `lock`, and the command line that repeats it."""

    app: str
    script: str
    command: str


class Run:
    """What a script's body is given beside its options.

    `folder` is where the run writes. `checkpoints`, inside it, holds what `--resume` goes on from: whatever is found
    there belongs to this very run, since `--force` clears it; a finished run needs it no more. `chief` is False in
    the workers of a multi-worker run that must not write; for them every method below checks its arguments and leaves
    the disk alone.
    """

    def __init__(self, folder: Path, identity: Identity, config: Mapping[str, Any], *, chief: bool = True) -> None:
        self.folder, self.chief = Path(folder), chief
        self.checkpoints = self.folder / "checkpoints"
        self._identity, self._config = identity, dict(config)
        self._spent, self._commit = self.checkpoints / "seconds.txt", commit()
        # What a resumed run has taken before counts too.
        self._begun = time.monotonic() - (_seconds(self._spent) if chief else 0.0)
        self._data: tuple[str | None, str | None] = (config.get("dataset"), None)
        self._rows: list[dict[str, Any]] = []
        self._metrics: dict[str, float] = {}
        self._artifacts: dict[str, str] = {}
        self._curves = _read_csv(self.folder / "metrics.csv") if chief else []

    def say(self, text: str) -> None:
        """Print `text`, above any progress bar, and append it to `log.txt` with the time."""
        say(text)
        if self.chief:
            with open(self.folder / "log.txt", "a", encoding="utf-8") as log:
                log.write(f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S} {printable(text)}\n")

    def data(self, name: str, sha256: str) -> None:
        """Name the data set that was used and the SHA-256 of its bytes."""
        self._data = (name, sha256)

    def metrics(self, **values: float) -> None:
        """Set headline figures; rates are fractions in [0, 1] with their number of trials as `<key>_n`.

        Errors: `ValueError` naming the key of what is not a finite number.
        """
        self._metrics |= {key: _finite(key, value) for key, value in values.items()}

    def intervals(self, measured: Mapping[str, tuple[float, int, float, float]]) -> None:
        """Set headline rates with intervals of their own: (rate, number of trials, low, high) by key; for trials that
        are not independent, of which Wilson's interval would promise too much."""
        for key, values in measured.items():
            self.metrics(**dict(zip((key, *(key + ending for ending in ("_n", "_low", "_high"))), values, strict=True)))

    def row(self, **columns: Any) -> None:
        """Add a measurement to `table.csv`; `value` is required, `seed` is filled in, `n` counts the trials of a rate.

        Errors: `ValueError` naming an unknown column or a number that is not finite.
        """
        for key in columns:
            if key not in COLUMNS:
                raise ValueError(f"row: no column {key!r}; there are {', '.join(COLUMNS)}")
        _finite("value", columns.get("value"))
        checked = {k: _finite(k, v) if k in NUMBERS and v is not None else v for k, v in columns.items()}
        # A label with a line break, such as a class named so in someone's data, would tear the table.
        labels = {k: printable(re.sub(r"[\r\n\0]", " ", v)) for k, v in checked.items() if isinstance(v, str)}
        self._rows.append({"seed": self._config.get("seed")} | checked | labels)

    def rate(self, metric: str, value: float, n: int, **columns: Any) -> None:
        """Add a rate in [0, 1] over `n` trials to `table.csv`, with its Wilson interval."""
        low, high = wilson(float(value), n)
        self.row(metric=metric, value=float(value), n=n, low=low, high=high, **columns)

    def curve(self, **columns: Any) -> None:
        """Add a row to `metrics.csv`, on disk at once; the first call of a run sets the columns.

        Errors: `ValueError` when the columns are not those of the first call.
        """
        if self._curves and list(self._curves[0]) != list(columns):
            raise ValueError(f"curve: columns {', '.join(columns)}; the first row has {', '.join(self._curves[0])}")
        self._curves.append(columns)
        self._write_curves()
        if self.chief and self.checkpoints.is_dir():
            write_text(self._spent, f"{time.monotonic() - self._begun:.3f}")

    def curves_until(self, epoch: int) -> None:
        """Drop the rows of `metrics.csv` whose epoch is `epoch` or later: a resumed run writes them again."""
        kept = [row for row in self._curves if float(row["epoch"]) < epoch]
        if len(kept) < len(self._curves):
            self._curves = kept
            self._write_curves()

    def artifact(self, name: str, path: Path | str) -> None:
        """Record a file or folder of the run; results hold its path relative to `folder`.

        Errors: `ValueError` when it lies outside the folder or is not there.
        """
        path = Path(path)
        if not path.resolve().is_relative_to(self.folder.resolve()) or (self.chief and not path.exists()):
            raise ValueError(f"artifact {name}: {path} is not a file in {self.folder}")
        self._artifacts[name] = path.resolve().relative_to(self.folder.resolve()).as_posix()

    def finish(self) -> dict[str, Any]:
        """The results; the chief writes `table.csv` and, last, `results.json`."""
        results = {
            "app": self._identity.app,
            "script": self._identity.script,
            "command": self._identity.command,
            "dataset": self._data[0],
            "data_sha256": self._data[1],
            "seed": self._config.get("seed"),
            "metrics": self._metrics,
            "artifacts": self._artifacts,
            "config": self._config,
            "environment": environment(self._commit),
            "seconds": round(time.monotonic() - self._begun, 3),
        }
        if self.chief:
            _write_csv(self.folder / "table.csv", COLUMNS, self._rows)
            _write_results(self.folder, results)
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        return results

    def _write_curves(self) -> None:
        # The whole file each time: a reader, or a disk that fills up, never meets half a row.
        path = self.folder / "metrics.csv"
        if self.chief and self._curves:
            _write_csv(path, list(self._curves[0]), self._curves)
        elif self.chief:
            path.unlink(missing_ok=True)


def execute(
    folder: Path,
    identity: Identity,
    config: Mapping[str, Any],
    body: Callable[[Run], None],
    *,
    uncompared: Sequence[str] = (),
    resume: bool = False,
    force: bool = False,
    chief: bool = True,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run `body` in `folder`, or return what a finished run with the same config has stored there.

    `force` starts anew in a folder that has a config of the same script. What the earlier run wrote (results, tables,
    log, checkpoints and the artifacts that its results name) is set aside in `.before` and goes once the new run is
    finished. Everything else there is left alone, and nothing outside is touched. Input that is refused before there is
    anything to go on from leaves the folder as it was. `check` refuses what can be refused before anything is written;
    nobody asks it where there are results already.

    Errors: `UserError` for a folder of something else, of another config (naming the field), of an unfinished run
    without `resume`, of a run that goes on now, or one that cannot be written.
    """

    def stored() -> dict[str, Any] | None:
        # A worker comes after the chief has written the config, which to it looks like an unfinished run.
        return settle(folder, identity, config, uncompared=uncompared, resume=resume or not chief, force=force)

    if (results := stored()) is not None:
        return _finished_before(folder, results)
    check()
    if not chief:
        run = Run(folder, identity, config, chief=False)
        body(run)
        return run.finish()
    with locked(folder):
        # Another process may have finished between the look and the lock.
        if (results := stored()) is not None:
            return _finished_before(folder, results)
        begun = begin(folder, identity, config, force=force)
        run = Run(folder, identity, config)
        try:
            body(run)
        except UserError:
            if begun and not run.checkpoints.exists() and not (folder / "metrics.csv").exists():
                _step_back(folder)
            raise
        results = run.finish()
        _remove(folder / _BEFORE)
        return results


def execute_seeds(
    folder: Path,
    identity: Identity,
    config: Mapping[str, Any],
    child: Callable[[int, Path], dict[str, Any]],
    *,
    uncompared: Sequence[str] = (),
    force: bool = False,
    chief: bool = True,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run `child(seed, folder / "seed-<seed>")` for each of `config["seeds"]` and write their mean and spread.

    The config may be followed by one with more seeds; finished seeds are not run again unless `force`. `check` as in
    `execute`.
    """
    seeds = list(config["seeds"])
    stored = settle(folder, identity, config, uncompared=uncompared, resume=True, force=force)
    if stored is not None and stored["seed"] == seeds:
        return _finished_before(folder, stored)
    check()
    with locked(folder) if chief else contextlib.nullcontext():
        if chief and force:
            # All of them now: an interrupted run must not go on with seeds that were finished before it.
            for seed in seeds:
                if read_owner(folder / f"seed-{seed}") == identity[:2]:
                    _set_aside(folder / f"seed-{seed}")
        if chief:
            # Settled above: the old config is this one, perhaps with fewer seeds.
            begin(folder, identity, config, force=True)
        children = []
        for i, seed in enumerate(seeds):
            say(f"{identity.script}: seed {seed} ({i + 1} of {len(seeds)})")
            children.append(child(seed, folder / f"seed-{seed}"))
        results = _joined(identity, config, seeds, children)
        if chief:
            rows = [row for seed in seeds for row in _read_csv(folder / f"seed-{seed}" / "table.csv")]
            _write_csv(folder / "table.csv", COLUMNS, rows)
            _write_results(folder, results)
            _remove(folder / _BEFORE)
    return results


def settle(
    folder: Path,
    identity: Identity,
    config: Mapping[str, Any],
    *,
    uncompared: Sequence[str] = (),
    resume: bool = False,
    force: bool = False,
) -> dict[str, Any] | None:
    """The results stored in `folder` for `config`, or None when a run may begin or go on there; writes nothing.

    Errors: as `execute`.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; choose another --out")
    owner = read_owner(folder)
    if owner is None:
        if foreign := sorted(entry.name for entry in folder.iterdir() if not _ours(entry)):
            raise UserError(f"{folder}: holds {foreign[0]} but no config.yaml of a run; choose an empty or new --out")
        return None
    if owner != (identity.app, identity.script):
        raise UserError(f"{folder}: holds a run of {'/'.join(owner)}; choose another --out or --name")
    if force:
        return None
    old = read_config(folder)
    ignored = {*UNCOMPARED, *uncompared}
    if config.get("seeds") and old.get("seeds"):
        ignored |= {"seed", "seeds"}
    for key in [*config, *(key for key in old if key not in config)]:
        if key not in ignored and old.get(key) != config.get(key):
            raise UserError(
                f"{folder}: was run with {key} {_shown(old.get(key))}, now {_shown(config.get(key))};"
                " choose another --name or --out, or --force to start anew"
            )
    if not (folder / "results.json").exists():
        if not resume:
            raise UserError(f"{folder}: holds an unfinished run; --resume to go on or --force to start anew")
        return None
    return read_results(folder)


def begin(folder: Path, identity: Identity, config: Mapping[str, Any], *, force: bool) -> bool:
    """Make `folder` this run's: under `force` set aside what the last one wrote, and write `config.yaml`.

    An unfinished run that goes on keeps its config and its files; then the answer is False.
    """
    if read_owner(folder) is not None:
        if not force:
            return False
        _set_aside(folder)
    header = f"# {identity.app}/{identity.script}: the options of this run, as --config takes them\n"
    write_text(folder / "config.yaml", header + dump(config))
    return True


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create `folder` and hold its `.lock`; `UserError` when another process does or it cannot be written."""
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 20).decode("ascii", "replace").strip() or "unknown"
            raise UserError(
                f"{path}: process {holder} is writing this run; wait for it, or choose another --name or --out"
            ) from None
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(handle)


def read_owner(folder: Path) -> tuple[str, str] | None:
    """App and script whose run `folder` holds, by the first line of its `config.yaml`; None for any other folder."""
    try:
        with open(folder / "config.yaml", encoding="utf-8", errors="replace") as file:
            found = re.match(r"# (\w+)/(\w+): the options of this run", file.readline(200))
    except OSError:
        return None
    return (found[1], found[2]) if found else None


def read_config(folder: Path) -> dict[str, Any]:
    """The options that the run in `folder` was started with."""
    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not readable ({error}); --force to start anew") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: holds no options; --force to start anew")
    return config


def read_results(folder: Path) -> dict[str, Any]:
    """`results.json` of a finished run. Errors: `UserError` when it is missing or damaged."""
    path = folder / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(results, dict):
            return results
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the run is not finished") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({error}); --force to start anew") from error
    raise UserError(f"{path}: holds no results; --force to start anew")


def read_curves(folder: Path) -> list[dict[str, float]]:
    """The rows of `metrics.csv`, one for each epoch; none if the run wrote no curves."""
    return [{name: float(value) for name, value in row.items()} for row in _read_csv(folder / "metrics.csv")]


def read_table(folder: Path) -> list[dict[str, Any]]:
    """`table.csv` as one dictionary a row: seed int, numbers float, blank cells None, the rest text."""
    rows = _read_csv(folder / "table.csv")
    return [{key: _parsed(key, text) for key, text in row.items()} for row in rows]


def is_bound(key: str, metrics: Mapping[str, float]) -> bool:
    """Whether a metric is an end of another one's interval; over several seeds the spread takes its place."""
    return any(key.endswith(ending) and key.removesuffix(ending) in metrics for ending in ("_low", "_high"))


def is_chief(strategy: str) -> bool:
    """Whether this process writes: always, but in a worker that `TF_CONFIG` names beside the chief.

    Errors: `UserError` for a `TF_CONFIG` that is not JSON or names no task.
    """
    text = os.environ.get("TF_CONFIG", "")
    if strategy != "multiworker" or not text.strip():
        return True
    try:
        config = json.loads(text)
        task, cluster = config["task"], config.get("cluster", {})
        kind, index = str(task["type"]), int(task["index"])
        has_chief = "chief" in cluster
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            'TF_CONFIG: expected {"cluster": {"worker": [...]}, "task": {"type": "worker", "index": 0}} as JSON,'
            f" got {text[:80]!r}"
        ) from error
    return kind in ("chief", "master") or (kind == "worker" and index == 0 and not has_chief)


def environment(head: str) -> dict[str, str]:
    """Versions and device; the device is looked at only when the run has imported TensorFlow."""
    versions = {}
    for package in ("tensorflow", "keras"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "none"
    device = "CPU"
    if (tf := sys.modules.get("tensorflow")) is not None and (gpus := tf.config.get_visible_devices("GPU")):
        details = tf.config.experimental.get_device_details
        device = ", ".join(details(gpu).get("device_name", gpu.name) for gpu in gpus)
    return {"python": platform.python_version(), **versions, "device": device, "commit": head}


def commit() -> str:
    """The commit of this checkout, with `+dirty` when tracked files differ from it; "unknown" outside of one."""
    if not (ROOT / ".git").exists():
        return "unknown"
    try:
        git = ["git", "-C", str(ROOT)]
        options: dict[str, Any] = {"capture_output": True, "text": True, "check": True, "timeout": 20}
        head = subprocess.run([*git, "rev-parse", "HEAD"], **options).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head + ("+dirty" if changed else "")


def dump(config: Mapping[str, Any]) -> str:
    """Options as YAML, in their order."""
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)


def _joined(identity: Identity, config: Mapping[str, Any], seeds: list[int], children: list[dict]) -> dict[str, Any]:
    """Results over seeds: the mean of each metric that every seed has, with its sample standard deviation."""
    metrics: dict[str, float] = {}
    for key in children[0]["metrics"]:
        if not all(key in child["metrics"] for child in children) or is_bound(key, children[0]["metrics"]):
            continue
        values = [child["metrics"][key] for child in children]
        mean = statistics.fmean(values)
        if key.endswith("_n"):
            metrics[key] = int(mean) if mean.is_integer() else mean
        else:
            metrics |= {key: mean, f"{key}_std": statistics.stdev(values)}

    def agreed(values: Sequence[Any]) -> Any:
        distinct = list(dict.fromkeys(values))
        return distinct[0] if len(distinct) == 1 else ", ".join(map(str, distinct))

    return {
        "app": identity.app,
        "script": identity.script,
        "command": identity.command,
        "dataset": agreed([child["dataset"] for child in children]),
        "data_sha256": agreed([child["data_sha256"] for child in children]),
        "seed": seeds,
        "metrics": metrics,
        "artifacts": {
            f"seed-{seed}/{name}": f"seed-{seed}/{path}"
            for seed, child in zip(seeds, children, strict=True)
            for name, path in child["artifacts"].items()
        },
        "config": dict(config),
        "environment": {
            key: agreed([child["environment"][key] for child in children]) for key in children[0]["environment"]
        },
        "seconds": round(sum(child["seconds"] for child in children), 3),
    }


def _set_aside(folder: Path) -> None:
    """Move what an earlier run wrote to `.before`, and drop what an interrupted one left since."""
    finished = (folder / "results.json").exists()
    artifacts: list[str] = []
    with contextlib.suppress(UserError, AttributeError):
        # Artifacts of the single seeds are their runs' to replace.
        named = [str(name) for name in read_results(folder).get("artifacts", {}).values()]
        artifacts = [name for name in named if read_owner(folder.joinpath(*Path(name).parts[:1])) is None]
    if finished:
        _remove(folder / _BEFORE)
    # The results go first: from there on the run counts as unfinished, whatever happens to the other files.
    for name in (*_WRITTEN, *artifacts):
        path = folder / name
        if folder.resolve() not in path.resolve().parents or path.name in (".lock", _BEFORE) or not path.exists():
            continue
        if finished:
            target = folder / _BEFORE / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
        else:
            _remove(path)


def _step_back(folder: Path) -> None:
    """Undo `begin`: the folder is as it was before the input was refused."""
    for name in _WRITTEN:
        _remove(folder / name)
    before = folder / _BEFORE
    # The results come last: a run counts as finished only once all of it is back.
    for path in sorted(before.rglob("*"), key=lambda path: path.name == "results.json"):
        if path.is_file():
            target = folder / path.relative_to(before)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    _remove(before)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _ours(entry: Path) -> bool:
    """Whether an entry of a folder without config is what runs leave: the lock, a cut-off write, another run."""
    return (
        entry.name in (".lock", _BEFORE)
        or (entry.name.startswith(".") and entry.suffix == ".part")
        or bool(read_owner(entry))
    )


def _finished_before(folder: Path, results: dict[str, Any]) -> dict[str, Any]:
    say(f"{folder}: finished before; these are its results (--force runs it anew)")
    return results


def _finite(key: str, value: Any) -> float:
    if not isinstance(value, bool | str | bytes | None):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            number = int(value) if isinstance(value, numbers.Integral) else float(value)
            if math.isfinite(number):
                return number
    raise ValueError(f"{key}: expected a finite number, got {value!r}")


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _parsed(key: str, text: str) -> Any:
    if text == "":
        return None
    with contextlib.suppress(ValueError):
        if key == "seed":
            return int(text)
        if key in ("eps", *NUMBERS):
            return float(text)
    return text


def _read_csv(path: Path) -> list[dict[str, Any]]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def _seconds(path: Path) -> float:
    try:
        return float(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0.0


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _write_results(folder: Path, results: Mapping[str, Any]) -> None:
    write_text(folder / "results.json", json_text(results, indent=2))
