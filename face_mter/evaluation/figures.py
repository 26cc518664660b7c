"""Figures of this app: adversarial faces, hit rates against eps, ROC curves, embeddings in the plane."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from common.evaluation.plots import COLOURS, WIDTH, finish, line_chart, panels, save
from common.evaluation.statistics import Estimate
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
    side = WIDTH / len(attackers)
    figure = Figure(figsize=(WIDTH, (side + 0.25) * (len(changed) + 2)))
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
    figure.suptitle("IFTGSM at 10/255, the first pairs: cosine to the victim", fontsize=11)
    figure.tight_layout(pad=0.3)
    hits = {
        name: sum(c >= threshold for c in cosines[: len(attackers)])
        for name, (_, cosines, threshold) in changed.items()
    }
    save(figure, path, "; ".join(f"against {name}: {hit} of {len(attackers)} hit" for name, hit in hits.items()))


def hit_rate_curves(curves: Mapping[str, Mapping[float, Estimate]], marks: Mapping[str, Estimate], path: Path) -> None:
    """Hit rate of IFTGSM by L-inf budget in 1/255, a line for each model, at its own threshold; PGD at 10/255 as a
    mark."""
    figure, (axes,) = panels(1)
    said = line_chart(axes, curves, title="hit rate of IFTGSM, each network at its own threshold")
    for colour, name in zip(COLOURS, curves, strict=False):
        axes.plot(10, marks[name].value, color=colour, marker="*", markersize=12)
    axes.plot([], [], color="0.4", marker="*", markersize=12, linestyle="", label="PGD with restarts")
    axes.set(xlabel="L-inf budget in 1/255", ylabel="hit rate", ylim=(-0.02, 1.02))
    finish(axes, "hit rate of IFTGSM, each network at its own threshold", _all(curves), "bands")
    save(figure, path, said)


def roc_curves(
    curves: Mapping[str, Roc], far: float, path: Path, *, tars: Mapping[str, Mapping[float, Estimate]] | None = None
) -> None:
    """True accept rate against false accept rate, its axis logarithmic; by curve the true accept rates `tars` at
    certain false accept rates with their intervals."""
    figure, (axes,) = panels(1)
    for colour, (name, curve) in zip(COLOURS, curves.items(), strict=False):
        shown = curve.far > 0
        axes.plot(curve.far[shown], curve.tar[shown], color=colour, linewidth=2, label=name)
        for at, tar in (tars or {}).get(name, {}).items():
            axes.plot([at, at], [tar.low, tar.high], color=colour, linewidth=2.5, alpha=0.6)
    axes.axvline(far, color="0.6", linestyle="--", linewidth=1, label=f"FAR {far:g}")
    axes.set(xscale="log", xlabel="false accept rate", ylabel="true accept rate", ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    finish(axes, "ROC on the attack half", _all(tars or {}), "bars")
    said = "; ".join(
        f"{name}: {100 * tar.value:.1f} % at FAR {at:g}" for name, of in (tars or {}).items() for at, tar in of.items()
    )
    save(figure, path, said)


def _all(curves: Mapping[str, Mapping[float, Estimate]]) -> list[Estimate]:
    return [value for curve in curves.values() for value in curve.values()]


def plane(
    models: "Mapping[str, tuple[np.ndarray, np.ndarray, Sequence[np.ndarray]]]", path: Path, *, title: str
) -> None:
    """Embeddings in the plane, a panel for each model: points (n, 2), their labels (n,), and paths of attacks, (steps,
    2) each, drawn over them."""
    figure, grid = panels(len(models), 4.2)
    colours = [*COLOURS, "#000000", "#999999", "#F0E442", "#882255"]
    for axes, (name, (points, labels, paths)) in zip(grid, models.items(), strict=True):
        for label in np.unique(labels):
            mine = points[labels == label]
            axes.scatter(*mine.T, s=5, color=colours[label % len(colours)], alpha=0.6, linewidths=0, label=str(label))
        for way in paths:
            axes.plot(*way.T, color="black", linewidth=1.2)
            axes.plot(*way[0], color="black", marker="o", markersize=5, markerfacecolor="white")
            axes.plot(*way[-1], color="black", marker="X", markersize=7)
        axes.set(title=f"{name}, n = {len(points):,}", xticks=[], yticks=[])
    figure.axes[-1].legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=5, frameon=False, markerscale=3)
    figure.suptitle(title, fontsize=11)
    save(figure, path, "embeddings of " + ", ".join(models))
