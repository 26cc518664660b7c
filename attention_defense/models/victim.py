"""The classifiers that are attacked, analysed and explained."""

from pathlib import Path
from typing import Any

import keras

from attention_defense.data.images import TestSet
from common.errors import UserError
from common.evaluation import classifiers
from common.models import IMAGENET, imagenet_classifier

MORE = "give the model's list of classes by --class-list"


def load_classifier(path: Path, test_set: TestSet, **reading: Any) -> keras.Model:
    """The classifier in `path`: a .keras file, a run that holds `model.keras`, or the name of a network with ImageNet
    weights. `reading`: as `common.evaluation.classifiers.load_classifier`.

    Errors: `UserError` for one that is not there, takes other images, or has other classes.
    """
    shape, classes = test_set.x.shape[1:], len(test_set.class_names)
    if str(path) in IMAGENET:
        # Before anything is downloaded.
        classifiers.check_classes(path, 1000, classes, MORE)
        if shape[0] != shape[1] or shape[2] != 3:
            raise UserError(f"{path}: takes square colour images; give --image-size, such as 224")
        return imagenet_classifier(str(path), size=shape[0])
    told = classifiers.class_count(classifiers.load_classifier(path, **reading))
    if told != classes:
        # It may have learnt elsewhere, and know the classes by the labels of the file.
        test_set = test_set.for_outputs(told)
        classes = len(test_set.class_names)
    return classifiers.load_classifier(path, test_set.x, test_set.y, classes=classes, remedy=MORE, **reading)
