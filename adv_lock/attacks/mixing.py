"""From targeted attacks to locked 8-bit images: the paper's four recipes, and the rounding that keeps the budget."""

import numpy as np

# A step below 1 makes each round of the rounding below strictly smaller than the last.
_SHRINK = 1.0 - 1e-4


def budget(eps: float, shape: tuple[int, ...]) -> float:
    """The L2 radius for one image of `shape` (H, W, C): `eps` at 32 x 32 x 3, the same mean square per value."""
    return float(eps * np.sqrt(np.prod(shape) / 3072.0))


def mix(method: str, attacked: list[np.ndarray], *, alpha: float, lambd: float) -> np.ndarray:
    """Locked images in [0, 1], (B, H, W, C), from those attacked towards each map, (B, H, W, C) apiece.

    `mixup`: lambd * first + (1 - lambd) * second. `horiz`: the left floor(alpha * W) columns of the first, the rest of
    the second. `mixandcat`: left a mixup of maps 1 and 2, right one of maps 3 and 4.
    """
    if method == "basic":
        return attacked[0]
    if method == "mixup":
        return _blend(attacked[0], attacked[1], lambd)
    if method == "horiz":
        return _side_by_side(attacked[0], attacked[1], alpha)
    return _side_by_side(_blend(*attacked[:2], lambd), _blend(*attacked[2:4], lambd), alpha)


def round_within(original: np.ndarray, locked: np.ndarray, radius: float) -> np.ndarray:
    """`locked` (B, H, W, C) in [0, 1] as uint8, each within L2 `radius` (in [0, 1] units) of the uint8 `original`.

    Rounding to nearest adds distance to most images on the surface of the ball; their residual is scaled back
    and rounded again until the stored image itself satisfies the budget.
    """
    start = original.astype(np.float32)
    residual = locked.astype(np.float32) * 255.0 - start
    stored = _rounded(start, residual)
    while True:
        norms = distances(original, stored)
        over = np.flatnonzero(norms > radius)
        if not len(over):
            return stored
        factor = np.minimum(radius / norms[over], 1.0) * _SHRINK
        residual[over] *= factor.astype(np.float32).reshape(-1, *[1] * (residual.ndim - 1))
        stored[over] = _rounded(start[over], residual[over])


def distances(original: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """L2 distance in [0, 1] units between 8-bit images (B, H, W, C), float64 (B,)."""
    shift = stored.astype(np.int32) - original.astype(np.int32)
    return np.sqrt((shift.reshape(len(shift), -1).astype(np.float64) ** 2).sum(axis=1)) / 255.0


def residual(original: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """`stored - original` modulo 256, uint8: what `restore` needs to undo the lock bit by bit."""
    return stored - original


def restore(stored: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """The original 8-bit images from the stored ones and their `residual`."""
    return stored - shift


def _rounded(start: np.ndarray, residual: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(start + residual), 0, 255).astype(np.uint8)


def _blend(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    return share * first + (1.0 - share) * second


def _side_by_side(left: np.ndarray, right: np.ndarray, share: float) -> np.ndarray:
    seam = int(share * left.shape[2])
    return np.concatenate([left[:, :, :seam], right[:, :, seam:]], axis=2)
