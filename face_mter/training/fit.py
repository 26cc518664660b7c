"""How the scripts of this app train on faces: options, pairs, augmentation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from common.runs.options import Budget, Count, alias
from common.runs.record import Run
from common.runs.training_options import FittingOptions
from face_mter.evaluation.people import Cast, PeopleOptions

if TYPE_CHECKING:
    import keras

    from common.training.methods import Method


@dataclass(kw_only=True)
class HeadOptions:
    """What is trained on top of the embedding."""

    loss_type: Literal["softmax", "arcface"] = "arcface"
    """Logits by a dense layer, or cosines with an angular margin."""
    emb_size: Count = 128
    """Length of the embedding; 512 in the paper."""
    margin_m: Budget = 0.3
    """Angular margin of ArcFace, in radians; 0.5 in the paper."""
    margin_s: Budget = 30.0
    """Scale of ArcFace's cosines; 64 in the paper."""


@dataclass(kw_only=True)
class FaceFittingOptions(PeopleOptions, FittingOptions):
    """How a network is trained on faces."""

    arch: str = alias("network", default="small")
    """Network: small, o18 or r50; the last is the paper's, for pictures of 112 x 112."""
    epochs: Count = 12
    """Passes over the pictures."""
    batch_size: Count = 64
    """Pictures a step, over all devices."""
    learning_rate: Budget = alias("lr", default=0.05)
    """Learning rate at its highest."""
    augment: Literal["none", "flip", "crop_flip"] = "flip"
    """Mirroring, as in the paper, or also random crops of the picture padded by 4."""


def augmentation(name: str) -> "Callable | None":
    """The augmentation called so."""
    from common.training.augmentation import crop_and_flip

    return {"none": None, "flip": crop_and_flip(0), "crop_flip": crop_and_flip(4)}[name]


def fit_faces(
    options: FaceFittingOptions,
    run: Run,
    cast: Cast,
    build: "Callable[[], keras.Model]",
    evaluate: "Callable[[keras.Model], Mapping[str, float]]",
    *,
    method: "Method",
    paired: bool,
    title: str,
) -> "tuple[keras.Model, list[dict[str, float]]]":
    """The network that `build` makes, trained by `method` on the people of `cast` who train, and its history.

    `paired`: batches of `options.batch_size` pairs of different people, or plain ones.
    """
    from common.training import devices, fit
    from common.training.batches import batches as array_batches
    from face_mter.data.pair_batches import pair_epochs

    strategy = devices.prepare(options.strategy, options.precision)
    replicas = devices.check_batch_size(strategy, options.batch_size)
    train = cast.faces.of(cast.people.train)
    size = min(options.batch_size, max(len(train.person) // (4 if paired else 1) // replicas * replicas, replicas))
    batches = (pair_epochs if paired else array_batches)(
        train.images, train.person, batch_size=size, seed=options.seed, augment=augmentation(options.augment)
    )
    return fit.fit_network(
        options.recipe,
        run,
        strategy,
        build,
        batches,
        evaluate,
        steps_per_epoch=max(len(train.person) // (2 * size if paired else size), 1),
        title=title,
        seed=options.seed,
        method=method,
    )
