"""The figures of this app."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from common.evaluation import plots


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """`image` (H, W, 1 or 3) in [0, 1] under a heat map (H, W) in [0, 1]: (H, W, 3)."""
    base = np.broadcast_to(image, (*image.shape[:2], 3))
    return 0.5 * base + 0.5 * colormaps["inferno"](heat)[..., :3]


def budget_curves(curves: Mapping[str, Mapping[float, float]], path: Path, *, title: str) -> None:
    """Accuracy in [0, 1] by budget in [0, 1], a line for each model."""
    figure = Figure(figsize=(6.4, 3.8))
    axes = figure.add_subplot()
    styles = itertools.product(("-", "--", ":", "-."), plots.COLOURS)
    for (line, colour), (name, curve) in zip(itertools.cycle(styles), curves.items(), strict=False):
        budgets = sorted(curve)
        places = np.arange(len(budgets))
        axes.plot(places, [curve[eps] for eps in budgets], line, color=colour, marker="o", markersize=3, label=name)
        axes.set_xticks(places, ["none" if eps == 1 else f"{255 * eps:g}" for eps in budgets])
    axes.set(xlabel="budget in 1/255 (none: without bound)", ylabel="accuracy", ylim=(0, 1), title=title)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    plots.save(figure, path)


def overlap_histograms(cases: Mapping[str, tuple[np.ndarray, np.ndarray]], path: Path, *, title: str) -> None:
    """IoU of clean and attacked attention, by attack: of its successes and of its failures, (n,) each."""
    figure = Figure(figsize=(4.2 * len(cases), 3.4))
    bins = np.linspace(0, 1, 21)
    for axes, (name, sides) in zip(figure.subplots(1, len(cases), squeeze=False)[0], cases.items(), strict=True):
        for colour, side, values in zip(plots.COLOURS[1::-1], ("succeeds", "fails"), sides, strict=True):
            if len(values):
                share = np.full(len(values), 1 / len(values))
                axes.hist(values, bins, weights=share, color=colour, alpha=0.55, label=f"{side} ({len(values)})")
        axes.set(xlabel="IoU of attended areas", ylabel="share of images", title=name.replace("_", " "))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    plots.save(figure, path)


def iteration_curves(curves: Mapping[str, Mapping[int, tuple[float, float]]], path: Path, *, title: str) -> None:
    """Success and IoU by the number of steps, for each kind of budget."""
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.add_subplot()
    for colour, (name, curve) in zip(plots.COLOURS, curves.items(), strict=False):
        steps = sorted(curve)
        axes.plot(steps, [curve[s][0] for s in steps], color=colour, marker="o", label=f"success, {name}")
        axes.plot(steps, [curve[s][1] for s in steps], color=colour, marker="s", ls="--", label=f"IoU, {name}")
    axes.set(xlabel="steps", ylim=(0, 1), title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    plots.save(figure, path)
