"""Attack ST-Siamese: move the seek trips of one driver so that two are taken for one (impersonation) or one for two."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from common.errors import UserError, one_line
from common.runs.model_input import look_at
from common.runs.options import Budget, Count, alias
from common.runs.record import Run
from common.runs.script import Script, script
from mobility_humid.train import SAMPLE_FIELDS, SampleOptions, check_samples, load_fleet, train
from mobility_humid.train import needs as fleet_needs

if TYPE_CHECKING:
    import keras
    import numpy as np

    from mobility_humid.data.samples import Fleet
    from mobility_humid.evaluation.outcomes import Outcome
    from mobility_humid.training.tasks import Samples, Task


# Attacks that take many times the gradients of the others, and are run on fewer samples.
SLOW = ("st_ifgsm_l0", "cw_l2", "cw_l0", "strong")


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
    """Norm in cells that all moves of a sample may have together (L2, L1); by default the mean of that norm that
    st_ifgsm_linf took."""
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


@dataclass(kw_only=True)
class Options(AttackOptions):
    """Attacks on the verifier."""

    without: ClassVar[tuple[str, ...]] = ("n_train", "strategy", "precision")
    unhashed: ClassVar[tuple[str, ...]] = ("batch_size",)


class Attacker:
    """Attacks on one model with the settings of `options`."""

    def __init__(self, options: AttackOptions, model: "keras.Model", fleet: "Fleet") -> None:
        self.options, self.model, self.layout = options, model, fleet.layout
        self.grid = fleet.trips.grid.size
        self.radii = {} if options.radius is None else dict.fromkeys((1, 2), options.radius)
        """By norm, the radius of L1 and L2 attacks."""

    def run(self, name: str, samples: "Samples", *, eta: int | None = None) -> "Outcome":
        """The outcome of the attack `name`; an L2 or L1 attack needs its radius."""
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
            radius=self.radii.get(_norm(name)),
            restarts=options.restarts,
            search_steps=options.search_steps,
            l0_from=options.l0_from,
            seed=options.seed,
            batch_size=options.batch_size,
            progress=True,
        )
        return self.judge(samples, moved)

    def judge(self, samples: "Samples", moved: "np.ndarray") -> "Outcome":
        """The outcome of trips (n, ...) that were moved, be it for this model or for another."""
        from common.evaluation.predictions import predict
        from mobility_humid.evaluation.outcomes import Outcome

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


def victim_needs(options: AttackOptions, producer: Script) -> None:
    """What prepare.py and `producer`, the task's training script, would refuse, where they are to be run."""
    fleet_needs(options)
    producer.expect(*_needed(options, producer))


def _needed(options: AttackOptions, producer: Script) -> "tuple[Path | None, AttackOptions, list[str]]":
    """Arguments of the training script's `produce`."""
    # Sampled alike, or the test days of the attack may be days that the model was trained on.
    return options.model, options, [name for name in SAMPLE_FIELDS if name in producer.fields]


def check_attacks(options: AttackOptions) -> tuple[str, ...]:
    """The attacks to run, st_ifgsm_linf first and noise last. Errors: `UserError` for an unknown one."""
    from mobility_humid.attacks.trips import ATTACKS

    if unknown := [name for name in options.attacks if name not in ATTACKS]:
        raise UserError(f"--attacks: {unknown[0]!r} is none of {', '.join(ATTACKS)}")
    others = [name for name in dict.fromkeys(options.attacks) if name not in ("st_ifgsm_linf", "noise")]
    return "st_ifgsm_linf", *others, "noise"


def load_victim(
    options: AttackOptions, run: Run, task: "Task", producer: Script, fleet: "Fleet"
) -> "tuple[keras.Model, Path]":
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
    path = classifiers.model_file(producer.produce(*_needed(options, producer), say=run.say))
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


def attack_task(options: AttackOptions, run: Run, task: "Task", producer: Script) -> None:
    """What both attack scripts do: attack the test samples, write rows, headline figures and pictures."""
    from common.evaluation import statistics
    from mobility_humid.evaluation.outcomes import directions, join, sizes

    fleet = load_fleet(options, run.say, sides=task.sides)
    run.data(options.dataset, fleet.trips.sha256)
    model, path = load_victim(options, run, task, producer, fleet)
    run.say(f"attacking {path}")
    attacker = Attacker(options, model, fleet)
    parts = {part: task.samples(fleet, part, options.n_test) for part in task.parts}
    outcomes = attack_all(options, run, attacker, parts, task.name)
    record_bounds(options, run, fleet, task)
    for part in parts:
        head, noise = (outcomes[name, part, options.eta] for name in ("st_ifgsm_linf", "noise"))
        ending = f"_{part}" if len(parts) > 1 else ""
        driver = head.samples.driver
        rates = {"clean_accuracy": (head.clean, None), "attacked_accuracy": (head.robust, None)}
        rates |= {"noise_accuracy": (noise.robust, None)}
        rates |= {name: (head.fooled, among) for name, among in directions(head).items() if among.any()}
        run.intervals({name + ending: statistics.rate(hits, driver, among) for name, (hits, among) in rates.items()})
        if task.sides == 2:
            run.metrics(**{f"auc{ending}": task.auc(model, head.samples)})
    heads = [outcomes["st_ifgsm_linf", part, options.eta] for part in parts]
    run.metrics(**sizes(join(heads), fleet.layout))
    _draw(options, run, fleet, outcomes)


def attack_all(
    options: AttackOptions, run: Run, attacker: Attacker, parts: "Mapping[str, Samples]", model_name: str
) -> "dict[tuple[str, str, int], Outcome]":
    """Every attack of `options` on every part, and a row for each figure: outcomes by (attack, part, eta)."""
    from common.evaluation import statistics
    from mobility_humid.evaluation.outcomes import ALL, mean_norm, worst

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
                record(run, outcome, attacker, model=model_name, attack=name, eta=eta, split=part)
        if name == "st_ifgsm_linf" and not attacker.radii:
            heads = [outcomes[name, part, options.eta] for part in parts]
            attacker.radii = {order: mean_norm(heads, order) for order in (1, 2)}
    for part in parts:
        within = {
            name: o for (name, of, eta), o in outcomes.items() if (of, eta) == (part, options.eta) and _in_cells(name)
        }
        union = worst([*within.values()])
        columns = {"model": model_name, "eta": options.eta, "split": part}
        record(run, union, attacker, attack=ALL, **columns)
        # Attacks that are dear met fewer samples: all of them are compared on what everyone met.
        for name, outcome in within.items() if len({len(o.clean) for o in within.values()}) > 1 else ():
            common = statistics.rate(outcome.robust[: len(union.clean)], union.samples.driver)
            row = {"model": model_name, "attack": name, "norm": _name_of_norm(name), "eps": options.eta, "split": part}
            run.row(metric="attacked_accuracy_common", **common._asdict(), **row)
    return outcomes


def record(run: Run, outcome: "Outcome", attacker: Attacker, *, model: str, attack: str, eta: int, split: str) -> None:
    """Rows of `table.csv` for one outcome: accuracies, success rates, and the size of what moved."""
    from mobility_humid.evaluation.outcomes import measured

    size = attacker.radii.get(_norm(attack), eta)
    columns = {"model": model, "attack": attack, "norm": _name_of_norm(attack), "eps": size, "split": split}
    for metric, found in measured(outcome, attacker.layout):
        run.row(metric=metric, **({"value": found} if isinstance(found, float) else found._asdict()), **columns)


def record_bounds(options: AttackOptions, run: Run, fleet: "Fleet", task: "Task") -> None:
    """Rows for what no attack can change, on the same samples."""
    from mobility_humid.evaluation.outcomes import bounds

    for part in task.parts:
        for name, found in bounds(fleet, task, part, options.n_test).items():
            run.row(model=name, split=part, metric="accuracy", **found._asdict())


def _draw(options: AttackOptions, run: Run, fleet: "Fleet", outcomes: "dict[tuple[str, str, int], Outcome]") -> None:
    import numpy as np

    from mobility_humid.evaluation import figures
    from mobility_humid.evaluation.measures import changed_points

    layout, parts = fleet.layout, list(dict.fromkeys(part for _, part, _ in outcomes))
    drawn = {name: run.folder / f"{name}.png" for name in ("trips", "success_eta", "success_points")}
    head = outcomes["st_ifgsm_linf", parts[0], options.eta]
    chosen = np.flatnonzero(head.fooled)[: figures.SHOWN] if head.fooled.any() else [0]
    examples = [(head.samples.x[i], head.moved[i]) for i in chosen]
    title = f"ST-iFGSM, {options.eta} cells"
    figures.trips_before_after(examples, layout, fleet.trips.grid, drawn["trips"], title=title)
    curves = {}
    for part in parts:
        for name, label in (("st_ifgsm_linf", "ST-iFGSM"), ("noise", "noise")):
            found = {eta: o for (attack, of, eta), o in outcomes.items() if (attack, of) == (name, part)}
            clean = float(found[options.eta].clean.mean())
            curves[part, label] = {0: clean} | {eta: float(found[eta].robust.mean()) for eta in sorted(found)}
    figures.success_against_eta(curves, drawn["success_eta"])
    l0 = {part: o for (name, part, _), o in outcomes.items() if name == "st_ifgsm_l0"}
    points = {part: (changed_points(o.samples.x, o.moved)[o.fooled], int(o.clean.sum())) for part, o in l0.items()}
    if points:
        figures.success_against_points(points, drawn["success_points"])
    for name, path in drawn.items():
        if path.is_file():
            run.artifact(name, path)


def _norm(name: str) -> int | None:
    """The norm whose radius bounds an attack: 1 or 2; None where eta does."""
    return None if _in_cells(name) else int(name[-1])


def _name_of_norm(name: str) -> str:
    return name.rsplit("_", 1)[-1] if "_" in name else "linf"


def _in_cells(name: str) -> bool:
    """Whether the budget of an attack is eta."""
    return name.startswith("cw") or not name.endswith(("_l2", "_l1"))


def refusals(options: Options) -> None:
    """What is refused before trips are read."""
    check_victim(options)


def needs(options: Options) -> None:
    """What the scripts before this one would refuse, where they are to be run."""
    victim_needs(options, train)


@script(app="mobility_humid", name="siamese_attack", refusals=refusals, needs=needs)
def siamese_attack(options: Options, run: Run) -> None:
    """Attack test pairs of seen and unseen drivers; success counts on snapped trips, among pairs that were right."""
    from mobility_humid.training.tasks import SIAMESE

    attack_task(options, run, SIAMESE, train)


if __name__ == "__main__":
    siamese_attack.main()
