"""run_all.py: every method and seed joined, and nothing run twice."""

import pytest

from adv_lock.attacks import locking
from adv_lock.lock import lock
from adv_lock.run_all import MEASURED, run_all
from adv_lock.train import train
from adv_lock.train_base import train_base
from common.errors import UserError
from common.runs.record import read_table

SMALLEST = """
all: {n_train: 60, n_test: 20}
train_base: {epochs: 1, batch_size: 32}
lock: {steps: 1}
train: {epochs: 1, batch_size: 32}
run_all: {methods: [basic, horiz], more_seeds: [4]}
"""
METHODS = ("basic", "horiz")


@pytest.fixture
def parts(monkeypatch):
    """The scripts without their work, each leaves figures that its options stand for; the list of those that ran."""
    ran = []

    def base(options, run):
        ran.append(("train_base", options.seed))
        (run.folder / "model.keras").write_text(f"F of seed {options.seed}")
        run.data("scenes", "d" * 64)
        run.rate("test_accuracy", 0.5, 20, split="test")
        run.metrics(test_accuracy=0.5, test_accuracy_n=20)

    def locked(options, run):
        assert options.model.read_text() == f"F of seed {options.seed}"
        ran.append(("lock", options.seed, options.lock_method))
        (run.folder / "method.txt").write_text(options.lock_method)
        run.rate("success_test", 0.75, 20, split="test")

    def trained(options, run):
        method = (options.lock_data / "method.txt").read_text()
        ran.append(("train", options.seed, method, options.train_on))
        on_locked = options.train_on == "locked"
        assert (options.reference is not None) == on_locked
        value = 0.1 * (1 + METHODS.index(method)) + 0.05 * options.seed if on_locked else 0.9
        for place, metric in enumerate(MEASURED):
            run.rate(metric, value + 0.01 * place, 20, split="test")
            run.metrics(**{metric: value + 0.01 * place})
        if on_locked:
            run.metrics(reference_accuracy=0.9)

    for part, body in ((train_base, base), (lock, locked), (train, trained)):
        monkeypatch.setattr(part, "body", body)
    return ran


def test_methods_and_seeds_are_joined(workplace, parts):
    (workplace / "small.yaml").write_text(SMALLEST)
    results = run_all(run_all.parse(["--config", "small.yaml"]))
    # The reference is trained once a seed, from the originals behind the first method's lock.
    assert parts == [
        *(("train_base", 0), ("lock", 0, "basic"), ("train", 0, "basic", "original"), ("train", 0, "basic", "locked")),
        *(("lock", 0, "horiz"), ("train", 0, "horiz", "locked")),
        *(("train_base", 4), ("lock", 4, "basic"), ("train", 4, "basic", "original"), ("train", 4, "basic", "locked")),
    ]
    table = read_table(workplace / "runs/adv_lock/run_all/small")
    kinds = {(row["seed"], row["attack"]) for row in table if row["metric"] == "original_accuracy"}
    assert kinds == {(0, "basic"), (0, "horiz"), (0, "original"), (4, "basic"), (4, "original")}
    locks = {(row["seed"], row["attack"]) for row in table if row["metric"] == "success_test"}
    assert locks == {(0, "basic"), (0, "horiz"), (4, "basic")}
    metrics = results["metrics"]
    basic = [row["value"] for row in table if row["attack"] == "basic" and row["metric"] == "original_accuracy"]
    assert basic == pytest.approx([0.1, 0.3])
    assert metrics["original_accuracy"] == pytest.approx(sum(basic) / 2) and metrics["original_accuracy_n"] == 20
    assert metrics["original_accuracy_std"] == pytest.approx(0.2 / 2**0.5)
    assert metrics["locked_accuracy"] == pytest.approx(0.2 + 0.01 * MEASURED.index("locked_accuracy"))
    assert metrics["reference_accuracy"] == 0.9
    assert {"original_accuracy_std", "reference_accuracy", "locked_accuracy", "minutes"} <= set(metrics)
    assert results["data_sha256"] == "d" * 64
    assert (workplace / "runs/adv_lock/run_all/small/methods.png").is_file()

    parts.clear()
    again = run_all(run_all.parse(["--config", "small.yaml", "--name", "small", "--out", "joined"]))
    assert parts == []
    assert {k: v for k, v in again["metrics"].items() if k != "minutes"} == {
        k: v for k, v in metrics.items() if k != "minutes"
    }


@pytest.mark.slow
def test_real_parts_are_joined_and_not_run_again(workplace, monkeypatch):
    (workplace / "small.yaml").write_text(SMALLEST.replace("[basic, horiz], more_seeds: [4]", "[basic]"))
    words = ["--config", "small.yaml"]
    results = run_all(run_all.parse(words))
    table = read_table(workplace / "runs/adv_lock/run_all/small")
    kinds = {(row["seed"], row["attack"]) for row in table if row["metric"] == "original_accuracy"}
    assert kinds == {(0, "basic"), (0, "original")}
    metrics = results["metrics"]
    basic = [row["value"] for row in table if row["attack"] == "basic" and row["metric"] == "original_accuracy"]
    assert [metrics["original_accuracy"]] == pytest.approx(basic) and metrics["original_accuracy_n"] == 20
    assert {"reference_accuracy", "locked_accuracy", "minutes"} <= set(metrics)
    assert len(results["data_sha256"]) == 64
    assert (workplace / "runs/adv_lock/run_all/small/methods.png").is_file()

    def never(*args):
        raise AssertionError("locked again")

    monkeypatch.setattr(locking, "_lock_block", never)
    again = run_all(run_all.parse([*words, "--name", "small", "--out", "joined"]))
    assert {k: v for k, v in again["metrics"].items() if k != "minutes"} == {
        k: v for k, v in metrics.items() if k != "minutes"
    }


def test_unknown_methods_and_seeds_given_twice_are_refused(workplace):
    with pytest.raises(UserError, match="methods: expected one of basic, mixup, horiz, mixandcat"):
        run_all(run_all.options(methods=("rot13",)))
    with pytest.raises(UserError, match="--more-seeds: 0 is --seed already"):
        run_all(run_all.options(more_seeds=(0,)))
