"""AutoAttack side by side: the suite's `standard` and `fast`, the official code and torchattacks on the same models."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from common.errors import UserError
from common.runs.options import Budget, Count, DataOptions, ExampleOptions, LinfBudget, ScriptOptions
from common.runs.record import Run
from common.runs.script import script

if TYPE_CHECKING:
    from benchmarks.peers.libraries import Peer
    from benchmarks.peers.subjects import Subject
    from common.datasets import Arrays

Norm = Literal["linf", "l2"]
Contender = Literal["standard", "fast", "official", "torchattacks"]
OURS = ("standard", "fast")
FORWARD = 1 / 3
"""Cost of a forward pass in gradients, each of which has one of its own."""


@dataclass(kw_only=True)
class Options(ExampleOptions, DataOptions, ScriptOptions):
    """On which models, within which budgets, how often."""

    models: tuple[Path, ...] = ()
    """Classifiers with logits, .keras files; without, two are trained here, plainly and on PGD."""
    linf: tuple[LinfBudget, ...] = (0.04, 0.06)
    """L-inf budgets, one for each model; those that leave 20 to 80 % tell most."""
    l2: tuple[Budget, ...] = (0.4, 0.8)
    """L2 budgets, one for each model."""
    norms: tuple[Norm, ...] = ("linf", "l2")
    """Norms that are measured."""
    contenders: tuple[Contender, ...] = ("standard", "fast", "official", "torchattacks")
    """What takes part, of the libraries those that are installed."""
    repeats: Count = 3
    """Seeds of `standard` and `fast`, from --seed on."""
    peer_repeats: Count = 2
    """Seeds of the official code; torchattacks has the first alone."""
    n_train: Count | None = 2000
    """Training images of the models that are trained here."""
    n_test: Count | None = 32
    """Test images that are attacked, the first."""
    epochs: Count = 3
    """Epochs of the models that are trained here."""
    train_eps: LinfBudget = 0.06
    """L-inf budget in training of the second model that is trained here."""
    batch_size: Count = 256
    """Images a batch, for all contenders alike."""


def refusals(options: Options) -> None:
    """What is refused before anything is read or trained."""
    from benchmarks.peers.subjects import open_subject

    count = len(options.models) or 2
    for name, budgets in (("linf", options.linf), ("l2", options.l2)):
        if name in options.norms and len(budgets) != count:
            raise UserError(f"--{name}: has {len(budgets)} budgets for {count} models; give one for each")
    if len(set(_names(options))) < len(options.models):
        raise UserError("--models: two have the same name; give files, or folders with model.keras, of other names")
    for path in options.models:
        open_subject(path)


def _names(options: Options) -> list[str]:
    """What the models are called in the table."""
    return [path.parent.name if path.name == "model.keras" else path.stem for path in options.models]


class Outcome(NamedTuple):
    """What a contender leaves of the examples, bool (n,), and what it took: rows that went forwards and backwards
    through the model, and seconds."""

    robust: np.ndarray
    forwards: int
    backwards: int
    seconds: float

    @property
    def equivalents(self) -> float:
        """Gradients, and forward passes without one, in gradients."""
        return self.backwards + FORWARD * (self.forwards - self.backwards)


@script(app="benchmarks", name="autoattack", refusals=refusals)
def autoattack(options: Options, run: Run) -> None:
    """Attack every model within every budget by every contender; compare example by example, and in cost."""
    from benchmarks.peers import libraries, subjects
    from benchmarks.peers.stored import stored
    from common import datasets

    data = datasets.load(
        options.dataset, data_dir=options.data_dir, seed=options.seed, n_train=options.n_train, n_test=options.n_test
    )
    run.data(data.name, data.sha256)
    subjects.describe_peers(run, [kind for kind in libraries.PEERS if kind.name in options.contenders])
    found: dict[tuple, Outcome] = {}
    for number, subject in enumerate(_subjects(options, run, data)):
        with libraries.opened(subject.model, subject.path, batch_size=options.batch_size, seed=options.seed) as peers:
            for norm, contender in itertools.product(options.norms, options.contenders):
                eps = getattr(options, norm)[number]
                if contender not in OURS and contender not in peers:
                    run.log(f"{contender}: not installed")
                    continue
                repeats = {"torchattacks": 1, "official": options.peer_repeats}.get(contender, options.repeats)
                for seed in range(options.seed, options.seed + repeats):
                    path = run.checkpoints / f"{subject.label}_{norm}_{contender}_{seed}.npz"
                    measure = partial(_measure, subject, norm, eps, contender, seed, peers, options)
                    outcome = stored(path, Outcome, measure)
                    found[subject.label, norm, contender, seed] = outcome
                    _rows(run, subject, norm, eps, contender, seed, outcome)
        for norm in options.norms:
            _compare(run, found, subject.label, norm, getattr(options, norm)[number], options.seed)
    _together(run, found)


def _subjects(options: Options, run: Run, data: "Arrays") -> "list[Subject]":
    from benchmarks.peers import subjects

    if options.models:
        named = zip(_names(options), options.models, strict=True)
        return [subjects.load_subject(name, path, data) for name, path in named]
    settings = {"arch": subjects.TINY, "epochs": options.epochs, "seed": options.seed}
    return [
        subjects.train_subject("plain", data, run, **settings),
        subjects.train_subject("pgd", data, run, **settings, method="pgd", eps=options.train_eps),
    ]


def _measure(
    subject: "Subject",
    norm: Norm,
    eps: float,
    contender: Contender,
    seed: int,
    peers: "Mapping[str, Peer]",
    options: Options,
) -> Outcome:
    from benchmarks.peers.suite_side import counted
    from common.attacks import autoattack
    from common.evaluation.predictions import predict

    if contender not in OURS:
        answer = peers[contender].timed("autoattack", subject.x, subject.y, eps=eps, norm=norm, seed=seed)
        robust = predict(subject.model, answer.x) == subject.y
        return Outcome(robust, int(answer.notes["forwards"]), int(answer.notes["backwards"]), answer.seconds)
    model, counts = counted(subject.model)
    result = autoattack(
        model, subject.x, subject.y, eps=eps, norm=norm, version=contender, seed=seed, batch_size=options.batch_size
    )
    return Outcome(result.robust, *counts(), sum(step.seconds for step in result.steps))


def _rows(
    run: Run, subject: "Subject", norm: Norm, eps: float, contender: Contender, seed: int, outcome: Outcome
) -> None:
    from common.evaluation import statistics

    same = {"model": subject.label, "attack": contender, "norm": norm, "eps": eps, "seed": seed}
    n = len(outcome.robust)
    run.row(metric="accuracy", **statistics.independent(float(outcome.robust.mean()), n)._asdict(), **same)
    for metric, value in (
        ("gradients", outcome.backwards / n),
        ("equivalents", outcome.equivalents / n),
        ("seconds", outcome.seconds),
    ):
        run.row(metric=metric, value=value, **same)
    run.log(
        f"{subject.label}, {norm} {eps:.4g}, {contender}, seed {seed}: {outcome.robust.sum()} of {n} left,"
        f" {outcome.backwards / n:.0f} gradients an image, {outcome.seconds:.0f} s"
    )


def _compare(run: Run, found: Mapping[tuple, Outcome], label: str, norm: Norm, eps: float, seed: int) -> None:
    """Examples on which two contenders, or two seeds of one, do not agree."""
    of = {key[2:]: outcome for key, outcome in found.items() if key[:2] == (label, norm)}
    for one, other in itertools.combinations(of, 2):
        if (one[0] == other[0]) == (one[1] == other[1]):
            continue
        a, b = of[one].robust, of[other].robust
        pair = f"{one[0]} {one[1]} against {other[0]} {other[1]}"
        same = {"model": label, "attack": pair, "norm": norm, "eps": eps}
        run.row(metric="first_left", value=int((a & ~b).sum()), n=len(a), **same)
        run.row(metric="second_left", value=int((b & ~a).sum()), n=len(a), **same)
        run.row(metric="disagreement", value=float((a != b).mean()), n=len(a), **same)
    ours = of.get(("standard", seed))
    for peer in ("official", "torchattacks"):
        if ours is not None and (peer, seed) in of:
            theirs = of[peer, seed]
            same = {"model": label, "norm": norm, "eps": eps}
            for contender in OURS:
                mine = of.get((contender, seed))
                if mine is None:
                    continue
                columns = {**same, "attack": contender, "split": peer}
                run.row(metric="times_as_fast", value=theirs.seconds / mine.seconds, **columns)
                run.row(metric="share_of_gradients", value=mine.backwards / max(theirs.backwards, 1), **columns)
                run.row(metric="share_of_equivalents", value=mine.equivalents / max(theirs.equivalents, 1), **columns)


def _together(run: Run, found: Mapping[tuple, Outcome]) -> None:
    """What `standard` breaks of what another leaves, over all models, budgets and seeds: how far the other is off."""
    from scipy.stats import binomtest

    for title, pairs in {
        "fast": [(a, b) for a, b in _pairs(found) if a[2] == "fast" and b[2] == "standard" and a[3] == b[3]],
        "standard": [(a, b) for a, b in _pairs(found) if a[2] == b[2] == "standard" and a[3] != b[3]],
        "official": [(a, b) for a, b in _pairs(found) if a[2] == "official" and b[2] == "standard" and a[3] == b[3]],
    }.items():
        left = sum(int(found[a].robust.sum()) for a, _ in pairs)
        if not left:
            continue
        broken = sum(int((found[a].robust & ~found[b].robust).sum()) for a, b in pairs)
        reverse = sum(int((found[b].robust & ~found[a].robust).sum()) for a, b in pairs)
        interval = binomtest(broken, left).proportion_ci(method="exact")
        columns = {"model": "all", "attack": title, "split": "standard"}
        bounds = {"n": left, "low": interval.low, "high": interval.high}
        run.row(metric="broken_of_left", value=broken / left, **bounds, **columns)
        run.row(metric="broken", value=broken, **columns)
        run.row(metric="broken_by_it_alone", value=reverse, **columns)
        run.metrics(**{f"{title}_broken_of_left": broken / left})


def _pairs(found: Mapping[tuple, Outcome]) -> list[tuple[tuple, tuple]]:
    return [(a, b) for a, b in itertools.product(found, found) if a[:2] == b[:2] and a != b]


if __name__ == "__main__":
    autoattack.main()
