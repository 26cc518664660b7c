"""The figures of the READMEs that show committed results, drawn from the tables that the READMEs render:

    python docs/figures.py

The others in this folder, of images and maps, are those of `make demo`.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from common.evaluation import plots
from common.evaluation.plots import budget_curves
from common.evaluation.statistics import Estimate, of_row
from common.runs.record import read_table

ROOT = Path(__file__).resolve().parent.parent
Draw = Callable[[Path], None]


def figures() -> Iterator[tuple[str, Draw]]:
    """Each figure's file in this folder, and what draws it."""
    yield "lock.png", _lock()
    yield "trips_defence.png", _trips()
    yield "faces_hits.png", _faces()
    yield "attention_curves.png", _attention()
    yield "adversarial_training.png", _training()


def main() -> None:
    for name, draw in figures():
        draw(ROOT / "docs" / name)
        print(f"docs/{name}")


def _rows(recipe: str, **columns: Any) -> list[Mapping[str, Any]]:
    return [row for row in read_table(ROOT / recipe) if all(row.get(key) == value for key, value in columns.items())]


def _estimate(rows: list[Mapping[str, Any]], **columns: Any) -> Estimate:
    """The one row that has these `columns`."""
    (row,) = (row for row in rows if all(row.get(key) == value for key, value in columns.items()))
    return of_row(row)


def _lock() -> Draw:
    rows, locks = _rows("adv_lock/results/cifar10_cpu", seed=0), ["basic", "mixup", "horiz", "mixandcat"]
    bars = {
        f"on {images} test images": [_estimate(rows, attack=lock, metric=f"{key}_accuracy") for lock in locks]
        for images, key in (("clean", "original"), ("locked", "locked"))
    }
    reference = {"trained on clean images": _estimate(rows, attack="original", metric="original_accuracy")}
    title = "accuracy after training on locked CIFAR-10 images, seed 0"
    return partial(plots.grouped_bars, locks, bars, title=title, levels=reference)


def _trips() -> Draw:
    rows = _rows("mobility_humid/results/cabs_defence", split="unseen", eps=2.0)
    bound = _rows("mobility_humid/results/cabs_attack", split="unseen", metric="accuracy", model="served_trips")
    models = {"before": "before", "Fast ST-FGSM": "fast", "PGD training": "pgd"}
    bars = {
        label: [_estimate(rows, model=model, attack=attack, metric=metric) for model in models.values()]
        for label, attack, metric in (
            ("clean", "st_ifgsm_linf", "clean_accuracy"),
            ("noise, 2 cells", "noise", "attacked_accuracy"),
            ("ST-iFGSM, 2 cells", "st_ifgsm_linf", "attacked_accuracy"),
        )
    }
    levels = {"a rule on served trips alone": _estimate(bound)} if bound else {}
    title = "60 San Francisco cabs: are two unseen cabs the same?"
    return partial(plots.grouped_bars, list(models), bars, title=title, levels=levels)


def _faces() -> Draw:
    rows = _rows("face_mter/results/lfw_attack", metric="hit_rate", source=None)
    models = {"base": "base", "MTER": "hardened", "adversarial training": "lfw_adv"}
    attacks = {"noise": "noise", "IFTGSM": "iftgsm", "PGD": "pgd"}
    bars = {
        f"{label}, 10/255": [_estimate(rows, model=model, attack=attack, eps=10 / 255) for model in models.values()]
        for label, attack in attacks.items()
    }
    title = "hit rates on LFW, each network at its own threshold"
    return partial(plots.grouped_bars, list(models), bars, title=title, xlabel="hit rate")


def _attention() -> Draw:
    rows = _rows("attention_defense/results/cifar10_cpu", split="curve", attack="pgd20", n_train=None)
    shown = {"standard": "standard", "PGD": "pgd", "AAD": "aad", "Step-LL": "step_ll"}
    curves = {
        name: {row["eps"]: of_row(row) for row in rows if row["model"] == model and row["train_eps"] is None}
        for name, model in shown.items()
    }
    return partial(budget_curves, curves, title="CIFAR-10 under PGD-20, by training, seed 0")


def _training() -> Draw:
    rows, methods = _rows("benchmarks/results/cifar10_cpu"), ["standard", "fast", "pgd", "trades"]
    attacks = {"clean": "clean", "FGSM": "fgsm", "PGD-20": "pgd20", "PGD-50, restarts": "strong"}
    bars = {
        label: [_estimate(rows, model=method, metric=attack) for method in methods] for label, attack in attacks.items()
    }
    return partial(
        plots.grouped_bars, methods, bars, title="CIFAR-10 after training by each method, L-inf 8/255, seed 0"
    )


if __name__ == "__main__":
    main()
