"""Attack a classifier: by the gradients of its answer, and by those of its attention."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, get_args

from attention_defense.attacks.names import AttackName
from attention_defense.train import PICTURE_FIELDS, PictureOptions, load, train
from common.errors import UserError
from common.runs.model_input import InputOptions, check_input, is_run, look_at, reading
from common.runs.options import Budget, Count, LinfBudget, alias
from common.runs.record import Run, read_config, read_owner
from common.runs.script import script

if TYPE_CHECKING:
    import keras
    import numpy as np

    from attention_defense.attacks.table import Attack, Training
    from attention_defense.data.images import Tested

IMAGENET_NAMES = ("inception_v3", "resnet50")
"""Networks with published weights, as `common.models.IMAGENET` has them."""
# Of the others only rows are written; these are also the headline.
HEADLINE = ("fgsm", "step_ll", "pgd20", "attention")


@dataclass(kw_only=True)
class TestedOptions(InputOptions, PictureOptions):
    """Pictures to judge a model by; see also --n-test."""

    without: ClassVar[tuple[str, ...]] = ("strategy", "precision", "n_train")

    model: Path | None = alias(default=None, known=IMAGENET_NAMES)
    """Classifier: a .keras file, a run of train.py, inception_v3 or resnet50 (ImageNet weights, downloaded once); by
    default that of train.py, trained if need be."""
    class_list: Path | None = None
    """Text file with the classes of --model in its order, one folder name (ImageNet: wnid) a line; by default the
    folders of the data set, sorted."""
    boxes: Path | None = None
    """Folder of PASCAL VOC annotations, <picture's name>.xml, for the objects of an image folder."""
    layer: str | None = None
    """Layer whose attention is looked at; by default the last with a map of at least 7 x 7 cells."""
    batch_size: Count = 100
    """Pictures looked at or attacked at a time."""


@dataclass(kw_only=True)
class Options(TestedOptions):
    """Which attacks, how strong."""

    attack: tuple[AttackName, ...] = get_args(AttackName)
    """Attacks: fgsm, step_ll, r_step_ll, iter_ll, pgd20, margin20, pgd100, attention, displace, gated, adaptive; and
    noise, the control."""
    budgets: tuple[LinfBudget, ...] = (8 / 255,)
    """Radii of the attacks (L-inf), in [0, 1]; the first is the headline's. The paper's 0.15 on [-1, 1] is
    19.125/255."""
    curve: tuple[LinfBudget, ...] = (1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255, 32 / 255, 1.0)
    """Radii at which PGD-20 is measured for the curve; without bound, at 1, nothing should stand."""
    n_strongest: Count = 200
    """Pictures for pgd100, adaptive and the curve, the first of --n-test."""
    source: Path | None = None
    """Another model, a .keras file: the pictures that PGD-20 makes for it are shown to --model too."""
    iou_key: Budget = 0.59513
    """gated: attacks while the attended areas overlap by more than this."""
    n_test: Count | None = 300
    """Number of test pictures; null takes all."""


class Chosen(NamedTuple):
    """A classifier, its name in tables, the layer to look at, and how it was trained as far as its run tells."""

    model: "keras.Model"
    name: str
    layer: str | None
    training: "Training"


def check_models(options: TestedOptions, *, maps: bool = True, others: Sequence[Path] = ()) -> None:
    """Refuse what can be refused before a picture is read or a model trained: files that `options` name, and models,
    `--model` and `others`, that are none; one that is looked at for `maps` has such layers.

    Errors: `UserError`, as `chosen` and `load_tested`.
    """
    from attention_defense.models.victim import MORE
    from common import datasets
    from common.evaluation.classifiers import check_classes, load_classifier

    check_tested(options)
    check_input(options, [options.model, *others], IMAGENET_NAMES)
    for path in (*([] if options.model is None else [options.model]), *others):
        if str(path) in IMAGENET_NAMES:
            if options.class_list is None and options.dataset in datasets.NAMES:
                check_classes(path, 1000, datasets.class_count(options.dataset), MORE)
            continue
        look_at(path, partial(load_classifier, path, **reading(options, path)))
        if maps and path == options.model and not is_run(path):
            _check_layer(load_classifier(path, **reading(options, path)), options, path)


def needs(options: TestedOptions) -> None:
    """What train.py would refuse, where it is to be run. Errors: as `Script.produce`."""
    if str(options.model) not in IMAGENET_NAMES:
        train.expect(*_needed(options))


def check_tested(options: TestedOptions) -> None:
    """Refuse what can be refused before a picture is read. Errors: as `load_tested`, and boxes that belong to none."""
    from common import datasets
    from common.files import read_lines

    if options.boxes is not None and (options.dataset in datasets.NAMES or not Path(options.dataset).is_dir()):
        raise UserError(f"--boxes: belong to an image folder; {options.dataset} is none")
    if options.class_list is not None:
        read_lines(options.class_list)


def load_tested(options: TestedOptions, run: Run) -> "Tested":
    """The test pictures with their objects, and labels in the order of the model's classes.

    Errors: `UserError` for a class that is not on the list, and a damaged annotation.
    """
    from attention_defense.data.images import boxed, tested_of

    check_tested(options)
    # Nothing is learnt here, and of a folder only the pictures that are judged need be read.
    data = load(options, run, n_train=1)
    masks = None
    if options.boxes is not None:
        size = data.x_test.shape[1:3]
        masks = boxed(options.dataset, options.boxes, seed=options.seed, n_test=options.n_test, size=size)
    return tested_of(data, class_list=options.class_list, masks=masks)


def chosen(options: TestedOptions, tested: "Tested", run: Run, *, maps: bool = True) -> Chosen:
    """The classifier of `--model`, by default that of train.py; one whose `maps` nobody asks for needs none.

    Errors: `UserError` for one that is not there, takes other pictures, has other classes or has not `--layer`; and for
    a run of train.py on the same data set with another seed, whose test pictures may have been trained on.
    """
    from attention_defense.attacks.table import Training
    from attention_defense.models.losses import Weights
    from attention_defense.models.victim import load_classifier

    given, config = options.model, {}
    if str(given) not in IMAGENET_NAMES:
        if maps and (planned := train.planned(*_needed(options))) is not None:
            _check_layer_untrained(planned, options, tested)
        given = train.produce(*_needed(options), say=run.say)
        config = _config(given)
    model = load_classifier(given, tested, **_reading(options, given, run))
    layer = options.layer or config.get("layer")
    if maps:
        _check_layer(model, options, given)
    known = {name: config[name] for name in ("alpha", "beta", "gamma", "sharpness") if name in config}
    weights = Weights(
        *(known.get(name, default) for name, default in zip(("alpha", "beta", "gamma"), Weights(), strict=True))
    )
    training = Training(config.get("layer", layer), weights, known.get("sharpness", Training().sharpness))
    return Chosen(model, str(config.get("method") or (given.stem if given.suffix else given.name)), layer, training)


def source_of(options: TestedOptions, path: Path, tested: "Tested", run: Run) -> "keras.Model":
    """Another classifier of the same pictures. Errors: as `load_classifier`."""
    from attention_defense.models.victim import load_classifier

    return load_classifier(path, tested, **_reading(options, path, run))


def _reading(options: TestedOptions, path: Path, run: Run) -> dict[str, Any]:
    return {} if str(path) in IMAGENET_NAMES else {**reading(options, path), "say": run.say}


def _needed(options: TestedOptions) -> tuple[Path | None, TestedOptions, Sequence[str]]:
    """Arguments of `train.produce`: `--model`, and what a run of train.py must have in common with this one, nothing if
    it is on other data."""
    given = options.model
    owned = given is not None and read_owner(_folder(given)) is not None
    elsewhere = given is not None and not (owned and read_config(_folder(given)).get("dataset") == options.dataset)
    return given, options, () if elsewhere else PICTURE_FIELDS


def _config(path: Path) -> dict[str, Any]:
    return read_config(_folder(path)) if read_owner(_folder(path)) else {}


def _check_layer(model: "keras.Model", options: TestedOptions, path: Path) -> None:
    from attention_defense.models.grad_cam import Attention

    Attention(model, options.layer or _config(path).get("layer"))


def _check_layer_untrained(planned: Any, options: TestedOptions, tested: "Tested") -> None:
    """A layer that is none is refused before the network of `planned` is trained."""
    from attention_defense.models.grad_cam import Attention
    from attention_defense.models.networks import NETWORKS
    from common.models import build

    model = build(planned.arch, tested.x.shape[1:], len(tested.class_names), networks=NETWORKS)
    Attention(model, options.layer or planned.layer)


def _folder(path: Path) -> Path:
    """The run that a path names: the folder, or that of its `model.keras`."""
    return path.parent if path.name == "model.keras" else path


def refusals(options: Options) -> None:
    """What is refused before anything is read or trained."""
    from attention_defense.attacks.table import whole_levels

    for eps in (*options.budgets, *options.curve):
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

    from attention_defense.evaluation import figures
    from common.arrays import as_float
    from common.evaluation.classifiers import class_count

    tested = load_tested(options, run)
    # It was named; the other one may be trained first.
    source = None if options.source is None else source_of(options, options.source, tested, run)
    model = chosen(options, tested, run, maps=_looks(options))
    told = class_count(model.model)
    if source is not None and class_count(source) != told:
        raise UserError(f"--source: tells {class_count(source)} classes apart, the model {told}; give one of the same")
    tested = tested.for_outputs(told)
    judged = Judged(options, run, model, np.asarray(as_float(tested.x)), tested.y)
    for eps in dict.fromkeys(options.budgets):
        for kind in dict.fromkeys(options.attack):
            judged.by(kind, eps)
        if source is not None:
            judged.transferred(source, eps)
        judged.by_all(eps)
    figures.budget_curves({model.name: judged.curve()}, run.folder / "curve.png", title=f"PGD-20 on {model.name}")
    run.artifact("curve", run.folder / "curve.png")


class Judged:
    """One model under one attack after the other, on the same pictures `x` float32 (N, H, W, C), `y` int32 (N,)."""

    def __init__(self, options: Options, run: Run, chosen: "Chosen", x: "np.ndarray", y: "np.ndarray") -> None:
        import numpy as np

        from common.evaluation.predictions import predict
        from common.evaluation.robustness import gradient_rows

        self.options, self.run, self.chosen, self.x, self.y = options, run, chosen, x, y
        self.right = predict(chosen.model, x, batch_size=options.batch_size, progress=True) == y
        self.standing: dict[tuple[str, float], np.ndarray] = {}
        self._rate("clean_accuracy", self.right, split="attacked")
        self._rate("constant_accuracy", y == np.bincount(y).argmax(), split="attacked")
        run.metrics(clean_accuracy=float(self.right.mean()), clean_accuracy_n=len(y))
        # Where the loss has no gradient at all, attacks that follow it are blind; where it is infinite, they see badly.
        slopes = gradient_rows(chosen.model, x, y, batch_size=options.batch_size, progress=True)
        self._rate("zero_gradient", slopes.zero, split="attacked")
        self._rate("infinite_gradient", slopes.infinite, split="attacked")

    def by(self, kind: str, eps: float) -> None:
        """Accuracy, and success among what was right, under the attack `kind`."""
        count = self.few if kind in ("pgd100", "adaptive") else len(self.y)
        self.standing[kind, eps] = held = self._robust(self._attack(kind, eps), count, kind, eps)
        self._write(kind, eps, held, self.right[:count])

    def by_all(self, eps: float) -> None:
        """What is left by all attacks together, on the pictures that all were tried on."""
        tried = [held for (kind, other), held in self.standing.items() if other == eps and kind != "noise"]
        if len(tried) > 1:
            count = min(map(len, tried))
            held = self.right[:count].copy()
            for one in tried:
                held &= one[:count]
            self._write("all", eps, held, self.right[:count])
            # Dear attacks met fewer pictures: the others are also compared on what all of them met.
            for (kind, other), one in self.standing.items():
                if other == eps and count < len(self.y):
                    columns = {"attack": kind, "norm": "linf", "eps": eps, "split": "test"}
                    self._rate("accuracy_common", one[:count], **columns)

    def transferred(self, source: "keras.Model", eps: float) -> None:
        """Accuracy on what PGD-20 makes for another model."""
        from attention_defense.attacks import table

        # All steps: pictures that had just crossed the border of their own model would cross no other's.
        attack = table.named("pgd20", source, eps=eps, seed=self.options.seed)
        self.standing["transfer", eps] = held = self._robust(attack, len(self.y), "transfer", eps)
        self._write("transfer", eps, held, self.right)

    def curve(self) -> dict[float, float]:
        """Accuracy under PGD-20 by budget."""
        found = {}
        for eps in (0.0, *dict.fromkeys(self.options.curve)):
            held = self.right[: self.few]
            if eps:
                held = self._robust(self._attack("pgd20", eps), self.few, "pgd20", eps)
            self._rate("accuracy", held, attack="pgd20", norm="linf", eps=eps, split="curve")
            found[eps] = float(held.mean())
        return found

    @property
    def few(self) -> int:
        """Pictures for what takes long."""
        return min(self.options.n_strongest, len(self.y))

    def _attack(self, kind: str, eps: float, *, stop: bool = True) -> "Attack":
        from attention_defense.attacks import table

        model, _, layer, training = self.chosen
        seed, key = self.options.seed, self.options.iou_key
        # Only success counts here.
        return table.named(kind, model, eps=eps, stop=stop, layer=layer, training=training, iou_key=key, seed=seed)

    def _robust(self, attack: "Attack", count: int, kind: str, eps: float) -> "np.ndarray":
        import numpy as np

        from attention_defense.attacks.table import STOPPING
        from common.evaluation.predictions import predict
        from common.evaluation.quality import rounded
        from common.evaluation.robustness import attacked

        self.run.say(f"{kind}, eps {255 * eps:.5g}/255, {count} pictures")
        x, y = self.x[:count], self.y[:count]
        shown = {"batch_size": self.options.batch_size, "progress": True}
        moved = attacked(attack, x, y, eight_bit=False, **shown)
        held = self.right[:count] & (predict(self.chosen.model, rounded(moved), **shown) == y)
        if kind in STOPPING:
            # Rounding may take a picture back over the border at which it stopped: such a one takes all steps.
            back = np.flatnonzero(held & (predict(self.chosen.model, moved, **shown) != y))
            if len(back):
                further = attacked(self._attack(kind, eps, stop=False), x[back], y[back], **shown)
                held[back] = predict(self.chosen.model, further, **shown) == y[back]
        return held

    def _write(self, kind: str, eps: float, held: "np.ndarray", right: "np.ndarray") -> None:
        columns = {"attack": kind, "norm": "linf", "eps": eps, "split": "test"}
        self._rate("accuracy", held, **columns)
        if right.any():
            self._rate("success", ~held[right], **columns)
        if eps == self.options.budgets[0] and (kind in HEADLINE or kind == "all"):
            self.run.metrics(**{f"accuracy_{kind}": float(held.mean()), f"accuracy_{kind}_n": len(held)})

    def _rate(self, metric: str, hit: "np.ndarray", **columns) -> None:
        self.run.rate(metric, float(hit.mean()), len(hit), model=self.chosen.name, **columns)


if __name__ == "__main__":
    attack.main()
