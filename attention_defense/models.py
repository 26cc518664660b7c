"""The classifiers that are attacked, analysed and explained."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from attention_defense.pictures import PICTURE_FIELDS, Tested, TestedOptions
from attention_defense.train import train
from common.errors import UserError, one_line
from common.runs import Run, read_config, read_owner

if TYPE_CHECKING:
    import keras

    from attention_defense.attacks import Training


class Chosen(NamedTuple):
    """A classifier, its name in tables, the layer to look at, and how it was trained as far as its run tells."""

    model: "keras.Model"
    name: str
    layer: str | None
    training: "Training"


def chosen(options: TestedOptions, tested: Tested, run: Run, *, maps: bool = True) -> Chosen:
    """The classifier of `--model`, by default that of train.py; one whose `maps` nobody asks for needs none.

    Errors: `UserError` for one that is not there, takes other pictures, has other classes or has not `--layer`; and for
    a run of train.py on the same data set with another seed, whose test pictures may have been trained on.
    """
    from attention_defense.attacks import Training
    from attention_defense.attention import Attention
    from attention_defense.losses import Weights
    from common.models import IMAGENET

    given, config = options.model, {}
    if str(given) not in IMAGENET:
        owned = given is not None and read_owner(_folder(given)) is not None
        elsewhere = given is not None and not (owned and read_config(_folder(given)).get("dataset") == options.dataset)
        given = train.produce(given, options, () if elsewhere else PICTURE_FIELDS, say=run.say)
        config = read_config(_folder(given)) if read_owner(_folder(given)) else {}
    model = load_classifier(given, tested)
    layer = options.layer or config.get("layer")
    if maps:
        Attention(model, layer)
    known = {name: config[name] for name in ("alpha", "beta", "gamma", "sharpness") if name in config}
    weights = Weights(
        *(known.get(name, default) for name, default in zip(("alpha", "beta", "gamma"), Weights(), strict=True))
    )
    training = Training(config.get("layer", layer), weights, known.get("sharpness", Training().sharpness))
    return Chosen(model, str(config.get("method") or (given.stem if given.suffix else given.name)), layer, training)


def load_classifier(path: Path, tested: Tested) -> "keras.Model":
    """The classifier in `path`: a .keras file, a run that holds `model.keras`, or the name of a network with ImageNet
    weights, which Keras downloads once.

    Errors: `UserError` for one that is not there, takes other pictures, or has other classes.
    """
    from common.attacks import check_logits
    from common.checkpoints import check_pictures, load_model
    from common.models import IMAGENET, imagenet_classifier
    from common.training import as_float

    shape = tested.x.shape[1:]
    if str(path) in IMAGENET:
        # Before anything is downloaded.
        _check_classes(path, 1000, tested)
        if shape[0] != shape[1] or shape[2] != 3 or shape[0] < 75:
            raise UserError(
                f"{path}: takes square colour pictures of 75 pixels or more; give --image-size, such as 299"
            )
        return imagenet_classifier(str(path), size=shape[0])
    file = path / "model.keras" if path.is_dir() else path
    model = load_model(file)
    if len(model.input_shape) != 4 or len(model.output_shape) != 2:
        raise UserError(f"{file}: maps {model.input_shape} to {model.output_shape}; expected a picture classifier")
    check_pictures(model, file, shape)
    try:
        _check_classes(file, check_logits(model, as_float(tested.x[:8])), tested)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{file}: {one_line(error)}") from error
    return model


def _check_classes(path: Path, classes: int, tested: Tested) -> None:
    if classes == len(tested.for_outputs(classes).class_names):
        return
    remedy = (
        "give the model's list of classes by --class-list"
        if classes > len(tested.class_names)
        else "a model that knows all of them is wanted"
    )
    raise UserError(f"{path}: tells {classes} classes apart, the pictures have {len(tested.class_names)}; {remedy}")


def _folder(path: Path) -> Path:
    """The run that a path names: the folder, or that of its `model.keras`."""
    return path.parent if path.name == "model.keras" else path
