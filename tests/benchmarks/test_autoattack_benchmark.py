"""What the AutoAttack benchmark counts, compares and refuses."""

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import autoattack as module
from benchmarks.autoattack import Outcome, autoattack
from benchmarks.peers import libraries
from benchmarks.peers.suite_side import counted
from common.attacks import pgd
from common.runs import record, report
from tests.common.attacks.test_autoattack import task


def test_rows_are_counted_whoever_sends_them():
    """PGD of 5 steps on 24 examples: a gradient each, and its own forward pass; a look more is a forward pass."""
    model, x, y = task(5)
    function, counts = counted(model)
    pgd(function, x, y, eps=0.1, alpha=0.02, steps=5)
    forwards, backwards = counts()
    assert backwards == 5 * 24 and backwards <= forwards
    function(tf.constant(x))
    assert counts() == (forwards + 24, backwards)
    assert Outcome(np.ones(1, bool), 40, 10, 0.0).equivalents == 20


class Rows:
    """A run that keeps its rows."""

    def __init__(self):
        self.rows, self.numbers = [], {}

    def row(self, **columns):
        self.rows.append(columns)

    def metrics(self, **numbers):
        self.numbers |= numbers

    def log(self, text):
        pass


def test_what_standard_breaks_of_what_fast_leaves_is_pooled_with_an_exact_interval():
    robust = np.arange(100) < 60
    stronger, other = robust & (np.arange(100) >= 3), robust.copy()
    other[70] = True
    found = {
        ("m", "linf", "fast", 0): Outcome(robust, 300, 200, 1.0),
        ("m", "linf", "standard", 0): Outcome(stronger, 3000, 2000, 4.0),
        ("m", "linf", "standard", 1): Outcome(other, 3000, 2000, 4.0),
        ("m", "linf", "official", 0): Outcome(stronger, 3000, 2500, 8.0),
    }
    run = Rows()
    module._together(run, found)
    value = report.lookup(run.rows)
    of = value(attack="fast", metric="broken_of_left")
    assert float(of) == 3 / 60 and of.n == 60
    # Clopper & Pearson's bounds of 3 in 60.
    assert (of.low, of.high) == pytest.approx((0.0104, 0.1392), abs=5e-4)
    assert value(attack="standard", metric="broken") == 4 and value(attack="standard", metric="broken_of_left").n == 118
    module._compare(run, found, "m", "linf", 0.1, 0)
    value = report.lookup(run.rows)
    assert value(attack="fast", split="official", metric="times_as_fast") == 8
    assert value(attack="fast", split="official", metric="share_of_gradients") == 200 / 2500
    pair = value(attack="standard 0 against standard 1", metric="second_left")
    assert pair == 4 and value(attack="standard 0 against standard 1", metric="first_left") == 0
    # Other seeds of other contenders are not compared.
    assert value(attack="standard 1 against official 0", metric="disagreement") == "-"


def test_budgets_are_one_for_each_model(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        autoattack.main(["--linf", "0.1", "--norms", "linf"])
    assert ended.value.code == 2
    assert "--linf: has 1 budgets for 2 models; give one for each" in capsys.readouterr().err


@pytest.mark.slow
def test_without_libraries(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(libraries.Peer, "available", classmethod(lambda cls: False))
    options = {"n_train": 200, "n_test": 6, "epochs": 1, "repeats": 2, "norms": ["linf"], "contenders": ["fast"]}
    autoattack(autoattack.options(**options))
    table = record.read_table(tmp_path / "runs/benchmarks/autoattack/demo")
    assert {(row["model"], row["seed"]) for row in table if row["metric"] == "accuracy"} == {
        (model, seed) for model in ("plain", "pgd") for seed in (0, 1)
    }
