"""Figures of this app: trips before and after an attack, and what an attack takes against its budget."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator

from common.evaluation.plots import COLOURS, line_chart, panels, save
from common.evaluation.statistics import Estimate
from mobility_humid.data.layout import Layout
from mobility_humid.data.trips import SLOT, Grid, X, Y

# Samples of which the trips are drawn.
SHOWN = 3


def trips_before_after(
    examples: list[tuple[np.ndarray, np.ndarray]], layout: Layout, grid: Grid, path: Path, *, title: str
) -> None:
    """The moving trips of samples, (rows, length, features) before and after, on the map; points that moved are
    marked."""
    figure, line = panels(max(len(examples), 1), 2.9)
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
            xlim=(low[0], high[0]),
            ylim=(low[1], high[1]),
            aspect="equal",
            xlabel=f"x, cells of {grid.cell_size:g} m",
            ylabel="y, cells",
        )
        axes.grid(alpha=0.25)
    handles = [
        figure.axes[0].plot([], [], color="0.45", marker=".", label="before")[0],
        figure.axes[0].plot([], [], color=COLOURS[0], label="after")[0],
        figure.axes[0].scatter([], [], s=14, color=COLOURS[1], label="point that moved"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(title, fontsize=11)
    save(figure, path, f"maps of {len(examples)} samples, each trip before and after")


def success_against_eta(curves: Mapping[tuple[str, str], Mapping[int, Estimate]], path: Path) -> None:
    """Robust accuracy by the cells that a point may move, by part and attack."""
    figure, (axes,) = panels(1)
    lines = {f"{part}, {label}": rates for (part, label), rates in curves.items()}
    said = line_chart(axes, lines, title="robust accuracy against the budget")
    axes.set(xlabel="eta, cells", ylabel="robust accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    save(figure, path, said)


def success_against_points(curves: Mapping[str, Mapping[int, Estimate]], path: Path) -> None:
    """By part, the attack success rate of L0 by the number of points that it may move, among what was right before."""
    figure, (axes,) = panels(1)
    said = line_chart(axes, curves, title="attack success rate by points moved, L0")
    axes.set(xlabel="points moved, at most", ylabel="attack success rate")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    save(figure, path, said)
