"""run_all.py: every method and seed joined, and nothing run twice."""

import pytest

from adv_lock import locking
from adv_lock.run_all import run_all
from common.errors import UserError
from common.runs import read_table

SMALLEST = """
all: {n_train: 60, n_test: 20}
train_base: {epochs: 1, batch_size: 32}
lock: {attack_steps: 1}
train: {epochs: 1, batch_size: 32}
run_all: {methods: [basic, horiz], more_seeds: [4]}
"""


def test_methods_and_seeds_are_joined(workplace, monkeypatch):
    (workplace / "small.yaml").write_text(SMALLEST)
    options = run_all.parse(["--config", "small.yaml"])
    results = run_all(options)
    table = read_table(workplace / "runs/adv_lock/run_all/small")
    kinds = {(row["seed"], row["attack"]) for row in table if row["metric"] == "original_accuracy"}
    assert kinds == {(0, "basic"), (0, "horiz"), (0, "original"), (4, "basic"), (4, "original")}
    metrics = results["metrics"]
    basic = [row["value"] for row in table if row["attack"] == "basic" and row["metric"] == "original_accuracy"]
    assert metrics["original_accuracy"] == pytest.approx(sum(basic) / 2) and metrics["original_accuracy_n"] == 20
    assert {"original_accuracy_std", "reference_accuracy", "locked_accuracy", "minutes"} <= set(metrics)
    assert len(results["data_sha256"]) == 64
    assert (workplace / "runs/adv_lock/run_all/small/methods.png").is_file()

    def never(*args):
        raise AssertionError("locked again")

    monkeypatch.setattr(locking, "_lock_block", never)
    again = run_all(run_all.parse(["--config", "small.yaml", "--name", "small", "--out", "joined"]))
    assert {k: v for k, v in again["metrics"].items() if k != "minutes"} == {
        k: v for k, v in metrics.items() if k != "minutes"
    }


def test_unknown_methods_and_seeds_given_twice_are_refused(workplace):
    with pytest.raises(UserError, match="methods: expected one of basic, mixup, horiz, mixandcat"):
        run_all(run_all.options(methods=("rot13",)))
    with pytest.raises(UserError, match="--more-seeds: 0 is --seed already"):
        run_all(run_all.options(more_seeds=(0,)))
