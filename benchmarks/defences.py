"""Does the verdict notice? Broken defences and sound ones: the mechanism that it names, and the accuracy that it leaves
beside an attack written by hand for that defence."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from common.runs.options import CommonOptions, Count, LinfBudget, Natural, option
from common.runs.record import Run
from common.runs.script import script

if TYPE_CHECKING:
    from benchmarks.planted import Planted
    from common.evaluation.statistics import Estimate
    from common.evaluation.verdict import Verdict


@dataclass(kw_only=True)
class Options(CommonOptions):
    """Which defences, on what."""

    defences: tuple[str, ...] = ()
    """Defences by name, by default all: the twelve of the course, four more, three controls."""
    eps: LinfBudget = 4 / 255
    """Radius of the attacks (L-inf), and of the adversarial training; logit_squeezing is attacked at twice that."""
    epochs: Count = 6
    """Passes over the training images, of each network."""
    width: Count = 16
    """Channels of the first convolutions."""
    n_planted: Natural = 128
    """Images on which points are planted for the attack to find."""
    n_train: Count | None = 4000
    """Number of training images; null takes all."""
    n_test: Count | None = option(200)
    """Number of test images; null takes all."""


def refusals(options: Options) -> None:
    """What is refused before anything is read."""
    from benchmarks.planted import DEFENCES

    for name in options.defences:
        if name not in DEFENCES:
            raise UserError(f"--defences: unknown {name!r}; expected some of {', '.join(DEFENCES)}")
    if options.eps == 0:
        raise UserError("--eps: must be above 0")


@script(app="benchmarks", name="defences", columns=("check",), refusals=refusals)
def defences(options: Options, run: Run) -> None:
    """Train each defence, judge it, and attack it by hand."""
    import json

    import keras
    import numpy as np

    from benchmarks.planted import COURSE, DEFENCES, Bench
    from common import datasets
    from common.evaluation.verdict import judge
    from common.files import write_text

    data = datasets.load(
        options.dataset,
        data_dir=options.data_dir,
        seed=options.seed,
        n_train=options.n_train,
        n_test=options.n_test,
        progress=True,
    )
    run.data(data.name, data.sha256)
    x, y = np.asarray(data.x_test), np.asarray(data.y_test, np.int32)
    bench = Bench(data, epochs=options.epochs, eps=options.eps, width=options.width, seed=options.seed)
    kept, named, close = run.checkpoints, 0, 0
    kept.mkdir(parents=True, exist_ok=True)
    names = list(options.defences) or list(DEFENCES)
    for name in names:
        # What an interrupted run has measured is not measured again.
        file = kept / f"{name}.json"
        if not file.exists():
            started = time.perf_counter()
            defence = DEFENCES[name](bench)
            run.log(f"{name}: made in {time.perf_counter() - started:.0f} s")
            found = judge(
                defence.model,
                x,
                y,
                eps=options.eps * defence.reach,
                detector=defence.detector,
                planted=options.n_planted,
                seed=options.seed,
            )
            rows, text = measured(name, defence, found, by_hand(defence, found, options)), found.sentence
            write_text(file, json.dumps({"rows": rows, "text": text}))
            keras.backend.clear_session(free_memory=False)
        told = json.loads(file.read_text(encoding="utf-8"))
        run.log(f"{name}: {told['text']}")
        for row in told["rows"]:
            run.row(**row)
        value = {row["metric"]: row["value"] for row in told["rows"] if row["metric"] != "failed"}
        close += value["excess"] <= 0.03 + 1e-9
        named += value["named"]
    run.headline("mechanism_named", named / len(names), len(names))
    run.headline("within_3_points", close / len(names), len(names))
    run.metrics(course=float(sum(name in COURSE for name in names)))


def by_hand(defence: "Planted", found: "Verdict", options: Options) -> "Estimate":
    """The accuracy that an attack on the substitute of a defence leaves, judged as the verdict judges."""
    import numpy as np

    from benchmarks.attacks_by_hand import craft
    from common.evaluation import statistics
    from common.evaluation.pool import Pool

    pool = Pool.of(defence.model, defence.detector, found.x, found.y, found.eps, found.norm, 0.0, 1.0, True, 256)
    rows = np.flatnonzero(pool.right)
    for name, x in craft(defence, pool.clean[rows], pool.y[rows], found.eps, options.seed):
        pool.offer(name, rows, x, None, 0.0, len(pool.y))
    return statistics.independent(float(pool.left().mean()), len(pool.y))


def measured(name: str, defence: "Planted", found: "Verdict", hand: "Estimate") -> list[dict[str, Any]]:
    """Rows of a table on one defence."""
    at = {"model": name, "norm": found.norm, "eps": float(found.eps)}
    rows = [
        {"metric": "clean", **found.clean._asdict(), **at},
        {"metric": "verdict", **found.robust._asdict(), **at},
        {"metric": "first_bound", **found.first._asdict(), **at},
        {"metric": "by_hand", **hand._asdict(), **at},
        {"metric": "excess", "value": found.robust.value - hand.value, **at},
        {"metric": "named", "value": float(found.mechanism == defence.mechanism), "split": found.mechanism, **at},
        {"metric": "expected", "value": 1.0, "split": defence.mechanism, **at},
        {"metric": "inconclusive", "value": float(found.inconclusive), **at},
        {"metric": "seconds", "value": found.seconds, **at},
    ]
    if found.false_positives is not None:
        rows.append({"metric": "false_positives", **found.false_positives._asdict(), **at})
    rows += [
        {"metric": "accuracy", **step.accuracy._asdict(), "attack": step.name, **at}
        for step in found.tried
        if step.accuracy is not None
    ]
    for check in found.checks:
        if check.passed is False:
            rows.append({"metric": "failed", "value": check.value or 0.0, "check": check.name, **at})
    return rows


if __name__ == "__main__":
    defences.main()
