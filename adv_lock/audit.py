"""Audit a lock: what can the best of several unauthorised trainers still learn from what is shared?"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adv_lock.lock import expected, required
from adv_lock.train_base import FOLDER_SIZE, FittingOptions
from common.runs.options import Count, LinfBudget
from common.runs.record import Run
from common.runs.script import script

if TYPE_CHECKING:
    import numpy as np

    from adv_lock.data.locked import LockedData
    from adv_lock.training.trainers import Trainer

LOCKED, CLEAN, WITHOUT = "locked", "clean", "without"
"""What a trainer learns from: the locked images, with clean ones of the trainer's own if there are any; the originals;
or the trainer's own clean images alone."""


@dataclass(kw_only=True)
class Options(FittingOptions):
    """The trainers, and their network and recipe."""

    lock_data: Path | None = None
    """Run folder of lock.py, with `locked/` and `key.npz`; by default the one of the same name, made if need be."""
    epochs: Count = 6
    """Passes over the training images, of each trainer."""
    panel: Literal["quick", "full"] = "quick"
    """Trainers: plain, class_map, jpeg10 and grey, or six more, which take five times as long."""
    eps: LinfBudget = 4 / 255
    """L-inf radius of the trainer who trains adversarially."""
    n_clean: Count = 500
    """Clean images, with labels, of the trainer who fits a linear layer to what the plain network has learnt."""


def refusals(options: Options) -> None:
    """What is refused before anything is read, locked or trained."""
    from adv_lock.models.networks import NETWORKS
    from common.training import fit

    fit.check(options.recipe, NETWORKS)


def needs(options: Options) -> None:
    """What lock.py would refuse, where it is to be run."""
    expected(options.lock_data, options)


@script(app="adv_lock", name="audit", refusals=refusals, needs=needs, columns=("trainer",))
def audit(options: Options, run: Run) -> None:
    """Train each of the panel on locked images and by the same recipe on originals; how much of it is learnt."""
    from adv_lock.data.locked import read_locked
    from adv_lock.training.trainers import QUICK, TRAINERS

    data = read_locked(required(options.lock_data, options, run), options.image_size or FOLDER_SIZE)
    run.data(data.name, data.sha256)
    panel = QUICK if options.panel == "quick" else tuple(TRAINERS)
    bench = _Bench(options, run, data)
    answers = {}
    for name in panel:
        trainer = TRAINERS[name]
        run.log(f"-- {name}: {trainer.does}")
        for source in (LOCKED, CLEAN, *([WITHOUT] if trainer.clean or name == "probe" else [])):
            # On clean images alone more clean ones change nothing.
            who, same = ("plain", TRAINERS["plain"]) if trainer.clean and source == CLEAN else (name, trainer)
            answers[name, source] = bench.answers(who, same, source)
    _record(options, run, data, panel, answers, bench.minutes)


class _Bench:
    """Trainings of a panel, each kept once it is done, so that --resume goes on with the next."""

    def __init__(self, options: Options, run: Run, data: "LockedData") -> None:
        import numpy as np

        self.options, self.run, self.data = options, run, data
        self.originals = data.original_train()
        self.minutes: dict[str, float] = {}
        rng = np.random.default_rng([options.seed, 0xA0D17])
        self.order = rng.permutation(len(data.y_train))

    def answers(self, name: str, trainer: "Trainer", source: str) -> "np.ndarray":
        """Answers int32 (n,) to the clean test images, of `trainer`, who learns from `source`."""
        import time

        import numpy as np

        from common import files

        kept = self.run.checkpoints / f"{name}_{source}.npz"
        if not kept.is_file():
            begun = time.monotonic()
            found = self._of_plain(name, source) if trainer.of_plain else self._train(name, trainer, source)
            if not self.run.chief:
                return found
            minutes = np.float64((time.monotonic() - begun) / 60)
            kept.parent.mkdir(parents=True, exist_ok=True)
            files.write_npz(kept, {"answers": found, "minutes": minutes})
        stored = files.read_npz(kept)
        if source == LOCKED:
            self.minutes[name] = float(stored["minutes"])
        return stored["answers"]

    def _train(self, name: str, trainer: "Trainer", source: str) -> "np.ndarray":
        from common.evaluation import predictions

        data, rows = self.data, slice(None)
        images = self.originals if source == CLEAN else data.locked_train
        if trainer.clean:
            own = self.order[: round(trainer.clean * len(self.order))]
            images = images.copy()
            images[own] = self.originals[own]
            rows = own if source == WITHOUT else rows
        images, y = images[rows], data.y_train[rows]
        change = (lambda x: x) if trainer.change is None else trainer.change(images, y)
        method = None if trainer.method is None else trainer.method(self.options.eps)
        model = self._fitted(f"{name}_{source}", change(images), y, method=method, further=trainer.augment)
        if name == "plain":
            self.run.save_model(model, f"plain_{source}")
        return predictions.predict(model, change(data.original_test))

    def _of_plain(self, name: str, source: str) -> "np.ndarray":
        """What is made of the plain network alone, which the panel has trained before."""
        import numpy as np

        from adv_lock.training import trainers
        from common.evaluation import predictions
        from common.training import checkpoints

        data, own = self.data, self.order[: self.options.n_clean]
        images, y = self.originals[own], data.y_train[own]
        if source == WITHOUT:
            model = self._fitted(f"{name}_{source}", images, y)
            return predictions.predict(model, data.original_test)
        model = checkpoints.load_model(self.run.folder / f"plain_{source}.keras")
        if name == "probe":
            return trainers.probe(model, images, y, data.original_test)
        answers = predictions.predict(model, data.original_test)
        # An image of class c answers to what a lock writes on the class that is turned into c. Who trained on originals
        # has nothing to turn back.
        return np.asarray(data.class_maps[0][answers] if source == LOCKED else answers, np.int32)

    def _fitted(self, key: str, images: "np.ndarray", y: "np.ndarray", **settings):
        """The network of the recipe; fewer images are seen as many times more often, for as many steps."""
        from adv_lock.models.networks import NETWORKS
        from adv_lock.training.trainers import SEED
        from common.training import fit

        recipe = self.options.recipe
        recipe = replace(recipe, epochs=max(1, round(recipe.epochs * len(self.data.y_train) / len(y))))
        model, _ = fit.fit(
            recipe,
            self.run,
            images,
            y,
            len(self.data.class_names),
            lambda model: {},
            title=key.replace("_", " "),
            seed=SEED + self.options.seed,
            networks=NETWORKS,
            checkpoints=self.run.checkpoints / key,
            **settings,
        )
        return model


def _record(options: Options, run: Run, data: "LockedData", panel, answers, minutes: dict[str, float]) -> None:
    """Accuracies by trainer and source, and the share of what there is to learn that each trainer learns."""
    import numpy as np

    from common.evaluation import plots, statistics

    y, rows = data.y_test, np.arange(len(data.y_test))
    hits = {key: found == y for key, found in answers.items()}
    constant = y == np.bincount(data.y_train).argmax()
    best = max((hits[name, CLEAN] for name in panel), key=np.mean)
    columns = {"model": options.arch, "attack": data.method, "norm": "l2", "eps": data.eps, "split": "test"}
    shares, bars = {}, {LOCKED: [], CLEAN: [], WITHOUT: []}
    for name in panel:
        without = hits.get((name, WITHOUT), constant)
        for source, of in ((LOCKED, hits[name, LOCKED]), (CLEAN, hits[name, CLEAN]), (WITHOUT, without)):
            rate = statistics.rate(of, None)
            bars[source].append(rate)
            run.row(**columns, trainer=name, metric=f"accuracy_{source}", **rate._asdict())
        run.row(**columns, trainer=name, metric="minutes", value=minutes[name])
        if best.mean() > without.mean():
            less = without.astype(float)
            shares[name] = statistics.relative(hits[name, LOCKED] - less, best - less, rows)
            run.row(**columns, trainer=name, metric="learnt", **shares[name]._asdict())
    headline = {
        "accuracy_of_plain": statistics.rate(hits["plain", LOCKED], None),
        "best_clean_accuracy": statistics.rate(best, None),
    }
    if "plain" in shares:
        worst = max(shares, key=lambda name: shares[name].value)
        run.log(f"the best trainer of {len(panel)}: {worst}")
        headline |= {"learnt_by_the_best": shares[worst], "learnt_by_plain": shares["plain"]}
        headline["accuracy_of_the_best"] = statistics.rate(hits[worst, LOCKED], None)
    else:
        run.log("nobody learns more from the originals than a constant answer: there is nothing to share out")
    run.intervals(headline)
    title = f"what {len(panel)} trainers learn from {data.method}-locked images"
    run.figure("audit", plots.grouped_bars, panel, bars, title=title)


if __name__ == "__main__":
    audit.main()
