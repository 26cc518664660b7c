"""Train the embedding network that the others start from: softmax or ArcFace on people's names."""

from dataclasses import dataclass

from common.runs.record import Run
from common.runs.script import script
from face_mter.evaluation.people import check_people, load_cast, watch
from face_mter.training.fit import FaceFittingOptions, HeadOptions, fit_faces


@dataclass(kw_only=True)
class Options(HeadOptions, FaceFittingOptions):
    """The base model."""


def refusals(options: Options) -> None:
    """What is refused before a picture is read."""
    from common.training import fit
    from face_mter.models import networks

    networks.check_name(options.arch)
    fit.check_momentum(options.recipe)
    check_people(options)


@script(app="face_mter", name="train", refusals=refusals)
def train(options: Options, run: Run) -> None:
    """Train on some people, watch how well strangers are told apart, save `model.keras`."""
    from common.evaluation import plots
    from common.training import checkpoints, fit
    from face_mter.models import networks
    from face_mter.training import mter

    cast = load_cast(options, run)
    faces = cast.faces.of(cast.people.train)
    mean, std = fit.channel_statistics(faces.images)
    model, history = fit_faces(
        options,
        run,
        cast,
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
        lambda model: watch(model, cast),
        method=mter.classification(options.loss_type, scale=options.margin_s, margin=options.margin_m),
        paired=False,
        title=f"{options.loss_type}: {options.arch}, {len(faces.names)} people, {len(faces.person)} pictures",
    )
    run.metrics(**{name: history[-1][name] for name in ("accuracy", "calibration_auc")})
    if run.chief:
        checkpoints.save_model(model, run.folder / "model.keras")
        run.artifact("model", run.folder / "model.keras")
        curves = {name: [epoch[name] for epoch in history] for name in ("accuracy", "calibration_auc")}
        plots.accuracy_curves(
            curves, run.folder / "training.png", title=f"{len(faces.names)} people, {options.loss_type}"
        )
        run.artifact("training", run.folder / "training.png")


if __name__ == "__main__":
    train.main()
