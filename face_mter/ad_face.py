"""Fine-tune a face network to resist feature-space impersonation: MTER, or adversarial training."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from common import progress
from common.errors import UserError
from common.runs.model_input import InputOptions, check_input, is_run, look_at, reading
from common.runs.options import Budget, Count, LinfBudget, option
from common.runs.record import Run, read_config
from common.runs.script import script
from face_mter.train import FaceFittingOptions, HeadOptions, PeopleOptions, check_people, load_splits, needed, train

if TYPE_CHECKING:
    import keras

    from common.evaluation.input_range import Reading
    from face_mter.data.faces import FaceSplits

# Pairs that are attacked after every epoch.
_WATCHED = 100


@dataclass(kw_only=True)
class RegulariserOptions:
    """The regulariser: search in feature space and penalty."""

    method: Literal["mter", "adv", "none"] = "mter"
    """MTER; or classification of the adversarial images under their true names; or neither."""
    adv_thd: Budget = 0.1
    """Cosine distance to the target at which the search stops for that image."""
    adv_alpha: Budget = 0.2
    """Margin of the triplets: by how much an adversarial image has to remain nearer to its source than to its
    target."""


@dataclass(kw_only=True)
class NetworkOptions(InputOptions):
    """How a network that this suite did not train is used."""

    embedding: str | None = None
    """Layer of such a network whose output is the embedding; by default the one called embedding, or the input of the
    head of logits or probabilities, or else the output of the network."""


@dataclass(kw_only=True)
class Options(RegulariserOptions, NetworkOptions, FaceFittingOptions):
    """How a base model is fine-tuned."""

    pretrained: Path | None = None
    """Model to start from, a .keras file or a run: any classifier or embedding network, which gets a new head unless it
    has one for the training identities; by default that of train.py."""
    loss_type: Literal["softmax", "arcface"] | None = None
    """What a new head has: logits by a dense layer, or cosines with an angular margin; by default arcface."""
    margin_m: Budget = 0.3
    """Angular margin of ArcFace, in radians, 0.5 in the paper."""
    margin_s: Budget | None = None
    """Scale of the cosines of a new head, 64 in the paper; by default 30."""
    weightadv: Budget = 10.0
    """Weight of the regulariser relative to the mean cross-entropy; 3 balances as the paper's 1 on four devices."""
    steps: Count = option(10, "adv_round")
    """Steps of the search, at most."""
    adv_sigma: LinfBudget = 1 / 255
    """Length of a step, in [0, 1]."""
    eps: LinfBudget | None = option(None, "adv_eps")
    """Radius of the ball (L-inf) that the search stays in; by default all steps together."""
    batch_size: Count = 32
    """Pairs a step, over all devices."""
    learning_rate: Budget = option(0.01, "lr")
    """Highest learning rate."""
    epochs: Count = 5
    """Passes over the pairs; a pass ends when the smaller half of the people is used up."""


def refusals(options: Options) -> None:
    """What is refused before an image is read or a base model trained."""
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
    from face_mter.evaluation.people import watch
    from face_mter.models import networks
    from face_mter.training import mter
    from face_mter.training.fit import fit_faces

    splits = load_splits(options, run)
    path = run.require(train, *needed(options.pretrained, options))
    base = load_checked(path, splits, options, log=run.log)
    head = networks.head_of(base) if knows_the_trained(path, base, splits, options) else None
    if head is None:
        arcface = (options.loss_type or "arcface") == "arcface"
        scale = HeadOptions.margin_s if options.margin_s is None else options.margin_s
    else:
        arcface = isinstance(head, networks.CosineLogits)
        scale = head.scale if arcface else 1.0
    build = _beginning(options, run, path, len(splits.people.train), scale, head)
    eps = min(options.steps * options.adv_sigma, 1.0) if options.eps is None else options.eps
    search = mter.feature_target_search(
        radius=eps, sigma=options.adv_sigma, rounds=options.steps, threshold=options.adv_thd
    )
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
        options.recipe,
        run,
        splits.faces.of(splits.people.train),
        build,
        lambda model: {**watch(model, splits), "calibration_hit_rate": _hit_rate(model, splits, options.seed)},
        method=method,
        paired=True,
        title=f"{options.method}, from {path}",
        seed=options.seed,
        augment=options.augment,
    )
    names = ("accuracy", "calibration_auc", "calibration_hit_rate")
    run.metrics(**{name: history[-1][name] for name in names})
    run.save_model(model)
    curves = {name: [epoch[name] for epoch in history] for name in names}
    n = {"accuracy": len(splits.rows(splits.people.train)), "calibration_hit_rate": _WATCHED}
    run.figure("training", plots.accuracy_curves, curves, title=f"fine-tuning: {options.method}", n=n, dependent=True)


def check_networks(options: NetworkOptions, models: Iterable[Path | None]) -> None:
    """Refuse what the files of `models` tell, before anything is read or trained; None for those that are made.

    Errors: `UserError`, as `load_checked`.
    """
    models = list(models)
    check_input(options, models)
    if options.embedding is not None and all(model is None or is_run(model) for model in models):
        raise UserError("--embedding: is for a network that this suite did not train; leave it out")
    for model in models:
        if model is not None:
            look_at(model, partial(open_network, model, options))


def network_name(path: Path) -> str:
    """What tables call the network in `path`: a run by its folder, a file of others by its own name."""
    if not is_run(path):
        return path.stem
    return path.name if path.is_dir() else path.parent.name


def open_network(path: Path, options: NetworkOptions) -> "tuple[keras.Model, Reading]":
    """The network in `path`, a file or a run, for images in [0, 1], up to `--embedding` where that is given; and the
    reading in which the network in the file gets them.

    Errors: `UserError` naming it, as `common.evaluation.classifiers.load_network`, and where it answers with no vector.
    """
    from common.evaluation import classifiers
    from face_mter.models import networks

    file, how = classifiers.model_file(path), reading(options, path)
    how.pop("check_range", None)
    model, taken = classifiers.load_network(path, **how)
    classifiers.check_graph(file, model)
    try:
        if options.embedding is not None and not is_run(path):
            model = networks.embedder_at(model, options.embedding)
        networks.embedder(model)
    except UserError as error:
        text = str(error)
        raise UserError(f"{file}: {text if text.startswith('--') else f'is {text}'}") from error
    if len(model.input_shape) != 4:
        raise UserError(f"{file}: takes {model.input_shape}; expected a network for images")
    return model, taken


def load_checked(
    path: Path,
    splits: "FaceSplits",
    options: NetworkOptions,
    *,
    attacked: bool = True,
    log: Callable[[str], None] = progress.log,
) -> "keras.Model":
    """The network in `path`, as `open_network` has it, for the images of `splits`; `attacked`: it is to be followed by
    its gradient too. What is to be known of a network that this suite did not train goes to `log`.

    Errors: `UserError` naming it as `open_network`, and where it takes other images than those of `splits` or in
    another range, fails on them, or has learnt people who are held out here.
    """
    from common.evaluation import classifiers
    from common.evaluation.predictions import outputs
    from common.training.checkpoints import check_images
    from face_mter.evaluation.people import check_range
    from face_mter.models.networks import embedder

    model, taken = open_network(path, options)
    file = classifiers.model_file(path)
    check_images(model, file, splits.faces.images.shape[1:])
    check_held_out(path, splits, options)
    if attacked:
        classifiers.check_answer(file, embedder(model), splits.faces.images[:2])
    elif not np.isfinite(outputs(embedder(model), splits.faces.images[:2])).all():
        raise UserError(f"{file}: outputs values that are not finite; train it again, or give another model")
    if not is_run(path):
        part = embedder(model)
        layer = part.outputs[0]._keras_history.operation.name
        log(f"{file}: embeddings of {part.output_shape[1]} numbers, the output of its layer {layer}")
        check_range(file, model, taken, splits, log)
    return model


def check_held_out(path: Path, splits: "FaceSplits", options: PeopleOptions) -> None:
    """Errors: `UserError` for a run of this suite that has learnt, itself or by what it began with, people of this data
    set who are held out here."""
    for folder, config in lineage(path):
        known = np.intersect1d(_learnt(config, splits, options), splits.held_out)
        if len(known):
            raise UserError(
                f"{folder}: has learnt {len(known)} of the {len(splits.held_out)} people who are held out here; give"
                " --seed, --n-train, --min-images and --evaluation-share as in its training and no --evaluate-only, or"
                " other data"
            )


def _learnt(config: dict[str, Any], splits: "FaceSplits", options: PeopleOptions) -> np.ndarray:
    """The people of `splits` who trained in a run with `config`; none if it was on other data."""
    # Portraits of another seed are those of other people.
    drawn_anew = options.dataset == "portraits" and config.get("seed") != options.seed
    if config.get("dataset") != options.dataset or drawn_anew:
        return np.empty(0, np.int32)
    from face_mter.data.faces import split_people

    names = ("seed", "min_images", "n_train", "evaluation_share")
    return split_people(splits.faces, **{name: config[name] for name in names}).train


def lineage(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The runs that a network comes from and their configs: its own, and those of what it was fine-tuned from, as far
    as that was named."""
    found: list[tuple[Path, dict[str, Any]]] = []
    while path is not None and is_run(path) and len(found) < 100:
        folder = path if path.is_dir() else path.parent
        config = read_config(folder)
        if "evaluation_share" in config:
            found.append((folder, config))
        path = None if config.get("pretrained") is None else Path(config["pretrained"])
    return found


def knows_the_trained(path: Path, model: "keras.Model", splits: "FaceSplits", options: PeopleOptions) -> bool:
    """Whether `model`, from `path`, has logits for exactly the training identities of `splits`: by the config of its
    run, or, for a file without one, by an accuracy on them that chance reaches less than once in a thousand times."""
    import math

    from common.evaluation.predictions import predict
    from face_mter.models.networks import head_of

    people = splits.people.train
    if not len(people) or head_of(model) is None or model.output_shape[-1] != len(people):
        return False
    for _, config in lineage(path)[:1]:
        return np.array_equal(_learnt(config, splits, options), people)
    rows = splits.rows(people)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), 256)).astype(int))]
    right = predict(model, splits.faces.images[rows]) == np.searchsorted(people, splits.faces.person[rows])
    n, chance = len(rows), 1 / len(people)
    tail = (math.comb(n, k) * chance**k * (1 - chance) ** (n - k) for k in range(int(right.sum()), n + 1))
    return sum(tail) < 1e-3


def _beginning(
    options: Options, run: Run, path: Path, people: int, scale: float, head: "keras.Layer | None"
) -> "Callable[[], keras.Model]":
    """What makes the network that training begins with: that in `path` with the `head` that it has or, where that is
    None, a new one for so many `people`."""
    from face_mter.models import networks

    if head is not None:
        if options.loss_type is not None or options.margin_s is not None:
            raise UserError(f"--loss-type, --margin-s: are for a new head; {path} has one for the training identities")
        return lambda: open_network(path, options)[0]
    loss_type = options.loss_type or "arcface"
    run.log(
        f"{path}: has no head for the training identities; a new one ({loss_type}) for {people} identities is added"
    )

    def build() -> "keras.Model":
        base, _ = open_network(path, options)
        if frozen := networks.frozen_layers(base):
            run.log(f"{path}: {frozen} of its layers were frozen; all are trained here")
        return networks.with_head(base, people, loss_type=loss_type, scale=scale, seed=options.seed)

    return build


def _hit_rate(model: "keras.Model", splits: "FaceSplits", seed: int) -> float:
    """How often IFTGSM of 10/255 hits among people of the calibration half, at a FAR of 1e-3: what a recipe may be
    chosen by, since the attack half is kept for the end."""
    from face_mter.attacks.features import Attacker
    from face_mter.data import faces
    from face_mter.evaluation import verification

    attacker, unseen = Attacker(model, progress=True), splits.faces.of(splits.people.calibration)
    embeddings = attacker.embeddings(unseen.images)
    threshold = verification.far_threshold(verification.impostor_scores(embeddings, unseen.person), 1e-3)
    attackers, victims = faces.attack_pairs(unseen, np.arange(len(unseen.names)), _WATCHED, seed=seed).T
    evaluation = attacker.evaluation(unseen.images[attackers], embeddings[victims])
    return float((evaluation.run(attacker.entry("iftgsm", 10 / 255)).after >= threshold).mean())


if __name__ == "__main__":
    ad_face.main()
