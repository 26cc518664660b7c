"""The table at the end of a run, and README tables rendered from committed results.

    python -m common.runs.report --readme            render every README table between its markers
    python -m common.runs.report --check             end with 1 when a README is stale; list the
                                                     figures whose code has changed since
    python -m common.runs.report --collect runs/adv_lock/lock/cifar10_cpu --app adv_lock --recipe cifar10_cpu

A table is between `<!-- begin: adv_lock/results/cifar10_cpu -->` and `<!-- end -->`. Its template is
`adv_lock/results/cifar10_cpu.md.j2`, or with `<!-- begin: adv_lock/results/cifar10_cpu using _lock -->` the one of that
name in the same folder, `_lock.md.j2`. It sees `results` (results.json), `table` (rows of table.csv), `published`
(adv_lock/published.yaml), the functions `value`, `seeds` (all seeds of it) and `of("demo")` (`value` of another
recipe), and the filters `percent`, `interval` and `over_seeds`; it may include other templates of the folder.
"""

import argparse
import functools
import math
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jinja2 import FileSystemLoader, StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from common.errors import UserError
from common.evaluation.statistics import wilson
from common.files import write_text
from common.runs import code
from common.runs.record import COLUMNS, NUMBERS, ROOT, is_bound, read_results, read_table

BLOCK = re.compile(
    r"(<!-- begin: (?P<recipe>\S+)(?: using (?P<template>\w+))? -->\n)"
    r"(?P<body>.*?)(?P<end><!-- (?:end|begin: [^>]+) -->|\Z)",
    re.DOTALL,
)
RECIPE = re.compile(r"(?P<app>\w+)/results/\w[\w.-]*")
# A longer table is read from table.csv; the console shows that it is there.
CONSOLE_ROWS = 40


def console(folder: Path, results: Mapping[str, Any], table: Sequence[Mapping[str, Any]]) -> str:
    """The end of a run for the terminal: metrics, measurements, and where everything lies.

    Rates, which are values in [0, 1] with their n, appear per cent with a 95 % interval: the one they were measured
    with, else Wilson's.
    """
    metrics = results["metrics"]
    lines = [f"{results['app']}/{results['script']} on {results['dataset']}, seed {results['seed']}"]
    shown = []
    for key, value in metrics.items():
        beside = any(key.endswith(ending) and key.removesuffix(ending) in metrics for ending in ("_n", "_std"))
        if not beside and not is_bound(key, metrics):
            known = {name: metrics.get(f"{key}_{name}") for name in ("std", "n", "low", "high")}
            figure = Value(value, **known)
            shown.append([key, *_figure(figure)])
    lines += aligned(shown)
    if 0 < len(table) <= CONSOLE_ROWS:
        used = [c for c in table[0] if c not in NUMBERS and any(row.get(c) is not None for row in table)]
        rows = [[_number(row[c]) for c in used] + _figure(Value.of(row)) for row in table]
        lines += ["", *aligned([[*used, "value", "95 % interval", "n"], *rows])]
    elif table:
        lines += ["", f"{len(table)} measurements in {folder / 'table.csv'}"]
    lines += ["", f"results  {folder / 'results.json'}"]
    return "\n".join(lines + [f"{name}  {folder / path}" for name, path in results["artifacts"].items()])


class Value(float):
    """A number with what is known of its spread: `std` over seeds, the interval `low`, `high`, the trials `n`."""

    std: float | None
    low: float | None
    high: float | None
    n: float | None

    def __new__(
        cls,
        value: float,
        *,
        std: float | None = None,
        low: float | None = None,
        high: float | None = None,
        n: float | None = None,
    ) -> "Value":
        self = super().__new__(cls, value)
        self.std, self.n = std, n
        # Over seeds the spread is the standard deviation; trials of several models are not one sample.
        if low is None and n and std is None and 0 <= value <= 1:
            low, high = wilson(float(value), round(n))
        self.low, self.high = low, high
        return self

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Value":
        """The value of one row of `table.csv`."""
        return cls(row["value"], low=row.get("low"), high=row.get("high"), n=row.get("n"))


def percent(value: Any, digits: int = 1) -> str:
    """A fraction per cent: 0.2478 as "24.8", over seeds "24.8 ± 0.3"; text passes as it is."""
    if isinstance(value, str):
        return value
    std = getattr(value, "std", None)
    # Not "-0.0": what is added turns a negative zero into zero.
    return f"{round(100 * value, digits) + 0.0:.{digits}f}" + ("" if std is None else f" ± {100 * std:.{digits}f}")


def interval(value: Any, digits: int = 1) -> str:
    """The 95 % interval of a `value(...)`, or of a row, per cent: "[22.1, 27.6]"; "-" where there is none."""
    if isinstance(value, Mapping):
        value = Value.of(value)
    low, high = getattr(value, "low", None), getattr(value, "high", None)
    return "-" if low is None or high is None else f"[{100 * low:.{digits}f}, {100 * high:.{digits}f}]"


def lookup(table: Sequence[Mapping[str, Any]]) -> Callable[..., Any]:
    """`value(metric=..., attack=..., default="-")` over the rows of a table.

    It picks the one row whose columns are as given, key columns of the script's own blank unless given, or the mean and
    sample standard deviation of one row a seed, and is `default` when there is none. Errors: `UserError` for an unknown
    column and for several rows of a seed.
    """

    def value(*, default: Any = "-", **columns: Any) -> Any:
        known = list(table[0]) if table else COLUMNS
        for column in columns:
            if column not in known:
                raise UserError(f"value: no column {column!r}; there are {', '.join(known)}")
        rows = _found(table, columns)
        seeds = {row.get("seed") for row in rows}
        if len(seeds) < len(rows):
            asked = ", ".join(f"{column}={wanted}" for column, wanted in columns.items())
            raise UserError(f"value({asked}): fits {len(rows)} rows of {len(seeds)} seed(s); name more columns")
        if len(rows) < 2:
            return Value.of(rows[0]) if rows else default
        values = [row["value"] for row in rows]
        return Value(statistics.fmean(values), std=statistics.stdev(values))

    return value


def by_seed(table: Sequence[Mapping[str, Any]]) -> Callable[..., list[float]]:
    """`seeds(metric=..., attack=...)`: the values of the rows whose columns are as given, in the order of the seeds."""

    def seeds(**columns: Any) -> list[float]:
        rows = _found(table, columns)
        return [row["value"] for row in sorted(rows, key=lambda row: row.get("seed") or 0)]

    return seeds


def over_seeds(values: Sequence[float]) -> Value | str:
    """The mean of a value a seed, with a 95 % interval by Student's t; without one of a single seed."""
    if len(values) < 2:
        return Value(values[0]) if values else "-"
    from scipy.stats import t

    mean, half = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    half *= float(t.ppf(0.975, len(values) - 1))
    return Value(mean, low=mean - half, high=mean + half, n=len(values))


def render(recipe: str, root: Path = ROOT, template_name: str | None = None) -> str:
    """The table of a recipe such as `adv_lock/results/cifar10_cpu`, as Markdown, by the template of that name or by
    `template_name` in the same folder.

    Errors: `UserError` naming the file that is missing or the line of the template that does not work.
    """
    found = RECIPE.fullmatch(recipe)
    if found is None:
        raise UserError(f"{recipe}: expected a recipe such as adv_lock/results/cifar10_cpu")
    folder, template = root / recipe, root / f"{recipe}.md.j2"
    if template_name is not None:
        template = folder.parent / f"{template_name}.md.j2"
    if not template.is_file():
        raise UserError(f"{template}: no such template")
    if not (folder / "table.csv").is_file():
        raise UserError(f"{folder / 'table.csv'}: no such file; copy it with --collect")
    table = read_table(folder)
    names: dict[str, Any] = {"results": read_results(folder), "table": table, "value": lookup(table)}
    names["seeds"] = by_seed(table)
    names["of"] = functools.partial(_of_another, folder.parent)
    published = root / found["app"] / "published.yaml"
    if published.is_file():
        try:
            names["published"] = yaml.safe_load(published.read_text(encoding="utf-8"))
        except (ValueError, yaml.YAMLError) as error:
            raise UserError(f"{published}: not plain YAML ({error})") from error
    beside = FileSystemLoader(template.parent)
    environment = SandboxedEnvironment(loader=beside, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "interval": interval, "over_seeds": over_seeds}
    try:
        return environment.from_string(template.read_text(encoding="utf-8")).render(names).strip()
    except TemplateError as error:
        line = f" line {error.lineno}:" if hasattr(error, "lineno") else ""
        raise UserError(f"{template}:{line} {error.message}") from error
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise UserError(f"{template}: {error}") from error


def render_readmes(root: Path = ROOT, *, check: bool = False) -> list[Path]:
    """Render the tables of README.md and every app's README.md; the ones that differed, unwritten under `check`."""
    stale = []
    for readme in sorted([root / "README.md", *root.glob("*/README.md")]):
        if not readme.is_file():
            continue
        old = readme.read_text(encoding="utf-8")
        new = BLOCK.sub(functools.partial(_rendered, readme, root), old)
        if new != old:
            stale.append(readme)
            if not check:
                write_text(readme, new)
    return stale


def older_than_code(root: Path = ROOT) -> list[str]:
    """One line for each committed result whose code has changed since, or is not known. No reason to fail: a change may
    leave a figure as it is. It tells which recipes to run again before a claim is made."""
    # Many results of an app are of one commit.
    changed_since = functools.cache(functools.partial(code.changed_since, root=root))
    lines = []
    for file in sorted(root.glob("*/results/*/results.json")):
        results = read_results(file.parent)
        changes = code.changed(results, root)
        name = file.parent.relative_to(root).as_posix()
        if changes is None:
            # Made before results held hashes: all modules that the run can have loaded, more than it had.
            commit, app = results["environment"]["commit"].removesuffix("+dirty"), name.split("/")[0]
            known = changed_since(commit, (app, "common"))
            count = "it is not known how many" if known is None else str(len(known))
            lines.append(f"{name}: since commit {commit[:12]}, {count} modules of {app} and common changed")
        elif changes:
            others = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
            lines.append(f"{name}: changed since it was made: {', '.join(changes[:3])}{others}")
    return lines


def collect(run: Path, app: str, recipe: str, root: Path = ROOT) -> Path:
    """Copy results and table of a finished run to `<app>/results/<recipe>/`, where they are committed."""
    results = read_results(run)
    name = f"{app}/results/{recipe}"
    # Results of no single app, such as the demo's, are in docs/.
    home = results.get("app") if (root / str(results.get("app"))).is_dir() else "docs"
    if home != app:
        raise UserError(f"{run}: is a run of {results.get('app')}, whose results belong in {home}, not in {app}")
    if RECIPE.fullmatch(name) is None or not (root / app).is_dir():
        raise UserError(f"{name}: expected an app's folder and a recipe of letters, digits, - and _")
    if not (run / "table.csv").is_file():
        raise UserError(f"{run / 'table.csv'}: no such file; the run is not complete")
    for file in ("table.csv", "results.json"):
        write_text(root / name / file, (run / file).read_text(encoding="utf-8"))
    return root / name


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """The command line; its status is 0, 1 for a stale README under `--check`, or 2 for what the user can put right."""
    parser = _Parser(prog="python -m common.runs.report", description=__doc__.split("\n")[0], allow_abbrev=False)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--readme", action="store_true", help="render the tables of every README")
    action.add_argument("--check", action="store_true", help="end with 1 when a README is stale; write nothing")
    action.add_argument("--collect", type=Path, metavar="RUN", help="copy the results of a finished run's folder")
    parser.add_argument("--app", help="app whose results are collected, such as adv_lock")
    parser.add_argument("--recipe", help="name under <app>/results that the collected results get")
    try:
        options = parser.parse_args(argv)
        if options.collect is not None:
            if not (options.app and options.recipe):
                raise UserError("--collect: needs --app and --recipe")
            print(collect(options.collect, options.app, options.recipe, root))
            return 0
        stale = render_readmes(root, check=options.check)
        if options.check:
            print("".join(f"{line}\n" for line in older_than_code(root)), end="")
    except UserError as error:
        print(f"report: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    for readme in stale:
        print(f"{readme}: {'stale; python -m common.runs.report --readme renders it' if options.check else 'rendered'}")
    return 1 if options.check and stale else 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _of_another(results: Path, recipe: str) -> Callable[..., Any]:
    """`value` over the table of another recipe of the app."""
    if RECIPE.fullmatch(f"app/results/{recipe}") is None:
        raise UserError(f"of({recipe!r}): expected the name of a recipe of the app")
    place = results / recipe / "table.csv"
    if not place.is_file():
        raise UserError(f"{place}: no such file; copy it with --collect")
    return lookup(read_table(place.parent))


def _rendered(readme: Path, root: Path, block: re.Match[str]) -> str:
    if block["end"] != "<!-- end -->":
        raise UserError(f"{readme}: {block[1].strip()} has no <!-- end -->")
    return f"{block[1]}{render(block['recipe'], root, block['template'])}\n{block['end']}"


def _found(table: Sequence[Mapping[str, Any]], columns: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    own = {column: None for column in (table[0] if table else ()) if column not in COLUMNS}
    wanted = own | dict(columns)
    return [row for row in table if all(_same(row.get(column), value) for column, value in wanted.items())]


def _same(cell: Any, wanted: Any) -> bool:
    if isinstance(cell, float) and isinstance(wanted, int | float):
        return math.isclose(cell, wanted, rel_tol=1e-6)
    return cell == wanted


def _figure(value: Value) -> list[str]:
    if value.n is None or not 0 <= value <= 1:
        bounds = "" if value.low is None or value.high is None else f"[{value.low:.4g}, {value.high:.4g}]"
        return [_number(value) + ("" if value.std is None else f" ± {value.std:.2g}"), bounds, _number(value.n)]
    return [f"{percent(value)} %", interval(value).removeprefix("-"), _number(value.n)]


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    return str(value)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """`rows` of text cells as lines with columns of one width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


if __name__ == "__main__":
    sys.exit(main())
