"""One run, one folder: what a script measures, and the files that hold it.

A folder belongs to a run from the moment its `config.yaml` is written, and is finished once it has a `results.json`.
`.lock` is held with `flock`, so a killed process leaves nothing behind that has to be removed by hand.
"""

import contextlib
import csv
import datetime
import importlib.metadata
import io
import json
import math
import numbers
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import yaml

from common.errors import UserError
from common.evaluation.statistics import wilson
from common.files import json_text, printable, write_text
from common.progress import log
from common.runs import code

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("seed", "model", "attack", "norm", "eps", "split", "metric", "value", "n", "low", "high")
NUMBERS = ("value", "n", "low", "high")


class Identity(NamedTuple):
    """Whose run it is: `adv_lock`, `lock`, the command line that repeats it, and the key columns of its table beside
    `COLUMNS`."""

    app: str
    script: str
    command: str
    columns: tuple[str, ...] = ()

    @property
    def all_columns(self) -> tuple[str, ...]:
        """The columns of the table: those that say what was measured, then the measurement."""
        place = COLUMNS.index("metric")
        return (*COLUMNS[:place], *self.columns, *COLUMNS[place:])


class Producer(Protocol):
    """A script whose runs others need."""

    def require(self, given: Path | None, options: Any, must_match: Sequence[str], **overrides: Any) -> Path:
        """The finished run, which is run if need be."""


class Run:
    """What a script's body is given, together with its options.

    `folder` is where the run writes. `checkpoints`, inside it, holds what `--resume` continues from: whatever is found
    there belongs to this very run, since `--force` clears it; it is removed when the run is finished. `chief` is False
    in the workers of a multi-worker run that must not write; for them every method below checks its arguments and
    writes nothing.
    """

    def __init__(self, folder: Path, identity: Identity, config: Mapping[str, Any], *, chief: bool = True) -> None:
        self.folder, self.chief = Path(folder), chief
        self.checkpoints = self.folder / "checkpoints"
        self._identity, self._config = identity, dict(config)
        self._spent, self._commit = self.checkpoints / "seconds.txt", commit()
        # The seconds before an interruption count too.
        self._begun = time.monotonic() - (_seconds(self._spent) if chief else 0.0)
        self._data: tuple[str | None, str | None] = (config.get("dataset"), None)
        self._rows: list[dict[str, Any]] = []
        self._metrics: dict[str, float] = {}
        self._artifacts: dict[str, str] = {}
        self._curves = read_csv(self.folder / "metrics.csv") if chief else []

    @property
    def command(self) -> str:
        """The command line of the run."""
        return self._identity.command

    def log(self, text: str) -> None:
        """Print `text`, above any progress bar, and append it to `log.txt` with the time."""
        log(text)
        if self.chief:
            with open(self.folder / "log.txt", "a", encoding="utf-8") as file:
                file.write(f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S} {printable(text)}\n")

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
            if key not in self._identity.all_columns:
                raise ValueError(f"row: no column {key!r}; there are {', '.join(self._identity.all_columns)}")
        _finite("value", columns.get("value"))
        checked = {k: _finite(k, v) if k in NUMBERS and v is not None else v for k, v in columns.items()}
        # A line break in a label, such as the name of a class in a user's data, would break the table.
        labels = {k: printable(re.sub(r"[\r\n\0]", " ", v)) for k, v in checked.items() if isinstance(v, str)}
        self._rows.append({"seed": self._config.get("seed")} | checked | labels)

    def rate(self, metric: str, value: float, n: int, **columns: Any) -> None:
        """Add a rate in [0, 1] over `n` trials to `table.csv`, with its Wilson interval."""
        low, high = wilson(float(value), n)
        self.row(metric=metric, value=float(value), n=n, low=low, high=high, **columns)

    def headline(self, metric: str, value: float, n: int, *, key: str | None = None, **columns: Any) -> None:
        """Add a rate to `table.csv`, as `rate` does, and set it as the headline figure `key`, by default `metric`."""
        self.rate(metric, value, n, **columns)
        key = metric if key is None else key
        self.metrics(**{key: float(value), f"{key}_n": n})

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

    def save_model(self, model: Any, name: str = "model") -> None:
        """Write `model`, a Keras model, to `<name>.keras` in the folder."""
        from common.training.checkpoints import save_model

        if self.chief:
            path = self.folder / f"{name}.keras"
            save_model(model, path)
            self.artifact(name, path)

    def figure(self, name: str, draw: Callable[..., None], *data: Any, **settings: Any) -> None:
        """Draw `<name>.png` in the folder, by `draw(*data, path, **settings)`."""
        if self.chief:
            path = self.folder / f"{name}.png"
            draw(*data, path, **settings)
            self.artifact(name, path)

    def require(
        self,
        script: Producer,
        given: Path | None,
        options: Any,
        must_match: Sequence[str] = ("dataset", "seed"),
        **overrides: Any,
    ) -> Path:
        """The finished run of another script, which is run if need be and says so here; as `Script.require`."""
        return script.require(given, options, must_match, log=self.log, **overrides)

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
            "code": code.loaded(ROOT),
            "seconds": round(time.monotonic() - self._begun, 3),
        }
        if self.chief:
            write_csv(self.folder / "table.csv", self._identity.all_columns, self._rows)
            write_results(self.folder, results)
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        return results

    def _write_curves(self) -> None:
        # The whole file each time, so that it never ends in half a row, even on a full disk.
        path = self.folder / "metrics.csv"
        if self.chief and self._curves:
            write_csv(path, list(self._curves[0]), self._curves)
        elif self.chief:
            path.unlink(missing_ok=True)


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
        raise UserError(f"{path}: not readable ({error}); --force to start again") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: holds no options; --force to start again")
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
        raise UserError(f"{path}: not readable ({error}); --force to start again") from error
    raise UserError(f"{path}: holds no results; --force to start again")


def read_curves(folder: Path) -> list[dict[str, float]]:
    """The rows of `metrics.csv`, one for each epoch; none if the run wrote no curves."""
    return [{name: float(value) for name, value in row.items()} for row in read_csv(folder / "metrics.csv")]


def read_table(folder: Path) -> list[dict[str, Any]]:
    """`table.csv` as one dictionary a row: seed int, numbers float, blank cells None, the rest text."""
    rows = read_csv(folder / "table.csv")
    return [{key: _parsed(key, text) for key, text in row.items()} for row in rows]


def is_bound(key: str, metrics: Mapping[str, float]) -> bool:
    """Whether a metric is a bound of another one's interval; over several seeds the spread takes its place."""
    return any(key.endswith(ending) and key.removesuffix(ending) in metrics for ending in ("_low", "_high"))


def is_chief(strategy: str) -> bool:
    """Whether this process writes: always, except for the workers that are not the chief by `TF_CONFIG`.

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
    """Versions, machine and date; the device is known only when the run has imported TensorFlow."""
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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = {"device": device, "processor": _processor(), "cores": str(cores or 1)}
    date = datetime.date.today().isoformat()
    return {"python": platform.python_version(), **versions, **machine, "date": date, "commit": head}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


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


def _finite(key: str, value: Any) -> float:
    if not isinstance(value, bool | str | bytes | None):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            number = int(value) if isinstance(value, numbers.Integral) else float(value)
            if math.isfinite(number):
                return number
    raise ValueError(f"{key}: expected a finite number, got {value!r}")


def _parsed(key: str, text: str) -> Any:
    if text == "":
        return None
    with contextlib.suppress(ValueError):
        if key == "seed":
            return int(text)
        if key in ("eps", *NUMBERS):
            return float(text)
    return text


def read_csv(path: Path) -> list[dict[str, Any]]:
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


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    write_text(folder / "results.json", json_text(results, indent=2))
