"""How near do attacks come to the smallest perturbation? Distances of the suite's and of other libraries' attacks, over
the smallest that any of them finds."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from common.errors import UserError
from common.runs.options import CommonOptions, Count, LinfBudget, option
from common.runs.record import Run
from common.runs.script import script

if TYPE_CHECKING:
    from benchmarks.peers.libraries import Peer
    from benchmarks.peers.subjects import Subject

Norm = Literal["linf", "l2", "l1", "l0"]
Method = Literal["standard", "pgd", "trades"]
RADII = 10
"""How many radii are searched for an attack that has a budget."""
# The first of them.
_FIRST = {"linf": 0.1, "l2": 1.0, "l1": 10.0}
_SEARCHES, _TARGETS = 9, 9


@dataclass(kw_only=True)
class Options(CommonOptions):
    """On which networks, in which norms, how long."""

    methods: tuple[Method, ...] = ("standard", "pgd", "trades")
    """How the networks are trained, one each."""
    norms: tuple[Norm, ...] = ("linf", "l2", "l1", "l0")
    """Norms whose distances are measured."""
    attacks: tuple[str, ...] = ()
    """Attacks by their names in the table, by default all; foolbox's take part if it is installed."""
    steps: Count = 1000
    """Gradients of each attack; those that search radii or constants, or go to each class, share them out."""
    arch: str = "small_cnn"
    """Network: small_cnn, or tiny_cnn for a quarter of its work."""
    epochs: Count = 4
    """Passes over the training images."""
    train_eps: LinfBudget = 0.2
    """L-inf radius in training of the pgd and trades networks."""
    n_train: Count | None = 10000
    """Number of training images; null takes all."""
    n_test: Count | None = option(300)
    """Number of test images; null takes all."""
    batch_size: Count = 256
    """Images a batch."""


class Contender(NamedTuple):
    """An attack: `make`, of a model, a norm and a number of gradients, a function of x, y and index; where it has a
    budget, whose radii are searched, `scale` has its inputs by name, in radii."""

    norms: tuple[Norm, ...]
    make: Callable
    scale: Mapping[str, float] = {}


def _named(name: str, *, in_norm: bool = False, share: int = 1, **settings) -> Callable:
    def make(model, norm: Norm, steps: int) -> Callable:
        from common import attacks

        options = settings | ({"norm": norm} if in_norm else {})
        return partial(getattr(attacks, name), model, steps=max(steps // share, 1), **options)

    return make


_BALLS: tuple[Norm, ...] = ("linf", "l2", "l1")
CONTENDERS: dict[str, Contender] = {
    "fmn": Contender(_BALLS, _named("fmn", in_norm=True)),
    "fab": Contender(_BALLS, _named("fab", in_norm=True, targets=_TARGETS, share=_TARGETS)),
    "fab_nearest": Contender(_BALLS, _named("fab", in_norm=True, one_by_one=False, share=_TARGETS)),
    "fab_t_likeliest": Contender(_BALLS, _named("fab", in_norm=True, targets=1, share=_TARGETS)),
    "apgd_margin": Contender(
        _BALLS, _named("apgd", in_norm=True, loss="margin", stop=False, share=RADII), {"eps": 1.0}
    ),
    "pgd": Contender(_BALLS, _named("pgd", in_norm=True, share=RADII), {"eps": 1.0, "alpha": 0.1}),
    "deepfool": Contender(("linf", "l2"), _named("deepfool", in_norm=True, targets=_TARGETS, share=_TARGETS)),
    "ddn": Contender(("l2",), _named("ddn")),
    "cw_l2": Contender(("l2",), _named("cw_l2", search_steps=_SEARCHES, share=_SEARCHES, constant=0.1)),
    "ead": Contender(
        ("l1",), _named("ead", search_steps=_SEARCHES, share=_SEARCHES, constant=0.1, beta=0.01, decision="l1")
    ),
    "sigma_zero": Contender(("l0",), _named("sigma_zero")),
    "cw_l0": Contender(("l0",), _named("cw_l0", share=10, search_steps=2)),
}


OFFICIAL = "official_fab_t_likeliest"
"""FAB-T of its authors, towards one class, as `fab_t_likeliest`."""


class Reached(NamedTuple):
    """How far an attack had to go, (n,), and the seconds that it took."""

    distances: np.ndarray
    seconds: float


def refusals(options: Options) -> None:
    """What is refused before anything is read."""
    from benchmarks.peers.libraries import FOOLBOX_MINIMAL

    known = list(
        dict.fromkeys([*CONTENDERS, OFFICIAL, *(name for names in FOOLBOX_MINIMAL.values() for name in names)])
    )
    for name in options.attacks:
        if name not in known:
            raise UserError(f"--attacks: unknown {name!r}; expected some of {', '.join(known)}")
    if options.arch not in ("small_cnn", "tiny_cnn"):
        raise UserError(f"--arch: unknown {options.arch!r}; expected small_cnn or tiny_cnn")


@script(app="benchmarks", name="optimality", refusals=refusals)
def optimality(options: Options, run: Run) -> None:
    """Attack each network by each attack in each of its norms; compare with the nearest of all."""
    from benchmarks.peers import libraries, subjects
    from common import datasets

    data = datasets.load(
        options.dataset, data_dir=options.data_dir, seed=options.seed, n_train=options.n_train, n_test=options.n_test
    )
    run.data(data.name, data.sha256)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    subjects.describe_peers(run, [libraries.Foolbox, libraries.Official])
    for method in options.methods:
        subject = subjects.train_subject(
            method,
            data,
            run,
            arch=options.arch,
            epochs=options.epochs,
            seed=options.seed,
            method=method,
            eps=0.0 if method == "standard" else options.train_eps,
        )
        with libraries.opened(subject.model, subject.path, batch_size=options.batch_size, seed=options.seed) as peers:
            for norm in options.norms:
                _compare(run, subject, norm, _all_reached(options, run, subject, norm, peers))


def _all_reached(
    options: Options, run: Run, subject: "Subject", norm: Norm, peers: "Mapping[str, Peer]"
) -> dict[str, Reached]:
    """Of all attacks in a norm."""
    from benchmarks.peers.libraries import FOOLBOX_MINIMAL
    from benchmarks.peers.stored import stored

    chosen = {name: partial(_ours, subject, norm, of, options) for name, of in CONTENDERS.items() if norm in of.norms}
    if "foolbox" in peers:
        settings = {"norm": norm, "steps": options.steps}
        for name in FOOLBOX_MINIMAL.get(norm, ()):
            named = {"name": name, **settings}
            chosen[name] = partial(_theirs, subject, norm, peers["foolbox"], "smallest", named)
    if "official" in peers and norm in _BALLS:
        settings = {"norm": norm, "steps": max(options.steps // _TARGETS, 1)}
        chosen[OFFICIAL] = partial(_theirs, subject, norm, peers["official"], "fab_t", settings)
    found = {}
    for name, measure in chosen.items():
        if options.attacks and name not in options.attacks:
            continue
        found[name] = stored(run.checkpoints / f"{subject.label}_{norm}_{name}.npz", Reached, measure)
        run.log(f"{subject.label}, {norm}, {name}: {found[name].seconds:.0f} s")
    return found


def _ours(subject: "Subject", norm: Norm, of: Contender, options: Options) -> Reached:
    import time

    from common.attacks import attack_dataset
    from common.evaluation.optimality import nearest_by_radii

    attack, started = of.make(subject.model, norm, options.steps), time.perf_counter()

    def crafted(**budget) -> np.ndarray:
        return attack_dataset(partial(attack, **budget), subject.x, subject.y, batch_size=options.batch_size).x

    far = partial(_far, subject, norm)
    if of.scale:

        def within(radii: np.ndarray) -> np.ndarray:
            return crafted(**{name: (scale * radii).astype(np.float32) for name, scale in of.scale.items()})

        distances = nearest_by_radii(within, far, len(subject.y), first=_FIRST[norm], looks=RADII)
    else:
        distances = far(crafted())
    return Reached(distances, time.perf_counter() - started)


def _theirs(subject: "Subject", norm: Norm, peer: "Peer", attack: str, settings: Mapping[str, Any]) -> Reached:
    done = peer.timed(attack, subject.x, subject.y, **settings)
    return Reached(_far(subject, norm, done.x), done.seconds)


def _far(subject: "Subject", norm: Norm, x: np.ndarray) -> np.ndarray:
    """How far each of `x` (n, ...), brought into the box, is from the clean image, infinity for one that is no success
    there."""
    from common.evaluation.predictions import predict
    from common.evaluation.quality import perturbation_sizes

    x = np.clip(x, 0, 1)
    wrong = predict(subject.model, x) != subject.y
    return np.where(wrong, perturbation_sizes(subject.x, x)[norm], np.inf)


def _compare(run: Run, subject: "Subject", norm: Norm, found: Mapping[str, Reached]) -> None:
    from common.evaluation.optimality import as_published
    from common.evaluation.optimality import optimality as optimality_of
    from common.evaluation.predictions import predict

    if not found:
        return
    right = predict(subject.model, subject.x) == subject.y
    best = np.min([each.distances for each in found.values()], axis=0)
    if len(np.unique(best[right & np.isfinite(best)])) < 2:
        run.log(f"{subject.label}, {norm}: too few successes to compare")
        return
    score = {}
    for name, each in found.items():
        score[name] = optimality_of(each.distances, best, right)
        same = {"model": subject.label, "attack": name, "norm": norm, "eps": None}
        known = right & np.isfinite(each.distances) & (best > 0)
        values = {
            "optimality": score[name],
            "optimality_99": optimality_of(each.distances, best, right, quantile=0.99),
            "as_published": as_published(each.distances, best, right),
            "median_ratio": float(np.median(each.distances[known] / best[known])) if known.any() else np.nan,
            "successes": float(np.isfinite(each.distances[right]).mean()),
            "seconds": each.seconds,
        }
        for metric, value in values.items():
            if np.isfinite(value):
                run.row(metric=metric, value=value, n=len(right), **same)
    if {OFFICIAL, "fab_t_likeliest"} <= set(found):
        mine, other = (found[name].distances for name in ("fab_t_likeliest", OFFICIAL))
        both = right & np.isfinite(mine) & np.isfinite(other)
        if both.any():
            over = float(np.median(mine[both]) / np.median(other[both]))
            run.row(metric="median_over_official", value=over, n=int(both.sum()), model=subject.label, norm=norm)
    ours = {name: value for name, value in score.items() if name in CONTENDERS}
    theirs = {name: value for name, value in score.items() if name not in CONTENDERS}
    if ours and theirs:
        ahead = max(ours.values()) - max(theirs.values())
        run.row(
            metric="ahead", value=ahead, n=len(right), model=subject.label, norm=norm, attack=max(ours, key=ours.get)
        )
        run.metrics(**{f"ahead_{subject.label}_{norm}": ahead})
    run.log(f"{subject.label}, {norm}: " + json.dumps({name: round(value, 3) for name, value in score.items()}))


if __name__ == "__main__":
    optimality.main()
