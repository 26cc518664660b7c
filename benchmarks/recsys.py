"""The suite's VBPR against Cornac's, on the same split with the same features and sizes; top lists against a full sort.

Cornac takes part where it is installed; see benchmarks/requirements.txt.
"""

import importlib.metadata
import importlib.util
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from common.progress import Progress
from common.runs.options import Budget, Count, ScriptOptions
from common.runs.record import Run
from common.runs.script import script

if TYPE_CHECKING:
    from multimedia_recsys.data.interactions import Interactions
    from multimedia_recsys.models.recommenders import Factors

BOUNDS = {"auc": -0.005, "ndcg_at_10": -0.005, "epoch_speedup": 2.0}
# A shop of the size of Amazon Men, of which lists are made.
LARGE = (26_155, 82_630)


@dataclass(kw_only=True)
class Options(ScriptOptions):
    """What is measured, and how often."""

    n_users: Count = 2000
    """Simulated users."""
    n_items: Count = 1000
    """Drawn products."""
    features: Count = 512
    """Length of the features: a random mixture of the products' traits, rectified, with noise."""
    factors: Count = 20
    """Length of the latent vectors, and of the visual ones."""
    epochs: Count = 40
    """Passes over the interactions, for both sides."""
    batch_size: Count = 100
    """Triplets a step, for both sides; Cornac's default."""
    learning_rate: Budget = 0.05
    """Learning rate of the suite's Adagrad."""
    peer_learning_rate: Budget = 0.005
    """Learning rate of Cornac's Adam; its default."""
    repeats: Count = 3
    """Repetitions of timed epochs, each side in turn; the median counts."""
    timed_epochs: Count = 3
    """Epochs of a repetition."""
    large_users: Count = LARGE[0]
    """Users of the large shop."""
    large_items: Count = LARGE[1]
    """Items of the large shop."""


@script(app="benchmarks", name="recsys")
def recsys(options: Options, run: Run) -> None:
    """Quality and seconds an epoch of both, and seconds and memory of the lists of a large shop."""
    import hashlib

    from multimedia_recsys.evaluation import ranking

    feedback, features = _shop(options)
    run.data("drawn products", hashlib.sha256(features.tobytes() + feedback.item.tobytes()).hexdigest())
    run.log(f"{feedback.users} users, {feedback.items} items, {len(feedback.item)} interactions")
    sides = {"suite": lambda epochs, verbose=False: _ours(options, feedback, features, epochs, verbose)}
    if importlib.util.find_spec("cornac") is not None:
        run.row(model="peer", attack="cornac", split=importlib.metadata.version("cornac"), metric="installed", value=1)
        sides["cornac"] = lambda epochs, verbose=False: _cornac(options, feedback, features, epochs)
    found: dict[str, dict[str, float]] = {}
    for name, train in sides.items():
        run.log(f"{name}: {options.epochs} epochs")
        per_user = ranking.quality(ranking.ranks(train(options.epochs, verbose=True)[0], feedback))
        found[name] = {metric: float(values.mean()) for metric, values in per_user.items()}
        for metric, value in found[name].items():
            run.row(model=name, metric=metric, value=value)
    seconds = _seconds(options, run, sides)
    gain = {}
    if "cornac" in sides:
        gain = {metric: found["suite"][metric] - found["cornac"][metric] for metric in ("auc", "ndcg_at_10")}
        gain["epoch_speedup"] = seconds["cornac"] / seconds["suite"]
        for metric, bound in BOUNDS.items():
            run.row(split=metric, metric="target", value=bound)
            run.row(split=metric, metric="met", value=int(gain[metric] >= bound))
        run.metrics(
            auc_less_cornac=gain["auc"],
            ndcg_at_10_less_cornac=gain["ndcg_at_10"],
            epoch_speedup=gain["epoch_speedup"],
            targets=len(BOUNDS),
            targets_met=sum(gain[metric] >= bound for metric, bound in BOUNDS.items()),
        )
    run.metrics(auc=found["suite"]["auc"], ndcg_at_10=found["suite"]["ndcg_at_10"], **_lists(options, run))


def _shop(options: Options) -> "tuple[Interactions, np.ndarray]":
    from multimedia_recsys.data.interactions import simulated
    from multimedia_recsys.data.products import CATEGORIES, COLOURS, STYLES

    rng = np.random.default_rng([options.seed, 0xBE])
    kinds = (len(CATEGORIES), len(COLOURS), len(STYLES))
    traits = [rng.integers(kind, size=options.n_items) for kind in kinds]
    mixed = sum(rng.normal(size=(kind, options.features))[trait] for kind, trait in zip(kinds, traits, strict=True))
    features = np.maximum(mixed + 0.3 * rng.normal(size=mixed.shape), 0).astype(np.float32)
    return simulated(traits, options.n_users, seed=options.seed), features / features.max()


def _ours(
    options: Options, feedback: "Interactions", features: np.ndarray, epochs: int, verbose: bool
) -> "tuple[Factors, list[float]]":
    """What the suite's VBPR learns, and the seconds of each epoch."""
    import keras

    from multimedia_recsys.models.recommenders import fit
    from multimedia_recsys.models.settings import Settings

    class Watch(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.ends = [time.perf_counter()]

        def on_epoch_end(self, epoch, logs=None):
            self.ends.append(time.perf_counter())

    watch = Watch()
    settings = Settings(
        factors=options.factors,
        visual_factors=options.factors,
        epochs=epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
    )
    model = fit("vbpr", feedback, features, settings, seed=options.seed, callbacks=[watch], verbose=verbose)
    return model.factors(features), np.diff(watch.ends).tolist()


def _cornac(
    options: Options, feedback: "Interactions", features: np.ndarray, epochs: int
) -> "tuple[Factors, list[float]]":
    """What Cornac's VBPR learns, and the mean seconds of its epochs."""
    import contextlib
    import io

    import cornac

    from multimedia_recsys.models.recommenders import Factors

    # Cornac numbers users and items as they come: given all of them in order first, its numbers are ours.
    names = [(u, i, 1.0) for u, i in zip(feedback.user().tolist(), feedback.item.tolist(), strict=True)]
    numbers = {n: n for n in range(max(feedback.users, feedback.items))}
    data = cornac.data.Dataset.build(
        names,
        seed=options.seed,
        global_uid_map={n: n for n in numbers if n < feedback.users},
        global_iid_map={n: n for n in numbers if n < feedback.items},
    )
    images = cornac.data.ImageModality(features=features, ids=list(range(feedback.items)), normalized=False)
    images.build(id_map=data.iid_map)
    data.add_modalities(item_image=images)
    model = cornac.models.VBPR(
        k=options.factors,
        k2=options.factors,
        n_epochs=epochs,
        batch_size=options.batch_size,
        learning_rate=options.peer_learning_rate,
        verbose=False,
        seed=options.seed,
    )
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        model.fit(data)
    seconds = (time.perf_counter() - started) / epochs
    scores = Factors(
        np.concatenate([model.gamma_user, model.theta_user], axis=1).astype(np.float32),
        np.concatenate([model.gamma_item, model.theta_item], axis=1).astype(np.float32),
        (model.beta_item + model.visual_bias).astype(np.float32),
    )
    return scores, [seconds] * epochs


def _seconds(options: Options, run: Run, sides: dict) -> dict[str, float]:
    """Median seconds of an epoch; the first one of each fit compiles and is left out."""
    from benchmarks.peers import timing

    def timed(train):
        return lambda: float(np.median(train(options.timed_epochs + 1)[1][1:]))

    contenders = {name: timed(train) for name, train in sides.items()}
    with Progress(options.repeats * len(contenders), "epochs, timed", units="repetitions") as progress:
        taken = timing.interleaved(contenders, options.repeats, show=progress.add)
    for name, values in taken.items():
        spread = timing.Spread.of(values)
        run.row(model=name, metric="epoch_seconds", value=spread.median, low=spread.low, high=spread.high)
    return {name: timing.Spread.of(values).median for name, values in taken.items()}


def _lists(options: Options, run: Run) -> dict[str, float]:
    """Top-100 lists of the large shop: seconds, the memory they add, and how much faster than a full sort."""
    import resource

    from multimedia_recsys.data.interactions import interactions
    from multimedia_recsys.evaluation import ranking
    from multimedia_recsys.models.recommenders import Factors

    users, items = options.large_users, options.large_items
    rng = np.random.default_rng(options.seed)
    feedback = interactions(
        rng.integers(users, size=7 * users), rng.integers(items, size=7 * users), np.full(users, -1), items=items
    )
    size = 2 * options.factors
    factors = Factors(*(rng.normal(size=shape).astype(np.float32) for shape in ((users, size), (items, size), items)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    lists = ranking.top_k(factors, feedback, 100)
    seconds = time.perf_counter() - started
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    some = np.arange(min(users, 512))
    started = time.perf_counter()
    scores = factors.users[some] @ factors.items.T + factors.offset
    scores[feedback.seen(some)] = -np.inf
    sorted_lists = np.argsort(-scores, axis=1, kind="stable")[:, :100]
    full = (time.perf_counter() - started) * users / len(some)
    # Two ways to multiply may round one score past another of nearly the same height.
    same = float((sorted_lists == lists[some]).mean())
    run.row(metric="lists_agree", value=same)
    run.row(metric="sort_seconds", value=full)
    run.log(
        f"{users} lists of 100 among {items} items: {seconds:.1f} s, {added:.2f} GiB more; a full sort {full:.0f} s"
    )
    return {"lists_seconds": seconds, "lists_gib": max(added, 0.0), "lists_speedup": full / seconds}


if __name__ == "__main__":
    recsys.main()
