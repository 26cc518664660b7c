"""Attack a classifier by gradients of its loss and of its attention maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from attention_defense.attacks.names import AttackName
from attention_defense.train import IMAGE_FIELDS, ImageOptions, load, train
from common.errors import UserError
from common.runs.model_input import IMAGENET_NAMES, InputOptions, check_input, is_run, look_at, reading
from common.runs.options import Budget, Count, LinfBudget, ScriptOptions, option
from common.runs.record import Run, read_config, read_owner
from common.runs.script import script

if TYPE_CHECKING:
    import keras
    import numpy as np

    from attention_defense.attacks.table import Training
    from attention_defense.data.images import TestSet
    from common.evaluation.robustness import Entry, Evaluation
    from common.evaluation.statistics import Estimate

# Of the others only rows are written; these are also the headline.
HEADLINE = ("fgsm", "step_ll", "pgd20", "attention")


@dataclass(kw_only=True)
class VictimOptions(InputOptions, ImageOptions, ScriptOptions):
    """Model under attack and test images; see also --n-test."""

    model: Path | None = option(None, known=IMAGENET_NAMES)
    """Classifier: a .keras file, a run of train.py, inception_v3 or resnet50 (ImageNet weights, downloaded once) or
    efficientnet_lite0 (installed); by default that of train.py, trained if need be."""
    class_list: Path | None = None
    """Text file with the classes of --model in its order, one folder name (ImageNet: wnid) a line; by default the
    folders of the data set, sorted."""
    boxes: Path | None = None
    """Folder of PASCAL VOC annotations, <image's name>.xml, for the objects of an image folder."""
    layer: str | None = None
    """Layer whose attention is computed; by default the last with a map of at least 7 x 7 cells."""
    batch_size: Count = 100
    """Images per batch."""


@dataclass(kw_only=True)
class Options(VictimOptions):
    """Which attacks, how strong."""

    attack: tuple[AttackName, ...] = tuple(name for name in get_args(AttackName) if name != "autoattack")
    """Attacks: fgsm, step_ll, r_step_ll, iter_ll, pgd20, margin20, pgd100, attention, displace, gated, adaptive,
    autoattack_fast; noise, the control; and, if it is named, autoattack in full."""
    eps: tuple[LinfBudget, ...] = option((8 / 255,), "budgets")
    """Radii of the attacks (L-inf), in [0, 1]; the first is the headline's. The paper's 0.15 on [-1, 1] is
    19.125/255."""
    curve: tuple[LinfBudget, ...] = (1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255, 32 / 255, 1.0)
    """Radii at which PGD-20 is measured for the curve; at 1, without a bound, accuracy should be 0."""
    n_slow: Count = option(200, "n_strongest")
    """Images for pgd100, adaptive, AutoAttack and the curve, the first of --n-test."""
    source: Path | None = None
    """Surrogate model, a .keras file: its PGD-20 examples are transferred to --model."""
    iou_key: Budget = 0.59513
    """gated: attacks while the IoU of the attended areas is above this."""
    n_test: Count | None = 300
    """Number of test images; null takes all."""


class Victim(NamedTuple):
    """A classifier, its name in tables, the layer to look at, and how it was trained as far as its run tells."""

    model: "keras.Model"
    name: str
    layer: str | None
    training: "Training"


def check_models(options: VictimOptions, *, maps: bool = True, others: Sequence[Path] = ()) -> None:
    """Refuse what can be refused before an image is read or a model trained: files that `options` name, and models,
    `--model` and `others`, that are none; one that is looked at for `maps` has such layers.

    Errors: `UserError`, as `load_victim` and `load_test_set`.
    """
    from attention_defense.models.victim import MORE
    from common import datasets
    from common.evaluation.classifiers import check_classes, load_classifier

    check_test_set(options)
    check_input(options, [options.model, *others], IMAGENET_NAMES)
    for path in (*([] if options.model is None else [options.model]), *others):
        if str(path) in IMAGENET_NAMES:
            if options.class_list is None and options.dataset in datasets.NAMES:
                check_classes(path, 1000, datasets.class_count(options.dataset), MORE)
            continue
        look_at(path, partial(load_classifier, path, **reading(options, path)))
        if maps and path == options.model and not is_run(path):
            _check_layer(load_classifier(path, **reading(options, path)), options, path)


def needs(options: VictimOptions) -> None:
    """What train.py would refuse, where it is to be run. Errors: as `Script.require`."""
    if str(options.model) not in IMAGENET_NAMES:
        train.expect(*_needed(options))


def check_test_set(options: VictimOptions) -> None:
    """Refuse what can be refused before an image is read. Errors: as `load_test_set`, and boxes that belong to none."""
    from common import datasets
    from common.files import read_lines

    if options.boxes is not None and (options.dataset in datasets.NAMES or not Path(options.dataset).is_dir()):
        raise UserError(f"--boxes: are for an image folder; {options.dataset} is not one")
    if options.class_list is not None:
        read_lines(options.class_list)


def load_test_set(options: VictimOptions, run: Run) -> "TestSet":
    """The test images with their objects, and labels in the order of the model's classes.

    Errors: `UserError` for a class that is not on the list, and a damaged annotation.
    """
    from attention_defense.data.images import boxed, make_test_set

    check_test_set(options)
    # Nothing is learnt here, and of a folder only the images that are judged need be read.
    data = load(options, run, n_train=1, n_test=options.n_test)
    masks = None
    if options.boxes is not None:
        size = data.x_test.shape[1:3]
        masks = boxed(options.dataset, options.boxes, seed=options.seed, n_test=options.n_test, size=size)
    return make_test_set(data, class_list=options.class_list, masks=masks)


def load_victim(options: VictimOptions, test_set: "TestSet", run: Run, *, maps: bool = True) -> Victim:
    """The classifier of `--model`, by default that of train.py; `maps=False` skips the check for a convolutional layer.

    Errors: `UserError` for one that is not there, takes other images, has other classes or has not `--layer`; and for
    a run of train.py on the same data set with another seed, whose test images may have been trained on.
    """
    from attention_defense.attacks.table import Training
    from attention_defense.models.losses import Weights
    from attention_defense.models.victim import load_classifier

    given, config = options.model, {}
    if str(given) not in IMAGENET_NAMES:
        if maps and (planned := train.planned(*_needed(options))) is not None:
            _check_layer_untrained(planned, options, test_set)
        given = run.require(train, *_needed(options))
        config = _config(given)
    model = load_classifier(given, test_set, **_reading(options, given, run))
    layer = options.layer or config.get("layer")
    if maps:
        _check_layer(model, options, given)
    known = {name: config[name] for name in ("alpha", "beta", "gamma", "sharpness") if name in config}
    weights = Weights(
        *(known.get(name, default) for name, default in zip(("alpha", "beta", "gamma"), Weights(), strict=True))
    )
    training = Training(config.get("layer", layer), weights, known.get("sharpness", Training().sharpness))
    return Victim(model, str(config.get("method") or (given.stem if given.suffix else given.name)), layer, training)


def source_of(options: VictimOptions, path: Path, test_set: "TestSet", run: Run) -> "keras.Model":
    """Another classifier of the same images. Errors: as `load_classifier`."""
    from attention_defense.models.victim import load_classifier

    return load_classifier(path, test_set, **_reading(options, path, run))


def _reading(options: VictimOptions, path: Path, run: Run) -> dict[str, Any]:
    return {} if str(path) in IMAGENET_NAMES else {**reading(options, path), "log": run.log}


def _needed(options: VictimOptions) -> tuple[Path | None, VictimOptions, Sequence[str]]:
    """Arguments of `train.require`: `--model`, and what a run of train.py must have in common with this one, nothing if
    it is on other data."""
    given = options.model
    owned = given is not None and read_owner(_folder(given)) is not None
    elsewhere = given is not None and not (owned and read_config(_folder(given)).get("dataset") == options.dataset)
    return given, options, () if elsewhere else IMAGE_FIELDS


def _config(path: Path) -> dict[str, Any]:
    return read_config(_folder(path)) if read_owner(_folder(path)) else {}


def _check_layer(model: "keras.Model", options: VictimOptions, path: Path) -> None:
    from attention_defense.models.grad_cam import Attention

    Attention(model, options.layer or _config(path).get("layer"))


def _check_layer_untrained(planned: Any, options: VictimOptions, test_set: "TestSet") -> None:
    """A layer that is none is refused before the network of `planned` is trained."""
    from attention_defense.models.grad_cam import Attention
    from attention_defense.models.networks import NETWORKS
    from common.models import build

    model = build(planned.arch, test_set.x.shape[1:], len(test_set.class_names), networks=NETWORKS)
    Attention(model, options.layer or planned.layer)


def _folder(path: Path) -> Path:
    """The run that a path names: the folder, or that of its `model.keras`."""
    return path.parent if path.name == "model.keras" else path


def refusals(options: Options) -> None:
    """What is refused before anything is read or trained."""
    from common.evaluation.quality import whole_levels

    for eps in (*options.eps, *options.curve):
        whole_levels(eps)
    check_models(options, maps=_looks(options), others=[] if options.source is None else [options.source])


def _looks(options: Options) -> bool:
    """Whether attention is looked at."""
    from attention_defense.attacks.attention import KINDS

    return options.layer is not None or not set(KINDS).isdisjoint(options.attack)


@script(app="attention_defense", name="attack", refusals=refusals, needs=needs)
def attack(options: Options, run: Run) -> None:
    """Accuracy under every attack, what all of them leave, and accuracy against the budget."""
    import numpy as np

    from common.arrays import as_float
    from common.evaluation import plots
    from common.evaluation.classifiers import class_count

    test_set = load_test_set(options, run)
    # It was named; the other one may be trained first.
    source = None if options.source is None else source_of(options, options.source, test_set, run)
    model = load_victim(options, test_set, run, maps=_looks(options))
    told = class_count(model.model)
    if source is not None and class_count(source) != told:
        raise UserError(f"--source: has {class_count(source)} classes, the model {told}; give one of the same")
    test_set = test_set.for_outputs(told)
    x = np.asarray(as_float(test_set.x))
    evaluation = evaluate(options, run, model, x, test_set.y, source)
    write(options, run, model, evaluation)
    curve = budget_curve(options, run, model, x, test_set.y)
    run.figure("curve", plots.budget_curves, {model.name: curve}, title=f"PGD-20 on {model.name}")


def evaluate(
    options: Options,
    run: Run,
    victim: Victim,
    x: "np.ndarray",
    y: "np.ndarray",
    source: "keras.Model | None" = None,
) -> "Evaluation":
    """All attacks of `options` on `victim`, on images `x` float32 (N, H, W, C), `y` int32 (N,); with a `source` also
    the PGD-20 examples of that model."""
    from attention_defense.attacks import table
    from common.evaluation.robustness import Entry

    evaluation = _evaluation(options, run, victim, x, y)
    for eps in dict.fromkeys(options.eps):
        for name in dict.fromkeys(options.attack):
            evaluation.run(_entry(options, victim, name, eps))
        if source is not None:
            # All steps: images that had just crossed the border of their own model would cross no other's.
            evaluation.run(
                Entry(name="transfer", attack=table.make_attack("pgd20", source, eps=eps, seed=options.seed), eps=eps)
            )
    return evaluation


def budget_curve(
    options: Options, run: Run, victim: Victim, x: "np.ndarray", y: "np.ndarray"
) -> "dict[float, Estimate]":
    """Accuracy under PGD-20 by budget, on the first images, with its rows."""
    count = min(options.n_slow, len(y))
    evaluation = _evaluation(options, run, victim, x[:count], y[:count])
    for eps in dict.fromkeys(options.curve):
        evaluation.run(_entry(options, victim, "pgd20", eps))
    run.rate("accuracy", float(evaluation.before.mean()), count, attack="pgd20", eps=0.0, norm="linf", **_curve(victim))
    for row in evaluation.rows(lambda outcome: [("accuracy", outcome.rate(outcome.robust))]):
        run.row(**row, **_curve(victim))
    return evaluation.curve("pgd20")


def write(options: Options, run: Run, victim: Victim, evaluation: "Evaluation") -> None:
    """Rows and headline figures: of all attacks, of what they leave together, and of what needs none."""
    from common.evaluation.gradients import gradient_rows
    from common.evaluation.robustness import ALL, constant_answer

    x, y, _ = evaluation.examples
    # Where the loss has no gradient at all, attacks that follow it are blind; where it is infinite, they see badly.
    slopes = gradient_rows(victim.model, x, y, batch_size=options.batch_size, progress=True)
    bounds = {
        "clean_accuracy": evaluation.before,
        "constant_accuracy": constant_answer(y),
        "zero_gradient": slopes.zero,
        "infinite_gradient": slopes.infinite,
    }
    for metric, hits in bounds.items():
        run.rate(metric, float(hits.mean()), len(hits), model=victim.name, split="attacked")
    run.metrics(clean_accuracy=float(evaluation.before.mean()), clean_accuracy_n=len(y))
    for row in evaluation.rows():
        run.row(model=victim.name, split="test", **row)
        first = row["metric"] == "accuracy" and row["eps"] == options.eps[0]
        if first and row["attack"] in (*HEADLINE, ALL):
            name = f"accuracy_{row['attack']}"
            run.metrics(**{name: row["value"], f"{name}_n": row["n"]})


def _evaluation(options: Options, run: Run, victim: Victim, x: "np.ndarray", y: "np.ndarray") -> "Evaluation":
    from common.evaluation.robustness import of_classifier

    return of_classifier(victim.model, x, y, batch_size=options.batch_size, keep=False, progress=True, log=run.log)


def _entry(options: Options, victim: Victim, name: str, eps: float) -> "Entry":
    from attention_defense.attacks import table

    # Only success counts here.
    return table.entry(
        name,
        victim.model,
        eps=eps,
        n_dear=options.n_slow,
        stop=True,
        layer=victim.layer,
        training=victim.training,
        iou_key=options.iou_key,
        seed=options.seed,
    )


def _curve(victim: Victim) -> dict[str, str]:
    return {"model": victim.name, "split": "curve"}


if __name__ == "__main__":
    attack.main()
