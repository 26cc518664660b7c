"""The whole test set from a sample: exact where all is sampled, and an interval that holds as often as it says."""

from functools import partial
from math import comb

import pytest

from common.attacks import apgd
from common.evaluation import whole_set as module
from common.evaluation.statistics import share_of_population
from common.evaluation.whole_set import whole_set
from tests.common.attacks.test_autoattack import task


def test_all_of_a_population_leaves_no_doubt():
    assert share_of_population(7, 20, 20) == (0.35, 20, 0.35, 0.35)
    assert share_of_population(0, 0, 0) == (0.0, 0, 0.0, 0.0)
    nothing = share_of_population(0, 0, 10)
    assert (nothing.low, nothing.high) == (0.0, 1.0)


@pytest.mark.parametrize("total", [0, 1, 4, 15, 29, 30])
def test_the_interval_holds_as_often_as_it_says(total):
    """By adding up, in whole numbers, the chances of all samples of 12 of 30."""
    population, drawn = 30, 12
    covered = 0.0
    for hits in range(max(0, drawn - (population - total)), min(drawn, total) + 1):
        of = share_of_population(hits, drawn, population)
        assert of.low <= hits / drawn <= of.high
        if of.low - 1e-9 <= total / population <= of.high + 1e-9:
            covered += comb(total, hits) * comb(population - total, drawn - hits) / comb(population, drawn)
    assert covered >= 0.95


def test_one_interval_for_the_whole_set(monkeypatch):
    """Sampling everything gives the number of both versions; sampling less an interval that has it, and is narrower
    than that of so many images alone."""
    model, x, y = task(5, 200)
    calls = []
    attack = module.autoattack

    def counted(model, x, y, **options):
        calls.append((options["version"], len(x)))
        version = {"fast": {"margin": 0}, "standard": {"ce": 12}}[options.pop("version")]
        ((loss, steps),) = version.items()
        climb = {"climb": partial(apgd, model, eps=options["eps"], loss=loss, steps=steps)}
        return attack(model, x, y, version="custom", attacks=climb, **options)

    monkeypatch.setattr(module, "autoattack", counted)
    exact = whole_set(model, x, y, eps=0.08, sample=1000)
    assert exact.accuracy.low == exact.accuracy.value == exact.accuracy.high
    assert exact.accuracy.value == exact.second.robust.sum() / 200 < exact.first.robust.mean()
    part = whole_set(model, x, y, eps=0.08, sample=30)
    assert part.accuracy.low <= exact.accuracy.value <= part.accuracy.high
    assert part.accuracy.n == 200 and len(part.sampled) == 30 and part.first.robust[part.sampled].all()
    survivors = int(exact.first.robust.sum())
    assert calls == [("fast", 200), ("standard", survivors), ("fast", 200), ("standard", 30)]


@pytest.mark.slow
def test_it_goes_on_where_it_stopped(tmp_path):
    model, x, y = task(5, 40)
    lines = []
    options = {"eps": 0.08, "sample": 10, "state": tmp_path / "state", "log": lines.append}
    whole = whole_set(model, x, y, **options)
    met = len(lines)
    again = whole_set(model, x, y, **options)
    assert len(lines) == met and again.accuracy == whole.accuracy
