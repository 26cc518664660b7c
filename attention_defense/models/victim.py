"""The classifiers that are attacked, analysed and explained."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from attention_defense.data.images import IMAGENET_NAMES, PICTURE_FIELDS, Tested, TestedOptions, check_tested
from attention_defense.train import train
from common.errors import UserError
from common.runs.model_input import check_input, is_run, look_at, reading
from common.runs.record import Run, read_config, read_owner

if TYPE_CHECKING:
    import keras

    from attention_defense.attacks.table import Training


_MORE = "give the model's list of classes by --class-list"


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
    from common import datasets
    from common.evaluation.classifiers import check_classes, load_classifier

    check_tested(options)
    check_input(options, [options.model, *others], IMAGENET_NAMES)
    for path in (*([] if options.model is None else [options.model]), *others):
        if str(path) in IMAGENET_NAMES:
            if options.class_list is None and options.dataset in datasets.NAMES:
                check_classes(path, 1000, datasets.class_count(options.dataset), _MORE)
            continue
        look_at(path, partial(load_classifier, path, **reading(options, path)))
        if maps and path == options.model and not is_run(path):
            _check_layer(load_classifier(path, **reading(options, path)), options, path)


def needs(options: TestedOptions) -> None:
    """What train.py would refuse, where it is to be run. Errors: as `Script.produce`."""
    if str(options.model) not in IMAGENET_NAMES:
        train.expect(*_needed(options))


def chosen(options: TestedOptions, tested: Tested, run: Run, *, maps: bool = True) -> Chosen:
    """The classifier of `--model`, by default that of train.py; one whose `maps` nobody asks for needs none.

    Errors: `UserError` for one that is not there, takes other pictures, has other classes or has not `--layer`; and for
    a run of train.py on the same data set with another seed, whose test pictures may have been trained on.
    """
    from attention_defense.attacks.table import Training
    from attention_defense.models.losses import Weights

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


def source_of(options: TestedOptions, path: Path, tested: Tested, run: Run) -> "keras.Model":
    """Another classifier of the same pictures. Errors: as `load_classifier`."""
    return load_classifier(path, tested, **_reading(options, path, run))


def load_classifier(path: Path, tested: Tested, **reading: Any) -> "keras.Model":
    """The classifier in `path`: a .keras file, a run that holds `model.keras`, or the name of a network with ImageNet
    weights, which Keras downloads once. `reading`: as `common.evaluation.classifiers.load_classifier`.

    Errors: `UserError` for one that is not there, takes other pictures, or has other classes.
    """
    from common.evaluation import classifiers
    from common.models import imagenet_classifier

    shape, classes = tested.x.shape[1:], len(tested.class_names)
    if str(path) in IMAGENET_NAMES:
        # Before anything is downloaded.
        classifiers.check_classes(path, 1000, classes, _MORE)
        if shape[0] != shape[1] or shape[2] != 3 or shape[0] < 75:
            raise UserError(
                f"{path}: takes square colour pictures of 75 pixels or more; give --image-size, such as 299"
            )
        return imagenet_classifier(str(path), size=shape[0])
    told = classifiers.class_count(classifiers.load_classifier(path, **reading))
    if told != classes:
        # It may have learnt elsewhere, and know the classes by the labels of the file.
        tested = tested.for_outputs(told)
        classes = len(tested.class_names)
    return classifiers.load_classifier(path, tested.x, tested.y, classes=classes, remedy=_MORE, **reading)


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


def _check_layer_untrained(planned: Any, options: TestedOptions, tested: Tested) -> None:
    """A layer that is none is refused before the network of `planned` is trained."""
    from attention_defense.models.grad_cam import Attention
    from attention_defense.models.networks import NETWORKS
    from common.models import build

    model = build(planned.arch, tested.x.shape[1:], len(tested.class_names), networks=NETWORKS)
    Attention(model, options.layer or planned.layer)


def _folder(path: Path) -> Path:
    """The run that a path names: the folder, or that of its `model.keras`."""
    return path.parent if path.name == "model.keras" else path
