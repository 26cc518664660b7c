"""Train the base embedding network: softmax or ArcFace on identities."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from common.runs.options import Budget, Count, DataOptions, ScriptOptions, option
from common.runs.record import Run
from common.runs.script import script
from common.runs.training_options import FittingOptions

if TYPE_CHECKING:
    from face_mter.data.faces import FaceSplits


@dataclass(kw_only=True)
class PeopleOptions(DataOptions):
    """The faces and their identity splits."""

    dataset: str = "portraits"
    """Faces: portraits (drawn), lfw (downloaded), a folder <root>/<person>/<image> or a tar of one."""
    image_size: Count | None = None
    """Pixels a side to which images are brought; by default 48 for portraits, and as they are for others."""
    min_images: Count = 5
    """People with fewer images are held out for evaluation."""
    evaluation_share: Budget = 0.3
    """Least share of the people that are held out."""
    n_train: Count | None = None
    """Number of people to train on; null takes all that are not held out."""


PEOPLE_FIELDS = ("dataset", "seed", "image_size", "min_images", "evaluation_share", "n_train")
"""What must be the same in a training and in an evaluation of its model."""


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
class FaceFittingOptions(PeopleOptions, FittingOptions, ScriptOptions):
    """How a network is trained on faces."""

    arch: str = option("small", "network")
    """Network: small, o18 or r50; the last is the paper's, for images of 112 x 112."""
    epochs: Count = 12
    """Passes over the images."""
    batch_size: Count = 64
    """Images a step, over all devices."""
    learning_rate: Budget = option(0.05, "lr")
    """Highest learning rate."""
    augment: Literal["none", "flip", "crop_flip"] = "flip"
    """Mirroring, as in the paper, or also random crops of the image padded by 4."""


@dataclass(kw_only=True)
class Options(HeadOptions, FaceFittingOptions):
    """The base model."""


def check_people(options: PeopleOptions) -> None:
    """Refuse what can be refused before an image is read. Errors: as `load_splits`."""
    from face_mter.data.faces import check_split

    check_split(min_images=options.min_images, n_train=options.n_train, evaluation_share=options.evaluation_share)


def needed(given: Path | None, options: PeopleOptions) -> tuple[Path | None, PeopleOptions, Sequence[str]]:
    """Arguments of `require` for a network that was named or is to be made. One that was named may have learnt other
    people, as long as they are none of those who are held out (`check_held_out`)."""
    return given, options, PEOPLE_FIELDS if given is None else ()


def load_splits(options: PeopleOptions, run: Run, *, all_held_out: bool = False) -> "FaceSplits":
    """The faces that `options` name, split, or all held out if `all_held_out`; recorded in `run`."""
    from face_mter.data.faces import FaceSplits, hold_all_out, load_faces, split_people

    where = {"data_dir": options.data_dir, "image_size": options.image_size}
    faces = load_faces(options.dataset, seed=options.seed, **where, progress=True)
    run.data(options.dataset, faces.sha256)
    people = (
        hold_all_out(faces, seed=options.seed)
        if all_held_out
        else split_people(
            faces,
            seed=options.seed,
            min_images=options.min_images,
            n_train=options.n_train,
            evaluation_share=options.evaluation_share,
        )
    )
    splits = FaceSplits(faces, people)
    counts = [f"{len(of)} ({len(splits.rows(of))} images)" for of in people]
    run.log(f"identities: {counts[0]} to train on, {counts[1]} held out to calibrate, {counts[2]} held out to attack")
    return splits


def refusals(options: Options) -> None:
    """What is refused before an image is read."""
    from common.training import fit
    from face_mter.models import networks

    networks.check_name(options.arch)
    fit.check_momentum(options.recipe)
    check_people(options)


@script(app="face_mter", name="train", refusals=refusals)
def train(options: Options, run: Run) -> None:
    """Train on some identities, measure verification of held-out ones after every epoch, save `model.keras`."""
    from common.evaluation import plots
    from common.training import fit
    from face_mter.evaluation.people import watch
    from face_mter.models import networks
    from face_mter.training import mter
    from face_mter.training.fit import fit_faces

    splits = load_splits(options, run)
    faces = splits.faces.of(splits.people.train)
    mean, std = fit.channel_statistics(faces.images)
    model, history = fit_faces(
        options.recipe,
        run,
        faces,
        lambda: networks.build(
            options.arch,
            faces.images.shape[1:],
            len(faces.names),
            emb_size=options.emb_size,
            loss_type=options.loss_type,
            scale=options.margin_s,
            mean=mean,
            std=std,
            seed=options.seed,
        ),
        lambda model: watch(model, splits),
        method=mter.classification(options.loss_type, scale=options.margin_s, margin=options.margin_m),
        paired=False,
        title=f"{options.loss_type}: {options.arch}, {len(faces.names)} people, {len(faces.person)} images",
        seed=options.seed,
        augment=options.augment,
    )
    run.metrics(**{name: history[-1][name] for name in ("accuracy", "calibration_auc")})
    run.save_model(model)
    curves = {name: [epoch[name] for epoch in history] for name in ("accuracy", "calibration_auc")}
    n = {"accuracy": len(splits.rows(splits.people.train))}
    run.figure(
        "training",
        plots.accuracy_curves,
        curves,
        title=f"{len(faces.names)} people, {options.loss_type}",
        n=n,
        dependent=True,
    )


if __name__ == "__main__":
    train.main()
