"""Attack the embeddings of face networks: base model, hardened model and others, on the same pairs."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from common.errors import UserError
from common.runs.options import Count, LinfBudget, option
from common.runs.record import Run
from common.runs.script import script
from face_mter.ad_face import ad_face, check_networks, knows_the_trained, load_checked, network_name
from face_mter.train import load_splits, needed, train
from face_mter.verify import VerificationOptions, check_verification, folded_pairs, write_verified

if TYPE_CHECKING:
    from collections.abc import Iterator

    import keras
    import numpy as np

    from common.evaluation.robustness import Evaluation, Outcome
    from common.evaluation.statistics import Estimate
    from face_mter.attacks.features import Attacker
    from face_mter.data.faces import FaceSplits
    from face_mter.evaluation.lfw import FoldedPairs
    from face_mter.evaluation.people import Verified

BASE, HARDENED = "base", "hardened"
# (attack, eps in 1/255) of the headline: those of the paper's table, the stronger check, and the control.
HEADLINE = (("fftgsm", 10), ("iftgsm", 5), ("iftgsm", 10), ("itgsm", 10), ("pgd", 10), ("noise", 10))
DODGED = ("dodge", 10)


@dataclass(kw_only=True)
class Options(VerificationOptions):
    """Which models, which pairs, how strong."""

    model: Path | None = option(None, "model_path")
    """Hardened model, a .keras file; by default that of ad_face.py, trained if need be."""
    base_model: Path | None = None
    """Model to compare with; by default that of train.py, trained if need be."""
    others: tuple[Path, ...] = ()
    """Further models, .keras files or run folders, attacked on the same pairs; rows of the table bear the name of the
    run or of the file."""
    n_test: Count = option(300, "n_pairs")
    """Pairs to attack, of an attacker and a victim, both from the attack half; as many for itgsm and for dodging."""
    attack_pairs: Path | None = None
    """Pairs to attack, a pairs.csv of another run of this script; by default drawn."""
    curve: tuple[LinfBudget, ...] = (1 / 255, 2 / 255, 3 / 255, 5 / 255, 8 / 255, 10 / 255, 16 / 255)
    """Budgets of IFTGSM for the curve of hit rate against eps."""
    steps: Count = option(40, "pgd_steps")
    """Steps of PGD."""
    restarts: Count = 3
    """Random starts of PGD."""
    batch_size: Count = 128
    """Images attacked at a time."""


class Lists(NamedTuple):
    """What is attacked, as rows of all faces: `pairs` int (n, 2) of attacker and victim; `labelled`, whose victims
    trained; `own`, two images of one person, who wants not to be known."""

    pairs: "np.ndarray"
    labelled: "np.ndarray"
    own: "np.ndarray"


class Subject(NamedTuple):
    """A model under attack: `embeddings` (N, D) of all faces, its verification results, and whether it
    `classifies` the training identities."""

    name: str
    attacker: "Attacker"
    embeddings: "np.ndarray"
    verified: "Verified"
    classifies: bool = True


def refusals(options: Options) -> None:
    """What is refused before an image is read or a model trained."""
    check_verification(options)
    _others(options)
    check_networks(options, [options.base_model, options.model, *options.others])


def needs(options: Options) -> None:
    """What the scripts before this one would refuse, where they are to be run."""
    train.expect(*needed(options.base_model, options))
    ad_face.expect(*needed(options.model, options))


@script(app="face_mter", name="attack", columns=("source",), refusals=refusals, needs=needs)
def attack(options: Options, run: Run) -> None:
    """Attack every model on the same lists; judge at its own threshold, at the base model's, and at equal TAR."""
    splits = load_splits(options, run)
    folded = folded_pairs(options, splits)
    # Before models that are not there yet are trained for minutes.
    lists = _lists(options, splits)
    subjects = _subjects(options, run, splits, folded)
    base = subjects[0]
    _store(run, splits, lists)
    towards: dict[str, Evaluation] = {}
    outcomes: dict[str, dict[tuple[str, float], Outcome]] = {}
    for subject in subjects:
        write_verified(run, subject.verified, subject.name)
        run.log(f"attacking the model {subject.name}, threshold {subject.verified.threshold:.3f}")
        towards[subject.name], outcomes[subject.name] = _attack(options, run, splits, lists, subject, base)
    _transfers(run, subjects, towards, outcomes)
    _differences(run, splits, folded.pairs, subjects, outcomes)
    for subject in subjects[:2]:
        _headline(run, subject, outcomes[subject.name], "_base" if subject is base else "")
    _draw(options, run, splits, lists, subjects, outcomes)


def _subjects(options: Options, run: Run, splits: "FaceSplits", folded: "FoldedPairs") -> list[Subject]:
    """The base model, the hardened one and the others, each verified."""
    from face_mter.attacks.features import Attacker
    from face_mter.evaluation.people import embed_all, verify

    paths = {BASE: options.base_model, HARDENED: options.model, **_others(options)}
    models: dict[str, keras.Model] = {}

    def load(name: str) -> None:
        if name not in models:
            models[name] = load_checked(paths[name], splits, options, log=run.log)

    # Those that were named, before any is made.
    for name in [name for name, path in paths.items() if path is not None]:
        load(name)
    # The base first: the hardened model is made from it.
    for name, producer in ((BASE, train), (HARDENED, ad_face)):
        paths[name] = run.require(producer, *needed(paths[name], options))
        load(name)
    run.log(f"{len(folded.same)} verification pairs" + (f", {folded.left_out} left out" if folded.left_out else ""))
    subjects = []
    for name, path in paths.items():
        model = models[name]
        embeddings = embed_all(model, splits.faces.images)
        attacker = Attacker(
            model,
            seed=options.seed,
            pgd_steps=options.steps,
            restarts=options.restarts,
            batch_size=options.batch_size,
            progress=True,
            log=run.log,
        )
        verified = verify(embeddings, splits, folded, options.far)
        classifies = knows_the_trained(path, model, splits, options)
        subjects.append(Subject(name, attacker, embeddings, verified, classifies))
    return subjects


def _others(options: Options) -> dict[str, Path]:
    """Further models by name. Errors: `UserError` for two of one name."""
    found: dict[str, Path] = {}
    for other in options.others:
        name = network_name(other)
        if name in (BASE, HARDENED, *found):
            raise UserError(f"--others: two models called {name!r}; rename one")
        found[name] = other
    return found


def _lists(options: Options, splits: "FaceSplits") -> Lists:
    """The lists, drawn or read."""
    import numpy as np

    from face_mter.data import faces
    from face_mter.evaluation import verification

    people, rng = splits.people, np.random.default_rng([options.seed, 11])
    if options.attack_pairs is not None:
        pairs = faces.load_pairs(options.attack_pairs, splits.faces)[: options.n_test]
        if len(known := np.setdiff1d(splits.faces.person[pairs], people.attack)):
            raise UserError(
                f"{options.attack_pairs}: {splits.faces.names[known[0]]!r} is not in the attack half; use a list of a"
                " run with the same identities"
            )
    else:
        pairs = faces.attack_pairs(splits.faces, people.attack, options.n_test, seed=[options.seed, 12])
    victims = splits.rows(people.train)
    labelled = np.stack([pairs[:, 0], rng.choice(victims, len(pairs))], axis=1)
    rows = splits.rows(people.attack)
    own = rows[verification.genuine_pairs(splits.faces.person[rows])]
    own = rng.permutation(own)[: options.n_test]
    return Lists(pairs, labelled, own)


def _store(run: Run, splits: "FaceSplits", lists: Lists) -> None:
    """Write the lists into the run."""
    from face_mter.data import faces

    if run.chief:
        faces.save_pairs(run.folder / "pairs.csv", splits.faces, lists.pairs)
        faces.save_pairs(run.folder / "pairs_itgsm.csv", splits.faces, lists.labelled)
        run.artifact("pairs", run.folder / "pairs.csv")
        run.artifact("pairs_itgsm", run.folder / "pairs_itgsm.csv")


def _attack(
    options: Options, run: Run, splits: "FaceSplits", lists: Lists, subject: Subject, base: Subject
) -> "tuple[Evaluation, dict[tuple[str, float], Outcome]]":
    """All attacks on one model, with their rows: the evaluation towards embeddings, and all outcomes by (attack, eps in
    1/255)."""
    import numpy as np

    from face_mter.attacks.features import ATTACKS

    images, e, attacker, person = splits.faces.images, subject.embeddings, subject.attacker, splits.faces.person
    sources, thresholds = images[lists.pairs[:, 0]], _thresholds(subject, base)
    towards = attacker.evaluation(sources, e[lists.pairs[:, 1]], identity=person[lists.pairs])
    towards.unattacked()
    victims = lists.labelled[:, 1]
    classes = np.searchsorted(splits.people.train, person[victims]).astype(np.int32)
    labelled = attacker.evaluation(sources, e[victims], aims=classes, identity=person[lists.labelled])
    first, second = lists.own.T
    away = attacker.evaluation(images[first], e[second], aims=-e[second], identity=person[lists.own])
    for name, eps in dict.fromkeys([*HEADLINE, *(("iftgsm", float(_in_255ths(eps))) for eps in options.curve), DODGED]):
        listed = ATTACKS[name]
        if listed.at_labels and not subject.classifies:
            run.log(f"{name} left out: the model has no classifier of the training identities")
            continue
        evaluation = labelled if listed.at_labels else away if listed.away else towards
        evaluation.run(attacker.entry(name, eps / 255))
    for evaluation, measure in ((towards, impersonations), (labelled, impersonations), (away, escapes)):
        for outcome in evaluation.outcomes:
            for row in outcome.rows(partial(measure, thresholds=thresholds)):
                run.row(model=subject.name, **row)
    found = [outcome for evaluation in (towards, labelled, away) for outcome in evaluation.outcomes]
    return towards, {(outcome.entry.name, float(_in_255ths(outcome.entry.eps))): outcome for outcome in found}


def _thresholds(subject: Subject, base: Subject) -> dict[str, float]:
    """Where cosines are judged, by the ending of the metric: at the model's own threshold, at that of the base model,
    and at that where it accepts as many of one person as the base model does."""
    import numpy as np

    from face_mter.evaluation.verification import threshold_at_tar

    of = subject.verified
    base_tar = float(np.mean(base.verified.calibration.genuine >= np.float64(base.verified.threshold)))
    return {
        "": of.threshold,
        "_base_threshold": base.verified.threshold,
        "_equal_tar": threshold_at_tar(of.calibration.genuine, base_tar),
    }


def impersonations(outcome: "Outcome", *, thresholds: dict[str, float]) -> "Iterator[tuple[str, Estimate]]":
    """How many are taken for their victims, at each of the `thresholds`, at the first also before quantisation."""
    for ending, threshold in thresholds.items():
        yield f"hit_rate{ending}", outcome.rate(outcome.after >= threshold)
        if not ending:
            yield "hit_rate_float", outcome.rate(outcome.found >= threshold)


def escapes(outcome: "Outcome", *, thresholds: dict[str, float]) -> "Iterator[tuple[str, Estimate]]":
    """How many of those who are recognised are not after the attack."""
    for ending, threshold in thresholds.items():
        of = outcome.at(lambda cosine, threshold=threshold: cosine >= threshold)
        if of.clean.any():
            yield f"dodging_rate{ending}", of.rate(of.success, of.clean)
            if not ending:
                yield "dodging_rate_float", of.rate(of.clean & ~of.found, of.clean)


def _in_255ths(eps: float) -> str:
    """A budget in [0, 1] counted in 1/255, as metric keys have it: 10/255 -> "10"."""
    return f"{eps * 255:.6g}"


def _transfers(
    run: Run,
    subjects: list[Subject],
    towards: "dict[str, Evaluation]",
    outcomes: "dict[str, dict[tuple[str, float], Outcome]]",
) -> None:
    """Rows for the transfer of IFTGSM and PGD from each model, the `source`, to each other one."""
    from common.evaluation.robustness import Entry

    for subject in subjects:
        for other in subjects:
            for name in ("iftgsm", "pgd") if other is not subject else ():
                entry = Entry(name=f"{name} on {other.name}", eps=10 / 255)
                seen = towards[subject.name].show(entry, outcomes[other.name][name, 10.0].x)
                hits = seen.rate(seen.after >= subject.verified.threshold)
                columns = entry.columns | {"attack": name, "source": other.name}
                run.row(model=subject.name, metric="hit_rate", **hits._asdict(), **columns)


def _differences(
    run: Run,
    splits: "FaceSplits",
    folded: "np.ndarray",
    subjects: list[Subject],
    outcomes: "dict[str, dict[tuple[str, float], Outcome]]",
) -> None:
    """Rows for each model less the base model, and less the hardened one, on the same pairs."""
    from common.evaluation import robustness, statistics

    for place, subject in enumerate(subjects):
        for other in subjects[: min(place, 2)]:
            ending = f"_less_{other.name}"
            right = (of.verified.ten_fold.right for of in (subject, other))
            found = statistics.difference(*right, splits.faces.person[folded])
            run.row(model=subject.name, metric=f"verification_accuracy{ending}", **found._asdict())
            for name, eps in HEADLINE:
                both = [(outcomes[of.name].get((name, float(eps))), of.verified.threshold) for of in (subject, other)]
                if any(outcome is None for outcome, _ in both):
                    continue
                # Each at the threshold of its own model: a hit is no right answer.
                at = [outcome.at(lambda cosine, cut=cut: cosine < cut) for outcome, cut in both]
                found = robustness.difference(*at, lambda outcome: ~outcome.after)
                run.row(model=subject.name, metric=f"hit_rate{ending}", **found._asdict(), **both[0][0].entry.columns)


def _headline(run: Run, subject: Subject, found: "dict[tuple[str, float], Outcome]", ending: str) -> None:
    of = subject.verified
    measured = {f"verification_accuracy{ending}": of.accuracy}
    for name, eps in (*HEADLINE, ("clean", 0)):
        if (name, float(eps)) in found:
            key = f"hit_rate_{name}_{eps}" if eps else f"hit_rate_{name}"
            outcome = found[name, float(eps)]
            measured[key + ending] = outcome.rate(outcome.after >= of.threshold)
    run.metrics(**{f"threshold{ending}": of.threshold})
    run.intervals(measured)


def _draw(
    options: Options,
    run: Run,
    splits: "FaceSplits",
    lists: Lists,
    subjects: list[Subject],
    outcomes: "dict[str, dict[tuple[str, float], Outcome]]",
) -> None:
    from face_mter.evaluation import figures

    faces, curves, marks = {}, {}, {}
    grey = sorted({0.0, *(float(_in_255ths(eps)) for eps in options.curve)})
    for subject in subjects:
        found, threshold = outcomes[subject.name], subject.verified.threshold
        faces[subject.name] = found["iftgsm", 10.0].x, found["iftgsm", 10.0].after, threshold
        cosines = {eps: found["iftgsm" if eps else "clean", eps].after for eps in grey}
        curves[subject.name] = {
            eps: found["iftgsm" if eps else "clean", eps].rate(cosine >= threshold) for eps, cosine in cosines.items()
        }
        marks[subject.name] = found["pgd", 10.0].rate(found["pgd", 10.0].after >= threshold)
    images = splits.faces.images
    attackers, victims = (images[lists.pairs[: figures.SHOWN, side]] for side in (0, 1))
    run.figure("faces", figures.adversarial_faces, attackers, victims, faces)
    run.figure("hit_rate", figures.hit_rate_curves, curves, marks)


if __name__ == "__main__":
    attack.main()
