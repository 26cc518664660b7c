"""How far images were moved: norms, PSNR, SSIM, rounding to 8 bits."""

import math

import numpy as np
import tensorflow as tf

from common.errors import UserError


def quantize(images: np.ndarray) -> np.ndarray:
    """Images float in [0, 1] as a file of 8 bits holds them, float32."""
    return (np.rint(images * 255) / np.float32(255)).astype(np.float32)


def whole_levels(eps: float) -> float:
    """The largest radius of whole grey levels, in [0, 1], that is not above `eps`."""
    levels = math.floor(255 * eps + 1e-6)
    if levels < 1:
        raise UserError(f"eps: {255 * eps:.3g}/255 is less than one grey level, and changes no image of 8 bits")
    return levels / 255


def perturbation_sizes(x: np.ndarray, changed: np.ndarray) -> dict[str, np.ndarray]:
    """Per example (N,): `linf`, `l2`, `l1` in the units of `x` and `l0`, the number of changed coordinates."""
    shift = np.asarray(changed, np.float64) - np.asarray(x, np.float64)
    shift = shift.reshape(len(shift), math.prod(shift.shape[1:]))
    size = np.abs(shift)
    return {
        "linf": size.max(axis=1, initial=0.0),
        "l2": np.sqrt((size**2).sum(axis=1)),
        "l1": size.sum(axis=1),
        "l0": (size > 0).sum(axis=1),
    }


def psnr(x: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB per 8-bit image, (N,); infinite where nothing changed."""
    return tf.image.psnr(x, changed, 255).numpy()


def ssim(x: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """Structural similarity per 8-bit image (N, H, W, C), (N,), 11 x 11 Gaussian window (Wang et al. 2004)."""
    window = min(11, x.shape[1], x.shape[2])
    return tf.image.ssim(tf.constant(x), tf.constant(changed), 255, filter_size=window).numpy()
