"""Figures, drawn straight to PNG files: nothing is shown, no global state is touched.

Every figure is as wide as a phone shows it, so that its text stays legible there. Rates come as `Estimate` and are
drawn with their 95 % intervals and the n they are of; what is given as plain numbers is drawn without. A file carries
its title and what it shows as text (PNG's Title and Description), for pages and readers that cannot show it.
"""

import io
import itertools
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from common.evaluation.statistics import Estimate, hundredths, independent
from common.files import printable, replacing

# Told apart by readers who see no red or green (Okabe and Ito's palette).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
WIDTH = 4.8
"""Inches; with text of 10 points a figure is legible at 360 pixels."""
_TITLE_COLUMNS = 52

Figured = Estimate | float
"""A rate with its interval, or a number that has none."""


def save(figure: Figure, path: Path | str, description: str = "") -> None:
    """Write `figure` as a PNG, whole or not at all, with its title and `description` as text."""
    titles = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
    title = next((" ".join(title.split()) for title in titles if title.strip()), "")
    text = {"Title": printable(title), "Description": printable(description)}
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, bbox_inches="tight", facecolor="white", metadata=text)
    with replacing(path) as file:
        file.write(buffer.getvalue())


def panels(count: int, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels one above the other, each `height` inches high."""
    figure = Figure(figsize=(WIDTH, height * count), layout="constrained")
    return figure, list(figure.subplots(count, 1, squeeze=False).flat)


def line_chart(
    axes: Axes,
    lines: Mapping[str, Mapping[float, Figured]],
    *,
    title: str,
    levels: Mapping[str, Figured] | None = None,
) -> str:
    """Draw each of `lines`, values in [0, 1] by place on the x axis, with bands for intervals, and horizontal `levels`;
    the text that describes it."""
    styles = itertools.cycle(itertools.product(("-", "--", ":", "-."), COLOURS))
    every = [*(value for line in lines.values() for value in line.values()), *(levels or {}).values()]
    one_n = _common_n(every)
    said = []
    for (name, line), (dashes, colour) in zip(lines.items(), styles, strict=False):
        places, values = list(line), list(line.values())
        label = _label(name, values, one_n)
        axes.plot(places, [_value(v) for v in values], dashes, color=colour, marker="o", markersize=4, label=label)
        low, high = zip(*(_bounds(v) for v in values), strict=True)
        if any(_has_interval(v) for v in values):
            axes.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)
        said.append(f"{label}: {_said(values[0])} at {places[0]:g}, {_said(values[-1])} at {places[-1]:g}")
    said += _draw_levels(levels or {}, one_n, axes.axhline, axes.axhspan)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    finish(axes, title, every, "bands")
    return "; ".join(said)


def finish(axes: Axes, title: str, values: Iterable[Figured] = (), marks: str = "") -> None:
    """Title, with n and what the intervals are drawn as; grid, and the legend below where there is one."""
    values = list(values)
    note = []
    if (one_n := _common_n(values)) is not None:
        note.append(f"n = {one_n:,}")
    if any(map(_has_interval, values)):
        note.append(f"{marks}: 95 % intervals")
    lines = textwrap.wrap(printable(title), _TITLE_COLUMNS) + ([f"({'; '.join(note)})"] if note else [])
    axes.set_title("\n".join(lines), fontsize=11)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1 or (labels and one_n is None):
        longest = max(map(len, labels))
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.21), "frameon": False}
        axes.legend(handles, labels, ncols=2 if longest < 26 else 1, **below)


def accuracy_curves(
    curves: Mapping[str, Sequence[float]],
    path: Path | str,
    *,
    title: str,
    n: Mapping[str, int],
    levels: Mapping[str, Figured] | None = None,
    dependent: bool = False,
) -> None:
    """Accuracies in [0, 1] by epoch, one line each, with Wilson's intervals where `n` says of how many examples; and
    horizontal `levels` to compare them with. `dependent` examples share identities, of which Wilson's interval would
    promise too much: they have n alone."""

    def figured(name: str, value: float) -> Figured:
        if name not in n:
            return value
        return Estimate(value, n[name], None, None) if dependent else independent(value, n[name])

    lines = {name: {at: figured(name, value) for at, value in enumerate(of, 1)} for name, of in curves.items()}
    figure, (axes,) = panels(1)
    said = line_chart(axes, lines, title=title, levels=levels)
    axes.set(xlabel="epoch", ylabel="accuracy" if all("auc" not in name for name in curves) else "accuracy, AUC")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    save(figure, path, said)


def budget_curves(
    curves: Mapping[str, Mapping[float, Estimate]],
    path: Path | str,
    *,
    title: str,
    norm: str = "linf",
    without: float = 1.0,
    whole_levels: bool = True,
) -> None:
    """Robust accuracy by the radius of a ball, a line for each model; with `whole_levels` it is that of an L-inf ball
    in [0, 1], shown in 1/255. A radius of `without` or more is no bound at all."""
    figure, (axes,) = panels(1)
    budgets = sorted({eps for curve in curves.values() for eps in curve})
    # Budgets stand side by side, for the last one is far from the others.
    lines = {name: {budgets.index(eps): curve[eps] for eps in sorted(curve)} for name, curve in curves.items()}
    said = line_chart(axes, lines, title=title)
    unit, units = (255, " in 1/255") if norm == "linf" and whole_levels else (1, "")
    axes.set_xticks(range(len(budgets)), ["none" if eps >= without else f"{unit * eps:.3g}" for eps in budgets])
    name = {"linf": "L-inf", "l2": "L2", "l1": "L1"}[norm]
    axes.set(xlabel=f"{name} budget{units} (none: without bound)", ylabel="robust accuracy")
    save(figure, path, said)


def image_rows(
    rows: Mapping[str, Sequence[np.ndarray]] | Sequence[tuple[str, Sequence[np.ndarray]]],
    path: Path | str,
    *,
    title: str = "",
    columns: Sequence[str] = (),
) -> None:
    """Named rows of images, uint8 or float in [0, 1], (H, W, 3) or (H, W, 1); `columns` are named on top."""
    named = list(rows.items()) if isinstance(rows, Mapping) else list(rows)
    count = max(len(images) for _, images in named)
    side = WIDTH / count
    tops = [_fitted(name, side) for name in columns]
    names_above = printable(named[0][0]).count("\n") + 1
    above = 0.06 + 0.2 * names_above + 0.16 * max((top.count("\n") + 1 for top in tops), default=0)
    heights = [0.2 * (printable(name).count("\n") + 1) + side for name, _ in named]
    figure = Figure(figsize=(WIDTH, sum(heights) + above))
    grid = figure.add_gridspec(
        len(named),
        count,
        height_ratios=heights,
        left=0,
        right=1,
        bottom=0,
        top=1 - above / figure.get_figheight(),
    )
    for line, (name, images) in enumerate(named):
        for column in range(count):
            axes = figure.add_subplot(grid[line, column])
            axes.set_axis_off()
            if column < len(images):
                image = images[column]
                grey = image.shape[-1] == 1
                shades = {"cmap": "gray", "vmin": 0, "vmax": 255 if image.dtype == np.uint8 else 1} if grey else {}
                axes.imshow(image[..., 0] if grey else image, interpolation="nearest", **shades)
            if column == 0:
                axes.text(0, 1.02, printable(name), transform=axes.transAxes, ha="left", va="bottom", fontsize=10)
            if line == 0 and column < len(tops):
                place = {"xy": (0.5, 1), "xytext": (0, 4 + 14 * names_above), "textcoords": "offset points"}
                axes.annotate(tops[column], xycoords="axes fraction", ha="center", va="bottom", fontsize=9, **place)
    if title:
        figure.suptitle("\n".join(textwrap.wrap(printable(title), _TITLE_COLUMNS)), fontsize=11, y=1.0, va="bottom")
    save(figure, path, "rows of images: " + ", ".join(" ".join(name.split()) for name, _ in named))


def grouped_bars(
    groups: Sequence[str],
    bars: Mapping[str, Sequence[Figured]],
    path: Path | str,
    *,
    title: str,
    levels: Mapping[str, Figured] | None = None,
    xlabel: str = "accuracy",
    top: float | None = 1.0,
) -> None:
    """Rates, a horizontal bar of each kind in `bars` for each of `groups`, and vertical `levels`; the axis ends at
    `top`, None for where the bars do."""
    every = [*itertools.chain(*bars.values()), *(levels or {}).values()]
    one_n = _common_n(every)
    figure, (axes,) = panels(1, 1.5 + len(groups) * (0.2 * len(bars) + 0.16))
    width, said = 0.8 / len(bars), []
    reach = top or max(max(_bounds(v)[1] for v in every), 1e-9)
    digits = 0 if reach > 0.3 else 1
    for place, (colour, (name, values)) in enumerate(zip(itertools.cycle(COLOURS), bars.items(), strict=False)):
        label, rows = _label(name, values, one_n), np.arange(len(groups)) + place * width
        axes.barh(rows, [_value(v) for v in values], width, color=colour, label=label)
        for row, value in zip(rows, values, strict=True):
            low, high = _bounds(value)
            if _has_interval(value):
                axes.plot([low, high], [row, row], color="black", linewidth=1)
            text = {"va": "center", "fontsize": 9, "clip_on": False}
            axes.text(max(high, 0) + 0.01 * reach, row, hundredths(_value(value), digits), **text)
        found = ", ".join(f"{group} {_said(value)}" for group, value in zip(groups, values, strict=True))
        said.append(f"{label}: {found}")
    said += _draw_levels(levels or {}, one_n, axes.axvline, axes.axvspan)
    axes.set_yticks(
        np.arange(len(groups)) + 0.4 - width / 2, ["\n".join(textwrap.wrap(printable(g), 16)) for g in groups]
    )
    axes.invert_yaxis()
    axes.set_xlabel(xlabel)
    if top is not None:
        axes.set_xlim(0, top)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    finish(axes, title, every, "lines")
    if (legend := axes.get_legend()) is not None:
        # Below the label of the axis, whatever the height of the figure.
        legend.set_bbox_to_anchor((0.5, -0.55 / figure.get_figheight() - 0.06), transform=axes.transAxes)
    axes.grid(visible=False, axis="y")
    save(figure, path, "; ".join(said))


def _draw_levels(
    levels: Mapping[str, Figured], one_n: int | None, line: Callable[..., Any], span: Callable[..., Any]
) -> Iterator[str]:
    """Draw each level by `line` and its interval by `span`; the text that describes it."""
    for colour, (name, value) in zip(COLOURS[::-1], levels.items(), strict=False):
        label = _label(name, [value], one_n)
        line(_value(value), color=colour, linestyle="--", linewidth=1.5, label=label)
        if _has_interval(value):
            span(*_bounds(value), color=colour, alpha=0.12, linewidth=0)
        yield f"{label}: {_said(value)}"


def _value(value: Figured) -> float:
    return float(value.value if isinstance(value, Estimate) else value)


def _bounds(value: Figured) -> tuple[float, float]:
    return (value.low, value.high) if _has_interval(value) else (_value(value), _value(value))


def _has_interval(value: Any) -> bool:
    return isinstance(value, Estimate) and value.low is not None and value.high is not None


def _common_n(values: Iterable[Figured]) -> int | None:
    """The n that all estimates among `values` have, None where they differ or there are none."""
    counts = {value.n for value in values if isinstance(value, Estimate)}
    return counts.pop() if len(counts) == 1 else None


def _label(name: str, values: Sequence[Figured], one_n: int | None) -> str:
    counts = sorted({value.n for value in values if isinstance(value, Estimate)})
    if one_n is not None or not counts:
        return printable(name)
    least, most = f"{counts[0]:,}", f"{counts[-1]:,}"
    return printable(f"{name} (n = {least})" if least == most else f"{name} (n = {least} to {most})")


def _said(value: Figured) -> str:
    return f"{hundredths(_value(value), 1)} %"


def _fitted(name: str, inches: float) -> str:
    """A name in lines that fit above a column, shortened to two of them."""
    most = max(int(inches * 13), 4)
    lines = textwrap.wrap(printable(name), most)
    return "\n".join(lines if len(lines) < 3 else [lines[0], lines[1][: most - 1] + "…"])
