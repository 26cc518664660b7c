"""Attacks that can stop early: full batches of unfinished examples against batches that wait for their slowest."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from common.errors import UserError
from common.runs.options import Count, LinfBudget, ScriptOptions
from common.runs.record import Run
from common.runs.script import script

if TYPE_CHECKING:
    import numpy as np

ON_IMAGES = ("bim", "pgd_restarts", "ddn", "sigma_zero", "cw_l2", "cw_l0", "attention", "displace", "gated", "adaptive")
ON_TRIPS = ("st_ifgsm_linf", "st_ifgsm_l2", "st_ifgsm_l1", "st_ifgsm_l0", "cw_l2", "strong")


@dataclass(kw_only=True)
class Options(ScriptOptions):
    """What is attacked, and how often."""

    on_images: tuple[str, ...] = ON_IMAGES
    """Attacks on a small CNN that has learnt the scenes, of bim, pgd_restarts, ddn, sigma_zero, cw_l2, cw_l0,
    attention, displace, gated, adaptive."""
    on_trips: tuple[str, ...] = ON_TRIPS
    """Attacks on the verifier of mobility_humid/train.py, trained if need be, of st_ifgsm_{linf,l2,l1,l0}, cw_l2 and
    strong."""
    n_images: Count = 100
    """Images to attack."""
    n_pairs: Count = 100
    """Pairs of drivers to attack."""
    epochs: Count = 4
    """Passes over the 2,000 scenes that the CNN learns from."""
    eps: LinfBudget = 4 / 255
    """Radius on images (L-inf), in [0, 1]."""
    batch_size: Count = 32
    """Examples at a time."""
    repeats: Count = 3
    """Repetitions, of which the median counts."""


class Attacked(NamedTuple):
    """An attack, bound to its model but for the examples, and the examples."""

    model_name: str
    name: str
    attack: partial
    x: "np.ndarray"
    y: "np.ndarray"


def refusals(options: Options) -> None:
    """What is refused before anything is trained."""
    for field, known in (("on_images", ON_IMAGES), ("on_trips", ON_TRIPS)):
        if unknown := [name for name in getattr(options, field) if name not in known]:
            raise UserError(f"--{field.replace('_', '-')}: {unknown[0]!r} is none of {', '.join(known)}")


@script(app="benchmarks", name="refill", refusals=refusals)
def refill(options: Options, run: Run) -> None:
    """Run every attack with and without refill in turn: seconds, gradients, and where these went."""
    import numpy as np

    from benchmarks.peers import timing
    from common.attacks import attack_dataset

    for case in (*_image_cases(options, run), *_trip_cases(options, run)):
        counted: dict[str, Any] = {}

        def refilled(case: Attacked = case, counted: dict[str, Any] = counted) -> float:
            start = time.perf_counter()
            counted["refill"] = attack_dataset(case.attack, case.x, case.y, batch_size=options.batch_size)
            return time.perf_counter() - start

        def left(case: Attacked = case, counted: dict[str, Any] = counted) -> float:
            start = time.perf_counter()
            counted["batches"] = _batch_by_batch(case, options.batch_size)
            return time.perf_counter() - start

        contenders: Mapping[str, Callable[[], float]] = {"refill": refilled, "batches": left}
        run.log(f"{case.name} on {case.model_name}, {len(case.x)} examples")
        # Traced before anything is timed.
        _batch_by_batch(case._replace(x=case.x[:2], y=case.y[:2]), options.batch_size)
        attack_dataset(case.attack, case.x[:2], case.y[:2], batch_size=options.batch_size)
        seconds = timing.interleaved(contenders, options.repeats)
        columns = {"model": case.model_name, "attack": case.name}
        found, (moved, gradients) = counted["refill"], counted["batches"]
        for split, taken in seconds.items():
            spread = timing.Spread.of(taken)
            run.row(split=split, metric="seconds", value=spread.median, low=spread.low, high=spread.high, **columns)
        spread = timing.ratio(seconds, "refill", "batches")
        run.row(metric="refill_over_batches", value=spread.median, low=spread.low, high=spread.high, **columns)
        run.row(split="refill", metric="gradients", value=found.gradients / len(case.x), **columns)
        run.row(split="batches", metric="gradients", value=gradients / len(case.x), **columns)
        run.row(metric="utilisation", value=found.utilisation, **columns)
        same = np.isclose(found.x, moved, atol=1e-3).reshape(len(moved), -1).all(axis=1)
        run.rate("same_example", float(same.mean()), len(same), **columns)
        run.metrics(**{f"{case.model_name}_{case.name}_refill_over_batches": spread.median})


def _batch_by_batch(case: Attacked, batch_size: int) -> "tuple[np.ndarray, int]":
    """What the attack finds batch by batch, each of which ends with its slowest example; and the gradients it takes."""
    import numpy as np

    from common.attacks import run_counted
    from common.attacks.dataset import with_rows

    bound = case.attack.func.bind(*case.attack.args, case.x, case.y, **case.attack.keywords)
    count, found, total = len(case.x), [], 0
    own = with_rows(bound.inputs, count)
    for first in range(0, count, batch_size):
        rows = np.arange(first, min(first + batch_size, count), dtype=np.int32)
        inputs = {**bound.inputs, **{name: np.asarray(value)[rows] for name, value in own.items()}, "index": rows}
        moved, gradients = run_counted(bound.attack, bound.model, inputs)
        found.append(moved.numpy())
        total += int(gradients) * len(rows)
    moved = np.concatenate(found)
    return moved if bound.finish is None else bound.finish(moved), total


def _image_cases(options: Options, run: Run) -> list[Attacked]:
    """A small CNN and images that it answers rightly."""
    import hashlib

    import keras
    import numpy as np

    from attention_defense.attacks.attention import KINDS
    from attention_defense.attacks.table import make_attack
    from common import attacks
    from common.datasets.scenes import scenes
    from common.evaluation.predictions import predict
    from common.models import build
    from common.training import batches, loop

    if not options.on_images:
        return []
    drawn = scenes(2000 + options.n_images, seed=options.seed)
    run.data("scenes", hashlib.sha256(np.ascontiguousarray(drawn.images).data).hexdigest())
    x, y = drawn.images.astype(np.float32) / 255, drawn.labels.astype(np.int32)
    keras.utils.set_random_seed(options.seed)
    model = build("small_cnn", x.shape[1:], int(y.max()) + 1)
    epochs = batches.batches(drawn.images[:2000], y[:2000], batch_size=64, seed=options.seed)
    loop.train(model, epochs, loop.cross_entropy, keras.optimizers.Adam(2e-3), epochs=options.epochs)
    x, y = x[2000:], y[2000:]
    right = predict(model, x) == y
    run.rate("clean_accuracy", float(right.mean()), len(right), model="small_cnn")
    x, y, eps = x[right], y[right], options.eps
    of = {
        "bim": partial(attacks.bim, model, eps=eps, alpha=eps / 10, steps=40, stop=True),
        "pgd_restarts": partial(attacks.pgd, model, eps=eps, alpha=eps / 5, steps=20, restarts=5, stop=True),
        "ddn": partial(attacks.ddn, model, steps=40),
        "sigma_zero": partial(attacks.sigma_zero, model, steps=40),
        "cw_l2": partial(attacks.cw_l2, model, steps=40, search_steps=5),
        "cw_l0": partial(attacks.cw_l0, model, steps=4, search_steps=2),
    }
    of |= {kind: make_attack(kind, model, eps=eps, stop=True) for kind in KINDS}
    return [Attacked("small_cnn", name, of[name], x, y) for name in dict.fromkeys(options.on_images)]


def _trip_cases(options: Options, run: Run) -> list[Attacked]:
    """The verifier of drivers, and pairs that it answers rightly."""
    from common.evaluation.predictions import predict
    from mobility_humid.siamese_attack import Attacker, load_victim, siamese_attack
    from mobility_humid.train import load_fleet, train
    from mobility_humid.training.tasks import SIAMESE

    if not options.on_trips:
        return []
    attacked = siamese_attack.options(n_test=options.n_pairs, radius=6.0)
    fleet = load_fleet(attacked, run.log, sides=2)
    model, _ = load_victim(attacked, run, SIAMESE, train, fleet)
    samples, attacker = SIAMESE.samples(fleet, SIAMESE.parts[-1], options.n_pairs), Attacker(attacked, model, fleet)
    right = predict(model, samples.x) == samples.y
    return [
        Attacked("verifier", name, attacker.entry(name).attack, samples.x[right], samples.y[right])
        for name in dict.fromkeys(options.on_trips)
    ]


if __name__ == "__main__":
    refill.main()
