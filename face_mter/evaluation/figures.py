"""Figures of this app: adversarial faces, hit rates against eps, ROC curves, embeddings in the plane."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from common.evaluation.plots import COLOURS, save
from face_mter.evaluation.verification import Roc

SHOWN = 6
"""Pairs in the figure of faces."""


def adversarial_faces(
    attackers: np.ndarray,
    victims: np.ndarray,
    changed: Mapping[str, tuple[np.ndarray, np.ndarray, float]],
    path: Path,
) -> None:
    """Images of `attackers` and `victims` (n, H, W, C), and between them by model what IFTGSM made of the attackers':
    the images (n or more, H, W, C), their cosines to the victims and the threshold, above which one is framed."""
    figure = Figure(figsize=(1.5 * len(attackers) + 1.2, 1.75 * (len(changed) + 2)))
    grid = figure.subplots(len(changed) + 2, len(attackers), squeeze=False)
    for line, name, images in ((grid[0], "attacker", attackers), (grid[-1], "victim", victims)):
        for axes, image in zip(line, images, strict=True):
            axes.imshow(image)
        line[0].set_ylabel(name)
    for line, (name, (images, cosines, threshold)) in zip(grid[1:-1], changed.items(), strict=True):
        for axes, image, cosine in zip(line, images, cosines, strict=False):
            hit = cosine >= threshold
            axes.imshow(image)
            axes.set_xlabel(f"{cosine:.2f}{' hit' if hit else ''}", fontsize=9, color=COLOURS[1] if hit else "black")
            if hit:
                axes.spines[:].set(color=COLOURS[1], linewidth=3)
        line[0].set_ylabel(f"against\n{name}")
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    figure.suptitle("IFTGSM, 10/255: cosine to the victim", fontsize=11)
    figure.tight_layout()
    save(figure, path)


def hit_rate_curves(curves: Mapping[str, Mapping[float, float]], marks: Mapping[str, float], path: Path) -> None:
    """Hit rate of IFTGSM by eps in 1/255, a line for each model, at its own threshold; PGD at 10/255 as a mark."""
    figure = Figure(figsize=(6.0, 3.8))
    axes = figure.add_subplot()
    for colour, (name, rates) in zip(COLOURS, curves.items(), strict=False):
        axes.plot(list(rates), list(rates.values()), color=colour, marker="o", markersize=4, label=name)
        axes.plot(10, marks[name], color=colour, marker="*", markersize=12)
    axes.plot([], [], color="0.4", marker="*", markersize=12, linestyle="", label="PGD with restarts")
    axes.set(xlabel="eps, in 1/255", ylabel="taken for the victim", ylim=(-0.02, 1.02), title="IFTGSM, own threshold")
    _finish(figure, axes, path)


def roc_curves(curves: Mapping[str, Roc], far: float, path: Path) -> None:
    """True accept rate against false accept rate, its axis logarithmic."""
    figure = Figure(figsize=(6.0, 3.8))
    axes = figure.add_subplot()
    for colour, (name, curve) in zip(COLOURS, curves.items(), strict=False):
        shown = curve.far > 0
        axes.plot(curve.far[shown], curve.tar[shown], color=colour, linewidth=2, label=name)
    axes.axvline(far, color="0.6", linestyle="--", linewidth=1, label=f"FAR {far:g}")
    axes.set(xscale="log", xlabel="false accept rate", ylabel="true accept rate", ylim=(0, 1.02), title="attack half")
    _finish(figure, axes, path)


def plane(
    panels: "Mapping[str, tuple[np.ndarray, np.ndarray, Sequence[np.ndarray]]]", path: Path, *, title: str
) -> None:
    """Embeddings in the plane, a panel for each model: points (n, 2), their labels (n,), and paths of attacks, (steps,
    2) each, drawn over them."""
    figure = Figure(figsize=(5.0 * len(panels), 4.6))
    colours = [*COLOURS, "#000000", "#999999", "#F0E442", "#882255"]
    for axes, (name, (points, labels, paths)) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for label in np.unique(labels):
            mine = points[labels == label]
            axes.scatter(*mine.T, s=5, color=colours[label % len(colours)], alpha=0.6, linewidths=0, label=str(label))
        for way in paths:
            axes.plot(*way.T, color="black", linewidth=1.2)
            axes.plot(*way[0], color="black", marker="o", markersize=5, markerfacecolor="white")
            axes.plot(*way[-1], color="black", marker="X", markersize=7)
        axes.set(title=name, xticks=[], yticks=[])
    figure.axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, markerscale=3)
    figure.suptitle(title, fontsize=11)
    save(figure, path)


def _finish(figure: Figure, axes, path: Path) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    save(figure, path)
