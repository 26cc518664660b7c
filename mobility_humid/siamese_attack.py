"""Attack ST-Siamese: perturb one driver's seek trips for impersonation (two drivers accepted as one) or dodging."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from common.errors import UserError, one_line
from common.runs.model_input import look_at
from common.runs.options import Budget, Count, ScriptOptions, option
from common.runs.record import Run
from common.runs.script import Script, script
from mobility_humid.train import SAMPLE_FIELDS, SampleOptions, UnseenOptions, check_samples, load_fleet, train
from mobility_humid.train import needs as fleet_needs

if TYPE_CHECKING:
    import keras

    from common.evaluation.robustness import Entry, Evaluation, Outcome
    from common.evaluation.statistics import Estimate
    from mobility_humid.data.samples import Fleet
    from mobility_humid.training.tasks import Samples, Task

HEAD, CONTROL = "st_ifgsm_linf", "noise"
"""The attack of the headline and the control, which always take part and have curves."""


@dataclass(kw_only=True)
class AttackOptions(SampleOptions, ScriptOptions):
    """How a model is attacked."""

    model: Path | None = option(None, "model_path")
    """Model to attack, any Keras model in a .keras file that takes such samples; by default that of the training
    script, trained if need be."""
    attack: tuple[str, ...] = option(("st_ifgsm_linf", "st_fgsm_linf", "st_ifgsm_l0", "cw_l2", "noise"), "attacks")
    """Attacks, of st_fgsm_{linf,l2,l1}, st_ifgsm_{linf,l2,l1,l0}, cw_{l2,l0}, apgd_{linf,l2}, strong and noise;
    st_ifgsm_linf and noise always take part."""
    eps: Count = option(2, "eta")
    """Cells that a point may move along each axis (L-inf, L0, CW, noise)."""
    curve: tuple[Count, ...] = option((1, 4), "etas")
    """Further eps for st_ifgsm_linf and noise, for the curve of success against eps."""
    radius: Budget | None = None
    """Norm in cells that all moves of a sample may have together (L2, L1); by default the mean of that norm that
    st_ifgsm_linf took."""
    steps: Count = 20
    """Steps of the iterated attacks."""
    alpha: Budget | None = None
    """Cells a step; by default 2.5 x eps / steps, for L2 and L1 2.5 x radius / steps."""
    restarts: Count = 3
    """Random starts of APGD, and of the attack strong for either of its two losses; that also takes twice the steps."""
    cw_steps: Count = 40
    """Steps of CW for each constant."""
    search_steps: Count = 5
    """Constants that CW tries."""
    l0_from: Literal["clean", "previous"] = "clean"
    """Where each round of st_ifgsm_l0 begins: at the clean trips, as in the paper, or where the last one ended."""
    n_slow: Count = 100
    """Samples of each part for the attacks that take many gradients: L0, CW, APGD and strong."""
    batch_size: Count = option(128, compared=False)
    """Samples attacked at a time."""


@dataclass(kw_only=True)
class SavingOptions(AttackOptions):
    """Attacks whose trips may be kept."""

    save: bool = False
    """Write the trips that st_ifgsm_linf has moved, as attacked.npz, attacked.csv and attacked.geojson."""


@dataclass(kw_only=True)
class Options(SavingOptions, UnseenOptions):
    """Attacks on the verifier."""


class Attacker:
    """Attacks on one model with the settings of `options`."""

    def __init__(self, options: AttackOptions, model: "keras.Model", fleet: "Fleet") -> None:
        self.options, self.model, self.layout = options, model, fleet.layout
        self.grid = fleet.trips.grid.size
        self.radii = {} if options.radius is None else dict.fromkeys(("l1", "l2"), options.radius)
        """By norm, the radius of L1 and L2 attacks."""

    def evaluation(self, samples: "Samples", log: Callable[[str], None] | None = None) -> "Evaluation":
        """The evaluation of the model on `samples`; `log` is told what begins."""
        from common.evaluation.predictions import predict
        from common.evaluation.robustness import Evaluation, Examples

        return Evaluation(
            Examples(*samples),
            lambda x, rows: predict(self.model, x) == samples.y[rows],
            eight_bit=False,
            batch_size=self.options.batch_size,
            progress=True,
            log=log,
        )

    def entry(self, name: str, *, eta: int | None = None) -> "Entry":
        """The attack `name`; one in L2 or L1 needs its radius."""
        from common.evaluation.robustness import Entry
        from mobility_humid.attacks.trips import ATTACKS, trip_attack

        options, fields, eta = self.options, ATTACKS[name], eta or self.options.eps
        radius = self.radii.get(fields.norm)
        attack = partial(
            trip_attack,
            self.model,
            name=name,
            layout=self.layout,
            grid=self.grid,
            eta=eta,
            steps=options.cw_steps if fields.of_cw else fields.factor * options.steps,
            alpha=options.alpha,
            radius=radius,
            restarts=options.restarts,
            search_steps=options.search_steps,
            l0_from=options.l0_from,
            seed=options.seed,
        )
        return Entry(
            name=name,
            attack=attack,
            norm=fields.norm,
            eps=radius if fields.in_radius else eta,
            within=None if fields.in_radius else ("linf", eta),
            control=fields.control,
            subset=options.n_slow if fields.slow else None,
        )


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
    """Arguments of the training script's `require`."""
    # Sampled alike, or the test days of the attack may be days that the model was trained on.
    return options.model, options, [name for name in SAMPLE_FIELDS if name in producer.fields]


def check_attacks(options: AttackOptions) -> tuple[str, ...]:
    """The attacks to run, st_ifgsm_linf first and noise last. Errors: `UserError` for an unknown one."""
    from mobility_humid.attacks.trips import ATTACKS

    if unknown := [name for name in options.attack if name not in ATTACKS]:
        raise UserError(f"--attack: {unknown[0]!r} is none of {', '.join(ATTACKS)}")
    others = [name for name in dict.fromkeys(options.attack) if name not in (HEAD, CONTROL)]
    return HEAD, *others, CONTROL


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
    path = classifiers.model_file(run.require(producer, *_needed(options, producer)))
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


def attack_task(options: SavingOptions, run: Run, task: "Task", producer: Script) -> None:
    """What both attack scripts do: attack the test samples, write rows, headline figures and images."""
    from common.evaluation.robustness import join
    from mobility_humid.evaluation.outcomes import directions, sizes

    fleet = load_fleet(options, run.log, sides=task.sides)
    run.data(options.dataset, fleet.trips.sha256)
    model, path = load_victim(options, run, task, producer, fleet)
    run.log(f"attacking {path}")
    attacker = Attacker(options, model, fleet)
    parts = {part: task.samples(fleet, part, options.n_test) for part in task.parts}
    evaluations = attack_all(options, run, attacker, parts, task.name)
    record_bounds(options, run, fleet, task)
    for part, evaluation in evaluations.items():
        head, noise = (evaluation.outcome(name, options.eps) for name in (HEAD, CONTROL))
        ending = f"_{part}" if len(parts) > 1 else ""
        rates = {"clean_accuracy": (head.clean, None), "attacked_accuracy": (head.robust, None)}
        rates |= {"noise_accuracy": (noise.robust, None)}
        rates |= {name: (head.success, subset) for name, subset in directions(head).items() if subset.any()}
        run.intervals({name + ending: head.rate(hits, subset) for name, (hits, subset) in rates.items()})
        if task.sides == 2:
            run.metrics(**{f"auc{ending}": task.auc(model, parts[part])})
    heads = [evaluation.outcome(HEAD, options.eps) for evaluation in evaluations.values()]
    run.metrics(**sizes(join(heads), fleet.layout))
    _record_speed(options, run, fleet, model, dict(zip(evaluations, heads, strict=True)), parts)
    if options.save:
        _save(options, run, fleet, task, dict(zip(evaluations, heads, strict=True)))
    _draw(options, run, fleet, evaluations)


def attack_all(
    options: AttackOptions, run: Run, attacker: Attacker, parts: "Mapping[str, Samples]", model_name: str
) -> "dict[str, Evaluation]":
    """Every attack of `options` on every part, and a row for each figure: evaluations by part."""
    from mobility_humid.evaluation.outcomes import mean_norm, measured

    evaluations = {
        part: attacker.evaluation(samples, lambda text, part=part: run.log(f"{part}: {text}"))
        for part, samples in parts.items()
    }
    for name in check_attacks(options):
        further = [eta for eta in options.curve if eta != options.eps] if name in (HEAD, CONTROL) else []
        for eta in (options.eps, *further):
            for evaluation in evaluations.values():
                evaluation.run(attacker.entry(name, eta=eta))
        if name == HEAD and not attacker.radii:
            heads = [evaluation.outcome(HEAD, options.eps) for evaluation in evaluations.values()]
            attacker.radii = {norm: mean_norm(heads, norm) for norm in ("l1", "l2")}
    for part, evaluation in evaluations.items():
        measure = partial(measured, layout=attacker.layout)
        for row in evaluation.rows(measure, common="attacked_accuracy_common"):
            run.row(model=model_name, split=part, **row)
    return evaluations


def record_bounds(options: AttackOptions, run: Run, fleet: "Fleet", task: "Task") -> None:
    """Rows for what no attack can change, on the same samples."""
    from mobility_humid.evaluation.outcomes import bounds

    for part in task.parts:
        for name, found in bounds(fleet, task, part, options.n_test).items():
            run.row(model=name, split=part, metric="accuracy", **found._asdict())


def _record_speed(
    options: AttackOptions,
    run: Run,
    fleet: "Fleet",
    model: "keras.Model",
    heads: "Mapping[str, Outcome]",
    parts: "Mapping[str, Samples]",
) -> None:
    """What is left of ST-iFGSM for who may not break the speed limit that the trips were cleaned by."""
    from common.evaluation.predictions import predict
    from mobility_humid.data.trips import fastest_step
    from mobility_humid.evaluation.outcomes import within_speed

    fastest = fastest_step(fleet.trips)
    if fastest is None:
        return
    for part, head in heads.items():
        y = parts[part].y
        found = within_speed(head, fleet.layout, fastest, lambda x, y=y: predict(model, x) == y)
        columns = {"split": part, "attack": HEAD, "norm": "linf", "eps": options.eps}
        run.row(**columns, metric="attacked_accuracy_within_speed", **head.rate(found.robust)._asdict())
        for when in ("before", "after"):
            run.row(**columns, metric=f"too_fast_trips_{when}", value=getattr(found, when))


def _save(options: SavingOptions, run: Run, fleet: "Fleet", task: "Task", heads: "Mapping[str, Outcome]") -> None:
    from mobility_humid.data.writers import Attacked, save_attacked

    attacked = []
    for part, head in heads.items():
        trips = fleet.layout.rows(task.drawn(fleet, part, options.n_test).trips)[:, fleet.layout.moving]
        attacked.append(Attacked(part, head.examples.x, head.x, trips, head.success))
    for name, path in save_attacked(run.folder, attacked, fleet.trips, fleet.layout).items():
        run.artifact(name, path)


def _draw(options: AttackOptions, run: Run, fleet: "Fleet", evaluations: "dict[str, Evaluation]") -> None:
    import numpy as np

    from mobility_humid.evaluation import figures

    layout = fleet.layout
    drawn = {name: run.folder / f"{name}.png" for name in ("trips", "success_eta", "success_points")}
    head = next(iter(evaluations.values())).outcome(HEAD, options.eps)
    chosen = np.flatnonzero(head.success)[: figures.SHOWN] if head.success.any() else [0]
    examples = [(head.examples.x[i], head.x[i]) for i in chosen]
    title = f"ST-iFGSM, {options.eps} cells"
    figures.trips_before_after(examples, layout, fleet.trips.grid, drawn["trips"], title=title)
    curves = {
        (part, label): evaluation.curve(name)
        for part, evaluation in evaluations.items()
        for name, label in ((HEAD, "ST-iFGSM"), (CONTROL, "noise"))
    }
    figures.success_against_eta(curves, drawn["success_eta"])
    l0 = {part: found for part, of in evaluations.items() if (found := of.outcome("st_ifgsm_l0")) is not None}
    # One that nothing was right of has no success rate.
    points = {part: _by_points(found) for part, found in l0.items() if found.clean.any()}
    if points:
        figures.success_against_points(points, drawn["success_points"])
    _write_map(run, fleet, evaluations, chosen)
    for name, path in drawn.items():
        if path.is_file():
            run.artifact(name, path)


def _write_map(run: Run, fleet: "Fleet", evaluations: "dict[str, Evaluation]", chosen: "Sequence[int]") -> None:
    """The samples `chosen` of the first part, as ST-iFGSM leaves them for each eta, on a page with a map."""
    from mobility_humid.evaluation.trip_page import Drawn, write_page

    part, evaluation = next(iter(evaluations.items()))
    by_eta = {int(eta): evaluation.outcome(HEAD, eta) for eta in evaluation.curve(HEAD) if eta}
    head = next(iter(by_eta.values()))
    names = fleet.trips.drivers
    samples = []
    for row in chosen:
        one, *other = (names[number] for number in head.examples.identity[row].reshape(-1))
        drivers = " and ".join((one, *("itself" if name == one else name for name in other)))
        after = {eta: found.x[row] for eta, found in by_eta.items()}
        turned = {eta: bool(found.success[row]) for eta, found in by_eta.items()}
        samples.append(Drawn(f"{part}: {drivers}", head.examples.x[row], after, turned))
    path = run.folder / "trips.html"
    write_page(samples, fleet.layout, fleet.trips.grid, path, title="Trips before and after ST-iFGSM")
    run.artifact("map", path)


def _by_points(outcome: "Outcome") -> "dict[int, Estimate]":
    """The success rate of an attack by the most points that it may have moved."""
    from mobility_humid.evaluation.trip_metrics import changed_points

    taken = changed_points(outcome.examples.x, outcome.x)
    most = int(taken[outcome.success].max()) if outcome.success.any() else 1
    counts = sorted({round(most * part / 10) for part in range(11)})
    return {count: outcome.rate(outcome.success & (taken <= count), outcome.clean) for count in counts}


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
