"""The paper's network for small images, and those of `common.models`."""

from collections.abc import Sequence
from functools import partial
from typing import Unpack

import keras

from common.models import NETWORKS as SHARED
from common.models import Assembly, Setup


def cifarnet(
    input_shape: Sequence[int],
    classes: int,
    *,
    normalise: bool = False,
    width: int = 64,
    **setup: Unpack[Setup],
) -> keras.Model:
    """CifarNet: two 5x5 convolutions of `width` channels, each with a 2x2 pool, dense layers of 6 and 3 times `width`.

    With `normalise` the convolutions have batch normalisation in place of the original's local response normalisation,
    whose second derivative TensorFlow lacks; without, nothing. No dropout: it would hide the rectification term, which
    compares two passes, under its noise.
    """
    net = Assembly("cifarnet", input_shape, classes, **setup, smallest=8)
    x = net.start
    for block in (1, 2):
        x = net.convolution(x, width, 5, name=f"conv{block}", bias=not normalise)
        if normalise:
            x = net.normalise(x, name=f"bn{block}")
        x = keras.layers.ReLU(name=f"relu{block}")(x)
        x = keras.layers.MaxPooling2D(name=f"pool{block}")(x)
    x = keras.layers.Flatten(name="flat")(x)
    for place, units in enumerate((6 * width, 3 * width), start=1):
        x = keras.layers.ReLU(name=f"dense{place}_relu")(net.dense(x, units, name=f"dense{place}"))
    return keras.Model(net.images, net.dense(x, classes, name="logits", dtype="float32"), name=net.name)


NETWORKS = {
    "cifarnet": cifarnet,
    "cifarnet_bn": partial(cifarnet, normalise=True),
    **SHARED,
}
