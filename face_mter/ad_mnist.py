"""Train digits with MTER or adversarially, and a standard model, and attack both at labels and embeddings."""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from common.errors import UserError
from common.runs.options import Budget, Count, DataOptions, ExampleOptions, LinfBudget, Natural, ScriptOptions, option
from common.runs.record import Run
from common.runs.script import script
from common.runs.training_options import FittingOptions
from face_mter.ad_face import RegulariserOptions
from face_mter.train import HeadOptions

if TYPE_CHECKING:
    import keras
    import numpy as np

    from common.datasets import Arrays
    from face_mter.attacks.features import Attacker

BUDGETS = (0.1, 0.2, 0.3)
ATTACKS = ("fgsm", "bim", "pgd40", "margin100", "autoattack_fast")
# How many ways of attacks, and how many of their steps, are drawn into the plane.
_WAYS, _POINTS = 5, 1000


@dataclass(kw_only=True)
class Options(RegulariserOptions, HeadOptions, FittingOptions, ExampleOptions, DataOptions, ScriptOptions):
    """How digits are trained, in two phases."""

    dataset: str = "digits"
    """Images of digits: digits (scikit-learn's, 8 x 8), mnist, fashion_mnist, or an .npz with Keras keys."""
    arch: str = option("small", "network")
    """Network: small or o18, the paper's."""
    loss_type: Literal["softmax", "arcface"] = "softmax"
    """Logits by a dense layer, or cosines with an angular margin."""
    emb_size: Count = 64
    """Length of the embedding; 512 in the paper."""
    margin_m: Budget = 0.4
    """Angular margin of ArcFace, in radians."""
    margin_s: Budget = 10.0
    """Scale of ArcFace's cosines."""
    epochs: Count = 30
    """Passes over the pairs in the first phase; a pass ends when the smaller half of the digits is used up."""
    fine_epochs: Natural = 5
    """Passes in the second phase, at a tenth of the learning rate and with twice the rounds."""
    batch_size: Count = 32
    """Pairs a step, over all devices."""
    learning_rate: Budget = option(0.05, "lr")
    """Highest learning rate."""
    augment: Literal["none"] = "none"
    """Digits are not augmented."""
    steps: Count = option(10, "adv_round")
    """Steps of the search in the first phase, at most; 50 in the paper."""
    eps: LinfBudget = option(0.3, "adv_sigma")
    """Radius of the ball (L-inf) that the search stays in, in [0, 1]; 0.35 in the paper."""
    adv_step: LinfBudget | None = None
    """Length of a step; by default 2.5 x radius / rounds."""
    adv_thd: Budget = 0.05
    """Cosine distance to the target at which the search stops for that image."""
    weightadv: Budget = 2.25
    """Weight of the regulariser relative to the mean cross-entropy; 2.25 balances as the paper's 1 does."""
    far: Budget = 1e-2
    """False accept rate of the threshold that a hit is judged by."""
    attack: tuple[str, ...] = ATTACKS
    """Attacks on the label; noise of the same budget always takes part."""
    n_attack: Count = 300
    """Test images to attack at their labels, and pairs of them at their embeddings; the threshold is fixed on the
    others."""


class Subject(NamedTuple):
    """A model under attack, and the embeddings of the test images."""

    name: str
    model: "keras.Model"
    attacker: "Attacker"
    embeddings: "np.ndarray"


def refusals(options: Options) -> None:
    """What is refused before an image is read."""
    from common.training import fit
    from face_mter.evaluation.verification import check_far
    from face_mter.models import networks

    for name in options.attack:
        if name not in ATTACKS:
            raise UserError(f"--attack: {name!r} is none of {', '.join(ATTACKS)}")
    networks.check_name(options.arch)
    fit.check_momentum(options.recipe)
    check_far(options.far)


@script(app="face_mter", name="ad_mnist", refusals=refusals)
def ad_mnist(options: Options, run: Run) -> None:
    """Train a plain model and one by `--method`, attack both alike, save them."""
    from common.training import devices
    from face_mter.attacks.features import Attacker
    from face_mter.data.digits import load_digit_images

    data = load_digit_images(
        options.dataset,
        data_dir=options.data_dir,
        seed=options.seed,
        n_train=options.n_train,
        n_test=options.n_test,
    )
    run.data(data.name, data.sha256)
    if len(data.y_test) <= options.n_attack:
        raise UserError(f"--n-attack: {options.n_attack} of {len(data.y_test)} test images; leave some to calibrate")
    strategy = devices.prepare(options.strategy, options.precision)
    run.curves_until(0)
    subjects = []
    for name in dict.fromkeys(("none", options.method)):
        model = _trained(options, run, strategy, data, name)
        attacker = Attacker(model, seed=options.seed, progress=True, log=run.log)
        subjects.append(Subject(name, model, attacker, attacker.embeddings(data.x_test)))
        run.save_model(model, f"model_{name}")
    for subject in subjects:
        run.log(f"attacking the model {subject.name}")
        _attack_labels(options, run, data, subject, headline=subject is subjects[-1])
        _attack_embeddings(options, run, data, subject, headline=subject is subjects[-1])
    if run.chief:
        _draw(run, data, subjects)


def _trained(options: Options, run: Run, strategy, data: "Arrays", name: str) -> "keras.Model":
    """The model of one method, after both phases."""
    from common.training import devices, fit
    from face_mter.data.pair_batches import pair_epochs
    from face_mter.models import networks
    from face_mter.training import mter

    devices.check_batch_size(strategy, options.batch_size)
    mean, std = fit.channel_statistics(data.x_train)
    batches = pair_epochs(data.x_train, data.y_train, batch_size=options.batch_size, seed=options.seed)

    def build() -> "keras.Model":
        return networks.build(
            options.arch,
            data.x_train.shape[1:],
            data.classes,
            emb_size=options.emb_size,
            loss_type=options.loss_type,
            scale=options.margin_s,
            mean=mean,
            std=std,
            seed=options.seed,
        )

    model = None
    phases = ((options.epochs, 1.0, options.steps), (options.fine_epochs, 0.1, 2 * options.steps))
    for phase, (epochs, slower, rounds) in enumerate(phases, start=1):
        if not epochs:
            continue
        step = 2.5 * options.eps / rounds if options.adv_step is None else options.adv_step
        search = mter.feature_target_search(radius=options.eps, sigma=step, rounds=rounds, threshold=options.adv_thd)
        model, history = fit.fit_network(
            replace(options.recipe, epochs=epochs, learning_rate=options.learning_rate * slower),
            run,
            strategy,
            (lambda model=model: model) if model is not None else build,
            lambda epoch, first=options.epochs * (phase - 1): batches(first + epoch),
            lambda model: {},
            steps_per_epoch=max(len(data.y_train) // (2 * options.batch_size), 1),
            title=f"{name}, phase {phase}",
            seed=options.seed + phase - 1,
            method=mter.method(
                name,
                loss_type=options.loss_type,
                scale=options.margin_s,
                margin=options.margin_m,
                alpha=options.adv_alpha,
                weight=options.weightadv,
                adversary=search,
            ),
            optimizer=fit.nesterov(options.recipe),
            checkpoints=run.checkpoints / f"{name}_{phase}",
        )
        methods = ("none", "adv", "mter")
        for epoch, logs in enumerate(history):
            columns = {key: logs[key] for key in ("loss", "cross_entropy", "accuracy", "learning_rate")}
            run.curve(method=methods.index(name), phase=phase, epoch=epoch + 1, **columns)
    return model


def _attack_labels(options: Options, run: Run, data: "Arrays", subject: Subject, *, headline: bool) -> None:
    """Accuracy on the test images, and on the first of them under attacks on the label."""
    import numpy as np

    from common.attacks import autoattacked, bim, fgsm, pgd, random_sign_noise
    from common.evaluation import predictions
    from common.evaluation.robustness import Entry, of_classifier

    model, seed = subject.model, options.seed
    right = predictions.predict(model, data.x_test, progress=True) == data.y_test
    run.rate("clean_accuracy", float(right.mean()), len(right), model=subject.name, split="test")
    x = data.x_test[: options.n_attack].astype(np.float32) / 255
    y, measured = data.y_test[: options.n_attack], {"clean_accuracy": (float(right.mean()), len(right))}
    evaluation = of_classifier(model, x, y, keep=False, progress=True, log=run.log)
    for eps in BUDGETS:
        strongest = {"steps": 100, "restarts": 3, "loss": "margin", "keep": "best", "stop": True, "seed": seed}
        attacks = {
            "fgsm": partial(fgsm, model, eps=eps),
            "bim": partial(bim, model, eps=eps, alpha=eps / 10, steps=20),
            "pgd40": partial(pgd, model, eps=eps, alpha=eps / 16, steps=40, seed=seed),
            "margin100": partial(pgd, model, eps=eps, alpha=eps / 16, **strongest),
            "autoattack_fast": partial(autoattacked, model, eps=eps, version="fast", stop=True, seed=seed),
        }
        for name in dict.fromkeys(options.attack):
            evaluation.run(Entry(name=name, attack=attacks[name], eps=eps))
        noise = partial(random_sign_noise, model, eps=eps, seed=seed)
        evaluation.run(Entry(name="noise", attack=noise, eps=eps, control=True))
    for row in evaluation.rows():
        run.row(model=subject.name, split="test", **row)
        if row["metric"] == "accuracy":
            measured[f"accuracy_{row['attack']}_{row['eps']:g}"] = (row["value"], row["n"])
    if headline:
        for name, (value, n) in measured.items():
            run.metrics(**{name: value, f"{name}_n": n})


def _attack_embeddings(options: Options, run: Run, data: "Arrays", subject: Subject, *, headline: bool) -> None:
    """How often a digit is taken for the digit it is aimed at, at the threshold of the images not attacked."""
    from face_mter.evaluation import verification

    order = data.y_test[options.n_attack :].argsort(kind="stable")
    rest = subject.embeddings[options.n_attack :][order]
    impostor = verification.impostor_scores(rest, data.y_test[options.n_attack :][order])
    threshold = verification.far_threshold(impostor, options.far)
    run.row(model=subject.name, metric="threshold", value=threshold)
    pairs = digit_pairs(data.y_test[: options.n_attack], options.seed)
    sources, targets = data.x_test[pairs[:, 0]], subject.embeddings[pairs[:, 1]]
    evaluation = subject.attacker.evaluation(sources, targets)
    evaluation.unattacked()
    for eps in BUDGETS:
        for name in ("iftgsm", "pgd", "noise"):
            evaluation.run(subject.attacker.entry(name, eps))
    for outcome in evaluation.outcomes:
        for row in outcome.rows(lambda of: [("hit_rate", of.rate(of.after >= threshold))]):
            run.row(model=subject.name, split="test", **row)
            if headline:
                key = f"hit_rate_{row['attack']}_{row['eps']:g}" if row["eps"] else "hit_rate_clean"
                run.metrics(**{key: row["value"], f"{key}_n": row["n"]})
    if headline:
        run.metrics(threshold=threshold)


def digit_pairs(y: "np.ndarray", seed: int) -> "np.ndarray":
    """Each image of labels `y` (n,) once as source, with a target of another digit: int64 (n, 2)."""
    import numpy as np

    rng = np.random.default_rng([seed, 13])
    others = [np.flatnonzero(y != own) for own in y]
    return np.stack([np.arange(len(y)), [rng.choice(rows) for rows in others]], axis=1)


def _draw(run: Run, data: "Arrays", subjects: list[Subject]) -> None:
    """The test images' embeddings in the plane, and the ways of attacked ones through it."""
    import numpy as np
    from sklearn.decomposition import PCA

    from common.attacks import iftgsm
    from face_mter.evaluation import figures
    from face_mter.evaluation.verification import normalised

    eps = BUDGETS[1]
    pairs = digit_pairs(data.y_test[:200], 0)[:_WAYS]
    x = data.x_test[pairs[:, 0]].astype(np.float32) / 255
    panels = {}
    for subject in subjects:
        points = normalised(subject.embeddings[:_POINTS])
        plane = PCA(2, random_state=0).fit(points) if points.shape[1] > 2 else None
        flat = plane.transform if plane else lambda values: values
        ways = []
        for steps in range(0, 25, 3):
            moved = iftgsm(
                subject.attacker.embed, x, subject.embeddings[pairs[:, 1]], eps=eps, alpha=eps / 12, steps=steps
            )
            ways.append(flat(normalised(subject.attacker.embeddings(moved.numpy()))))
        panels[subject.name] = flat(points), data.y_test[:_POINTS], list(np.stack(ways, axis=1))
    run.figure("plane", figures.plane, panels, title=f"IFTGSM, eps {eps:g}: embeddings on their way")


if __name__ == "__main__":
    ad_mnist.main()
