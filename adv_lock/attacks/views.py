"""How an image may come to an unauthorised trainer: as it is, or through something that a lock may be crafted against.

Each view is a function of images float (B, H, W, C) in [0, 1], of any size, with a gradient.
"""

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

Tensor = tf.Tensor

QUALITY = 10
# Of the standard, section K.1 (ITU-T T.81): steps for brightness and for colour at quality 50.
_BRIGHTNESS = (
    *(16, 11, 10, 16, 24, 40, 51, 61),
    *(12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77),
    *(24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101),
    *(72, 92, 95, 98, 112, 100, 103, 99),
)
_COLOUR = (
    *(17, 18, 24, 47, 99, 99, 99, 99),
    *(18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99),
    *(47, 66, 99, 99, 99, 99, 99, 99),
    *([99] * 32),
)
# JFIF: brightness, and blue and red less brightness, of red, green and blue.
_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)
LUMA = _TO_YCC[0]
_TO_RGB = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]], np.float32)
_BLOCK = 8
_BLUR = 0.8


def jpeg(images: Tensor, quality: int = QUALITY, *, rounded: bool = True) -> Tensor:
    """Images stored as JPEG of `quality`, 1 to 100, with colours at half the size, and read back; the gradient passes
    straight through the roundings. Without `rounded` nothing is rounded, and little is lost."""
    colours = images.shape[-1]
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    x = tf.cast(images, tf.float32) * 255.0
    if colours == 1:
        stored = _stored(_padded(x[..., 0], _BLOCK) - 128.0, _BRIGHTNESS, quality, rounded)
        return _clipped(stored[:, :height, :width, None] + 128.0, rounded) / 255.0
    # Rounded wherever an encoder holds whole numbers.
    whole_numbers = _straight if rounded else tf.identity
    planes = whole_numbers(tf.linalg.matmul(whole_numbers(x), _TO_YCC, transpose_b=True))
    brightness = _stored(_padded(planes[..., 0], 2 * _BLOCK) - 128.0, _BRIGHTNESS, quality, rounded)
    whole = tf.shape(brightness)[1:3]
    both = []
    for place in (1, 2):
        small = tf.nn.avg_pool2d(_padded(planes[..., place], 2 * _BLOCK)[..., None], 2, 2, "VALID")[..., 0]
        if rounded:
            # Down and up in turns, as libjpeg's fourths are.
            turns = tf.cast(tf.range(tf.shape(small)[2]) % 2, tf.float32)
            small += tf.stop_gradient(tf.floor(small + 0.25 + 0.25 * turns) - small)
        read = _clipped(_stored(small, _COLOUR, quality, rounded), rounded, -128.0, 127.0)
        # Between the centres of the small picture's pixels, as decoders do.
        both.append(tf.image.resize(read[..., None], whole, method="bilinear")[..., 0])
    brightness = _clipped(brightness + 128.0, rounded)
    found = tf.linalg.matmul(tf.stack([brightness, *both], axis=-1), _TO_RGB, transpose_b=True)
    return _clipped(found[:, :height, :width], rounded) / 255.0


def grey(images: Tensor) -> Tensor:
    """Images without colour, as many channels."""
    if images.shape[-1] == 1:
        return images
    return tf.repeat(tf.reduce_sum(images * LUMA, axis=-1, keepdims=True), images.shape[-1], axis=-1)


def blur(images: Tensor) -> Tensor:
    """Images under a Gaussian of 0.8 pixels, over 5 x 5."""
    away = np.arange(-2, 3) ** 2
    line = np.exp(-away / (2 * _BLUR**2))
    kernel = np.outer(line, line) / line.sum() ** 2
    padded = tf.pad(images, [[0, 0], [2, 2], [2, 2], [0, 0]], "SYMMETRIC")
    each = np.repeat(kernel[..., None, None].astype(np.float32), images.shape[-1], axis=2)
    return tf.nn.depthwise_conv2d(padded, each, [1, 1, 1, 1], "VALID")


def resize(images: Tensor) -> Tensor:
    """Images at half their size, and back."""
    size = tf.shape(images)[1:3]
    small = tf.image.resize(images, tf.maximum(size // 2, 1), antialias=True)
    return tf.ensure_shape(tf.image.resize(small, size), images.shape)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {"jpeg": jpeg, "grey": grey, "blur": blur, "resize": resize}


def _steps(table: tuple[int, ...], quality: int) -> np.ndarray:
    """The steps that coefficients are rounded to, float32 (8, 8), as libjpeg scales the standard's for a quality."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = (np.array(table).reshape(_BLOCK, _BLOCK) * scale + 50) // 100
    return steps.clip(1, 255).astype(np.float32)


def _cosines() -> np.ndarray:
    """The orthonormal cosine transform of eight values, float32 (8, 8)."""
    n = np.arange(_BLOCK)
    waves = np.cos((2 * n[None] + 1) * n[:, None] * math.pi / (2 * _BLOCK)) * math.sqrt(2 / _BLOCK)
    waves[0] /= math.sqrt(2)
    return waves.astype(np.float32)


def _stored(plane: Tensor, table: tuple[int, ...], quality: int, rounded: bool) -> Tensor:
    """A plane (B, H, W), whole blocks, through cosines, rounding to steps, and back."""
    shape = tf.shape(plane)
    down, across = shape[1] // _BLOCK, shape[2] // _BLOCK
    blocks = tf.transpose(tf.reshape(plane, [shape[0], down, _BLOCK, across, _BLOCK]), [0, 1, 3, 2, 4])
    waves, steps = _cosines(), _steps(table, quality)
    coefficients = tf.einsum("ij,bdajk,lk->bdail", waves, blocks, waves) / steps
    coefficients = _straight(coefficients) if rounded else coefficients
    back = tf.einsum("ij,bdail,lk->bdajk", waves, coefficients * steps, waves)
    return tf.reshape(tf.transpose(back, [0, 1, 3, 2, 4]), shape)


def _padded(plane: Tensor, side: int) -> Tensor:
    """A plane (B, H, W) with its last row and column repeated up to whole squares of `side`."""
    for axis in (1, 2):
        missing = -tf.shape(plane)[axis] % side
        last = plane[:, -1:] if axis == 1 else plane[:, :, -1:]
        plane = tf.concat([plane, tf.repeat(last, missing, axis=axis)], axis=axis)
    return plane


def _straight(x: Tensor) -> Tensor:
    # Halves away from zero, as encoders do.
    return x + tf.stop_gradient(tf.sign(x) * tf.floor(tf.abs(x) + 0.5) - x)


def _clipped(x: Tensor, rounded: bool, low: float = 0.0, high: float = 255.0) -> Tensor:
    return tf.clip_by_value(_straight(x) if rounded else x, low, high)
