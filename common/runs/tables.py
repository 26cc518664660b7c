"""Figures of runs as text: values with their spread, the table at the end of a run, lookups in a table."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from common.evaluation.statistics import hundredths, wilson
from common.runs.record import COLUMNS, NUMBERS, is_bound

# A longer table is read from table.csv; the console shows that it is there.
CONSOLE_ROWS = 40


def console(folder: Path, results: Mapping[str, Any], table: Sequence[Mapping[str, Any]]) -> str:
    """The end of a run for the terminal: metrics, measurements, and where everything lies.

    Rates, which are values in [0, 1] with their n, appear per cent with a 95 % interval: the one they were measured
    with, else Wilson's.
    """
    lines = [f"{results['app']}/{results['script']} on {results['dataset']}, seed {results['seed']}"]
    lines += aligned([[key, *cells(figure)] for key, figure in headline(results["metrics"]).items()])
    if 0 < len(table) <= CONSOLE_ROWS:
        used = label_columns(table)
        rows = [[plain(row[c]) for c in used] + cells(Value.of(row)) for row in table]
        lines += ["", *aligned([[*used, "value", "95 % interval", "n"], *rows])]
    elif table:
        lines += ["", f"{len(table)} measurements in {folder / 'table.csv'}"]
    lines += ["", f"results  {folder / 'results.json'}"]
    return "\n".join(lines + [f"{name}  {folder / path}" for name, path in results["artifacts"].items()])


def headline(metrics: Mapping[str, float]) -> "dict[str, Value]":
    """The headline figures of a run by key, each with the spread and the n that stand in keys of their own."""
    figures = {}
    for key, value in metrics.items():
        belongs = any(key.endswith(ending) and key.removesuffix(ending) in metrics for ending in ("_n", "_std"))
        if not belongs and not is_bound(key, metrics):
            known = {name: metrics.get(f"{key}_{name}") for name in ("std", "n", "low", "high")}
            figures[key] = Value(value, **known)
    return figures


def label_columns(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns that say what was measured, without those that are blank throughout."""
    return [c for c in (table[0] if table else ()) if c not in NUMBERS and any(row.get(c) is not None for row in table)]


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
    return hundredths(value, digits) + ("" if std is None else f" ± {100 * std:.{digits}f}")


def interval(value: Any, digits: int = 1) -> str:
    """The 95 % interval of a `value(...)`, or of a row, per cent: "[22.1, 27.6]"; "-" where there is none."""
    if isinstance(value, Mapping):
        value = Value.of(value)
    low, high = getattr(value, "low", None), getattr(value, "high", None)
    return "-" if low is None or high is None else f"[{hundredths(low, digits)}, {hundredths(high, digits)}]"


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


def cells(value: Value) -> list[str]:
    """Value, interval and n as text; a rate, or a difference of two, per cent."""
    low, high = (value if bound is None else bound for bound in (value.low, value.high))
    if value.n is None or not -1 <= low <= value <= high <= 1:
        bounds = "" if value.low is None or value.high is None else f"[{value.low:.4g}, {value.high:.4g}]"
        return [plain(value) + ("" if value.std is None else f" ± {value.std:.2g}"), bounds, plain(value.n)]
    return [f"{percent(value)} %", interval(value).removeprefix("-"), plain(value.n)]


def plain(value: Any) -> str:
    """A cell as text: numbers to four digits, None as nothing."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    return str(value)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """`rows` of text cells as lines with columns of one width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def read_published(app: Path) -> dict[str, Any] | None:
    """`published.yaml` of the folder `app`; None where there is none.

    Errors: `UserError` for what is not plain YAML.
    """
    path = app / "published.yaml"
    if not path.is_file():
        return None
    try:
        published = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not plain YAML ({error})") from error
    if not isinstance(published, dict):
        raise UserError(f"{path}: holds no figures by name")
    return published


def _found(table: Sequence[Mapping[str, Any]], columns: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    own = {column: None for column in (table[0] if table else ()) if column not in COLUMNS}
    wanted = own | dict(columns)
    return [row for row in table if all(_same(row.get(column), value) for column, value in wanted.items())]


def _same(cell: Any, wanted: Any) -> bool:
    if isinstance(cell, float) and isinstance(wanted, int | float):
        return math.isclose(cell, wanted, rel_tol=1e-6)
    return cell == wanted
