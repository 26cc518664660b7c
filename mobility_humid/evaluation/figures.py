"""Figures of this app: trips before and after an attack, and what an attack takes against its budget."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from common.evaluation.plots import COLOURS, save
from mobility_humid.data.layout import Layout
from mobility_humid.data.trips import SLOT, Grid, X, Y

# Samples of which the trips are drawn.
SHOWN = 3


def trips_before_after(
    examples: list[tuple[np.ndarray, np.ndarray]], layout: Layout, grid: Grid, path: Path, *, title: str
) -> None:
    """The moving trips of samples, (rows, length, features) before and after, on the map; points that moved are
    marked."""
    figure = Figure(figsize=(4.6 * max(len(examples), 1), 4.8))
    line = figure.subplots(1, max(len(examples), 1), squeeze=False)[0]
    for axes, (before, after) in zip(line, examples, strict=False):
        points = []
        for old, new in zip(before[layout.moving], after[layout.moving], strict=True):
            there = old[:, SLOT] > 0
            old, new = old[there][:, [X, Y]], new[there][:, [X, Y]]
            axes.plot(*old.T, color="0.45", linewidth=1, marker=".", markersize=3, zorder=2)
            axes.plot(*new.T, color=COLOURS[0], linewidth=1, zorder=3)
            moved = (old != new).any(axis=1)
            axes.scatter(*new[moved].T, s=14, color=COLOURS[1], zorder=4)
            axes.add_collection(
                LineCollection(np.stack([old[moved], new[moved]], axis=1), colors="0.7", linewidths=0.7)
            )
            points.append(np.concatenate([old, new]))
        everything = np.concatenate(points)
        low, high = everything.min(axis=0) - 2, everything.max(axis=0) + 2
        axes.set(
            xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", xlabel=f"x, cells of {grid.cell_size:g} m"
        )
        axes.grid(alpha=0.25)
    line[0].set_ylabel("y, cells")
    handles = [
        figure.axes[0].plot([], [], color="0.45", marker=".", label="before")[0],
        figure.axes[0].plot([], [], color=COLOURS[0], label="after")[0],
        figure.axes[0].scatter([], [], s=14, color=COLOURS[1], label="point that moved"),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    save(figure, path)


def success_against_eta(curves: Mapping[tuple[str, str], Mapping[int, float]], path: Path) -> None:
    """The share of samples still answered rightly by the cells that a point may move, by part and attack, of which the
    first of a part is drawn as a line and the others as dots."""
    figure = Figure(figsize=(6.0, 3.8))
    axes = figure.add_subplot()
    parts = list(dict.fromkeys(part for part, _ in curves))
    for (part, label), rates in curves.items():
        first = next(name for of, name in curves if of == part)
        colour, style = COLOURS[parts.index(part) % len(COLOURS)], "-" if label == first else ":"
        axes.plot(
            list(rates), list(rates.values()), style, color=colour, marker="o", markersize=4, label=f"{part}, {label}"
        )
    axes.set(xlabel="eta, cells", ylabel="accuracy", ylim=(0, 1), title="accuracy against the budget")
    _finish(figure, axes, path)


def success_against_points(points: Mapping[str, tuple[np.ndarray, int]], path: Path) -> None:
    """By part, the points that L0 moved of each sample that it fooled (n,), of so many that were right before."""
    figure = Figure(figsize=(6.0, 3.8))
    axes = figure.add_subplot()
    for colour, (part, (taken, right)) in zip(COLOURS, points.items(), strict=False):
        share = np.arange(1, len(taken) + 1) / max(right, 1)
        axes.step([0, *np.sort(taken)], [0, *share], where="post", color=colour, label=part, linewidth=2)
    axes.set(xlabel="points moved", ylabel="fooled", ylim=(0, 1), title="success against the number of points, L0")
    _finish(figure, axes, path)


def _finish(figure: Figure, axes: Any, path: Path) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    save(figure, path)
