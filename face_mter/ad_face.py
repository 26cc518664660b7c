"""Fine-tune a face network so that nobody can be taken for somebody else: MTER, or adversarial training."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from common.cli import Budget, Count, LinfBudget, alias, script
from common.errors import UserError
from common.runs import Run
from face_mter.fitting import FaceFittingOptions, fit_faces
from face_mter.people import PEOPLE_FIELDS, Cast, load_cast, load_checked, watch
from face_mter.train import train

if TYPE_CHECKING:
    import keras

# Pairs that are attacked after every epoch.
_WATCHED = 100


@dataclass(kw_only=True)
class RegulariserOptions:
    """The search for embeddings that can be taken for others, and what is done about them."""

    method: Literal["mter", "adv", "none"] = "mter"
    """The regulariser; classification of the moved pictures too, under their true names; or neither."""
    adv_thd: Budget = 0.1
    """A picture rests once its cosine distance to its target is below."""
    adv_alpha: Budget = 0.2
    """Margin of the triplets: how much nearer a moved picture is to stay to itself than to its target."""


@dataclass(kw_only=True)
class Options(RegulariserOptions, FaceFittingOptions):
    """How a base model is fine-tuned."""

    pretrained: Path | None = None
    """Model to start from, a .keras file; by default that of train.py, trained if need be."""
    margin_m: Budget = 0.3
    """Angular margin of ArcFace, in radians, 0.5 in the paper; its scale, or that logits are dense, is the model's."""
    weightadv: Budget = 10.0
    """Weight of the regulariser beside the mean cross-entropy; 3 balances as the paper's 1 on four devices."""
    adv_round: Count = 10
    """Steps of the search, at most."""
    adv_sigma: LinfBudget = 1 / 255
    """Length of a step, in [0, 1]."""
    adv_eps: LinfBudget | None = None
    """Radius of the ball (L-inf) that the search stays in; by default all steps together."""
    batch_size: Count = 32
    """Pairs a step, over all devices."""
    learning_rate: Budget = alias("lr", default=0.01)
    """Learning rate at its highest."""
    epochs: Count = 5
    """Passes over the pairs; a pass ends when the smaller half of the people is used up."""


@script(app="face_mter", name="ad_face")
def ad_face(options: Options, run: Run) -> None:
    """Train on from the base model on pairs of different people; save `model.keras`."""
    from common import checkpoints, plots
    from face_mter import mter, networks

    cast = load_cast(options, run)
    path = train.produce(options.pretrained, options, PEOPLE_FIELDS, say=run.say)
    path = path / "model.keras" if path.is_dir() else path
    base = load_checked(path, cast)
    head = base.layers[-1]
    if base.output_shape != (None, len(cast.people.train)):
        raise UserError(f"{path}: knows {base.output_shape[-1]} people, {len(cast.people.train)} train here")
    arcface = isinstance(head, networks.CosineLogits)
    eps = min(options.adv_round * options.adv_sigma, 1.0) if options.adv_eps is None else options.adv_eps
    search = mter.exploit(radius=eps, sigma=options.adv_sigma, rounds=options.adv_round, threshold=options.adv_thd)
    method = mter.method(
        options.method,
        loss_type="arcface" if arcface else "softmax",
        scale=head.scale if arcface else 1.0,
        margin=options.margin_m,
        alpha=options.adv_alpha,
        weight=options.weightadv,
        adversary=search,
    )
    model, history = fit_faces(
        options,
        run,
        cast,
        lambda: checkpoints.load_model(path),
        lambda model: {**watch(model, cast), "calibration_hit_rate": _hit_rate(model, cast, options.seed)},
        method=method,
        paired=True,
        title=f"{options.method}, from {path}",
    )
    names = ("accuracy", "calibration_auc", "calibration_hit_rate")
    run.metrics(**{name: history[-1][name] for name in names})
    if run.chief:
        checkpoints.save_model(model, run.folder / "model.keras")
        run.artifact("model", run.folder / "model.keras")
        curves = {name: [epoch[name] for epoch in history] for name in names}
        plots.accuracy_curves(curves, run.folder / "training.png", title=f"fine-tuning: {options.method}")
        run.artifact("training", run.folder / "training.png")


def _hit_rate(model: "keras.Model", cast: Cast, seed: int) -> float:
    """How often IFTGSM of 10/255 hits among people of the calibration half, at a FAR of 1e-3: what a recipe may be
    chosen by, since the attack half is kept for the end."""
    from face_mter import faces, verification
    from face_mter.feature_attacks import Attacker

    attacker, strangers = Attacker(model, progress=True), cast.faces.of(cast.people.calibration)
    embeddings = attacker.embeddings(strangers.images)
    threshold = verification.far_threshold(verification.cross_scores(embeddings, strangers.person), 1e-3)
    attackers, victims = faces.attack_pairs(strangers, np.arange(len(strangers.names)), _WATCHED, seed=seed).T
    moved = attacker.impersonate("iftgsm", strangers.images[attackers], embeddings[victims], 10 / 255)
    return float((moved.rounded >= threshold).mean())


if __name__ == "__main__":
    ad_face.main()
