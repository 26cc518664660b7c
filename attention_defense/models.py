"""The classifiers that are attacked, analysed and explained."""

from pathlib import Path
from typing import TYPE_CHECKING

from attention_defense.pictures import PICTURE_FIELDS, Tested, TestedOptions
from attention_defense.train import train
from common.errors import UserError
from common.runs import Run, read_config, read_owner

if TYPE_CHECKING:
    import keras


def chosen(options: TestedOptions, tested: Tested, run: Run) -> "tuple[keras.Model, str]":
    """The classifier of `--model`, by default that of train.py, and what it is called in tables."""
    from common.models import IMAGENET

    if str(options.model) in IMAGENET:
        return load_classifier(options.model, tested), str(options.model)
    # A model that is named may have learnt elsewhere; one found by default must be that of these pictures.
    path = train.produce(options.model, options, PICTURE_FIELDS if options.model is None else (), say=run.say)
    return load_classifier(path, tested), label_of(path)


def load_classifier(path: Path, tested: Tested) -> "keras.Model":
    """The classifier in `path`: a .keras file, a run that holds `model.keras`, or the name of a network with ImageNet
    weights, which Keras downloads once.

    Errors: `UserError` for one that is not there, takes other pictures, or has other classes.
    """
    from common.checkpoints import check_pictures, load_model
    from common.models import IMAGENET, imagenet_classifier

    shape = tested.x.shape[1:]
    if str(path) in IMAGENET:
        model = imagenet_classifier(str(path), size=shape[0])
    else:
        file = path / "model.keras" if path.is_dir() else path
        model = load_model(file)
        if len(model.input_shape) != 4 or len(model.output_shape) != 2:
            raise UserError(f"{file}: maps {model.input_shape} to {model.output_shape}; expected a picture classifier")
        check_pictures(model, file, shape)
    classes = model.output_shape[1]
    if classes != len(tested.class_names):
        raise UserError(
            f"{path}: answers with {classes} classes, the pictures have {len(tested.class_names)}; give the model's"
            " list of classes by --class-list"
        )
    return model


def label_of(path: Path) -> str:
    """What a model is called in tables: the method of its run, else the name of its file or folder."""
    folder = path.parent if path.name == "model.keras" else path
    method = read_config(folder).get("method") if read_owner(folder) else None
    return str(method or folder.stem)
