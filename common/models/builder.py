"""The pieces every network here is put together from: seeded, named, pure Keras."""

import math
from collections.abc import Sequence
from typing import Any, TypedDict

import keras
import numpy as np

from common.errors import UserError


class Setup(TypedDict, total=False):
    """What every builder of a network hands to its `Assembly`: `mean` and `std` of the images, one value per channel in
    units of [0, 1], for a normalisation layer; and the `seed` of the initial weights, by default 0."""

    mean: Sequence[float] | None
    std: Sequence[float] | None
    seed: int


class Assembly:
    """A network under construction, from its images to its logits.

    `images` is the input (batch, height, width, channels), float32 in [0, 1]; `start` is what the first layer reads:
    the images, normalised when `mean` and `std` (one value per channel, in units of [0, 1]) are given.

    Every initialiser draws from `seed` and from its place in the network, so the same seed gives bit-equal weights on
    one backend and no global random state is read or changed. Convolutions are Kaiming-normal with the fan-out
    (He et al. 2015, section 2.2), batch normalisation starts at scale 1 and shift 0.

    Errors: `UserError` for images smaller than `smallest`, fewer than two classes, a negative seed, a mean
    without a standard deviation, or one that does not fit the channels.
    """

    def __init__(
        self,
        name: str,
        input_shape: Sequence[int],
        classes: int,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
        smallest: int = 8,
    ) -> None:
        _check_shape(name, input_shape, classes, smallest)
        if seed < 0:
            raise UserError(f"seed: expected a number from 0 on, received {seed}")
        self.name = name
        self.classes = classes
        self.images = keras.Input(tuple(input_shape), dtype="float32", name="images")
        self.start: Any = self.images
        self._seeds = np.random.default_rng(seed)
        if mean is not None or std is not None:
            mean, std = _checked_statistics(input_shape[-1], mean, std)
            # In bfloat16 a change of half a grey level would vanish before the mean is taken away.
            self.start = keras.layers.Normalization(
                mean=mean, variance=[s * s for s in std], dtype="float32", name="normalisation"
            )(self.images)

    def convolution(self, x: Any, filters: int, size: int, *, name: str, strides: int = 1, bias: bool = False) -> Any:
        """(batch, height, width, any) -> (batch, ceil(height / strides), ceil(width / strides), filters)."""
        return keras.layers.Conv2D(
            filters,
            size,
            strides=strides,
            # With strides this pads bottom and right first where PyTorch pads all sides alike: the sampling grid moves
            # by a pixel or two, and no padding layer has to run.
            padding="same",
            use_bias=bias,
            kernel_initializer=keras.initializers.VarianceScaling(
                2.0, "fan_out", "untruncated_normal", seed=self.seed()
            ),
            name=name,
        )(x)

    def normalise(self, x: Any, *, name: str) -> Any:
        """Batch normalisation over the channels; PyTorch's momentum 0.1 is Keras's 0.9."""
        return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)

    def bn_relu(self, x: Any, *, name: str) -> Any:
        """Batch normalisation `name`_bn, then rectification `name`_relu."""
        return keras.layers.ReLU(name=f"{name}_relu")(self.normalise(x, name=f"{name}_bn"))

    def classify(self, x: Any, *, stddev: float | None = None) -> keras.Model:
        """Close the network: average over positions (layer `features`), then a dense layer (`logits`, float32).

        The dense weights are normal with standard deviation `stddev`, or else PyTorch's default for linear layers,
        uniform in +-1/sqrt(inputs).
        """
        features = keras.layers.GlobalAveragePooling2D(name="features")(x)
        # Under mixed precision a half-precision loss would lose the small gradients an attack follows.
        logits = self.dense(features, self.classes, name="logits", stddev=stddev, dtype="float32")
        return keras.Model(self.images, logits, name=self.name)

    def dense(self, x: Any, units: int, *, name: str, stddev: float | None = None, dtype: str | None = None) -> Any:
        """(batch, any) -> (batch, units), with a bias; the weights' `stddev` as in `classify`."""
        seed = self.seed()
        initializer = (
            keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform", seed=seed)
            if stddev is None
            else keras.initializers.RandomNormal(stddev=stddev, seed=seed)
        )
        return keras.layers.Dense(units, kernel_initializer=initializer, dtype=dtype, name=name)(x)

    def seed(self) -> int:
        """The seed of the next layer that draws."""
        return int(self._seeds.integers(2**31))


def _check_shape(name: str, input_shape: Sequence[int], classes: int, smallest: int) -> None:
    if len(input_shape) != 3 or any(int(n) != n or n < 1 for n in input_shape):
        raise UserError(f"input_shape: expected (height, width, channels), received {tuple(input_shape)}")
    if classes < 2:
        raise UserError(f"classes: expected at least 2, received {classes}")
    height, width, _ = input_shape
    if min(height, width) < smallest:
        raise UserError(
            f"input_shape: {name} needs images of at least {smallest} x {smallest} pixels, received {height} x {width};"
            " enlarge them or choose a network with fewer pools"
        )


def _checked_statistics(
    channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[list[float], list[float]]:
    if mean is None or std is None:
        raise UserError("mean, std: give both or neither")
    values = []
    for field, given in (("mean", mean), ("std", std)):
        numbers = [float(n) for n in np.ravel(given)]
        if len(numbers) != channels or not all(math.isfinite(n) for n in numbers):
            raise UserError(f"{field}: expected {channels} finite numbers, one per channel, received {numbers}")
        values.append(numbers)
    if min(values[1]) <= 0:
        raise UserError(f"std: expected positive numbers, received {values[1]}")
    return values[0], values[1]
