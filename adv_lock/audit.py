"""Audit a lock: what can the best of several unauthorised trainers still learn from what is shared?"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adv_lock.lock import expected, required
from adv_lock.train_base import FOLDER_SIZE, FittingOptions
from common.errors import UserError
from common.runs.options import Count, LinfBudget
from common.runs.record import Run
from common.runs.script import script

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from adv_lock.data.locked import LockedData
    from adv_lock.training.trainers import Trainer

FEW_CLEAN = "few_clean"
"""Who has --n-clean images, and learns from these alone."""
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
    panel: Literal["quick", "full", "photos"] = "quick"
    """Trainers: plain, class_map, jpeg10 and grey; with eight more, one of which searches for 54 epochs; or ten for a
    folder of photographs, at several sizes, one network begun with ImageNet weights."""
    trainers: tuple[str, ...] = ()
    """Of the panel, these alone beside its first; by default all."""
    eps: LinfBudget = 4 / 255
    """L-inf radius of the trainer who trains adversarially."""
    n_clean: Count = 500
    """Clean images, with labels, of the trainers who fit a linear layer to what the plain network has learnt, and who
    choose by them what to do to images."""


def refusals(options: Options) -> None:
    """What is refused before anything is read, locked or trained."""
    from adv_lock.data.locked import holds_arrays
    from adv_lock.models.networks import NETWORKS
    from common import datasets
    from common.models import check_name, efficientnet
    from common.training import fit

    fit.check(options.recipe, NETWORKS)
    if any(trainer.uses == "imagenet" or trainer.recipe for trainer in _panel(options).values()):
        check_name(efficientnet.NAME)
    given = options.lock_data
    # What is not there is refused elsewhere.
    named = options.dataset in datasets.NAMES or Path(options.dataset).is_file()
    arrays = named if given is None else given.is_dir() and holds_arrays(given)
    if options.panel == "photos" and arrays:
        raise UserError("--panel: photos is for a folder of images, these are arrays of one size; choose full")
    if options.panel == "photos" and options.image_size is not None:
        raise UserError("--image-size: each trainer of --panel photos has its own; leave it out")


def needs(options: Options) -> None:
    """What lock.py would refuse, where it is to be run."""
    expected(options.lock_data, options)


@script(app="adv_lock", name="audit", refusals=refusals, needs=needs, columns=("trainer",))
def audit(options: Options, run: Run) -> None:
    """Train each of the panel on locked images and by the same recipe on originals; how much of it is learnt."""
    from adv_lock.data.locked import read_locked

    locked = required(options.lock_data, options, run)
    data = read_locked(locked, options.image_size or FOLDER_SIZE)
    run.data(data.name, data.sha256)
    panel = _panel(options)
    bench = _Bench(options, run, locked, data)
    answers = {}
    for name, trainer in panel.items():
        run.log(f"-- {name}: {trainer.does}")
        for source in (LOCKED, CLEAN, *([WITHOUT] if trainer.clean or trainer.few else [])):
            # On clean images alone more clean ones change nothing.
            who, same = ("plain", panel["plain"]) if trainer.clean and source == CLEAN else (name, trainer)
            if source == WITHOUT and trainer.few:
                who = FEW_CLEAN
            answers[name, source] = bench.answers(who, same, source)
    if "searcher" in panel:
        found, right = bench.search()
        run.log(f"the searcher found: {found}")
        run.row(trainer=f"searcher: {found}", metric="accuracy_on_its_clean_images", value=right, n=bench.n_own)
    _record(options, run, data, tuple(panel), answers, bench.minutes)


def _panel(options: Options) -> "dict[str, Trainer]":
    """The trainers that `options` ask for, by name. Errors: `UserError` for one that is not in the panel."""
    from adv_lock.training.trainers import PANELS

    panel = PANELS[options.panel]
    if unknown := [name for name in options.trainers if name not in panel]:
        raise UserError(f"--trainers: {unknown[0]}: not in --panel {options.panel}; choose {', '.join(panel)}")
    # The first is what the others are measured by, and what some of them use.
    wanted = {next(iter(panel)), *options.trainers} if options.trainers else panel
    return {name: trainer for name, trainer in panel.items() if name in wanted}


class _Bench:
    """Trainings of a panel, each kept once it is done, so that --resume goes on with the next."""

    def __init__(self, options: Options, run: Run, locked: Path, data: "LockedData") -> None:
        import numpy as np

        self.options, self.run, self.locked = options, run, locked
        self.seen: tuple[int, object] = options.image_size or FOLDER_SIZE, None
        self.data, self.originals = data, data.original_train()
        self.minutes: dict[str, float] = {}
        rng = np.random.default_rng([options.seed, 0xA0D17])
        self.order = rng.permutation(len(data.y_train))
        self.n_own = min(options.n_clean, len(data.y_train))

    def answers(self, name: str, trainer: "Trainer", source: str) -> "np.ndarray":
        """Answers int32 (n,) to the clean test images, of `trainer`, who learns from `source`."""
        import time

        import numpy as np

        from common import files

        kept = self.run.checkpoints / f"{name}_{source}.npz"
        if not kept.is_file():
            begun = time.monotonic()
            self._read(trainer)
            if name == FEW_CLEAN:
                found = self._own_alone()
            else:
                makers = {"plain": self._of_plain, "search": self._searched}
                found = (
                    makers[trainer.uses](name, source) if trainer.uses in makers else self._train(name, trainer, source)
                )
            if not self.run.chief:
                return found
            minutes = np.float64((time.monotonic() - begun) / 60)
            kept.parent.mkdir(parents=True, exist_ok=True)
            files.write_npz(kept, {"answers": found, "minutes": minutes})
        stored = files.read_npz(kept)
        if source == LOCKED:
            self.minutes[name] = float(stored["minutes"])
        return stored["answers"]

    def _read(self, trainer: "Trainer") -> None:
        """Have the images as `trainer` sees them, where it has a size of its own; arrays have one size."""
        from adv_lock.data.locked import holds_arrays, read_locked

        seen = trainer.size or self.options.image_size or FOLDER_SIZE, trainer.upload
        if seen != self.seen and not holds_arrays(self.locked):
            self.data = read_locked(self.locked, *seen)
            self.originals = self.data.original_train()
        self.seen = seen

    def _train(self, name: str, trainer: "Trainer", source: str) -> "np.ndarray":
        from adv_lock.training import trainers
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
        test = change(data.original_test)
        if trainer.uses == "imagenet":
            return trainers.probe(trainers.imagenet_features, change(images), y, test)
        method = None if trainer.method is None else trainer.method(self.options.eps)
        model = self._fitted(
            f"{name}_{source}", change(images), y, own=trainer.recipe, method=method, further=trainer.augment
        )
        if name == "plain":
            self.run.save_model(model, f"plain_{source}")
        return predictions.predict(model, test, batch_size=trainers.AT_ONCE)

    def _of_plain(self, name: str, source: str) -> "np.ndarray":
        """What is made of the plain network alone, which the panel has trained before."""
        import numpy as np

        from adv_lock.training import trainers
        from common.evaluation import predictions
        from common.training import checkpoints

        data, (images, y) = self.data, self._own()
        model = checkpoints.load_model(self.run.folder / f"plain_{source}.keras")
        if name == "probe":
            return trainers.probe(partial(trainers.features, model), images, y, data.original_test)
        answers = predictions.predict(model, data.original_test)
        # An image of class c answers to what a lock writes on the class that is turned into c. Who trained on originals
        # has nothing to turn back.
        return np.asarray(data.class_maps[0][answers] if source == LOCKED else answers, np.int32)

    def _own(self) -> "tuple[np.ndarray, np.ndarray]":
        """The few clean images, and labels, of a trainer."""
        own = self.order[: self.n_own]
        return self.originals[own], self.data.y_train[own]

    def _own_alone(self) -> "np.ndarray":
        """What the few clean images teach by themselves."""
        from common.evaluation import predictions

        return predictions.predict(self._fitted(FEW_CLEAN, *self._own()), self.data.original_test)

    def search(self) -> tuple[str, float]:
        """The best way to change locked images, by the trainer's own clean ones, and its accuracy on these."""
        import numpy as np

        from adv_lock.training import trainers
        from common import files
        from common.evaluation import predictions

        images, y = self._own()

        def score(name: str, epochs: int) -> float:
            key, pipeline = f"search_{name.replace(', ', '_')}_{epochs}", trainers.PIPELINES[name]
            kept = self.run.checkpoints / f"{key}.npz"
            if kept.is_file():
                return float(files.read_npz(kept)["right"])
            locked, labels = pipeline(self.data.locked_train), self.data.y_train
            model = self._fitted(key, locked, labels, own={"epochs": epochs}, further=pipeline.augment)
            right = np.mean(predictions.predict(model, pipeline(images)) == y)
            if self.run.chief:
                kept.parent.mkdir(parents=True, exist_ok=True)
                files.write_npz(kept, {"right": right})
            return float(right)

        return trainers.successive_halving(trainers.PIPELINES, score)

    def _searched(self, name: str, source: str) -> "np.ndarray":
        """By the whole recipe, what the search on locked images has found."""
        from adv_lock.training import trainers
        from common.evaluation import predictions

        pipeline = trainers.PIPELINES[self.search()[0]]
        images = pipeline(self.originals if source == CLEAN else self.data.locked_train)
        model = self._fitted(f"{name}_{source}", images, self.data.y_train, further=pipeline.augment)
        return predictions.predict(model, pipeline(self.data.original_test))

    def _fitted(
        self, key: str, images: "np.ndarray", y: "np.ndarray", own: "Mapping[str, Any] | None" = None, **settings
    ):
        """The network of the recipe, in which `own` is the trainer's; fewer images are seen as many times more often,
        for as many steps."""
        from adv_lock.models.networks import NETWORKS
        from adv_lock.training.trainers import SEED
        from common.training import fit

        recipe = replace(self.options.recipe, **(own or {}))
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
    first = panel[0]
    headline = {
        f"accuracy_of_{first}": statistics.rate(hits[first, LOCKED], None),
        "best_clean_accuracy": statistics.rate(best, None),
    }
    if shares:
        worst = max(shares, key=lambda name: shares[name].value)
        run.log(f"the best trainer of {len(panel)}: {worst}")
        headline |= {"learnt_by_the_best": shares[worst], f"learnt_by_{first}": shares[first]}
        headline["accuracy_of_the_best"] = statistics.rate(hits[worst, LOCKED], None)
    else:
        run.log("nobody learns more from the originals than a constant answer: there is nothing to share out")
    run.intervals(headline)
    title = f"what {len(panel)} trainers learn from {data.method}-locked images"
    run.figure("audit", plots.grouped_bars, panel, bars, title=title)


if __name__ == "__main__":
    audit.main()
