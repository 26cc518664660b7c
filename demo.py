"""All five papers in one process: what each of them does, with intervals, in one table and a few figures."""

import dataclasses
import functools
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adv_lock.lock import lock
from adv_lock.train import train as train_on_locked
from adv_lock.train_base import train_base
from attention_defense.attack import attack as attack_classifier
from attention_defense.train import train as train_classifier
from common.errors import UserError
from common.evaluation.statistics import Estimate, independent, unpaired_difference
from common.runs.options import RunOptions, internal, option
from common.runs.record import ROOT, Run, read_results, read_table
from common.runs.script import script
from common.runs.sub_runs import SubRuns
from common.runs.tables import aligned, interval, lookup, percent
from face_mter.ad_face import ad_face
from face_mter.attack import attack as attack_faces
from face_mter.train import train as train_faces
from mobility_humid.fast_adversarial_train import fast_adversarial_train
from mobility_humid.prepare import prepare
from mobility_humid.siamese_attack import siamese_attack
from mobility_humid.train import train as train_verifier
from multimedia_recsys.run_all import run_all as attack_recommender

MINUTES = 10
"""How long it takes on two cores, see the README."""
# What a figure would be if nothing had happened; a rate by itself is no effect.
NO_EFFECT = {"difference": 0.0, "share": 1.0}

Row = Callable[..., None]
"""Adds a line to the table: what is measured; `rate`, `difference` or `share`; the figure; and, for the headline, a key
of `results.json`."""


@dataclasses.dataclass(kw_only=True)
class Options(RunOptions):
    """The settings of each script are in `<app>/configs/quick.yaml`."""

    config: Path | None = internal()
    name: str | None = option("quick", compared=False)
    """Name of the run, and of the runs that it consists of."""


def _lock(part: SubRuns, row: Row) -> Mapping[str, Path]:
    model = part(train_base) / "model.keras"
    locked = part(lock, model=model)
    trained = part(train_on_locked, lock_data=locked)
    of = _headline(trained)
    row("accuracy on real images, trained on originals", "rate", of("reference_accuracy"))
    row("accuracy on real images, trained on locked ones", "rate", of("original_accuracy"))
    row("share of the accuracy that is left", "share", of("share_of_reference"), "lock_share")
    return {"lock_examples": locked / "examples.png", "lock_crossing": trained / "crossing.png"}


def _mobility(part: SubRuns, row: Row) -> Mapping[str, Path]:
    part(prepare)
    part(train_verifier)
    attacked = part(siamese_attack)
    hardened = part(fast_adversarial_train)
    of = _headline(hardened)
    clean, noise, before = (of(f"{name}_accuracy_before") for name in ("clean", "noise", "attacked"))
    row("accuracy on clean trips", "rate", clean)
    row("accuracy under noise of the same budget", "rate", noise)
    row("accuracy under ST-iFGSM", "rate", before)
    row("ST-iFGSM less noise", "difference", unpaired_difference(before, noise), "st_ifgsm_less_noise")
    row("accuracy under ST-iFGSM, after Fast ST-FGSM training", "rate", of("attacked_accuracy_after"))
    gain = _measured(hardened, metric="attacked_accuracy_gain", attack="st_ifgsm_linf", model="fast")
    row("after less before that training", "difference", gain, "fast_st_fgsm_gain")
    return {"trips": attacked / "trips.png", "trips_hardened": hardened / "defence.png"}


def _faces(part: SubRuns, row: Row) -> Mapping[str, Path]:
    base = part(train_faces)
    hardened = part(ad_face)
    attacked = part(attack_faces, base_model=base, model=hardened)
    of = _headline(attacked)
    row("hit rate of IFTGSM at 10/255, base network", "rate", of("hit_rate_iftgsm_10_base"))
    row("hit rate of IFTGSM at 10/255, MTER", "rate", of("hit_rate_iftgsm_10"))
    less = _measured(attacked, metric="hit_rate_less_base", attack="iftgsm", eps=10 / 255, model="hardened")
    row("MTER less base network", "difference", less, "mter_less_base")
    row("verification accuracy, base network", "rate", of("verification_accuracy_base"))
    row("verification accuracy, MTER", "rate", of("verification_accuracy"))
    return {"faces": attacked / "faces.png"}


def _recommender(part: SubRuns, row: Row) -> Mapping[str, Path]:
    joined = part(attack_recommender)
    for label, attack, key in (
        ("PGD towards the target class", "pgd_8", "pgd_lift"),
        ("INSA, which raises the score itself", "insa_8_vbpr", "insa_lift"),
        ("noise of the same budget", "noise_8", "noise_lift"),
        ("real images of the target class, for reference", "swap", None),
    ):
        columns = {"attack": attack, "model": "vbpr", "cnn": "standard", "pair": "near", "threat": "frozen"}
        lift = _measured(joined, metric="item_lift", **columns)
        row(f"more lists with an attacked item: {label}", "difference", lift, key)
    return {"recommender": joined / "lift.png"}


def _attention(part: SubRuns, row: Row) -> Mapping[str, Path]:
    trained = part(train_classifier)
    attacked = part(attack_classifier, model=trained)
    # The lock's base classifier is the standard network: same data, same architecture.
    standard = train_base.folder(Options(name=part.name)) / "model.keras"
    of_aad, of_standard = _headline(attacked), _headline(part(attack_classifier, "standard", model=standard))
    for images, key in (
        ("on clean images", "clean_accuracy"),
        ("under Step-LL at 16/255", "accuracy_step_ll"),
        ("under PGD-20 at 16/255", "accuracy_pgd20"),
    ):
        row(f"accuracy {images}, standard training", "rate", of_standard(key))
        row(f"accuracy {images}, AAD", "rate", of_aad(key))
        gain = unpaired_difference(of_aad(key), of_standard(key))
        row(f"accuracy {images}, AAD less standard", "difference", gain, f"aad_{key}_gain")
    return {"attention": attacked / "curve.png"}


class Chapter(NamedTuple):
    """One paper: `play` makes its runs, adds its rows, and returns the figures to look at by name."""

    app: str
    title: str
    play: Callable[[SubRuns, Row], Mapping[str, Path]]


CHAPTERS = (
    Chapter("adv_lock", "Adversarial Lock: images that mislead models trained on them", _lock),
    Chapter("mobility_humid", "ST-iFGSM: trips whose driver is no longer identified", _mobility),
    Chapter("face_mter", "MTER: face embeddings that resist impersonation", _faces),
    Chapter("multimedia_recsys", "TAaMR: product images that climb in a visual recommender", _recommender),
    Chapter("attention_defense", "AAD: a classifier whose attention is rectified and preserved", _attention),
)


def summary(folder: Path, results: Mapping[str, Any], table: Sequence[Mapping[str, Any]]) -> str:
    """The table of the demo for the terminal, and where its files lie."""
    lines = [f"all five papers, embedded data, seed {results['seed']}, {results['seconds']:.0f} s"]
    for chapter in CHAPTERS:
        rows = [row for row in table if row["paper"] == chapter.app]
        if rows:
            cells = [[f"  {row['measure']}", *_cells(row)] for row in rows]
            lines += ["", chapter.title, *aligned(cells)]
    lines += ["", "Per cent, 95 % intervals; one seed of small networks, an example and no finding: see each README."]
    lines += ["", "where to look"]
    lines += [f"  {folder / path}" for path in results["artifacts"].values()]
    page = "`python -m common.runs.report runs/` makes one page of every run so far"
    return "\n".join([*lines, f"  {folder / 'table.csv'}", "", page])


@script(app="suite", name="demo", columns=("paper", "measure"), ending=summary)
def demo(options: Options, run: Run) -> None:
    """Run the papers one after the other, and put what they show into one table."""
    run.log(
        f"five papers on embedded data: about {MINUTES} minutes on two cores;"
        " after an interruption, --resume continues where it stopped"
    )
    figures: dict[str, Path] = {}
    for number, chapter in enumerate(CHAPTERS):
        begun = time.monotonic()
        run.log(f"== {number + 1} of {len(CHAPTERS)}: {chapter.title}")
        part = SubRuns(dataclasses.replace(options, config=_settings(chapter.app)), run)
        figures |= chapter.play(part, functools.partial(_row, run, chapter.app))
        run.log(f"== {chapter.app}: {time.monotonic() - begun:.0f} s")
    for name, figure in figures.items():
        shutil.copyfile(figure, run.folder / f"{name}.png")
        run.artifact(name, run.folder / f"{name}.png")


def _settings(app: str) -> Path:
    path = ROOT / app / "configs/quick.yaml"
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _row(run: Run, app: str, label: str, kind: str, figure: Estimate, key: str | None = None) -> None:
    # A mean of nothing but zeros is zero but for its last bits.
    figure = Estimate(*(round(number, 12) for number in figure))
    run.row(paper=app, measure=label, metric=kind, **figure._asdict())
    if key is not None:
        run.intervals({key: figure})


def _cells(row: Mapping[str, Any]) -> list[str]:
    """Value, interval, n and verdict of a row, as text."""
    none = NO_EFFECT.get(row["metric"])
    verdict = "" if none is None or not row["low"] <= none <= row["high"] else "no effect shown"
    return [percent(row["value"]), interval(row), f"n {row['n']:.0f}", verdict]


def _headline(folder: Path) -> Callable[[str], Estimate]:
    """The headline rates of a run by key, with the interval that it has, else Wilson's."""
    metrics = read_results(folder)["metrics"]

    def of(key: str) -> Estimate:
        value, n = metrics[key], round(metrics[f"{key}_n"])
        low, high = (metrics.get(f"{key}_{end}") for end in ("low", "high"))
        return independent(value, n) if low is None or high is None else Estimate(value, n, low, high)

    return of


def _measured(folder: Path, **columns: str | float) -> Estimate:
    """The row of a run's table with such `columns`."""
    found = lookup(read_table(folder))(default=None, **columns)
    if found is None or found.low is None:
        raise UserError(f"{folder / 'table.csv'}: no row of {columns} with an interval; --force runs it again")
    return Estimate(float(found), round(found.n), found.low, found.high)


if __name__ == "__main__":
    demo.main()
