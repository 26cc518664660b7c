"""Runs as one HTML page that needs nothing else: figures beside the published ones, images, and what each run was."""

import ast
import base64
import contextlib
import datetime
import fcntl
import hashlib
import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from common.errors import UserError, one_line
from common.evaluation.facts import sentence_of
from common.files import inside, write_text
from common.runs.record import ROOT, dump, read_config, read_owner, read_results, read_table
from common.runs.tables import Value, cells, headline, label_columns, percent, plain, read_published

TEMPLATES = Path(__file__).parent / "templates"
# Rows and bytes that a browser still shows at once; more is in the run's own files.
MOST_ROWS = 300
MOST_BYTES = 4_000_000
NO_APP = "suite"
STATES = ("finished", "running", "unfinished", "damaged")


class Shown(NamedTuple):
    """A figure of a run: its name, its bytes as a data URI, and what it says of itself."""

    name: str
    uri: str
    title: str
    description: str


@dataclass
class Found:
    """A run that was found, whatever its state; `problem` says what is wrong with a damaged one."""

    folder: Path
    app: str
    script: str
    state: str
    name: str
    changed: float
    problem: str = ""
    last_line: str = ""
    remedy: str = ""
    results: Mapping[str, Any] = field(default_factory=dict)
    table: Sequence[Mapping[str, Any]] = ()
    figures: Sequence[Shown] = ()
    verdict: Mapping[str, Any] = field(default_factory=dict)

    @property
    def anchor(self) -> str:
        """A name that no other run of the page has."""
        return "run-" + hashlib.sha256(self.folder.as_posix().encode()).hexdigest()[:12]


class Line(NamedTuple):
    """A headline figure, ours and the published one."""

    measure: str
    value: Value
    data: str
    run: str
    anchor: str | None
    published: Sequence[float]
    of: str


class Section(NamedTuple):
    """What the page has of one app."""

    app: str
    title: str
    lines: Sequence[Line]
    runs: Sequence[Found]


def write(runs: Path, out: Path | None = None, root: Path = ROOT) -> str:
    """Write the page of all runs below `runs`, by default to `index.html` there; a line that says what it holds.

    Errors: `UserError` for a folder that is not there or holds no runs.
    """
    if not runs.is_dir():
        wrong = "is a file, not a folder of runs" if runs.exists() else "no such folder; `make demo` makes some runs"
        raise UserError(f"{runs}: {wrong}")
    out = runs / "index.html" if out is None else out
    if out.is_dir():
        raise UserError(f"--out: {out} is a folder; name a file")
    found = find_runs(runs)
    if not found:
        raise UserError(f"{runs}: holds no runs; `make demo` makes some, and so does every script")
    text = render(found, root)
    write_text(out, text)
    counts = ", ".join(f"{n} {state}" for state in STATES if (n := sum(run.state == state for run in found)))
    return f"{out}: {counts}; {len(text.encode()) / 1e6:.1f} MB, open it in a browser"


def find_runs(folder: Path) -> list[Found]:
    """Every run in or below `folder`, in the order in which they were last written."""
    places = {path.parent for name in ("config.yaml", "results.json") for path in folder.rglob(name)}
    hidden = (".before", "checkpoints")
    runs = [_found(place, folder) for place in places if not set(hidden) & set(place.relative_to(folder).parts)]
    return sorted((run for run in runs if run is not None), key=lambda run: (run.changed, run.folder))


def render(found: Sequence[Found], root: Path = ROOT) -> str:
    """The page as HTML."""
    apps = sorted({run.app for run in found}, key=lambda app: (app != NO_APP, app))
    sections = [_section(app, [run for run in found if run.app == app], root) for app in apps]
    style, behaviour = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "plain": plain, "cells": cells, "duration": duration, "yaml": dump}
    environment.filters["sortable"] = _sortable
    return environment.get_template("page.html.j2").render(
        sections=sections,
        states={state: [run for run in found if run.state == state] for state in STATES},
        # Only this script runs, and nothing is fetched: a label from somebody's data can do neither.
        digest=base64.b64encode(hashlib.sha256(behaviour.encode()).digest()).decode(),
        style=Markup(style),
        behaviour=Markup(behaviour),
        made=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        columns=label_columns,
        headline=headline,
        value_of=Value.of,
        most_rows=MOST_ROWS,
    )


def duration(seconds: float) -> str:
    """Seconds as a person says them: "48 s", "4 min 6 s", "1 h 16 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _found(place: Path, root: Path) -> Found | None:
    """The run in `place`; None where its files are not of a run."""
    owner, results, problem = read_owner(place), None, ""
    finished = (place / "results.json").exists()
    if finished:
        try:
            results = _checked(read_results(place))
            owner = owner or (results["app"], results["script"])
        except UserError as error:
            problem = one_line(error)
    if owner is None:
        return None
    name = place.relative_to(root).as_posix()
    known = Path(*owner)
    if known.parts == place.relative_to(root).parts[:2]:
        name = place.relative_to(root / known).as_posix()
    changed = max((place / file).stat().st_mtime for file in ("results.json", "config.yaml") if (place / file).exists())
    run = Found(place, *owner, state="finished", name=place.name if name == "." else name, changed=changed)
    if not finished:
        run.state = "running" if _is_written(place) else "unfinished"
        run.last_line, run.remedy = _last_line(place / "log.txt"), _resuming(run)
    elif results is not None:
        run.results = results
        try:
            run.table = _table(place)
        except UserError as error:
            problem = one_line(error)
        figures, missing = _figures(place, results["artifacts"])
        run.figures, problem = figures, problem or missing
        run.verdict = _verdict(place, results)
    if problem:
        run.state, run.problem = "damaged", problem
    return run


def _checked(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """Results that have what the page shows. Errors: `UserError` naming what is not there or no such thing."""
    kinds = {"app": str, "script": str, "command": str, "seconds": int | float}
    kinds |= {key: Mapping for key in ("metrics", "artifacts", "config", "environment")}
    for key, kind in kinds.items():
        if not isinstance(results.get(key), kind):
            raise UserError(f"results.json: {key} is missing or of another kind; --force runs it again")
    for key, value in results["metrics"].items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"results.json: {key} is {str(value)[:40]!r}, not a number; --force runs it again")
    return results


def _table(place: Path) -> list[dict[str, Any]]:
    if not (place / "table.csv").is_file():
        raise UserError("table.csv: no such file; --force runs it again")
    try:
        table = read_table(place)
    except (ValueError, OSError) as error:
        raise UserError(f"table.csv: not readable ({error}); --force runs it again") from error
    for line, row in enumerate(table, 2):
        if not isinstance(row.get("value"), float) or None in row:
            raise UserError(f"table.csv: line {line} holds no value; --force runs it again")
    return table


def _figures(place: Path, artifacts: Mapping[str, Any]) -> tuple[list[Shown], str]:
    """The images among the `artifacts` of a run, and what is wrong with the first that cannot be shown."""
    figures, problem = [], ""
    for name, file in artifacts.items():
        if not str(file).endswith(".png"):
            continue
        try:
            # An artifact lies in the run's folder, whatever its results say.
            path = inside(place, str(file))
            if path.parent != place and read_owner(place / Path(file).parts[0]):
                continue
            data = path.read_bytes()
            if len(data) > MOST_BYTES:
                raise UserError(f"{file}: {len(data) / 1e6:.0f} MB is too large for the page")
            with Image.open(path) as image:
                # All of it: texts may come after the pixels, and a cut-off image must not pass.
                image.load()
                text = getattr(image, "text", {})
        except (OSError, ValueError, SyntaxError) as error:
            missing = isinstance(error, FileNotFoundError)
            problem = problem or f"{file}: {'no such file' if missing else one_line(error, 120)}"
            continue
        uri = "data:image/png;base64," + base64.b64encode(data).decode()
        title = text.get("Title") or str(name).replace("_", " ")
        figures.append(Shown(str(name), uri, title, text.get("Description", "")))
    return figures, problem


def _is_written(place: Path) -> bool:
    """Whether a process holds the lock of the run."""
    try:
        handle = os.open(place / ".lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _verdict(folder: Path, results: Mapping[str, Any]) -> Mapping[str, Any]:
    """The sentence and the checks of the card that a run has made; nothing if there is none, or none that is whole."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, UserError):
        told = json.loads(inside(folder, results["artifacts"]["card"]).read_text(encoding="utf-8"))
        checks = [
            {key: check[key] for key in ("name", "asks", "passed", "value", "wanted", "note")}
            for check in told["checks"]
        ]
        return {"sentence": sentence_of(told), "checks": checks}
    return {}


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[-1] if lines else ""
    return ""


def _resuming(run: Found) -> str:
    """The command that continues the run."""
    try:
        name = read_config(run.folder).get("name")
    except UserError:
        return ""
    script = [f"{run.app}/{run.script}.py"]
    # What is a package's own command is run as that.
    if (ROOT / run.app / run.script / "__main__.py").is_file():
        script = ["-m", f"{run.app}.{run.script}"]
    words = ["python", *script, "--config", (run.folder / "config.yaml").as_posix()]
    if run.app == NO_APP:
        words = ["python", "demo.py"]
    if Path("runs", run.app, run.script, str(name)).absolute() != run.folder.absolute():
        words += ["--out", run.folder.as_posix()]
    return shlex.join([*words, "--resume"])


def _section(app: str, runs: Sequence[Found], root: Path) -> Section:
    published = read_published(root / app) or {}
    done = [run for run in runs if run.results]
    lines, committed = [], list(_committed(root / app / "results"))
    for entry in published.get("headline", ()):
        theirs = [_at(published, path) for path in entry.get("published", ())]
        for run in done:
            lines += _lines(entry, run.results, f"{run.script} {run.name}", run.anchor, theirs)
        for name, results in committed:
            lines += _lines(entry, results, f"committed: {name}", None, theirs)
    return Section(app, _first_sentence(root / app), lines, runs)


def _lines(
    entry: Mapping[str, Any], results: Mapping[str, Any], run: str, anchor: str | None, published: Sequence[float]
) -> Iterator[Line]:
    """The headline figure of `entry` where these results have it."""
    key = entry["metrics"].get(results["script"])
    value = headline(results["metrics"]).get(key)
    if value is not None:
        yield Line(entry["measure"], value, str(results["dataset"]), run, anchor, published, entry.get("of", ""))


def _committed(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for path in sorted(folder.glob("*/results.json")):
        yield path.parent.name, read_results(path.parent)


def _at(published: Mapping[str, Any], path: str) -> float:
    """The figure at a path such as `basic.vgg19.original`. Errors: `UserError` when there is none."""
    value: Any = published
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(value, int | float):
        raise UserError(f"published.yaml: headline names {path}, which is no figure of the file")
    return float(value)


def _first_sentence(app: Path) -> str:
    """What the package says of itself, read without importing it."""
    try:
        text = ast.get_docstring(ast.parse((app / "__init__.py").read_text(encoding="utf-8"))) or ""
    except (OSError, ValueError, SyntaxError):
        return ""
    return " ".join(text.split())


def _sortable(value: Any) -> str:
    """What a cell is sorted by."""
    return "" if value is None else f"{value:.12g}" if isinstance(value, int | float) else str(value)
