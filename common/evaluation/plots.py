"""Figures, drawn straight to PNG files: nothing is shown, no global state is touched."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from common.files import printable, replacing

# Told apart by readers who see no red or green (Okabe and Ito's palette).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def save(figure: Figure, path: Path | str) -> None:
    """Write `figure` as a PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", facecolor="white")
    with replacing(path) as file:
        file.write(buffer.getvalue())


def accuracy_curves(
    curves: Mapping[str, Sequence[float]],
    path: Path | str,
    *,
    title: str,
    levels: Mapping[str, float] | None = None,
) -> None:
    """Accuracies in [0, 1] by epoch, one line each, and horizontal `levels` to compare them with."""
    figure = Figure(figsize=(6.4, 3.8))
    axes = figure.add_subplot()
    for colour, (name, values) in zip(COLOURS, curves.items(), strict=False):
        epochs = np.arange(1, len(values) + 1)
        axes.plot(epochs, values, color=colour, label=name, linewidth=2, marker="o", markersize=3)
    for colour, (name, value) in zip(COLOURS[len(curves) :], (levels or {}).items(), strict=False):
        axes.axhline(value, color=colour, linestyle="--", linewidth=1.5, label=name)
    axes.set(xlabel="epoch", ylabel="accuracy", ylim=(0, 1), title=title)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    save(figure, path)


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
    figure = Figure(figsize=(1.45 * count + 1.0, 1.55 * len(named) + 0.5))
    grid = figure.subplots(len(named), count, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (name, images) in zip(grid, named, strict=True):
        for axes, image in zip(line, images, strict=False):
            grey = image.shape[-1] == 1
            shades = {"cmap": "gray", "vmin": 0, "vmax": 255 if image.dtype == np.uint8 else 1} if grey else {}
            axes.imshow(image[..., 0] if grey else image, interpolation="nearest", **shades)
        line[0].text(-0.08, 0.5, printable(name), transform=line[0].transAxes, ha="right", va="center", fontsize=9)
    for axes, name in zip(grid[0], columns, strict=False):
        axes.set_title(printable(name), fontsize=8)
    if title:
        figure.suptitle(printable(title), fontsize=10)
    figure.tight_layout()
    save(figure, path)


def grouped_bars(
    groups: Sequence[str],
    bars: Mapping[str, Sequence[float]],
    path: Path | str,
    *,
    title: str,
    levels: Mapping[str, float] | None = None,
    ylabel: str = "accuracy",
    top: float | None = 1.0,
) -> None:
    """Shares in [0, 1], a bar of each kind in `bars` for each of `groups`, and horizontal `levels`; the axis ends at
    `top`, None for where the bars do."""
    figure = Figure(figsize=(1.2 * len(groups) + 2.4, 3.6))
    axes = figure.add_subplot()
    width = 0.8 / len(bars)
    least = 0.06 * (top or max(max(values) for values in bars.values()))
    digits = 0 if least > 0.02 else 1
    for place, (colour, (name, values)) in enumerate(zip(COLOURS, bars.items(), strict=False)):
        drawn = axes.bar(np.arange(len(groups)) + place * width, values, width, color=colour, label=name)
        # A bar that is lower than its number has it on top.
        for kind, text, fits in (("center", "white", lambda v: v >= least), ("edge", "black", lambda v: v < least)):
            labels = [f"{100 * value:.{digits}f}" if fits(value) else "" for value in values]
            axes.bar_label(drawn, labels=labels, label_type=kind, color=text, fontsize=8)
    for colour, (name, value) in zip(COLOURS[len(bars) :], (levels or {}).items(), strict=False):
        axes.axhline(value, color=colour, linestyle="--", linewidth=1.5, label=name)
    axes.set_xticks(np.arange(len(groups)) + 0.4 - width / 2, list(map(printable, groups)))
    axes.set(ylim=(0, top), ylabel=ylabel, title=title)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    save(figure, path)
