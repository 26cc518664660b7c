"""The suite's attacks against those of other libraries, number by number: where they are equal, and why where not."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from common.runs.options import Count, DataOptions, ExampleOptions, ScriptOptions
from common.runs.record import Run
from common.runs.script import script

if TYPE_CHECKING:
    from benchmarks.peers.libraries import Peer
    from benchmarks.peers.subjects import Subject

TOLERANCE = 1e-5
"""Largest difference of any pixel of images in [0, 1] that counts as equal."""
# Two points no further apart are one; unit gradients further apart differ by more than rounding; how many images may.
SAME_PLACE, JUMP, MOST_SWITCHED = 1e-6, 1e-5, 0.25
EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}
ALPHA = {"linf": 2 / 255, "l2": 0.1, "l1": 2.0}
# Wide enough that no step ends at it.
NO_BOX = (-1e3, 1e3)

BALL_FIRST = "scales into the ball, then clips into the box: not the nearest point of both"
BOX_FIRST = "clips into the box, then scales into the ball: not the nearest point of both"
SIGNS = "accumulates the normalised gradients' signs: the paper accumulates gradients over their L1 norm"
DENSE = "moves every pixel, then scales into the ball: not the nearest point in L1"
SWITCH = "the model's gradient jumps between two points 1e-6 apart"
ROUNDING = "PyTorch rounds otherwise: gradients close to zero have other signs"
UNKNOWN = "differs"


class Case(NamedTuple):
    """One comparison. `same` is the suite's attack rebuilt with what the peer does otherwise: it shows the cause."""

    attack: str
    norm: str
    peers: tuple[str, ...]
    clip: tuple[float, float] = (0.0, 1.0)
    required: bool = True
    because: str = ""
    same: Callable[..., np.ndarray] | None = None


@dataclass(kw_only=True)
class Options(ExampleOptions, DataOptions, ScriptOptions):
    """On what the attacks are compared."""

    model: Path | None = None
    """A .keras classifier with logits, of layers in Keras alone; null trains a small one here."""
    n_train: Count | None = 2000
    """Training images of the model that is trained here."""
    n_test: Count | None = 64
    """Test images that are attacked."""
    epochs: Count = 3
    """Epochs of the model that is trained here."""
    steps: Count = 10
    """Steps of the iterative attacks."""


def refusals(options: Options) -> None:
    """What is refused before anything is read or trained."""
    from benchmarks.peers.subjects import open_subject

    if options.model is not None:
        open_subject(options.model)


@script(app="benchmarks", name="parity", refusals=refusals)
def parity(options: Options, run: Run) -> None:
    """Compare every attack with every installed library; ends with status 1 if one differs that must not."""
    from benchmarks.peers import libraries, subjects
    from common import datasets

    data = datasets.load(
        options.dataset, data_dir=options.data_dir, seed=options.seed, n_train=options.n_train, n_test=options.n_test
    )
    run.data(data.name, data.sha256)
    subjects.describe_peers(run, libraries.PEERS)
    if options.model is not None:
        subject = subjects.load_subject(options.model.stem, options.model, data)
    else:
        subject = subjects.train_subject("small_cnn", data, run, epochs=options.epochs, seed=options.seed)
    compared = failed = 0
    with libraries.opened(subject.model, subject.path, batch_size=len(subject.x), seed=options.seed) as peers:
        for case in _cases():
            for name in case.peers:
                outcome = _compare(case, options, subject, peers.get(name))
                same = {"model": subject.label, "attack": case.attack, "norm": case.norm, "split": name}
                same["eps"] = EPS[case.norm]
                if case.clip == NO_BOX:
                    same["attack"] += " without box"
                for metric, value in outcome.items():
                    run.row(metric=metric, value=value, **same)
                verdict = next(metric for metric in outcome if metric.startswith("verdict"))
                compared += "largest_difference" in outcome
                failed += outcome[verdict] < 0
                difference = outcome.get("largest_difference", float("nan"))
                run.log(f"{same['attack']:20} {case.norm:5} {name:14} {difference:10.2g}  {verdict[9:]}")
    run.metrics(compared=compared, failed=failed)
    if failed:
        raise SystemExit(f"parity: {failed} of {compared} comparisons differ that must be equal; see {run.folder}")


def _cases() -> list[Case]:
    torch = ("torchattacks", "foolbox_torch")
    cases = [Case("fgsm", norm, ("cleverhans", "foolbox")) for norm in ("linf", "l2")]
    cases += [Case("pgd", "linf", ("cleverhans", "foolbox"))]
    cases += [Case("pgd", "l2", ("cleverhans", "foolbox"), clip=NO_BOX)]
    cases += [Case("mi_fgsm", "linf", ("cleverhans",)), Case("mi_fgsm", "l2", ("cleverhans",), clip=NO_BOX)]
    cases += [Case("pgd", "l2", ("foolbox",), required=False, because=BALL_FIRST, same=ball_first)]
    cases += [Case("pgd", "l2", ("cleverhans", "art"), required=False, because=BOX_FIRST, same=box_first)]
    cases += [Case("mi_fgsm", "linf", ("foolbox",), required=False, because=SIGNS, same=sign_momentum)]
    cases += [Case("pgd", "l1", ("foolbox", "cleverhans"), required=False, because=DENSE, same=dense_l1)]
    cases += [Case(attack, "linf", ("art",), required=False, because=UNKNOWN) for attack in ("fgsm", "pgd", "mi_fgsm")]
    cases += [Case("fgsm", "linf", torch, required=False, because=ROUNDING)]
    cases += [Case("pgd", "linf", torch, required=False, because=ROUNDING)]
    return [*cases, Case("mi_fgsm", "linf", ("torchattacks",), required=False, because=ROUNDING)]


def settings_of(case: Case, steps: int) -> dict[str, Any]:
    """What the attack of `case` is called with; every library takes the same."""
    settings: dict[str, Any] = {"eps": EPS[case.norm], "norm": case.norm}
    if case.attack != "fgsm":
        settings |= {"alpha": ALPHA[case.norm], "steps": steps}
    if case.attack == "pgd":
        settings["random_start"] = False
    return settings


def _compare(case: Case, options: Options, subject: "Subject", peer: "Peer | None") -> dict[str, float]:
    """Differences, and one `verdict: ...` worth 1 (equal), 0 (differs, explained, or not offered) or -1 (must not)."""
    from benchmarks.peers.libraries import LeftOutError

    if peer is None:
        return {"verdict: not installed": 0}
    settings = settings_of(case, options.steps)
    outside = {"clip": case.clip} if case.clip != (0.0, 1.0) else {}
    try:
        theirs = peer.timed(case.attack, subject.x, subject.y, **settings, **outside).x
    except LeftOutError as reason:
        return {f"verdict: not offered: {reason}": -1 if case.required else 0}
    ours = _ours(case, subject, **settings)
    gap = _per_image(ours - theirs)
    apart = float((np.abs(ours - theirs) > TOLERANCE).mean())
    measured = {"largest_difference": float(gap.max()), "share_of_pixels": apart}
    if gap.max() <= TOLERANCE:
        return measured | {"verdict: equal": 1}
    measured |= _worth(subject, ours, theirs)

    def again(chosen: "Subject", **settings: Any) -> np.ndarray:
        return peer.timed(case.attack, chosen.x, chosen.y, **settings, **outside).x

    left = _unexplained(partial(_ours, case), again, subject, settings, gap)
    if not left.any():
        return measured | {f"verdict: equal but for {_count(gap > TOLERANCE)} on which {SWITCH}": 1}
    if case.required:
        return measured | {"verdict: must be equal and is not": -1}
    if case.same is None:
        return measured | {f"verdict: {case.because}": 0}
    gap = _per_image(case.same(subject, **settings) - theirs)
    left = _unexplained(case.same, again, subject, settings, gap)
    measured["difference_once_rebuilt"] = float(gap.max())
    switched = int((gap > TOLERANCE).sum())
    but = f", but for {switched} of {len(gap)} images on which {SWITCH}" if switched else ""
    return measured | {
        f"verdict: {case.because}" + ("" if left.any() else f"; the same once the suite does so too{but}"): 0
    }


def _per_image(difference: np.ndarray) -> np.ndarray:
    return np.abs(difference).reshape(len(difference), -1).max(axis=1)


def _count(flags: np.ndarray) -> str:
    return f"{int(flags.sum())} of {len(flags)} images"


def _unexplained(
    mine: Callable[..., np.ndarray],
    theirs: Callable[..., np.ndarray],
    subject: "Subject",
    settings: Mapping[str, Any],
    gap: np.ndarray,
) -> np.ndarray:
    """Images (N,) bool whose results differ, by `gap` (N,), for another reason than a jump of the model's gradient.

    Where a rectifier or a pool switches, two implementations that agree to the last roundings part, and both are right.
    It is looked for at the step before they part: there both are at the same point with different gradients.
    """
    from benchmarks.peers.suite_side import compiled_gradient

    gradient = compiled_gradient(subject.model)
    left = gap > TOLERANCE
    if not left.any() or left.mean() > MOST_SWITCHED or "steps" not in settings:
        return left
    parted = np.zeros(len(left), bool)
    # The whole batch goes along: with another batch size come other kernels, and the switch may not be met.
    before = subject.x, subject.x
    for step in range(1, settings["steps"] + 1):
        now = tuple(attack(subject, **{**settings, "steps": step}) for attack in (mine, theirs))
        parting = (_per_image(now[0] - now[1]) > SAME_PLACE) & ~parted
        if (parting & left).any():
            there = [gradient(point, subject.y).numpy() for point in before]
            units = [g / np.maximum(np.sqrt((g**2).sum(axis=(1, 2, 3), keepdims=True)), 1e-30) for g in there]
            signs = (np.sign(there[0]) != np.sign(there[1])).any(axis=(1, 2, 3))
            left &= ~(parting & (signs | (_per_image(units[0] - units[1]) > JUMP)))
        parted |= parting
        before = now
    return left


def _ours(case: Case, subject: "Subject", **settings: Any) -> np.ndarray:
    from common import attacks

    low, high = case.clip
    return getattr(attacks, case.attack)(subject.model, subject.x, subject.y, low=low, high=high, **settings).numpy()


def _worth(subject: "Subject", ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """What the difference does to the accuracy under attack."""
    from common.evaluation import predictions

    accuracy = predictions.accuracy
    return {
        "accuracy_ours": accuracy(subject.model, ours, subject.y),
        "accuracy_theirs": accuracy(subject.model, theirs, subject.y),
    }


def ball_first(subject: "Subject", *, eps, alpha, steps, norm, random_start) -> np.ndarray:
    """PGD in L2 with Foolbox's way back: shorten the shift to the budget, then clip the pixels."""
    from common.attacks import unit_l2

    return _walk(subject, eps, alpha, steps, unit_l2, lambda shift: _shortened(shift, eps, 2))


def box_first(subject: "Subject", *, eps, alpha, steps, norm, random_start) -> np.ndarray:
    """PGD in L2 with the way back of CleverHans and ART: clip the pixels, then shorten the shift."""
    import tensorflow as tf

    from common.attacks import unit_l2

    def shorten(shift):
        return _shortened(tf.clip_by_value(subject.x + shift, 0.0, 1.0) - subject.x, eps, 2)

    return _walk(subject, eps, alpha, steps, unit_l2, shorten)


def dense_l1(subject: "Subject", *, eps, alpha, steps, norm, random_start) -> np.ndarray:
    """Foolbox's PGD in L1: along the whole gradient over its L1 norm, shortened and clipped."""
    from common.attacks.tensors import normalize

    return _walk(subject, eps, alpha, steps, lambda g: normalize(g, 1), lambda shift: _shortened(shift, eps, 1))


def sign_momentum(subject: "Subject", *, eps, alpha, steps, norm, momentum=1.0) -> np.ndarray:
    """Foolbox's MI-FGSM in L-inf: the sum of signs, and the sign of that."""
    import tensorflow as tf

    velocity = tf.zeros_like(subject.x)

    def direction(gradient):
        nonlocal velocity
        velocity = momentum * velocity + tf.sign(gradient)
        return tf.sign(velocity)

    return _walk(subject, eps, alpha, steps, direction, lambda shift: tf.clip_by_value(shift, -eps, eps))


def _walk(subject: "Subject", eps, alpha, steps, direction: Callable, shorten: Callable) -> np.ndarray:
    import tensorflow as tf

    from benchmarks.peers.suite_side import compiled_gradient

    gradient, x, y = compiled_gradient(subject.model), tf.constant(subject.x), tf.constant(subject.y)
    point = x
    for _ in range(steps):
        moved = point + alpha * direction(gradient(point, y))
        point = tf.clip_by_value(x + shorten(moved - x), 0.0, 1.0)
    return point.numpy()


def _shortened(shift, eps: float, order: int):
    import tensorflow as tf

    size = tf.norm(tf.reshape(shift, [tf.shape(shift)[0], -1]), ord=order, axis=1)
    return shift * tf.reshape(tf.minimum(1.0, eps / tf.maximum(size, 1e-12)), [-1] + [1] * (shift.shape.rank - 1))


if __name__ == "__main__":
    parity.main()
