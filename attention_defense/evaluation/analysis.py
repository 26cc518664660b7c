"""What attention tells about attacks, and attacks about attention: measures by image, and the paper's claims tested.

O1: images whose attention covers their object badly are easier to attack. O2: attacks that succeed move attention.
O3: iterating an attack moves it further. Intervals are 95 % percentile bootstraps over images.
"""

from typing import NamedTuple

import keras
import numpy as np
import scipy.special
import scipy.stats
import tensorflow as tf

from attention_defense.models.grad_cam import Attention, above_mean, overlap, resized, softmax_map
from common.arrays import as_float, to_array, to_labels
from common.attacks import logits_of
from common.attacks.compile import compiled
from common.evaluation import statistics
from common.evaluation.statistics import Estimate
from common.progress import blocks, track

# Draws of the bootstrap of a regression, each a fit of its own.
_REFITS = 1000


class AttentionMaps(NamedTuple):
    """What a model makes of N images: `logits` (N, classes); `attention` float32 (N, H, W) of mean about 1 for one
    class of each; `area` bool (N, h, w), its cells above the mean."""

    logits: np.ndarray
    attention: np.ndarray
    area: np.ndarray


def compute_attention(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    *,
    layer: str | None = None,
    batch_size: int = 100,
    progress: bool = False,
) -> AttentionMaps:
    """Answers and attention of `model` to images `x` (N, H, W, C), 8-bit or float in [0, 1], for the classes `y`.

    `progress` is shown if it takes long.
    """
    x, y = to_array(x), to_labels(y, len(x))
    signature = [tf.TensorSpec([None, *x.shape[1:]], x.dtype), tf.TensorSpec([None], tf.int32)]

    def function(model: keras.Model, x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, ...]:
        logits, cam = Attention(model, layer)(as_float(x), y)
        return logits, resized(softmax_map(cam), x.shape[1:3]), above_mean(cam)

    answer = compiled(model, ("attention of", layer, x.shape[1:], x.dtype.str), function, signature)
    found = [answer(x[rows], y[rows]) for rows in blocks(len(x), batch_size, "attention", shown=progress)]
    return AttentionMaps(*(np.concatenate([block[place].numpy() for block in found]) for place in range(3)))


def probabilities(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """What `model` answers to `x` float (N, H, W, C) in [0, 1]: float32 (N, classes)."""
    signature = [tf.TensorSpec([None, *x.shape[1:]])]
    answer = compiled(
        model, ("probabilities", x.shape[1:]), lambda model, x: tf.nn.softmax(logits_of(model)(x)), signature
    )
    return answer(x).numpy()


def attention_iou(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """IoU of two attended areas, bool (N, h, w), image by image: float32 (N,)."""
    return overlap(tf.constant(before), tf.constant(after)).numpy()


def object_overlap(attention: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """IoU of the object with as many of the most attended pixels as it has, (N,); NaN where no object is known.

    Equal areas: the original's share of the object that is covered grows with the size of the attended area.
    """
    found = np.full(len(masks), np.nan)
    for place, (values, mask) in enumerate(zip(attention, masks, strict=True)):
        count = int(mask.sum())
        if count:
            chosen = np.zeros(mask.size, bool)
            chosen[np.argsort(-values, axis=None, kind="stable")[:count]] = True
            both = int((chosen & mask.ravel()).sum())
            found[place] = both / (2 * count - both)
    return found


def confidence(logits: np.ndarray) -> np.ndarray:
    """The highest probability, (N,)."""
    return scipy.special.softmax(logits, axis=1).max(axis=1)


def margin(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The logit of the class `y` less the highest other one, (N,)."""
    rows = np.arange(len(y))
    others = logits.copy()
    others[rows, y] = -np.inf
    return logits[rows, y] - others.max(axis=1)


def entropy(attention: np.ndarray) -> np.ndarray:
    """Entropy of the attention over pixels as a share of the largest possible, (N,): 1 for an even spread."""
    flat = attention.reshape(len(attention), -1)
    return scipy.stats.entropy(flat, axis=1) / np.log(flat.shape[1])


def mean(values: np.ndarray, chosen: np.ndarray, *, seed: int = 0) -> Estimate | None:
    """Mean of `values` (N,) over the rows `chosen` bool (N,) that are numbers; None for fewer than two."""
    kept = values[chosen & np.isfinite(values)]
    return statistics.mean(kept, np.arange(len(kept)), seed=seed) if len(kept) > 1 else None


def difference(values: np.ndarray, first: np.ndarray, second: np.ndarray, *, seed: int = 0) -> Estimate | None:
    """Mean of `values` (N,) over the rows `first` less that over `second`, bool (N,) each; None where one has none."""
    kept = (first | second) & np.isfinite(values)
    values, first, second = values[kept], first[kept], second[kept]
    if not first.any() or not second.any():
        return None
    return statistics.contrast(values, first, second, np.arange(len(values)), seed=seed)


def odds(success: np.ndarray, causes: dict[str, np.ndarray], *, seed: int = 0) -> dict[str, Estimate]:
    """Logistic regression of `success` bool (N,) on `causes` (N,) each, at mean 0 and deviation 1: by how much the
    log-odds change with one deviation of a cause while the others stay.

    Rows with a cause that is not a number are left out; empty where one outcome or a cause never varies.
    """
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    table = np.stack(list(causes.values()), axis=1)
    kept = np.isfinite(table).all(axis=1)
    table, success = table[kept], success[kept]
    if len(table) < 10 or len(np.unique(success)) < 2 or (table.std(axis=0) == 0).any():
        return {}
    table = (table - table.mean(axis=0)) / table.std(axis=0)

    def coefficients(rows: np.ndarray) -> np.ndarray:
        if len(np.unique(success[rows])) < 2:
            return np.full(table.shape[1], np.nan)
        # Nearly none, but enough that outcomes which a cause tells apart without error do not run away.
        return LogisticRegression(C=1e3, max_iter=200).fit(table[rows], success[rows]).coef_[0]

    rng = np.random.default_rng([seed, 0x0DD])
    rows = (rng.integers(len(table), size=len(table)) for _ in range(_REFITS))
    # The fits are small: several threads would wait for one another for longer than they work.
    with threadpool_limits(1):
        draws = np.array([coefficients(drawn) for drawn in track(rows, "log-odds", total=_REFITS, units="draws")])
        value = coefficients(np.arange(len(table)))
    low, high = np.nanpercentile(draws, [2.5, 97.5], axis=0)
    return {
        name: Estimate(float(of), len(table), float(least), float(most))
        for name, of, least, most in zip(causes, value, low, high, strict=True)
    }
