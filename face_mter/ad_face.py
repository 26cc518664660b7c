"""Fine-tune a face network so that nobody can be taken for somebody else: MTER, or adversarial training."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from common.errors import UserError
from common.runs.options import Budget, Count, LinfBudget, alias
from common.runs.record import Run
from common.runs.script import script
from face_mter.evaluation.people import (
    Cast,
    NetworkOptions,
    check_networks,
    check_people,
    knows_the_trained,
    load_cast,
    load_checked,
    needed,
    open_network,
    watch,
)
from face_mter.train import train
from face_mter.training.fit import FaceFittingOptions, HeadOptions, fit_faces

if TYPE_CHECKING:
    from collections.abc import Callable

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
class Options(RegulariserOptions, NetworkOptions, FaceFittingOptions):
    """How a base model is fine-tuned."""

    pretrained: Path | None = None
    """Model to start from, a .keras file or a run: any classifier or embedding network, which gets a new head unless it
    knows the very people who train here; by default that of train.py, trained if need be."""
    loss_type: Literal["softmax", "arcface"] | None = None
    """What a new head has: logits by a dense layer, or cosines with an angular margin; by default arcface."""
    margin_m: Budget = 0.3
    """Angular margin of ArcFace, in radians, 0.5 in the paper."""
    margin_s: Budget | None = None
    """Scale of the cosines of a new head, 64 in the paper; by default 30."""
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


def refusals(options: Options) -> None:
    """What is refused before a picture is read or a base model trained."""
    from common.training import fit

    fit.check_momentum(options.recipe)
    check_people(options)
    check_networks(options, [options.pretrained])
    if options.pretrained is None and (options.loss_type is not None or options.margin_s is not None):
        raise UserError("--loss-type, --margin-s: are for a new head on a --pretrained network; leave them out")


def needs(options: Options) -> None:
    """What train.py would refuse, where it is to be run."""
    train.expect(*needed(options.pretrained, options))


@script(app="face_mter", name="ad_face", refusals=refusals, needs=needs)
def ad_face(options: Options, run: Run) -> None:
    """Train on from the base model on pairs of different people; save `model.keras`."""
    from common.evaluation import plots
    from common.training import checkpoints
    from face_mter.models import networks
    from face_mter.training import mter

    cast = load_cast(options, run)
    path = train.produce(*needed(options.pretrained, options), say=run.say)
    base = load_checked(path, cast, options, say=run.say)
    head = networks.head_of(base) if knows_the_trained(path, base, cast, options) else None
    if head is None:
        arcface = (options.loss_type or "arcface") == "arcface"
        scale = HeadOptions.margin_s if options.margin_s is None else options.margin_s
    else:
        arcface = isinstance(head, networks.CosineLogits)
        scale = head.scale if arcface else 1.0
    build = _beginning(options, run, path, len(cast.people.train), scale, head)
    eps = min(options.adv_round * options.adv_sigma, 1.0) if options.adv_eps is None else options.adv_eps
    search = mter.exploit(radius=eps, sigma=options.adv_sigma, rounds=options.adv_round, threshold=options.adv_thd)
    method = mter.method(
        options.method,
        loss_type="arcface" if arcface else "softmax",
        scale=scale if arcface else 1.0,
        margin=options.margin_m,
        alpha=options.adv_alpha,
        weight=options.weightadv,
        adversary=search,
    )
    model, history = fit_faces(
        options,
        run,
        cast,
        build,
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


def _beginning(
    options: Options, run: Run, path: Path, people: int, scale: float, head: "keras.Layer | None"
) -> "Callable[[], keras.Model]":
    """What makes the network that training begins with: that in `path` with the `head` that it has or, where that is
    None, a new one for so many `people`."""
    from face_mter.models import networks

    if head is not None:
        if options.loss_type is not None or options.margin_s is not None:
            raise UserError(
                f"--loss-type, --margin-s: are for a new head; {path} knows the people who train here and keeps its own"
            )
        return lambda: open_network(path, options)[0]
    loss_type = options.loss_type or "arcface"
    run.say(f"{path}: does not know the people who train here; a new head ({loss_type}) of {people} people is put on")

    def build() -> "keras.Model":
        base, _ = open_network(path, options)
        if frozen := networks.frozen_layers(base):
            run.say(f"{path}: {frozen} of its layers were frozen; all are trained here")
        return networks.with_head(base, people, loss_type=loss_type, scale=scale, seed=options.seed)

    return build


def _hit_rate(model: "keras.Model", cast: Cast, seed: int) -> float:
    """How often IFTGSM of 10/255 hits among people of the calibration half, at a FAR of 1e-3: what a recipe may be
    chosen by, since the attack half is kept for the end."""
    from face_mter.attacks.features import Attacker
    from face_mter.data import faces
    from face_mter.evaluation import verification

    attacker, strangers = Attacker(model, progress=True), cast.faces.of(cast.people.calibration)
    embeddings = attacker.embeddings(strangers.images)
    threshold = verification.far_threshold(verification.cross_scores(embeddings, strangers.person), 1e-3)
    attackers, victims = faces.attack_pairs(strangers, np.arange(len(strangers.names)), _WATCHED, seed=seed).T
    moved = attacker.impersonate("iftgsm", strangers.images[attackers], embeddings[victims], 10 / 255)
    return float((moved.rounded >= threshold).mean())


if __name__ == "__main__":
    ad_face.main()
