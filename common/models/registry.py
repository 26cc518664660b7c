"""Networks by name."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import keras

from common.errors import UserError
from common.models import efficientnet
from common.models.backbones import cifar_resnet, imagenet_resnet, small_cnn

# (input_shape, classes, *, mean=None, std=None, seed=0) -> keras.Model
Builder = Callable[..., keras.Model]

NETWORKS: dict[str, Builder] = {
    "small_cnn": small_cnn,
    **{f"resnet{depth}": partial(cifar_resnet, depth) for depth in (20, 32, 44, 56, 110)},
    **{f"resnet{depth}": partial(imagenet_resnet, depth) for depth in (18, 50)},
    efficientnet.NAME: efficientnet.efficientnet_lite0_tuned,
}


def build(
    name: str,
    input_shape: Sequence[int],
    classes: int,
    *,
    networks: Mapping[str, Builder] = NETWORKS,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
) -> keras.Model:
    """The network called `name`: images float32 (batch, *input_shape) in [0, 1] -> logits float32 (batch, classes).

    `mean` and `std`, one value per channel in units of [0, 1], become a normalisation layer inside the model; one with
    ImageNet weights has its own. The same `seed` gives bit-equal weights. An app adds its own networks with
    `networks={**NETWORKS, "name": builder}`.

    Errors: `UserError` for a name that is not in `networks`, a shape the network cannot take, and weights that are not
    installed.
    """
    check_name(name, networks)
    return networks[name](input_shape, classes, mean=mean, std=std, seed=seed)


def check_name(name: str, networks: Mapping[str, Builder] = NETWORKS) -> None:
    """Errors: `UserError` for a name that is not in `networks`, and for weights that are not installed."""
    if name not in networks:
        raise UserError(f"network {name!r}: unknown; choose one of {', '.join(networks)}")
    if networks[name] is efficientnet.efficientnet_lite0_tuned:
        efficientnet.weights_file()
