"""Attacks side by side: the suite, CleverHans, Foolbox, ART and torchattacks, on one model, against bare gradients."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from common.errors import UserError
from common.evaluation.statistics import wilson
from common.runs.options import Budget, Count, ExampleOptions, ScriptOptions, option
from common.runs.record import Run
from common.runs.script import script

if TYPE_CHECKING:
    from benchmarks.peers.libraries import Peer, Timed
    from benchmarks.peers.subjects import Subject
    from common.datasets import Arrays

SUBJECTS = {
    "scenes": "scenes_cnn",
    "mnist": "mnist_cnn",
    "cifar10": "cifar_resnet20",
    "robust": "cifar_resnet20_robust",
}
"""What a row is measured on, by the name that it has in the table."""


class Row(NamedTuple):
    """An attack at fixed settings: its function in `common.attacks`, the gradients it takes, and on how many images."""

    subject: str
    attack: Literal["fgsm", "pgd", "cw_l2", "ddn"]
    images: int
    settings: Mapping[str, Any]
    eps: str | None = None

    @property
    def gradients(self) -> int:
        """Gradients per image."""
        return self.settings.get("steps", 1) * self.settings.get("search_steps", 1)

    @property
    def title(self) -> str:
        """`pgd40`, or `cw_l2_9x200` with a search."""
        steps, search = self.settings.get("steps", ""), self.settings.get("search_steps")
        return f"{self.attack}_{search}x{steps}" if search else f"{self.attack}{steps}"

    @property
    def norm(self) -> str:
        return self.settings.get("norm", "l2")

    @property
    def minimal(self) -> bool:
        """Whether it looks for the nearest success, rather than for any within a budget."""
        return self.eps is None


def _fixed(subject: str, attack: Literal["fgsm", "pgd"], norm: str, eps: str, images: int, **settings: Any) -> Row:
    return Row(subject, attack, images, {"norm": norm, "eps": float(Budget(eps)), **settings}, eps)


def _cw(subject: str, images: int, search_steps: int, steps: int, constant: float) -> Row:
    settings = {"search_steps": search_steps, "steps": steps, "constant": constant, "learning_rate": 1e-2}
    return Row(subject, "cw_l2", images, settings)


def _ddn(subject: str, images: int) -> Row:
    return Row(subject, "ddn", images, {"steps": 100, "gamma": 0.05, "initial_eps": 1.0})


ROWS = {
    "fgsm_scenes": _fixed("scenes", "fgsm", "linf", "8/255", 64),
    "scenes_linf": _fixed("scenes", "pgd", "linf", "8/255", 64, alpha=2 / 255, steps=40),
    "scenes_l2": _fixed("scenes", "pgd", "l2", "0.5", 64, alpha=0.1, steps=40),
    "cw_scenes": _cw("scenes", 16, 4, 50, constant=1.0),
    "ddn_scenes": _ddn("scenes", 64),
    "fgsm_mnist": _fixed("mnist", "fgsm", "linf", "0.3", 512),
    "mnist_linf": _fixed("mnist", "pgd", "linf", "0.3", 1024, alpha=0.01, steps=40),
    "mnist_l2": _fixed("mnist", "pgd", "l2", "2.0", 1024, alpha=0.1, steps=40),
    # ART's search doubles the constant where the others take ten times as much: from here it gets far enough in nine.
    "cw_mnist": _cw("mnist", 128, 9, 200, constant=0.1),
    "ddn_mnist": _ddn("mnist", 128),
    "fgsm_cifar": _fixed("cifar10", "fgsm", "linf", "8/255", 128),
    "cifar_linf": _fixed("cifar10", "pgd", "linf", "8/255", 128, alpha=2 / 255, steps=40),
    "cifar_l2": _fixed("cifar10", "pgd", "l2", "0.5", 128, alpha=0.1, steps=40),
    "ddn_cifar": _ddn("cifar10", 64),
    "robust_linf": _fixed("robust", "pgd", "linf", "8/255", 128, alpha=2 / 255, steps=40),
    "robust_l2": _fixed("robust", "pgd", "l2", "0.5", 128, alpha=0.1, steps=40),
}
EMBEDDED = tuple(name for name, row in ROWS.items() if row.subject == "scenes" and row.attack != "cw_l2")
LIBRARIES = (
    "cleverhans",
    "foolbox",
    "foolbox_dropping",
    "torchattacks",
    "foolbox_torch",
    "bare_torch",
    "art",
)
# How many times as fast as the fastest library, at equal robust accuracy.
SPEEDUPS = {"mnist_linf": 2.5, "cifar_linf": 5.0, "robust_linf": 1.5, "robust_l2": 1.5, "cw_mnist": 1.5}


@dataclass(kw_only=True)
class Options(ExampleOptions, ScriptOptions):
    """What is measured, how often and on which models. Without options: embedded data, a few minutes."""

    rows: tuple[Literal[*ROWS], ...] = EMBEDDED
    """Rows to measure; those on scenes need no data, the others --mnist or --cifar10 and a model."""
    repeats: Count = 7
    """Repetitions, of which the median counts; each runs every contender once."""
    libraries: tuple[Literal[*LIBRARIES], ...] = LIBRARIES
    """Libraries to compare with, of those installed; bare_torch is PyTorch's gradient alone."""
    slow_seconds: Budget = 300
    """A contender that takes longer than this, in seconds, is run once only."""
    data_dir: Path = option(Path("data"), written=True, compared=False)
    """Folder in which downloaded data sets are kept."""
    n_test: Count | None = None
    """Number of test images of every row; null takes each row's own, from 64 to 1024."""
    batch_size: Count = 128
    """Images a batch, for all contenders alike."""
    n_train: Count | None = 2000
    """Training images of the models that are trained here: scenes, and MNIST without --mnist-model."""
    epochs: Count = 3
    """Epochs of the models that are trained here."""
    mnist: str = "mnist"
    """MNIST: the name, which downloads it, or a path to an .npz with Keras keys."""
    cifar10: str = "cifar10"
    """CIFAR-10: the name, which downloads it, or a path to an .npz with Keras keys."""
    mnist_model: Path | None = None
    """Model for MNIST, a .keras file with logits; null trains a small one here."""
    cifar_model: Path | None = None
    """Model for CIFAR-10, as adversarial_training.py --method standard makes it."""
    robust_model: Path | None = None
    """Adversarially trained model for CIFAR-10, as adversarial_training.py --method pgd makes it."""


def refusals(options: Options) -> None:
    """What is refused before anything is read or trained."""
    from benchmarks.peers.subjects import open_subject

    _check_models(options, {ROWS[name].subject for name in ROWS if name in options.rows})
    for path in (options.mnist_model, options.cifar_model, options.robust_model):
        if path is not None:
            open_subject(path)


@script(app="benchmarks", name="attacks", refusals=refusals)
def attacks(options: Options, run: Run) -> None:
    """Time every contender of every row, judge what it returned, and compare with the targets."""
    from benchmarks.peers import libraries, subjects

    wanted = [(name, ROWS[name]) for name in ROWS if name in options.rows]
    data = _Data(options)
    used = [data[source] for source in dict.fromkeys(_source(row) for _, row in wanted)]
    run.data(*subjects.together(used))
    subjects.describe_peers(run, libraries.PEERS)
    met: list[float] = []
    for key in dict.fromkeys(row.subject for _, row in wanted):
        subject = _subject(options, run, key, data)
        with libraries.opened(subject.model, subject.path, batch_size=options.batch_size, seed=options.seed) as found:
            peers = {name: peer for name, peer in found.items() if name in options.libraries}
            if "bare_torch" in peers:
                run.row(
                    model=subject.label,
                    attack="bare_torch",
                    metric=f"network: {peers['bare_torch'].side.network}",
                    value=1,
                )
            for name in (name for name, row in wanted if row.subject == key):
                stored = run.checkpoints / f"{name}.json"
                if not stored.is_file():
                    measured = _measure(options, run, name, subject, peers)
                    _keep(stored, measured)
                measured = json.loads(stored.read_text(encoding="utf-8"))
                for columns in measured:
                    run.row(**columns)
                    if columns["metric"] == "target":
                        run.metrics(**{f"{name}_{columns['split']}": columns["value"]})
                    if columns["metric"] == "met":
                        met.append(columns["value"])
    run.metrics(targets=len(met), targets_met=int(sum(met)))


class _Data(dict):
    """The data sets, read when they are first asked for."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options

    def __missing__(self, source: str) -> "Arrays":
        from common import datasets

        options, most = self.options, max(row.images for row in ROWS.values() if _source(row) == source)
        place = {"scenes": "scenes", "mnist": options.mnist, "cifar10": options.cifar10}[source]
        trained_here = source == "scenes" or (source == "mnist" and options.mnist_model is None)
        try:
            self[source] = datasets.load(
                place,
                data_dir=options.data_dir,
                seed=options.seed,
                n_train=options.n_train if trained_here else 1,
                # Minimal attacks take the first that are answered rightly.
                n_test=2 * (options.n_test or most),
            )
        except UserError as error:
            offer = "; --rows scenes_linf and others on scenes need no data" if source != "scenes" else ""
            raise UserError(f"{error}{offer}") from error
        return self[source]


def _source(row: Row) -> str:
    return "cifar10" if row.subject == "robust" else row.subject


def _check_models(options: Options, wanted: Iterable[str]) -> None:
    given = {"cifar10": options.cifar_model, "robust": options.robust_model}
    for subject, path in given.items():
        if subject in wanted and path is None:
            option, method = {"cifar10": ("--cifar-model", "standard"), "robust": ("--robust-model", "pgd")}[subject]
            raise UserError(
                f"{option}: the rows on CIFAR-10 need a trained model; make one with python"
                f" benchmarks/adversarial_training.py --arch resnet20 --method {method} --dataset cifar10, or choose"
                " --rows on scenes"
            )


def _subject(options: Options, run: Run, key: str, data: "_Data") -> "Subject":
    from benchmarks.peers import subjects

    given = {"mnist": options.mnist_model, "cifar10": options.cifar_model, "robust": options.robust_model}.get(key)
    images = data["cifar10" if key == "robust" else key]
    if given is not None:
        return subjects.load_subject(SUBJECTS[key], given, images)
    return subjects.train_subject(SUBJECTS[key], images, run, epochs=options.epochs, seed=options.seed)


def _keep(path: Path, measured: list[dict[str, Any]]) -> None:
    from common.files import write_text

    write_text(path, json.dumps(measured))


class _Report:
    """The rows of the table that one row of the benchmark makes."""

    def __init__(self, row: Row, subject: "Subject") -> None:
        self.rows: list[dict[str, Any]] = []
        self._same = {"model": subject.label, "attack": row.title, "norm": row.norm, "eps": row.eps}

    def add(self, split: str, metric: str, value: float, **columns: Any) -> None:
        self.rows.append({**self._same, "split": split, "metric": metric, "value": float(value), **columns})

    def rate(self, split: str, metric: str, hits: np.ndarray) -> None:
        low, high = wilson(float(hits.mean()), len(hits))
        self.add(split, metric, hits.mean(), n=len(hits), low=low, high=high)

    def target(self, name: str, value: float, *, most: float | None = None, least: float | None = None) -> None:
        """`value` against its bound, which is in the column `high` or `low`."""
        bounds = {"high": most, "low": least}
        self.add(name, "target", value, **{column: bound for column, bound in bounds.items() if bound is not None})
        self.add(name, "met", (most is None or value <= most) and (least is None or value >= least))


def _measure(
    options: Options, run: Run, name: str, subject: "Subject", peers: Mapping[str, "Peer"]
) -> list[dict[str, Any]]:
    """All that is known of one row, as rows of `table.csv`."""
    import tensorflow as tf

    from benchmarks.peers import timing
    from benchmarks.peers.libraries import PEERS, LeftOutError
    from common.progress import Progress

    row = ROWS[name]
    report = _Report(row, subject)
    tf.random.set_seed(options.seed)
    np.random.seed(options.seed)
    x, y = _images(row, subject, options.n_test or row.images)
    contenders = _contenders(options, row, subject, peers, x, y)
    for kind in PEERS:
        if kind.name not in peers:
            report.add(kind.name, f"left out: not {'asked for' if kind.available() else 'installed'}", 0)
    run.log(f"{name}: {len(x)} images, {row.gradients} gradients each; {', '.join(contenders)}")
    answers: dict[str, Timed] = {}

    def clock(contender: str) -> float:
        answers[contender] = contenders[contender](row.settings)
        return answers[contender].seconds

    with Progress((options.repeats + 1) * len(contenders), name, units="calls") as progress:
        for contender in list(contenders):
            # The first call compiles; of the long searches a short one is enough for that.
            short = {"steps": min(row.settings["steps"], 5), "search_steps": 1} if row.attack == "cw_l2" else {}
            try:
                answers[contender] = contenders[contender]({**row.settings, **short})
            except LeftOutError as reason:
                report.add(contender, f"left out: {reason}", 0)
                del contenders[contender]
            progress.add()
        seconds = timing.interleaved(
            {contender: lambda contender=contender: clock(contender) for contender in contenders},
            options.repeats,
            slow_seconds=options.slow_seconds,
            show=progress.add,
        )
    for contender, taken in seconds.items():
        for metric, spread in (
            ("seconds", timing.Spread.of(taken)),
            ("ratio_to_bare", timing.ratio(seconds, contender, "bare")),
        ):
            report.add(contender, metric, spread.median, low=spread.low, high=spread.high)
        report.add(contender, "repetitions", len(taken))
    _judge(report, row, name, subject, x, y, answers, seconds, options)
    if row.attack == "cw_l2" and "torchattacks" in peers:
        _one_constant(report, row, subject, peers["torchattacks"], x, y)
    for columns in report.rows:
        if columns["metric"] in ("seconds", "target") or columns["metric"].startswith("left out"):
            run.log(f"  {columns['split']:28} {columns['metric']:40} {columns['value']:.4g}")
    return report.rows


def _images(row: Row, subject: "Subject", count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first test images; for minimal attacks the first that are answered rightly: the others are there already."""
    from common.evaluation import predictions

    x, y = subject.x, subject.y
    if row.minimal:
        right = predictions.predict(subject.model, x) == y
        x, y = x[right], y[right]
    if not len(x):
        raise UserError(f"{subject.path}: answers no test image rightly; train it longer")
    return x[:count], y[:count]


def _contenders(
    options: Options, row: Row, subject: "Subject", peers: Mapping[str, "Peer"], x: np.ndarray, y: np.ndarray
) -> dict[str, Callable[[Mapping[str, Any]], "Timed"]]:
    """By name, functions of the attack's settings; what is not installed is not among them."""
    from benchmarks.peers import suite_side

    own = {"seed": options.seed} if row.attack == "pgd" else {}
    theirs = {"random_start": True} if row.attack == "pgd" else {}

    def bare(settings: Mapping[str, Any]) -> "Timed":
        return suite_side.timed_gradients(subject.model, x, y, _steps(settings), options.batch_size)

    def bare_torch(settings: Mapping[str, Any]) -> "Timed":
        return peers["bare_torch"].timed("gradients", x, y, steps=_steps(settings))

    def ours(settings: Mapping[str, Any], **more: Any) -> "Timed":
        return suite_side.timed_attack(subject.model, row.attack, x, y, options.batch_size, **settings, **own, **more)

    contenders: dict[str, Callable] = {"bare": bare, "ours": ours}
    if row.attack == "pgd":
        contenders["ours_stop"] = lambda settings: ours(settings, stop=True)
    for name, peer in peers.items():
        if name == "bare_torch":
            contenders[name] = bare_torch
        elif name != "foolbox_dropping" or row.attack == "pgd":
            contenders[name] = lambda settings, peer=peer: peer.timed(row.attack, x, y, **settings, **theirs)
    return contenders


def _steps(settings: Mapping[str, Any]) -> int:
    return settings.get("steps", 1) * settings.get("search_steps", 1)


def _judge(
    report: _Report,
    row: Row,
    name: str,
    subject: "Subject",
    x: np.ndarray,
    y: np.ndarray,
    answers: Mapping[str, "Timed"],
    seconds: Mapping[str, list[float]],
    options: Options,
) -> None:
    """Results of each contender's arrays under the model that all of them attacked, and the targets."""
    from benchmarks.peers import timing
    from common.evaluation import predictions, quality

    robust, distance = {}, {}
    clean = predictions.predict(subject.model, x) == y
    for contender, answer in answers.items():
        if contender.startswith("bare") or contender not in seconds:
            continue
        still = predictions.predict(subject.model, answer.x) == y
        if row.minimal:
            report.rate(contender, "success", ~still)
            # A failure is infinitely far away, so that no median gains by it.
            away = np.where(still, np.inf, quality.perturbation_sizes(x, answer.x)["l2"])
            if np.isfinite(np.median(away)):
                distance[contender] = float(np.median(away))
                report.add(contender, "median_distance", distance[contender])
            robust[contender] = float(still.mean())
        else:
            report.rate(contender, "robust_accuracy", clean & still)
            robust[contender] = float((clean & still).mean())
        for note, value in answer.notes.items():
            report.add(contender, note, value)
    libraries = [c for c in seconds if not c.startswith(("bare", "ours")) and c != "foolbox_dropping"]
    fastest = min(libraries, key=lambda c: timing.Spread.of(seconds[c]).median, default=None)
    best = "ours_stop" if "ours_stop" in seconds else "ours"
    if not row.minimal:
        report.target("ours_over_bare", timing.ratio(seconds, "ours", "bare").median, most=1.10)
    if row.attack == "pgd":
        _oracle(report, row, subject, x, y, seconds, options)
    if "foolbox_dropping" in seconds:
        report.add("over_foolbox_dropping", "speedup", timing.ratio(seconds, "foolbox_dropping", best).median)
    if fastest is None:
        return
    report.add(fastest, "fastest_library", 1)
    report.target("ours_over_fastest", timing.ratio(seconds, "ours", fastest).median, most=1.05)
    speedup = timing.ratio(seconds, fastest, best).median
    if name in SPEEDUPS:
        report.target("speedup", speedup, least=SPEEDUPS[name])
    else:
        report.add("over_fastest", "speedup", speedup)
    if not row.minimal:
        report.target("accuracy_gap", abs(robust[best] - robust[fastest]), most=0.002)
    else:
        if row.attack == "cw_l2":
            report.target("success", 1 - robust["ours"], least=1.0)
        rivals = [distance[c] for c in distance if c != "ours" and (row.attack == "cw_l2" or c.startswith("foolbox"))]
        if rivals and "ours" in distance:
            report.target("distance_to_best", distance["ours"] / min(rivals), most=1.02)


def _oracle(
    report: _Report,
    row: Row,
    subject: "Subject",
    x: np.ndarray,
    y: np.ndarray,
    seconds: Mapping[str, list[float]],
    options: Options,
) -> None:
    """What the gradients until each image's first success would cost at the bare price, and what ours costs over that.

    To see a success takes one look more than to reach it; with that look counted as a gradient it is `with_look`.
    """
    from benchmarks.peers import oracle, timing

    counts = oracle.gradients_to_success(
        subject.model, x, y, seed=options.seed, batch_size=options.batch_size, **row.settings
    )
    every, bare = len(x) * row.gradients, timing.Spread.of(seconds["bare"]).median
    stopped = timing.ratio(seconds, "ours_stop", "bare").median
    for split, taken in (("oracle", counts), ("oracle_with_look", np.minimum(counts + 1, row.gradients))):
        share = taken.sum() / every
        report.add(split, "seconds", share * bare)
        report.add(split, "ratio_to_bare", share)
        report.add(split, "gradients", taken.sum())
    if counts.sum():
        report.target("stop_over_oracle", stopped * every / counts.sum(), most=1.25)
    report.add("stop_over_oracle_with_look", "ratio", stopped * every / np.minimum(counts + 1, row.gradients).sum())


def _one_constant(report: _Report, row: Row, subject: "Subject", peer: "Peer", x: np.ndarray, y: np.ndarray) -> None:
    """What torchattacks' CW does with its one constant, in as many gradients: why it is no contender."""
    from benchmarks.peers.libraries import LeftOutError
    from common.evaluation import predictions

    settings = {"c": 1.0, "steps": row.gradients, "learning_rate": row.settings["learning_rate"]}
    try:
        answer = peer.timed("cw_l2_one_constant", x, y, **settings)
    except LeftOutError as reason:
        report.add("torchattacks_c1", f"left out: {reason}", 0)
        return
    report.rate("torchattacks_c1", "success", predictions.predict(subject.model, answer.x) != y)
    ends = (x == 0) | (x == 1)
    if ends.any():
        moved = np.abs(answer.x - x)[ends] > 1e-6
        report.add("torchattacks_c1", "moved_at_box_ends", moved.mean(), n=int(ends.sum()))


if __name__ == "__main__":
    attacks.main()
