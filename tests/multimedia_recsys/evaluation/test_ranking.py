"""Lists, ranks and their measures, against a full sort and other people's formulas (F6)."""

import numpy as np
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score

from common.errors import UserError
from multimedia_recsys.data.categories import chr_at, ncdcg_at, parse_class, propose
from multimedia_recsys.data.interactions import interactions
from multimedia_recsys.evaluation import ranking
from multimedia_recsys.models.recommenders import Factors, popularity


def catalog(users=40, items=60, seed=0, ties=True):
    """Feedback, and factors whose scores are small whole numbers: nearly every list holds ties."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(users, size=5 * users), rng.integers(items, size=5 * users)
    found = interactions(user, item, np.full(users, -1), items=items)
    test = np.full(users, -1, np.int32)
    for u in range(0, users - 3):
        free = np.setdiff1d(np.arange(items), found.item[found.start[u] : found.start[u + 1]])
        test[u] = rng.choice(free)
    found = interactions(user, item, test, items=items)
    draw = (lambda *shape: rng.integers(-1, 2, shape)) if ties else (lambda *shape: rng.normal(size=shape))
    parts = (draw(users, 4), draw(items, 4), draw(items))
    return found, Factors(*(part.astype(np.float32) for part in parts))


def scores_of(factors, feedback):
    scores = (factors.users @ factors.items.T + factors.offset).astype(np.float64)
    scores[feedback.user(), feedback.item] = -np.inf
    return scores


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("block", [64, 2**24])
def test_top_k_is_the_head_of_a_full_stable_sort(monkeypatch, ties, block):
    monkeypatch.setattr(ranking, "BLOCK_SCORES", block)
    feedback, factors = catalog(ties=ties)
    scores = scores_of(factors, feedback)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    assert np.array_equal(ranking.top_k(factors, feedback, 10), expected)


def test_a_user_with_few_items_left_has_empty_places_at_the_end():
    feedback = interactions(np.zeros(4, int), np.arange(4), np.array([-1, -1]), items=6)
    factors = Factors(np.zeros((2, 1), np.float32), np.zeros((6, 1), np.float32), np.arange(6, dtype=np.float32))
    lists = ranking.top_k(factors, feedback, 10)
    assert lists.tolist() == [[5, 4, -1, -1, -1, -1], [5, 4, 3, 2, 1, 0]]


def test_ranks_and_measures_against_brute_force_and_scikit_learn():
    """F6: HR, nDCG and AUC on lists with ties."""
    for seed in range(5):
        feedback, factors = catalog(seed=seed)
        scores = scores_of(factors, feedback)
        found = ranking.ranks(factors, feedback)
        assert found.user.tolist() == np.flatnonzero(feedback.test >= 0).tolist()
        measured = ranking.quality(found)
        for place, user in enumerate(found.user):
            order = np.argsort(-scores[user], kind="stable")
            rank = int(np.flatnonzero(order == feedback.test[user])[0])
            assert found.rank[place] == rank
            free = np.isfinite(scores[user])
            relevant = (np.arange(feedback.items) == feedback.test[user])[free]
            assert measured["auc"][place] == pytest.approx(roc_auc_score(relevant, scores[user][free]), abs=1e-12)
            # Ties broken as ours are, scikit-learn's nDCG is of the same list.
            broken = np.empty(free.sum())
            broken[np.argsort(-scores[user][free], kind="stable")] = -np.arange(free.sum(), dtype=float)
            for k in (5, 10, 20):
                assert measured[f"hr_at_{k}"][place] == float(rank < k)
                expected = ndcg_score([relevant], [broken], k=k)
                assert measured[f"ndcg_at_{k}"][place] == pytest.approx(expected, abs=1e-9)


def test_item_ranks_against_brute_force():
    feedback, factors = catalog(seed=2)
    scores = scores_of(factors, feedback)
    items = np.array([0, 7, 59, 13])
    place = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
    for item, rank in zip(items, ranking.item_ranks(factors, feedback, items), strict=True):
        free = np.isfinite(scores[:, item])
        assert rank == pytest.approx(place[free, item].mean(), abs=1e-9)


def test_popularity_ranks_by_counts():
    feedback, _ = catalog()
    lists = ranking.top_k(popularity(feedback), feedback, 60)
    counts = feedback.popularity()
    for line in lists:
        assert (np.diff(counts[line[line >= 0]]) <= 0).all()


def test_chr_and_ncdcg_against_a_count_by_hand():
    rng = np.random.default_rng(0)
    lists = np.stack([rng.permutation(30)[:12] for _ in range(25)])
    lists[3, 9:] = -1
    label = rng.integers(5, size=30).astype(np.int32)
    label[label == 4] = 0
    for k in (1, 5, 12):
        shares, gains = chr_at(lists, label, 5, k), ncdcg_at(lists, label, 5, k)
        for kind in range(5):
            hits = [[item >= 0 and label[item] == kind for item in line[:k]] for line in lists]
            assert shares[kind] == pytest.approx(sum(map(sum, hits)) / (k * 25), abs=1e-12)
            # The original's gain of 2^1 - 1 and its discount of log 2 / log(place + 2), over the ideal list.
            ideal = sum(np.log(2) / np.log(place + 2) for place in range(min(k, (label == kind).sum())))
            dcg = [sum(np.log(2) / np.log(place + 2) for place, hit in enumerate(line) if hit) for line in hits]
            assert gains[kind] == pytest.approx(np.mean(dcg) / ideal if ideal else 0.0, abs=1e-12)
    assert chr_at(lists, label, 5, 12).sum() == pytest.approx((lists >= 0).mean())


def test_pairs_lead_from_the_least_to_the_most_recommended():
    label = np.repeat(np.arange(6), 20)
    shares = np.array([0.01, 0.30, 0.29, 0.02, 0.06, 0.06])
    features = np.zeros((120, 2), np.float32)
    # Class 3 lies next to class 2, class 4 next to both, but that one is recommended too often to be an origin.
    features[:, 0] = np.array([0.0, 9.0, 5.0, 4.0, 8.9, 5.1])[label]
    near, far = propose(shares, label, features)
    assert near == (3, 2)
    assert far == (3, 1)
    with pytest.raises(UserError, match="2 classes of 30 items or more"):
        propose(shares, np.repeat([0, 1, 2], [30, 50, 5]), features[:85], fewest=30)


def test_classes_by_name_or_number():
    assert parse_class("sock", ("hat", "sock"), "--origin-class") == 1
    assert parse_class("0", ("hat", "sock"), "--origin-class") == 0
    with pytest.raises(UserError, match="--origin-class: 'shoe' is no class; they are hat, sock"):
        parse_class("shoe", ("hat", "sock"), "--origin-class")
