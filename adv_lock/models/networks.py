"""The networks that only Adversarial Lock trains: pre-activation ResNets, DenseNets, VGGs and AlexNet for CIFAR.

Each takes images float32 (batch, height, width, channels) in [0, 1] and answers logits float32 (batch, classes).
Global average pooling replaces the originals' 8x8 pooling, so other image sizes work too.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack

import keras

from common import models
from common.errors import UserError
from common.models import Assembly, Builder, Setup, preactivation_block

# Channels and convolutions of the five stages, each closed by a pool (Simonyan & Zisserman 2015, table 1).
VGG_CHANNELS = (64, 128, 256, 512, 512)
VGG_CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def preresnet(
    depth: int,
    input_shape: Sequence[int],
    classes: int,
    **setup: Unpack[Setup],
) -> keras.Model:
    """Pre-activation residual network of depth 6n + 2 (He et al. 2016, "Identity Mappings", figure 4e).

    Three stages of n basic blocks with 16, 32 and 64 channels. As in the paper's code, the 1x1 shortcut reads the raw
    input of its block, before batch normalisation, and has none of its own.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise UserError(f"depth: expected 6n + 2 such as 20, 32, 44, 56 or 110, received {depth}")
    net = Assembly(f"preresnet{depth}", input_shape, classes, **setup)
    x = net.convolution(net.start, 16, 3, name="stem_conv")
    for stage, filters in enumerate((16, 32, 64), start=1):
        for block in range(1, blocks + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            x = preactivation_block(net, x, filters, strides, name=f"stage{stage}_block{block}")
    return net.classify(net.bn_relu(x, name="final"))


def densenet_bc(
    depth: int,
    growth: int,
    input_shape: Sequence[int],
    classes: int,
    **setup: Unpack[Setup],
) -> keras.Model:
    """DenseNet-BC of depth 6n + 4 (Huang et al. 2017, "Densely Connected Convolutional Networks", section 3).

    Three dense blocks of n bottlenecks (1x1 to 4 x `growth` channels, then 3x3 to `growth`); a first convolution of
    2 x `growth` channels; transitions that keep half the channels.
    """
    layers, rest = divmod(depth - 4, 6)
    if rest or layers < 1:
        raise UserError(f"depth: expected 6n + 4 such as 100 or 190, received {depth}")
    net = Assembly(f"densenet{depth}bc", input_shape, classes, **setup)
    x = net.convolution(net.start, 2 * growth, 3, name="stem_conv")
    for block in (1, 2, 3):
        for layer in range(1, layers + 1):
            x = _dense_layer(net, x, growth, name=f"block{block}_layer{layer}")
        if block < 3:
            name = f"transition{block}"
            x = net.convolution(net.bn_relu(x, name=name), x.shape[-1] // 2, 1, name=f"{name}_conv")
            x = keras.layers.AveragePooling2D(2, name=f"{name}_pool")(x)
    return net.classify(net.bn_relu(x, name="final"))


def vgg(
    depth: int,
    input_shape: Sequence[int],
    classes: int,
    **setup: Unpack[Setup],
) -> keras.Model:
    """VGG-11, 13, 16 or 19 with batch normalisation (Simonyan & Zisserman 2015, table 1: A, B, D, E).

    For CIFAR one dense layer (512 -> classes, standard deviation 0.01) replaces the three of the paper. Five pools
    need at least 32 x 32 pixels.
    """
    if depth not in VGG_CONVOLUTIONS:
        raise UserError(f"depth: expected one of {', '.join(map(str, VGG_CONVOLUTIONS))}, received {depth}")
    net = Assembly(f"vgg{depth}", input_shape, classes, **setup, smallest=32)
    x = net.start
    for stage, (filters, count) in enumerate(zip(VGG_CHANNELS, VGG_CONVOLUTIONS[depth], strict=True), start=1):
        for index in range(1, count + 1):
            x = net.convolution(x, filters, 3, name=f"stage{stage}_conv{index}")
            x = net.bn_relu(x, name=f"stage{stage}_{index}")
        x = keras.layers.MaxPooling2D(name=f"stage{stage}_pool")(x)
    return net.classify(x, stddev=0.01)


def alexnet(
    input_shape: Sequence[int],
    classes: int,
    **setup: Unpack[Setup],
) -> keras.Model:
    """AlexNet's five convolutions (Krizhevsky et al. 2012, section 3.5) as they are used on CIFAR.

    The paper's code has a configuration for it but no model; this is the usual adaptation: 2x2 pools, no local
    response normalisation, no dropout, one dense layer (256 -> classes, standard deviation 0.01). The stride of 4 and
    three pools need at least 29 x 29 pixels.
    """
    net = Assembly("alexnet", input_shape, classes, **setup, smallest=29)
    x = net.start
    for index, (filters, size, strides, pool) in enumerate(
        ((64, 11, 4, True), (192, 5, 1, True), (384, 3, 1, False), (256, 3, 1, False), (256, 3, 1, True)), start=1
    ):
        x = net.convolution(x, filters, size, strides=strides, bias=True, name=f"conv{index}")
        x = keras.layers.ReLU(name=f"relu{index}")(x)
        if pool:
            x = keras.layers.MaxPooling2D(name=f"pool{index}")(x)
    return net.classify(x, stddev=0.01)


def _dense_layer(net: Assembly, x: Any, growth: int, *, name: str) -> Any:
    """[x, conv3(relu(BN(conv1(relu(BN(x))))))]: `growth` channels more than x."""
    y = net.convolution(net.bn_relu(x, name=f"{name}_1"), 4 * growth, 1, name=f"{name}_conv1")
    y = net.convolution(net.bn_relu(y, name=f"{name}_2"), growth, 3, name=f"{name}_conv2")
    return keras.layers.Concatenate(name=f"{name}_concat")([x, y])


NETWORKS: dict[str, Builder] = {
    **models.NETWORKS,
    **{f"preresnet{depth}": partial(preresnet, depth) for depth in (20, 32, 44, 56, 110)},
    **{f"densenet{depth}bc": partial(densenet_bc, depth, growth) for depth, growth in ((100, 12), (190, 40))},
    **{f"vgg{depth}": partial(vgg, depth) for depth in VGG_CONVOLUTIONS},
    "alexnet": alexnet,
}
