"""How networks of this paper are trained on faces: plain batches or pairs, augmentation."""

from collections.abc import Callable, Mapping

import keras

from common.training import devices, fit
from common.training.augmentation import crop_and_flip
from common.training.batches import batches as array_batches
from common.training.methods import Method
from common.training.recipe import Journal, Recipe
from face_mter.data.faces import Faces
from face_mter.data.pair_batches import pair_epochs

AUGMENTATIONS: dict[str, Callable | None] = {"none": None, "flip": crop_and_flip(0), "crop_flip": crop_and_flip(4)}
"""By name: mirroring, as in the paper, or also random crops of the image padded by 4."""


def fit_faces(
    recipe: Recipe,
    journal: Journal,
    faces: Faces,
    make: Callable[[], keras.Model],
    evaluate: Callable[[keras.Model], Mapping[str, float]],
    *,
    method: Method,
    paired: bool,
    title: str,
    seed: int,
    augment: str,
) -> tuple[keras.Model, list[dict[str, float]]]:
    """The network that `make` makes, trained by `method` on `faces`, and its history.

    `paired`: batches of `recipe.batch_size` pairs of different people, or plain ones; `augment` is one of
    `AUGMENTATIONS`.
    """
    strategy = devices.prepare(recipe.strategy, recipe.precision)
    replicas = devices.check_batch_size(strategy, recipe.batch_size)
    size = min(recipe.batch_size, max(len(faces.person) // (4 if paired else 1) // replicas * replicas, replicas))
    batches = (pair_epochs if paired else array_batches)(
        faces.images, faces.person, batch_size=size, seed=seed, augment=AUGMENTATIONS[augment]
    )
    return fit.fit_network(
        recipe,
        journal,
        strategy,
        make,
        batches,
        evaluate,
        steps_per_epoch=max(len(faces.person) // (2 * size if paired else size), 1),
        title=title,
        seed=seed,
        optimizer=fit.nesterov(recipe),
        method=method,
    )
