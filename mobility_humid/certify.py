"""Fit verifiers whose accuracy under any attack within eta cells is certified, and measure how near attacks come."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from common.errors import UserError
from common.runs.options import Budget, Count, DeviceOptions, Natural, ScriptOptions
from common.runs.record import Run
from common.runs.script import script
from mobility_humid.siamese_attack import HEAD, Attacker, AttackOptions
from mobility_humid.train import FoldsOptions, SampleOptions, check_samples, load_fleet, needs

if TYPE_CHECKING:
    import numpy as np

    from common.evaluation.statistics import Estimate
    from mobility_humid.data.pairs import Pairs
    from mobility_humid.data.samples import Fleet
    from mobility_humid.models.certified import CertifiedSiamese, Reads
    from mobility_humid.training.verification import Seen

Found = dict[tuple[str, str, str, int | None], list]
"""Hits, bool (n,), and drivers (n, 2) of each fold, by verifier, part, metric and eps."""

# Pairs whose maps represent the fleet's, and shares of the pairs whose seek channel is clipped, for the curve.
_MET, _CLIPS = 400, (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


@dataclass(kw_only=True)
class Options(SampleOptions, FoldsOptions, DeviceOptions, ScriptOptions):
    """The pairs, the verifiers, and what they are certified against."""

    reads: tuple[Literal["strict", "in_model"], ...] = ("strict", "in_model")
    """What a verifier reads besides the places of seek trips: served trips alone (strict), or the times and numbers of
    seek trips too, which an attack on places leaves as they are (in_model)."""
    train_eps: tuple[Natural, ...] = (0, 2)
    """Cells that seek points move in training, at their worst: a verifier for each."""
    eps: tuple[Count, ...] = (1, 2)
    """Cells that a point may move along each axis when verifiers are certified and attacked."""
    epochs: Count = 20
    """Passes over the --n-train pairs."""
    batch_size: Count = 100
    """Pairs a step, over all devices."""
    n_fixed: Count = 6000
    """Pairs that what cannot be moved is weighed by."""
    n_train: Count = 2000
    """Pairs to train on: how far to trust it, and what is read of the seek trips."""
    learning_rate: Budget = 0.03
    """Highest learning rate of Adam; it decays along a cosine."""
    weight_decay: Budget = 0.0
    """L2 weight decay, in the loss, over all weights."""
    steps: Count = 20
    """Steps of ST-iFGSM, whose distance from the exact worst case is measured."""
    n_attack: Natural = 200
    """Pairs of each part and fold to attack; 0 leaves the attack out."""
    jit_compile: bool = False
    """Compile the training step with XLA; on a CPU it is then slower."""


def refusals(options: Options) -> None:
    """What is refused before trips are read."""
    check_samples(options)
    if options.traj_type != "all":
        raise UserError("--traj-type: a certificate rests on served trips and bounds what seek trips do; use all")


@script(app="mobility_humid", name="certify", refusals=refusals, needs=needs, columns=("fold", "clip"))
def certify(options: Options, run: Run) -> None:
    """Fit each verifier on each fold; certify it exactly, attack it, and bound it by what reads no seek trip."""
    from mobility_humid.data.samples import SEEN, TRAIN, UNSEEN, VALIDATION
    from mobility_humid.training import verification

    found: Found = {}
    for own in options.each:
        fleet = load_fleet(own, run.log, sides=2)
        run.data(options.dataset, fleet.trips.sha256)
        _bounds(own, fleet, found)
        for reads in options.reads:
            base = _untrained(own, fleet, reads)
            drawn = {part: fleet.pairs(part, options.n_test) for part in (VALIDATION, SEEN, UNSEEN)}
            drawn[TRAIN] = fleet.sampler(TRAIN).pairs(options.n_train, [options.seed, 96])
            seen = {part: verification.observe(base, fleet, pairs) for part, pairs in drawn.items()}
            for train_eps in options.train_eps:
                name = f"{reads}_{train_eps}"
                model = _fitted(own, run, base, seen, name, train_eps)
                run.save_model(model, f"{name}_fold{own.fold}" if options.folds > 1 else name)
                for part in (SEEN, UNSEEN):
                    _measure(own, fleet, model, name, part, drawn[part], seen[part], found)
    _record(run, found, options.fold)


def _untrained(options: Options, fleet: "Fleet", reads: "Reads") -> "CertifiedSiamese":
    """A verifier that knows the fleet and weighs what cannot be moved."""
    from mobility_humid.data.samples import TRAIN
    from mobility_humid.data.trips import world_of
    from mobility_humid.models.certified import CertifiedSiamese
    from mobility_humid.training import verification

    model = CertifiedSiamese(
        reads=reads,
        layout=fleet.layout,
        grid=fleet.trips.grid.size,
        encoder="ways",
        units=(),
        place_spacing=1.0,
        dropout=0.0,
        profile_scale=fleet.profile_scale() if options.with_profile else (),
        seed=options.seed,
        world=world_of(fleet.trips),
    )
    model.adapt(fleet.samples(fleet.sampler(TRAIN).pairs(_MET, [options.seed, 98])))
    verification.fit_fixed(model, fleet, fleet.sampler(TRAIN).pairs(options.n_fixed, [options.seed, 95]))
    return model


def _fitted(
    options: Options, run: Run, base: "CertifiedSiamese", seen: "dict[str, Seen]", name: str, train_eps: int
) -> "CertifiedSiamese":
    """A verifier like `base`, fitted to pairs of seen drivers whose seek trips are moved as badly as can be."""
    from common.training.methods import Method
    from mobility_humid.data.samples import TRAIN, VALIDATION
    from mobility_humid.training import verification
    from mobility_humid.training.fit import TripRecipe, fit_trips

    def build() -> "CertifiedSiamese":
        model = type(base).from_config(base.get_config())
        model.set_weights(base.get_weights())
        return model

    names = {field.name for field in fields(TripRecipe)} & {field.name for field in fields(options)}
    model, _ = fit_trips(
        TripRecipe(**{name: getattr(options, name) for name in names}),
        run,
        build,
        verification.observed_epochs(seen[TRAIN], options.batch_size, options.seed),
        Method(verification.worst_case_loss(train_eps)),
        lambda model: verification.watch_worst(model, seen[VALIDATION], train_eps),
        title=f"{name}, fold {options.fold}",
        checkpoints=run.checkpoints / f"{name}_{options.fold}",
    )
    verification.fix_worst_threshold(model, seen[VALIDATION], train_eps)
    return model


def _measure(
    options: Options,
    fleet: "Fleet",
    model: "CertifiedSiamese",
    name: str,
    part: str,
    pairs: "Pairs",
    seen: "Seen",
    found: Found,
) -> None:
    """Whose answers are right, certified, and left by ST-iFGSM."""
    import numpy as np

    from mobility_humid.models.certified import certified, clipped
    from mobility_humid.training import verification
    from mobility_humid.training.tasks import Samples

    def note(metric: str, hits: "np.ndarray", eps: int | None = None) -> None:
        found.setdefault((name, part, metric, eps), []).append((hits, pairs.driver[: len(hits)]))

    note("clean_accuracy", certified(*verification.worst(model, seen, 0), pairs.same))
    evaluation = None
    if options.n_attack:
        few = type(pairs)(*(of[: options.n_attack] for of in pairs))
        attacker = Attacker(_attack_options(options), model, fleet)
        evaluation = attacker.evaluation(Samples(fleet.samples(few), few.same, few.driver))
    for eps in options.eps:
        held = certified(*verification.worst(model, seen, eps), pairs.same)
        note("certified_accuracy", held, eps)
        if evaluation is not None:
            robust = evaluation.run(attacker.entry(HEAD, eta=eps)).robust
            note("attacked_accuracy", robust, eps)
            note("certified_accuracy_of_attacked", held[: len(robust)], eps)
    fixed, seek = verification.channels(model, seen)
    # At 0 nothing of the seek trips is read.
    most = [float(np.quantile(np.abs(seek), share)) if share else 0.0 for share in _CLIPS]
    for share, (right, held) in zip(_CLIPS, clipped(fixed, seek, pairs.same, most), strict=True):
        note(f"clip_clean_{share:g}", right)
        note(f"clip_certified_{share:g}", held)


def _bounds(options: Options, fleet: "Fleet", found: Found) -> None:
    """Of what cannot be moved: a constant answer, and the served trips alone; and of the maps of all trips, clean."""
    from common.evaluation.robustness import constant_answer
    from common.evaluation.statistics import best_threshold
    from mobility_humid.data.samples import SEEN, TRAIN, UNSEEN, VALIDATION
    from mobility_humid.data.trips import SERVE
    from mobility_humid.models.baselines import heat_map_scores

    place = [fleet.layout.kinds.index(SERVE)]
    drawn = [fleet.pairs(part, options.n_test) for part in (VALIDATION, SEEN, UNSEEN)]
    fitted = fleet.sampler(TRAIN).pairs(2 * options.n_train, [options.seed, 97])
    for name, of in (("served_trips", lambda p: p._replace(trips=p.trips[:, :, place])), ("heat_map", lambda p: p)):
        on_validation, *scores = heat_map_scores(fleet.trips, of(fitted), [of(pairs) for pairs in drawn])
        threshold = best_threshold(on_validation, drawn[0].same)
        for part, pairs, score in zip((SEEN, UNSEEN), drawn[1:], scores, strict=True):
            hits = (score > threshold) == (pairs.same == 1)
            found.setdefault((name, part, "clean_accuracy", None), []).append((hits, pairs.driver))
    for part, pairs in zip((SEEN, UNSEEN), drawn[1:], strict=True):
        found.setdefault(("constant", part, "clean_accuracy", None), []).append(
            (constant_answer(pairs.same), pairs.driver)
        )


def _attack_options(options: Options) -> AttackOptions:
    shared = {field.name for field in fields(SampleOptions)} & {field.name for field in fields(AttackOptions)}
    own = {name: getattr(options, name) for name in shared}
    return AttackOptions(**own, steps=options.steps, batch_size=options.batch_size)


def _record(run: Run, found: Found, first_fold: int) -> None:
    """Rows for each figure, over the pairs of all folds and of each, with intervals by driver."""
    import numpy as np

    from common.evaluation import statistics

    headline: dict[str, Estimate] = {}
    for (name, part, metric, eps), parts in found.items():
        clip = None
        if metric.startswith("clip_"):
            metric, _, share = metric.rpartition("_")
            clip = float(share)
        row = {"model": name, "split": part, "metric": metric, "eps": eps, "clip": clip}
        row["attack"] = HEAD if metric == "attacked_accuracy" else None
        hits, driver = (np.concatenate(of) for of in zip(*parts, strict=True))
        rate = statistics.rate(hits, driver)
        run.row(**row, **rate._asdict())
        if len(parts) > 1 and clip is None:
            for fold, own in enumerate(parts, first_fold):
                run.row(**row, fold=fold, **statistics.rate(*own)._asdict())
        if part == "unseen" and clip is None and metric != "certified_accuracy_of_attacked":
            headline[f"{metric}_{name}" + (f"_{eps}" if eps else "")] = rate
    run.intervals(headline)


if __name__ == "__main__":
    certify.main()
