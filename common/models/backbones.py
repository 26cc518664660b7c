"""Image classifiers that several papers share.

Each takes images float32 (batch, height, width, channels) in [0, 1] and answers logits float32 (batch, classes).
"""

from collections.abc import Sequence
from typing import Any, Unpack

import keras

from common.errors import UserError
from common.models.builder import Assembly, Setup


def small_cnn(
    input_shape: Sequence[int],
    classes: int,
    *,
    width: int = 16,
    blocks: int = 3,
    **setup: Unpack[Setup],
) -> keras.Model:
    """The demos' network: per block two 3x3 convolutions each normalised and rectified, and a 2x2 pool.

    Block i = 1, 2, ... has `width` x 2^(i - 1) channels. Each block halves the image, which must be at least
    2^`blocks` pixels wide and high.
    """
    if width < 1 or blocks < 1:
        raise UserError(f"width, blocks: expected at least 1 each, received {width} and {blocks}")
    net = Assembly("small_cnn", input_shape, classes, **setup, smallest=max(8, 2**blocks))
    x = net.start
    for block in range(1, blocks + 1):
        name, filters = f"block{block}", width * 2 ** (block - 1)
        x = net.bn_relu(net.convolution(x, filters, 3, name=f"{name}_conv1"), name=f"{name}_1")
        x = net.convolution(x, filters, 3, name=f"{name}_conv2")
        # Pooled before it is normalised, an image has a quarter of the positions: a faster training step on a CPU.
        x = net.bn_relu(keras.layers.MaxPooling2D(name=f"{name}_pool")(x), name=f"{name}_2")
    return net.classify(x)


def cifar_resnet(
    depth: int,
    input_shape: Sequence[int],
    classes: int,
    **setup: Unpack[Setup],
) -> keras.Model:
    """Thin residual network for small images, depth 6n + 2 (He et al. 2016, "Deep Residual Learning", section 4.2).

    Three stages of n basic blocks with 16, 32 and 64 channels; shortcuts of option B (a 1x1 projection where the shape
    changes, identity elsewhere).
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise UserError(f"depth: expected 6n + 2 such as 20, 32, 44, 56 or 110, received {depth}")
    net = Assembly(f"resnet{depth}", input_shape, classes, **setup)
    x = net.bn_relu(net.convolution(net.start, 16, 3, name="stem_conv"), name="stem")
    for stage, filters in enumerate((16, 32, 64), start=1):
        for block in range(1, blocks + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            x = _basic_block(net, x, filters, strides, name=f"stage{stage}_block{block}")
    return net.classify(x)


def imagenet_resnet(
    depth: int,
    input_shape: Sequence[int],
    classes: int,
    **setup: Unpack[Setup],
) -> keras.Model:
    """ResNet-18 or ResNet-50 (He et al. 2016, table 1) with the stem that small images need: 3x3, stride 1, no pool.

    Stages of 64, 128, 256 and 512 channels, of basic blocks (18) or of bottlenecks with four times the channels (50).
    """
    block_of = {18: (_basic_block, (2, 2, 2, 2)), 50: (_bottleneck, (3, 4, 6, 3))}
    if depth not in block_of:
        raise UserError(f"depth: expected one of {', '.join(map(str, block_of))}, received {depth}")
    add_block, blocks = block_of[depth]
    net = Assembly(f"resnet{depth}", input_shape, classes, **setup)
    x = net.bn_relu(net.convolution(net.start, 64, 3, name="stem_conv"), name="stem")
    for stage, (filters, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True), start=1):
        for block in range(1, count + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            x = add_block(net, x, filters, strides, name=f"stage{stage}_block{block}")
    return net.classify(x)


def _basic_block(net: Assembly, x: Any, filters: int, strides: int, *, name: str) -> Any:
    """relu(shortcut(x) + BN(conv3(relu(BN(conv3(x))))))."""
    y = net.bn_relu(net.convolution(x, filters, 3, strides=strides, name=f"{name}_conv1"), name=f"{name}_1")
    y = net.normalise(net.convolution(y, filters, 3, name=f"{name}_conv2"), name=f"{name}_2_bn")
    return _add(net, x, y, strides, name=name)


def preactivation_block(net: Assembly, x: Any, filters: int, strides: int, *, name: str) -> Any:
    """shortcut(x) + conv3(relu(BN(conv3(relu(BN(x)))))) (He et al. 2016, "Identity Mappings", figure 4e); where the
    shape changes the shortcut is a 1x1 convolution of the raw input."""
    y = net.convolution(net.bn_relu(x, name=f"{name}_1"), filters, 3, strides=strides, name=f"{name}_conv1")
    y = net.convolution(net.bn_relu(y, name=f"{name}_2"), filters, 3, name=f"{name}_conv2")
    if strides > 1 or x.shape[-1] != filters:
        x = net.convolution(x, filters, 1, strides=strides, name=f"{name}_shortcut_conv")
    return keras.layers.Add(name=f"{name}_add")([x, y])


def _bottleneck(net: Assembly, x: Any, filters: int, strides: int, *, name: str) -> Any:
    """relu(shortcut(x) + BN(conv1(relu(BN(conv3(relu(BN(conv1(x))))))))), the stride in the 3x3 convolution."""
    y = net.bn_relu(net.convolution(x, filters, 1, name=f"{name}_conv1"), name=f"{name}_1")
    y = net.bn_relu(net.convolution(y, filters, 3, strides=strides, name=f"{name}_conv2"), name=f"{name}_2")
    y = net.normalise(net.convolution(y, 4 * filters, 1, name=f"{name}_conv3"), name=f"{name}_3_bn")
    return _add(net, x, y, strides, name=name)


def _add(net: Assembly, x: Any, y: Any, strides: int, *, name: str) -> Any:
    if strides > 1 or x.shape[-1] != y.shape[-1]:
        x = net.convolution(x, y.shape[-1], 1, strides=strides, name=f"{name}_shortcut_conv")
        x = net.normalise(x, name=f"{name}_shortcut_bn")
    return keras.layers.ReLU(name=f"{name}_relu")(keras.layers.Add(name=f"{name}_add")([x, y]))
