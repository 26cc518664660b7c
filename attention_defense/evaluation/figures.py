"""The figures of this app."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.ticker import MaxNLocator

from common.evaluation import plots
from common.evaluation.statistics import Estimate


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """`image` (H, W, 1 or 3) in [0, 1] under a heat map (H, W) in [0, 1]: (H, W, 3)."""
    base = np.broadcast_to(image, (*image.shape[:2], 3))
    return 0.5 * base + 0.5 * colormaps["inferno"](heat)[..., :3]


def overlap_histograms(cases: Mapping[str, tuple[np.ndarray, np.ndarray]], path: Path, *, title: str) -> None:
    """IoU of clean and attacked attention, by attack: of its successes and of its failures, (n,) each."""
    figure, grid = plots.panels(len(cases), 3.0)
    bins, said = np.linspace(0, 1, 21), []
    for axes, (name, sides) in zip(grid, cases.items(), strict=True):
        for colour, side, values in zip(plots.COLOURS[1::-1], ("succeeds", "fails"), sides, strict=True):
            if len(values):
                share, label = np.full(len(values), 1 / len(values)), f"{side} (n = {len(values):,})"
                axes.hist(values, bins, weights=share, color=colour, alpha=0.55, label=label)
                said.append(f"{name} {label}: mean IoU {values.mean():.2f}")
        axes.set(xlabel="IoU of attended areas", ylabel="share of images")
        plots.finish(axes, f"{title}: {name.replace('_', ' ')}")
    plots.save(figure, path, "; ".join(said))


def iteration_curves(curves: Mapping[str, Mapping[int, tuple[Estimate, Estimate]]], path: Path, *, title: str) -> None:
    """Attack success rate and IoU by the number of steps, for each kind of budget."""
    figure, (axes,) = plots.panels(1)
    lines = {}
    for place, measure in enumerate(("attack success rate", "IoU")):
        for name, curve in curves.items():
            lines[f"{measure}, {name}"] = {steps: curve[steps][place] for steps in sorted(curve)}
    said = plots.line_chart(axes, lines, title=title)
    axes.set(xlabel="steps", ylabel="rate, IoU")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plots.save(figure, path, said)
