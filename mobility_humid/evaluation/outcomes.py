"""What both attack scripts and the defence share: options, attacked samples, and how they are judged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from common.errors import UserError, one_line
from common.evaluation import statistics
from common.runs.model_input import look_at
from common.runs.options import Budget, Count, alias
from common.runs.record import Run
from mobility_humid.data.layout import Layout
from mobility_humid.data.samples import SAMPLE_FIELDS, Fleet, SampleOptions, check_samples, load_fleet, needs
from mobility_humid.evaluation import measures
from mobility_humid.training.tasks import Samples, Task

if TYPE_CHECKING:
    import keras

# Attacks that take many times the gradients of the others, and are run on fewer samples.
SLOW = ("st_ifgsm_l0", "cw_l2", "cw_l0", "strong")
# What no attack within eta cells leaves, sample by sample.
ALL = "all"


@dataclass(kw_only=True)
class AttackOptions(SampleOptions):
    """How a model is attacked."""

    model: Path | None = alias("model_path", default=None)
    """Model to attack, any Keras model in a .keras file that takes such samples; by default that of the training
    script, trained if need be."""
    attacks: tuple[str, ...] = ("st_ifgsm_linf", "st_fgsm_linf", "st_ifgsm_l0", "cw_l2", "noise")
    """Attacks, of st_fgsm_{linf,l2,l1}, st_ifgsm_{linf,l2,l1,l0}, cw_{l2,l0}, strong and noise; st_ifgsm_linf and noise
    always take part."""
    eta: Count = 2
    """Cells that a point may move along each axis (L-inf, L0, CW, noise)."""
    etas: tuple[Count, ...] = (1, 4)
    """Further eta for st_ifgsm_linf and noise, for the curve of success against eta."""
    radius: Budget | None = None
    """Norm in cells that all moves of a sample may have together (L2, L1); by default the mean that st_ifgsm_linf
    took."""
    steps: Count = 20
    """Steps of the iterated attacks."""
    alpha: Budget | None = None
    """Cells a step; by default 2.5 x eta / steps, for L2 and L1 2.5 x radius / steps."""
    restarts: Count = 3
    """Random starts of the attack strong, for either of its two losses; it also takes twice the steps."""
    cw_steps: Count = 40
    """Steps of CW for each constant."""
    search_steps: Count = 5
    """Constants that CW tries."""
    l0_from: Literal["clean", "previous"] = "clean"
    """Where each round of st_ifgsm_l0 begins: at the clean trips, as in the paper, or where the last one ended."""
    n_slow: Count = 100
    """Samples of each part for the attacks that take many gradients: L0, CW and strong."""
    batch_size: Count = 128
    """Samples attacked at a time."""


class Outcome(NamedTuple):
    """Samples before and after an attack: answered rightly, bool (n,) each; and the trips after it."""

    samples: Samples
    clean: np.ndarray
    robust: np.ndarray
    moved: np.ndarray

    @property
    def fooled(self) -> np.ndarray:
        """Right before and wrong after, bool (n,)."""
        return self.clean & ~self.robust


class Attacker:
    """Attacks on one model with the settings of `options`."""

    def __init__(self, options: AttackOptions, model: "keras.Model", fleet: Fleet) -> None:
        self.options, self.model, self.layout = options, model, fleet.layout
        self.grid = fleet.trips.grid.size
        self.radius = options.radius

    def run(self, name: str, samples: Samples, *, eta: int | None = None) -> Outcome:
        """The outcome of the attack `name`; an L2 or L1 attack needs `radius`."""
        from mobility_humid.attacks.trips import attack

        options = self.options
        steps = {"strong": 2 * options.steps, "cw_l2": options.cw_steps, "cw_l0": options.cw_steps}.get(
            name, options.steps
        )
        moved = attack(
            name,
            self.model,
            self.layout,
            samples.x,
            samples.y,
            self.grid,
            eta=eta or options.eta,
            steps=steps,
            alpha=options.alpha,
            radius=self.radius,
            restarts=options.restarts,
            search_steps=options.search_steps,
            l0_from=options.l0_from,
            seed=options.seed,
            batch_size=options.batch_size,
            progress=True,
        )
        return self.judge(samples, moved)

    def judge(self, samples: Samples, moved: np.ndarray) -> Outcome:
        """The outcome of trips (n, ...) that were moved, be it for this model or for another."""
        from common.evaluation.predictions import predict

        clean = predict(self.model, samples.x) == samples.y
        return Outcome(samples, clean, clean & (predict(self.model, moved) == samples.y), moved)


def check_victim(options: AttackOptions) -> None:
    """Refuse what can be refused before trips are read or prepared, or a model is trained. Errors: as `load_victim`."""
    from common.evaluation.classifiers import load_network
    from mobility_humid.attacks.trips import FIXED
    from mobility_humid.models import networks  # noqa: F401 - its layers must be known before a file with them is read

    check_samples(options)
    check_attacks(options)
    if options.traj_type == "serve":
        raise UserError(FIXED)
    if options.model is not None:
        # Whole numbers are grid units too.
        look_at(options.model, lambda: load_network(options.model, input_scale=1.0))


def victim_needs(options: AttackOptions, task: Task) -> None:
    """What prepare.py and the task's training script would refuse, where they are to be run."""
    needs(options)
    task.producer.expect(*_needed(options, task))


def _needed(options: AttackOptions, task: Task) -> "tuple[Path | None, AttackOptions, list[str]]":
    """Arguments of the training script's `produce`."""
    # Sampled alike, or the test days of the attack may be days that the model was trained on.
    return options.model, options, [name for name in SAMPLE_FIELDS if name in task.producer.fields]


def check_attacks(options: AttackOptions) -> tuple[str, ...]:
    """The attacks to run, st_ifgsm_linf first and noise last. Errors: `UserError` for an unknown one."""
    from mobility_humid.attacks.trips import ATTACKS

    if unknown := [name for name in options.attacks if name not in ATTACKS]:
        raise UserError(f"--attacks: {unknown[0]!r} is none of {', '.join(ATTACKS)}")
    others = [name for name in dict.fromkeys(options.attacks) if name not in ("st_ifgsm_linf", "noise")]
    return "st_ifgsm_linf", *others, "noise"


def load_victim(options: AttackOptions, run: Run, task: Task, fleet: Fleet) -> "tuple[keras.Model, Path]":
    """The model to attack, that of the task's training script unless named, and its file.

    Errors: `UserError` when it does not fit the samples of `fleet` or the labels of the task, and, before anything is
    trained, for attacks that there are not and trips that none may move.
    """
    from common import attacks
    from common.evaluation import classifiers
    from mobility_humid.attacks.trips import check_movable
    from mobility_humid.models.networks import TripModel

    check_movable(fleet.layout)
    outputs = task.outputs(fleet)
    path = classifiers.model_file(task.producer.produce(*_needed(options, task), say=run.say))
    model, _ = classifiers.load_network(path, input_scale=1.0)
    if isinstance(model, TripModel) and model.layout != fleet.layout:
        ours, its = fleet.layout, model.layout
        different = next(name for name in ours.config() if getattr(ours, name) != getattr(its, name))
        raise UserError(
            f"{path}: was trained on samples with {different} {getattr(its, different)}, these have"
            f" {getattr(ours, different)}; sample as its training did"
        )
    some = task.samples(fleet, task.parts[0], 8).x
    try:
        answer = model(some, training=False)
        if not isinstance(model, TripModel):
            attacks.check_logits(model, some)
    except (ValueError, TypeError) as error:
        reason = one_line(error, 200)
        raise UserError(f"{path}: does not take samples of {fleet.layout.shape}: {reason}") from error
    if len(answer.shape) != 2 or answer.shape[1] not in outputs:
        wanted = " or ".join(map(str, outputs))
        raise UserError(f"{path}: answers with {tuple(answer.shape[1:])}; expected {wanted} logits a sample")
    return model, path


def attack_task(options: AttackOptions, run: Run, task: Task) -> None:
    """What both attack scripts do: attack the test samples, write rows, headline figures and pictures."""
    from mobility_humid.evaluation import figures

    fleet = load_fleet(options, run.say, sides=task.sides)
    run.data(options.dataset, fleet.trips.sha256)
    model, path = load_victim(options, run, task, fleet)
    run.say(f"attacking {path}")
    attacker = Attacker(options, model, fleet)
    parts = {part: task.samples(fleet, part, options.n_test) for part in task.parts}
    outcomes = attack_all(options, run, attacker, parts, task.name)
    for part in parts:
        head, noise = (outcomes[name, part, options.eta] for name in ("st_ifgsm_linf", "noise"))
        ending = f"_{part}" if len(parts) > 1 else ""
        driver = head.samples.driver
        rates = {"clean_accuracy": (head.clean, None), "attacked_accuracy": (head.robust, None)}
        rates |= {"noise_accuracy": (noise.robust, None)}
        rates |= {name: (head.fooled, among) for name, among in _directions(head).items() if among.any()}
        run.intervals({name + ending: statistics.rate(hits, driver, among) for name, (hits, among) in rates.items()})
        if task.sides == 2:
            run.metrics(**{f"auc{ending}": task.auc(model, head.samples)})
    heads = [outcomes["st_ifgsm_linf", part, options.eta] for part in parts]
    run.metrics(**sizes(join(heads), fleet.layout))
    drawn = figures.attack_figures(run.folder, outcomes, fleet.layout, fleet.trips.grid, options.eta)
    for name, figure in drawn.items():
        run.artifact(name, figure)


def join(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcomes of one attack on several parts as one."""
    samples = Samples(*(np.concatenate(fields) for fields in zip(*(o.samples for o in outcomes), strict=True)))
    return Outcome(samples, *(np.concatenate([getattr(o, name) for o in outcomes]) for name in Outcome._fields[1:]))


def attack_all(
    options: AttackOptions, run: Run, attacker: Attacker, parts: Mapping[str, Samples], model_name: str
) -> dict[tuple[str, str, int], Outcome]:
    """Every attack of `options` on every part, and a row for each figure: outcomes by (attack, part, eta)."""
    outcomes: dict[tuple[str, str, int], Outcome] = {}
    for name in check_attacks(options):
        etas = (
            (options.eta, *(e for e in options.etas if e != options.eta))
            if name in ("st_ifgsm_linf", "noise")
            else (options.eta,)
        )
        for eta in etas:
            for part, samples in parts.items():
                samples = samples.first(options.n_slow) if name in SLOW else samples
                run.say(f"{name}, eta {eta}, {part}: {len(samples.y)} samples")
                outcome = outcomes[name, part, eta] = attacker.run(name, samples, eta=eta)
                record(
                    run,
                    outcome,
                    attacker.layout,
                    model=model_name,
                    attack=name,
                    eta=eta,
                    split=part,
                    radius=attacker.radius,
                )
        if name == "st_ifgsm_linf" and attacker.radius is None:
            attacker.radius = _mean_norm([outcomes[name, part, options.eta] for part in parts])
    for part in parts:
        within = [o for (name, of, eta), o in outcomes.items() if (of, eta) == (part, options.eta) and _in_cells(name)]
        columns = {"model": model_name, "attack": ALL, "eta": options.eta, "split": part, "radius": None}
        record(run, _worst(within), attacker.layout, **columns)
    return outcomes


def _in_cells(name: str) -> bool:
    """Whether the budget of an attack is eta."""
    return name.startswith("cw") or not name.endswith(("_l2", "_l1"))


def _worst(outcomes: Sequence[Outcome]) -> Outcome:
    """Of several attacks, for each sample that all of them met, the first that fools the model."""
    count = min(len(outcome.clean) for outcome in outcomes)
    first, *others = (Outcome(o.samples.first(count), *(field[:count] for field in o[1:])) for o in outcomes)
    robust, moved = first.robust, first.moved
    for other in others:
        moved = np.where((robust & ~other.robust)[:, None, None, None], other.moved, moved)
        robust = robust & other.robust
    return first._replace(robust=robust, moved=moved)


def record(
    run: Run, outcome: Outcome, layout: Layout, *, model: str, attack: str, eta: int, split: str, radius: float | None
) -> None:
    """Rows of `table.csv` for one outcome: accuracies, success rates, and the size of what moved."""
    norm = attack.rsplit("_", 1)[-1] if "_" in attack else "linf"
    size = radius if norm in ("l1", "l2") and not attack.startswith("cw") else eta
    columns = {"model": model, "attack": attack, "norm": norm, "eps": size, "split": split}
    driver = outcome.samples.driver
    rates = {"clean_accuracy": (outcome.clean, None), "attacked_accuracy": (outcome.robust, None)}
    rates |= {name: (outcome.fooled, among) for name, among in _directions(outcome).items()}
    for metric, (hits, among) in rates.items():
        if among is None or among.any():
            run.row(metric=metric, **statistics.rate(hits, driver, among)._asdict(), **columns)
    for metric, value in sizes(outcome, layout).items():
        run.row(metric=metric, value=value, **columns)


def sizes(outcome: Outcome, layout: Layout) -> dict[str, float]:
    """How much moved: mean number of changed points of the fooled samples, and their share of the points that could
    move; the largest displacement in cells and the largest jump between two points, over all samples."""
    before, after = outcome.samples.x, outcome.moved
    changed = measures.changed_points(before, after)
    movable = layout.movable(before)[..., 0].sum(axis=(1, 2))
    fooled = outcome.fooled
    return {
        "changed_points_mean": float(changed[fooled].mean()) if fooled.any() else 0.0,
        "changed_points_share": float(changed[fooled].sum() / movable[fooled].sum()) if fooled.any() else 0.0,
        "displacement_cells_max": float(measures.displacement(before, after).max()),
        "largest_jump_before": float(measures.largest_jump(before[:, layout.moving]).max()),
        "largest_jump_after": float(measures.largest_jump(after[:, layout.moving]).max()),
    }


def _directions(outcome: Outcome) -> dict[str, np.ndarray]:
    """Whose fooling counts as what, among those that were right: pairs are told by their two drivers."""
    if outcome.samples.driver.ndim == 1:
        return {"success_rate": outcome.clean}
    same = outcome.samples.y == 1
    return {
        "success_rate_impersonation": outcome.clean & ~same,
        "success_rate_dodging": outcome.clean & same,
    }


def _mean_norm(outcomes: Sequence[Outcome]) -> float:
    """Mean L2 norm of the moves of the fooled samples, in cells."""
    norms = np.concatenate([np.linalg.norm((o.moved - o.samples.x)[o.fooled], axis=(2, 3)) for o in outcomes])
    norms = np.linalg.norm(norms, axis=1)
    return float(norms.mean()) if len(norms) else 1.0
