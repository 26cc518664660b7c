"""The benchmarks at their smallest, without the libraries that they compare with, and what they count and time."""

import contextlib
import importlib
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from benchmarks import parity as comparison
from benchmarks.attacks import EMBEDDED, ROWS, attacks
from benchmarks.parity import TOLERANCE, Case, box_first, parity
from benchmarks.peers import libraries, oracle, subjects, timing
from benchmarks.peers.subjects import Subject, load_subject
from benchmarks.training import Paced, training
from common import datasets
from common.attacks import attack_dataset, bim, pgd
from common.errors import UserError
from common.models import build
from common.runs import record, report
from common.training import checkpoints

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"n_train": 64, "n_test": 4, "epochs": 1}


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """An empty folder, and no library installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(libraries.Peer, "available", classmethod(lambda cls: False))
    return tmp_path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained classifier of the scenes: numbers are compared, not accuracies."""
    path = tmp_path_factory.mktemp("model") / "small.keras"
    checkpoints.save_model(build("small_cnn", (32, 32, 3), 10, seed=1), path)
    return str(path)


def linear(weight: np.ndarray, bias: float) -> keras.Model:
    """Two classes with logits 0 and w . x + b."""
    model = keras.Sequential([keras.Input(weight.shape), keras.layers.Flatten(), keras.layers.Dense(2)])
    kernel = np.stack([np.zeros(weight.size), weight.ravel()], axis=1)
    model.layers[-1].set_weights([kernel.astype("float32"), np.array([0, bias], "float32")])
    return model


def rendered(name: str, folder: Path, root: Path) -> str:
    """What the README shows of a run."""
    place = root / "benchmarks" / "results" / name
    place.mkdir(parents=True)
    for file in ("results.json", "table.csv"):
        shutil.copy(folder / file, place)
    for template in (name, "_machine"):
        shutil.copy(ROOT / "benchmarks" / "results" / f"{template}.md.j2", place.parent)
    return report.render(f"benchmarks/results/{name}", root)


@pytest.mark.slow
def test_attacks_without_libraries(alone):
    results = attacks(attacks.options(rows=["fgsm_scenes", "scenes_linf"], repeats=1, **SMALL))
    folder = alone / "runs/benchmarks/attacks/demo"
    value = report.lookup(record.read_table(folder))
    here = {"model": "scenes_cnn", "attack": "pgd40"}
    assert {row["split"] for row in record.read_table(folder) if row["metric"] == "left out: not installed"} == {
        peer.name for peer in libraries.PEERS
    }
    assert value(metric="seconds", split="ours_stop", **here) > 0
    assert value(metric="ratio_to_bare", split="bare", **here) == 1
    assert value(metric="gradients", split="oracle", **here) <= 4 * 40
    # What stops at success is successful on the same images.
    robust = [value(metric="robust_accuracy", split=split, **here) for split in ("ours", "ours_stop")]
    assert robust[1] >= robust[0] - 1e-9
    # Two rows of which none has a library to be faster than: only what bare gradients and the oracle bound.
    assert results["metrics"]["targets"] in (2, 3)
    assert not (folder / "checkpoints").exists()


def test_attacks_go_on_after_the_last_row(alone, monkeypatch, model):
    monkeypatch.setattr(subjects, "train_subject", lambda label, data, run, **_: load_subject(label, Path(model), data))
    options = attacks.options(rows=["fgsm_scenes", "scenes_linf"], repeats=1, **SMALL)
    measured, interrupted = [], []

    def measure(options, run, name, subject, peers):
        if name == "scenes_linf" and not interrupted:
            interrupted.append(name)
            raise KeyboardInterrupt
        measured.append(name)
        return [{"model": "m", "attack": name, "metric": "met", "split": "x", "value": 1.0}]

    monkeypatch.setattr(importlib.import_module("benchmarks.attacks"), "_measure", measure)
    with pytest.raises(KeyboardInterrupt):
        attacks(options)
    attacks(attacks.options(rows=["fgsm_scenes", "scenes_linf"], repeats=1, resume=True, **SMALL))
    assert measured == ["fgsm_scenes", "scenes_linf"]


@pytest.mark.slow
def test_parity_without_libraries(alone):
    results = parity(parity.options(steps=1, **SMALL))
    assert results["metrics"] == {"compared": 0, "failed": 0}
    table = record.read_table(alone / "runs/benchmarks/parity/demo")
    assert {row["metric"] for row in table if row["attack"] == "pgd"} == {"verdict: not installed"}
    assert "not installed" in rendered("parity", alone / "runs/benchmarks/parity/demo", alone)


class Stand(libraries.Peer):
    """A library that is the suite itself, or is wrong by `error`."""

    name, error = "cleverhans", 0.0

    def pgd(self, x, y, *, clip=(0.0, 1.0), **settings):
        return pgd(self.model, x, y, low=clip[0], high=clip[1], **settings).numpy() + np.float32(self.error)

    def fgsm(self, x, y, *, eps, norm):
        return bim(self.model, x, y, eps=eps, alpha=eps, steps=1, norm=norm).numpy()

    def mi_fgsm(self, x, y, **settings):
        raise RuntimeError("is broken\nin two lines")


@pytest.mark.parametrize(
    ("error", "attack", "verdict", "value"),
    [
        (0.0, "pgd", "equal", 1),
        (1e-4, "pgd", "must be equal and is not", -1),
        (0.0, "mi_fgsm", "not offered: RuntimeError: is broken in two lines", -1),
    ],
)
def test_a_required_comparison_has_its_verdict(model, error, attack, verdict, value):
    """A10, case by case."""
    stand = type("Wrong", (Stand,), {"error": error})
    subject = load_subject("m", Path(model), datasets.load("scenes", n_train=1, n_test=4))
    case = Case(attack, "linf", ("cleverhans",))
    outcome = comparison._compare(case, parity.options(steps=2), subject, stand(subject.model, 4))
    assert outcome[f"verdict: {verdict}"] == value


@pytest.mark.slow
@pytest.mark.parametrize("error", [0.0, 1e-4])
def test_parity_sees_what_differs(alone, monkeypatch, model, error):
    """A10: a difference that must not be ends with status 1; an attack that raises is a row."""
    stand = type("Wrong", (Stand,), {"error": error})
    monkeypatch.setattr(
        libraries, "opened", lambda model, *_, **__: contextlib.nullcontext({"cleverhans": stand(model, 4)})
    )
    with pytest.raises(SystemExit) as ended:
        parity(parity.options(steps=2, n_train=1, n_test=4, model=model))
    # Both of its momentum attacks raise; with an error, PGD in L-inf and in L2 differ as well.
    assert str(ended.value).startswith(f"parity: {4 if error else 2} of")
    log = (alone / "runs/benchmarks/parity/demo/log.txt").read_text()
    assert "not offered: RuntimeError: is broken in two lines" in log
    assert ("must be equal and is not" in log) == (error > 0)


def test_the_boxes_of_others_differ_only_at_the_box():
    """Scaling and clipping is the exact projection wherever the box is out of reach, and nowhere else."""
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3, "tanh")])
    model.add(keras.layers.Dense(3))
    settings = {"eps": 0.3, "alpha": 0.1, "steps": 5, "norm": "l2", "random_start": False}
    random = np.random.default_rng(0)
    for low, high, same in ((0.4, 0.6, True), (0.0, 0.05, False)):
        x = random.uniform(low, high, (6, 4, 4, 1)).astype(np.float32)
        subject = Subject("m", model, Path("m.keras"), x, np.arange(6, dtype=np.int32) % 3)
        gap = np.abs(box_first(subject, **settings) - pgd(model, x, subject.y, **settings).numpy()).max()
        assert (gap <= TOLERANCE) == same


@pytest.mark.slow
def test_training_at_its_smallest(alone):
    options = {"archs": ["small_cnn"], "contenders": ["fit", "adversarial"], "batches": 1, "batch_size": 8}
    results = training(training.options(repeats=1, steps=1, **options))
    assert results["metrics"]["targets"] == 2
    folder = alone / "runs/benchmarks/training/demo"
    value = report.lookup(record.read_table(folder))
    assert all(value(split=name, metric="seconds_per_step") > 0 for name in ("ours", "fit", "adversarial", "bare"))
    assert "`model.fit`" in rendered("training", folder, alone)


def test_training_asks_for_images_that_are_there(alone):
    with pytest.raises(UserError, match="need 512 images; there are 100"):
        training(training.options(n_train=100))


def test_loops_take_turns_and_pass_errors_on():
    turns = []

    def body(pace):
        for epoch in range(2):
            pace.on_epoch_begin(epoch)
            turns.append(epoch)
            pace.on_epoch_end(epoch)
        raise ValueError("after its last")

    loop = Paced(body)
    assert turns == []
    assert loop() >= 0
    assert turns == [0]
    with pytest.raises(ValueError, match="after its last"):
        loop()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_oracle_on_a_linear_model(norm):
    """The number of steps that a plane at a known distance takes, and what an attack that stops makes of it."""
    random = np.random.default_rng(1)
    weight = random.normal(size=(3, 3, 1))
    x = random.uniform(0.4, 0.6, (40, 3, 3, 1)).astype(np.float32)
    score = (x.reshape(40, -1) @ weight.ravel()).astype(np.float64)
    bias = -np.median(score)
    margin = score + bias
    alpha, steps = 0.005, 12
    # Each step comes nearer to the plane by alpha times the dual norm, until the budget is spent.
    reach = {"linf": np.abs(weight).sum(), "l2": np.linalg.norm(weight)}[norm]
    # Some stay out of reach.
    eps = 0.7 * margin.max() / reach
    y = np.ones(40, np.int32)
    needed = np.minimum(np.ceil(margin / (alpha * reach)), steps)
    expected = np.where(margin < 0, 0, np.where(margin > eps * reach, steps, needed)).astype(int)
    settings = {"eps": eps, "alpha": alpha, "steps": steps, "norm": norm}
    counts = oracle.gradients_to_success(linear(weight, bias), x, y, random_start=False, batch_size=16, **settings)
    assert {0, 1, steps} <= set(counts.tolist())
    np.testing.assert_array_equal(counts, expected)


def test_oracle_follows_the_random_start():
    """An attack that stops succeeds exactly where the oracle counts fewer than all steps, from the same starts."""
    import functools

    random = np.random.default_rng(2)
    weight = random.normal(size=(5, 5, 1))
    x = random.uniform(0.3, 0.7, (50, 5, 5, 1)).astype(np.float32)
    model = linear(weight, float(-np.median(x.reshape(50, -1) @ weight.ravel())))
    y = np.ones(50, np.int32)
    settings = {"eps": 0.03, "alpha": 0.004, "steps": 6, "seed": 5}
    counts = oracle.gradients_to_success(model, x, y, batch_size=32, **settings)
    stopped = attack_dataset(functools.partial(pgd, model, stop=True, **settings), x, y, batch_size=7).x
    # One step fewer was not enough where the count says so.
    for steps in range(1, 7):
        attacked = pgd(model, x, y, **{**settings, "steps": steps}, stop=True, index=np.arange(50))
        wrong = np.argmax(model(attacked), axis=1) != y
        assert (wrong | (counts >= steps)).all()
        assert not (wrong & (counts > steps)).any()
    assert (np.argmax(model(stopped), axis=1) != y)[counts < 6].all()


def test_repetitions_rotate_and_slow_ones_stop():
    order = []

    def contender(name, seconds):
        def run():
            order.append(name)
            return seconds

        return run

    contenders = {"a": contender("a", 1.0), "b": contender("b", 2.0), "slow": contender("slow", 9.0)}
    seconds = timing.interleaved(contenders, 3, slow_seconds=5.0)
    assert order == ["a", "b", "slow", "b", "a", "a", "b"]
    assert seconds == {"a": [1.0] * 3, "b": [2.0] * 3, "slow": [9.0]}
    assert timing.ratio(seconds, "slow", "a") == timing.Spread(9.0, 9.0, 9.0, 1)
    assert timing.ratio({"a": [1, 4, 2], "b": [1, 2, 4]}, "a", "b").median == 1


def test_a_library_may_raise_anything():
    class Broken(libraries.Peer):
        name = "broken"

        def pgd(self, x, y):
            raise KeyError("inside")

    peer = Broken(linear(np.ones((2, 2, 1)), 0.0), 4)
    x, y = np.zeros((2, 2, 2, 1), np.float32), np.zeros(2, np.int32)
    with pytest.raises(libraries.LeftOutError, match="KeyError: 'inside'"):
        peer.timed("pgd", x, y)
    with pytest.raises(libraries.LeftOutError, match="has no ddn"):
        peer.timed("ddn", x, y)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": ["robust_linf"]}, "--robust-model: .*adversarial_training.py --arch resnet20 --method pgd"),
        ({"rows": ["mnist_linf"], "mnist": "nowhere.npz"}, "nowhere.npz: .*; --rows scenes_linf"),
        (
            {"rows": ["cifar_linf"], "cifar_model": "m.keras", "cifar10": "nowhere.npz"},
            "m.keras: no such file",
        ),
    ],
)
def test_what_is_missing_is_named(alone, options, words):
    with pytest.raises(UserError, match=words):
        attacks(attacks.options(**options))
    assert not (alone / "runs/benchmarks/attacks/demo/config.yaml").exists()


def test_unknown_row():
    with pytest.raises(UserError, match="--rows: expected one of fgsm_scenes"):
        attacks.parse(["--rows", "fgsm_scenes,imagenet"])
    assert set(EMBEDDED) < set(ROWS)


def test_models_that_do_not_fit(tmp_path):
    data = datasets.load("scenes", n_train=4, n_test=4)
    inputs = keras.Input((32, 32, 3))
    features = keras.layers.GlobalAveragePooling2D()(inputs)
    for layer, words in ((keras.layers.Dense(10, "softmax"), "probabilities"), (keras.layers.Dense(3), "3 classes")):
        checkpoints.save_model(keras.Model(inputs, layer(features)), tmp_path / "m.keras")
        with pytest.raises(UserError, match=words):
            load_subject("m", tmp_path / "m.keras", data)
    checkpoints.save_model(linear(np.ones((8, 8, 3)), 0.0), tmp_path / "m.keras")
    with pytest.raises(UserError, match=r"images of \(8, 8, 3\)"):
        load_subject("m", tmp_path / "m.keras", data)
