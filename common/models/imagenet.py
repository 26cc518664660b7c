"""Networks with ImageNet weights, their preprocessing inside: images in [0, 1] -> 1000 logits."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from common.errors import UserError, one_line
from common.models import efficientnet
from common.progress import log

_PACKAGE = "common"


@keras.saving.register_keras_serializable(_PACKAGE)
class CaffePreprocessing(keras.layers.Layer):
    """Images (B, H, W, 3), RGB in [0, 1], as the ImageNet weights of ResNet50 want them: BGR in 0..255, less the mean
    of ImageNet."""

    def call(self, images):
        return keras.ops.flip(images * 255.0, axis=-1) - keras.ops.convert_to_tensor((103.939, 116.779, 123.68))

    def compute_output_shape(self, shape):
        return shape


class Published(NamedTuple):
    """A network with published weights: how it is made, the layer that prepares images for it, the least side of an
    image in pixels, and whether Keras downloads its weights."""

    application: Callable[..., keras.Model]
    layer: type[keras.layers.Layer]
    arguments: dict[str, Any]
    smallest: int = 32
    downloaded: bool = True


IMAGENET = {
    "resnet50": Published(keras.applications.ResNet50, CaffePreprocessing, {}),
    "inception_v3": Published(
        keras.applications.InceptionV3, keras.layers.Rescaling, {"scale": 2.0, "offset": -1.0}, 75
    ),
    efficientnet.NAME: Published(
        efficientnet.efficientnet_lite0,
        keras.layers.Rescaling,
        efficientnet.PREPROCESSING,
        efficientnet.SMALLEST,
        downloaded=False,
    ),
}
"""By name."""


def imagenet_classifier(name: str, *, size: int, weights: Path | str | None = "imagenet") -> keras.Model:
    """The network `name` of `IMAGENET`: images (B, size, size, 3), RGB in [0, 1] -> 1000 logits.

    `weights`: "imagenet", which Keras downloads once and a package has for EfficientNet-Lite0; or a file of weights; or
    None.

    Errors: `UserError` when weights cannot be had, and for images that are too small.
    """
    application, layer, arguments, smallest, downloaded = IMAGENET[name]
    if size < smallest:
        raise UserError(f"{name}: takes images of {smallest} pixels or more, these have {size}; give --image-size")
    images = keras.Input((size, size, 3), name="images")
    if weights == "imagenet" and downloaded:
        log(f"{name}: ImageNet weights, which Keras downloads unless it has them (about 100 MB)")
    try:
        with _without_bar():
            network = application(
                weights=weights,
                input_tensor=layer(**arguments, name="preprocessing")(images),
                classifier_activation=None,
            )
    except UserError:
        raise
    except Exception as error:  # a bare one for a download that failed, ValueError for a file that does not do
        raise UserError(
            f"{name}: weights {weights} cannot be downloaded ({one_line(error)}); download them where there is a"
            " network, or name a .keras file by --model"
        ) from error
    return keras.Model(images, network.output, name=name)


def imagenet_names() -> tuple[str, ...]:
    """The 1000 classes of ImageNet; their numbers where Keras cannot get its list of names."""
    try:
        with _without_bar():
            decoded = keras.applications.resnet50.decode_predictions(np.eye(1000, dtype=np.float32), top=1)
    except Exception:  # a bare one for a download that failed
        return tuple(map(str, range(1000)))
    return tuple(name for ((_, name, _),) in decoded)


@contextlib.contextmanager
def _without_bar() -> Iterator[None]:
    """Keras's own bar takes every file for a terminal, and would fill logs with control characters."""
    shown = keras.config.is_interactive_logging_enabled()
    keras.config.disable_interactive_logging()
    try:
        yield
    finally:
        if shown:
            keras.config.enable_interactive_logging()
