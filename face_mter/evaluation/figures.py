"""Figures of this app: adversarial faces, hit rates against eps, ROC curves, embeddings in the plane."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from common.evaluation.plots import COLOURS, save
from face_mter.evaluation.people import Cast
from face_mter.evaluation.verification import Roc

if TYPE_CHECKING:
    from face_mter.attack import Subject
    from face_mter.attacks.features import Outcome

_SHOWN = 6


def attack_figures(
    folder: Path,
    cast: Cast,
    pairs: np.ndarray,
    subjects: "Sequence[Subject]",
    outcomes: "Mapping[str, Mapping[tuple[str, float], Outcome]]",
    budgets: Sequence[float],
) -> dict[str, Path]:
    """`faces.png` and `hit_rate.png` in `folder`, by name."""
    drawn = {"faces": folder / "faces.png", "hit_rate": folder / "hit_rate.png"}
    adversarial_faces(cast, pairs, subjects, outcomes, drawn["faces"])
    hit_rate_curves(subjects, outcomes, budgets, drawn["hit_rate"])
    return drawn


def adversarial_faces(
    cast: Cast,
    pairs: np.ndarray,
    subjects: "Sequence[Subject]",
    outcomes: "Mapping[str, Mapping[tuple[str, float], Outcome]]",
    path: Path,
) -> None:
    """The first pairs: attacker, the attacker's picture as IFTGSM changes it for each model, with its cosine to the
    victim, framed when it is taken for the victim, and the victim."""
    images, shown = cast.faces.images, pairs[:_SHOWN]
    figure = Figure(figsize=(1.5 * len(shown) + 1.2, 1.75 * (len(subjects) + 2)))
    grid = figure.subplots(len(subjects) + 2, len(shown), squeeze=False)
    for line, name, side in ((grid[0], "attacker", 0), (grid[-1], "victim", 1)):
        for axes, picture in zip(line, images[shown[:, side]], strict=True):
            axes.imshow(picture)
        line[0].set_ylabel(name)
    for line, subject in zip(grid[1:-1], subjects, strict=True):
        outcome = outcomes[subject.name]["iftgsm", 10.0]
        for axes, picture, cosine in zip(line, outcome.x, outcome.rounded, strict=False):
            hit = cosine >= subject.verified.threshold
            axes.imshow(picture)
            axes.set_xlabel(f"{cosine:.2f}{' hit' if hit else ''}", fontsize=9, color=COLOURS[1] if hit else "black")
            if hit:
                axes.spines[:].set(color=COLOURS[1], linewidth=3)
        line[0].set_ylabel(f"against\n{subject.name}")
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    figure.suptitle("IFTGSM, 10/255: cosine to the victim", fontsize=11)
    figure.tight_layout()
    save(figure, path)


def hit_rate_curves(
    subjects: "Sequence[Subject]",
    outcomes: "Mapping[str, Mapping[tuple[str, float], Outcome]]",
    budgets: Sequence[float],
    path: Path,
) -> None:
    """Hit rate of IFTGSM against eps, a line for each model, at its own threshold; PGD at 10/255 as a mark."""
    figure = Figure(figsize=(6.0, 3.8))
    axes = figure.add_subplot()
    for colour, subject in zip(COLOURS, subjects, strict=False):
        found, threshold = outcomes[subject.name], subject.verified.threshold
        grey = sorted({0.0, *(float(f"{eps * 255:.6g}") for eps in budgets)})
        rates = [np.mean(found["iftgsm" if eps else "clean", eps].rounded >= threshold) for eps in grey]
        axes.plot(grey, rates, color=colour, marker="o", markersize=4, label=subject.name)
        axes.plot(10, np.mean(found["pgd", 10.0].rounded >= threshold), color=colour, marker="*", markersize=12)
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
