"""The benchmark of recommenders, as far as it goes without Cornac."""

import numpy as np
import pytest

from benchmarks import recsys
from multimedia_recsys.evaluation import ranking


def options(**more):
    small = {"n_users": 60, "n_items": 40, "features": 16, "epochs": 3, "repeats": 2, "timed_epochs": 1}
    return recsys.Options(**small, large_users=50, large_items=200, **more)


def test_the_shop_is_drawn_from_the_seed():
    feedback, features = recsys._shop(options())
    again, same = recsys._shop(options())
    assert features.shape == (40, 16) and features.min() >= 0 and features.max() == 1
    assert (feedback.users, feedback.items) == (60, 40)
    np.testing.assert_array_equal(features, same)
    np.testing.assert_array_equal(feedback.item, again.item)


@pytest.mark.slow
def test_it_measures_quality_time_and_lists(tmp_path):
    metrics = recsys.recsys(options(out=tmp_path / "run"))["metrics"]
    assert 0.5 < metrics["auc"] < 1
    assert metrics["lists_seconds"] > 0
    assert metrics["lists_gib"] < 1


@pytest.mark.slow
def test_epochs_are_timed_one_by_one():
    feedback, features = recsys._shop(options())
    factors, seconds = recsys._ours(options(), feedback, features, 4, verbose=False)
    assert len(seconds) == 4
    # The first one compiles.
    assert seconds[0] > np.median(seconds[1:])
    assert factors.users.shape == (60, 40)


@pytest.mark.slow
def test_cornac_learns_the_same_split():
    pytest.importorskip("cornac")
    feedback, features = recsys._shop(options())
    factors, seconds = recsys._cornac(options(), feedback, features, 10)
    found = ranking.quality(ranking.ranks(factors, feedback))
    assert found["auc"].mean() > 0.55
    assert len(seconds) == 10
