"""What the optimality benchmark measures, at its smallest."""

import numpy as np
import pytest

from benchmarks import optimality as module
from benchmarks.optimality import CONTENDERS, Reached, optimality
from benchmarks.peers.subjects import Subject
from common.errors import UserError
from tests.benchmarks.test_autoattack_benchmark import Rows
from tests.common.attacks.test_autoattack import task


def subject():
    model, x, y = task(5, count=8)
    return Subject("toy", model, None, x, y)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_every_attack_of_a_norm_finds_successes_on_its_gradients(norm):
    toy, options = subject(), optimality.options(steps=90)
    found = {name: module._ours(toy, norm, of, options) for name, of in CONTENDERS.items() if norm in of.norms}
    run = Rows()
    module._compare(run, toy, norm, found)
    scores = {row["attack"]: row["value"] for row in run.rows if row["metric"] == "optimality"}
    assert set(scores) == set(found) and all(score > 0 for score in scores.values()), scores
    # On so few gradients those that have to find their way from afar come less near.
    assert all(scores[name] > 0.9 for name in ("fmn", "fab", "fab_nearest", "sigma_zero") if name in scores), scores


def test_an_attack_is_compared_with_the_nearest_of_all():
    toy, run = subject(), Rows()
    near = np.linspace(0.1, 0.4, 8)
    far = 2 * near
    module._compare(run, toy, "l2", {"fmn": Reached(near, 1.0), "foolbox_ddn": Reached(far, 2.0)})
    rows = {(row["attack"], row["metric"]): row["value"] for row in run.rows}
    assert rows["fmn", "optimality"] == 1 and rows["foolbox_ddn", "median_ratio"] == 2
    assert rows["fmn", "ahead"] == run.numbers["ahead_toy_l2"] == 1 - rows["foolbox_ddn", "optimality"]


def test_what_leaves_the_box_is_brought_back_and_no_success_is_infinitely_far():
    toy = subject()
    assert np.isinf(module._far(toy, "l2", toy.x)).all()
    away = module._far(toy, "linf", toy.x + 5)
    finite = np.isfinite(away)
    assert finite.any() and (away[finite] <= 1).all()


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="--attacks: unknown 'newton'; expected some of fmn, fab"):
        optimality.check(optimality.options(attacks=("newton",)))
    with pytest.raises(UserError, match="--arch: unknown 'resnet20'"):
        optimality.check(optimality.options(arch="resnet20"))
