"""What LIME (Ribeiro et al. 2016) says speaks for a class, as an area of the image."""

import contextlib
import io
from collections.abc import Callable
from functools import partial

import numpy as np

from attention_defense.models.losses import GREY


def lime_map(
    answer: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    label: int,
    *,
    segments: int = 50,
    features: int = 10,
    samples: int = 300,
    seed: int = 0,
) -> np.ndarray:
    """The superpixels of `image` float (H, W, 1 or 3) in [0, 1] that speak for the class `label`, bool (H, W).

    `answer`: images (n, H, W, C) -> probabilities (n, classes). Of about `segments` superpixels (SLIC), by `samples`
    images with some of them turned grey: those of positive weight among the `features` of largest weight.
    """
    from lime.lime_image import LimeImageExplainer
    from skimage.segmentation import slic

    channels = image.shape[-1]
    # LIME wants three channels.
    colour = np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)), dtype=np.float64)
    # It draws a progress bar for every image, and has no switch for that.
    with contextlib.redirect_stderr(io.StringIO()):
        explained = LimeImageExplainer(random_state=seed).explain_instance(
            colour,
            lambda batch: answer(np.asarray(batch, np.float32)[..., :channels]),
            labels=(label,),
            top_labels=None,
            hide_color=GREY,
            num_features=features,
            num_samples=samples,
            batch_size=100,
            segmentation_fn=partial(slic, n_segments=segments, start_label=0),
            random_seed=seed,
        )
    # The coding of LIME's own masks has changed between its releases; its weights by superpixel have not.
    area = np.zeros(image.shape[:2], bool)
    for segment, weight in explained.local_exp[label][:features]:
        if weight > 0:
            area |= explained.segments == segment
    return area
