"""Scores, thresholds, rates and protocols of embeddings against plain loops."""

import itertools
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from common.evaluation.statistics import bootstrap, rate, weighted_mean
from face_mter.data.faces import load_faces
from face_mter.evaluation import verification
from face_mter.evaluation.lfw import make_folds, read_pairs, ten_fold
from face_mter.evaluation.verification import (
    Scores,
    accept_rates,
    all_scores,
    cosines,
    far_threshold,
    genuine_pairs,
    impostor_pairs,
    impostor_scores,
    mean_cosine,
    normalised,
    pair_scores,
    roc,
    tar_at,
    tar_at_far,
    templates,
    threshold_at_tar,
    to_cosine,
    to_distance,
    weighted_tar,
)
from tests.helpers.face_toys import faces_of


def refused(call, *words):
    """The one line of the `UserError` that `call` ends in, which must hold every one of `words`."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def some_faces(rng, counts, dims=5, spread=0.6):
    """Embeddings of any length of people with `counts` images, and who they are."""
    person = np.repeat(np.arange(len(counts)), counts)
    return rng.normal(size=(len(counts), dims))[person] + spread * rng.normal(size=(len(person), dims)), person


def cosine(a, b):
    return float(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b))


def test_normalised_embeddings_have_length_one():
    z = normalised(np.array([[3.0, 4.0], [1e-20, 0], [-1e18, 0]]))
    assert z.dtype == np.float32
    np.testing.assert_allclose(z, [[0.6, 0.8], [1, 0], [-1, 0]], rtol=1e-6)
    for bad in (0.0, np.nan, np.inf):
        refused(lambda bad=bad: normalised(np.array([[1.0, 2.0], [bad, 0.0]])), "row 1")
    with pytest.raises(ValueError, match=r"expected \(N, D\)"):
        normalised(np.ones(3))


def test_scores_of_pairs(monkeypatch):
    rng = np.random.default_rng(0)
    e, person = some_faces(rng, [3, 1, 4, 2, 1])
    monkeypatch.setattr(verification, "_BLOCK", 17)
    every = list(itertools.combinations(range(len(e)), 2))
    same = [pair for pair in every if person[pair[0]] == person[pair[1]]]
    cross = [pair for pair in every if person[pair[0]] != person[pair[1]]]
    assert genuine_pairs(person).tolist() == list(map(list, same)) and genuine_pairs(person).dtype == np.int32
    impostor = impostor_scores(e, person)
    assert impostor.dtype == np.float32
    np.testing.assert_allclose(impostor, [cosine(e[i], e[j]) for i, j in cross], atol=1e-6)
    rows = rng.permutation(len(cross))
    assert impostor_pairs(person, rows).tolist() == [list(cross[row]) for row in rows]
    np.testing.assert_allclose(pair_scores(e, np.array(every)), [cosine(e[i], e[j]) for i, j in every], atol=1e-6)
    np.testing.assert_allclose(
        cosines(e[:5], e[5:10]), [cosine(*pair) for pair in zip(e[:5], e[5:10], strict=True)], atol=1e-6
    )
    scores = all_scores(e, person)
    np.testing.assert_array_equal(scores.genuine, pair_scores(e, np.array(same)))
    np.testing.assert_array_equal(scores.impostor, impostor)
    # People need not be numbered without gaps, but stand together.
    np.testing.assert_array_equal(impostor_scores(e, person * 3 + 1), impostor)
    with pytest.raises(ValueError, match="ascending"):
        impostor_scores(e, person[::-1])
    refused(lambda: all_scores(e[:4], np.arange(4)), "no pair of one person")
    refused(lambda: all_scores(e[:3], np.zeros(3, int)), "no pair of two people")


def test_scores_stay_cosines():
    e = np.random.default_rng(1).normal(size=(400, 3)).astype(np.float32)
    twice = np.concatenate([e, e, -e])
    for scores in (
        cosines(e, e),
        pair_scores(e, np.stack([np.arange(400)] * 2, axis=1)),
        impostor_scores(twice, np.arange(1200)),
    ):
        assert scores.max() <= 1 and scores.min() >= -1
        assert scores.max() == pytest.approx(1)


def test_all_negatives_in_bounded_memory():
    """3,000 images are 4.5 million pairs; a whole table of them would be 36 MB, its mask 9 MB, its indices 72 MB."""
    rng = np.random.default_rng(2)
    e, person = rng.normal(size=(3000, 64)).astype(np.float32), np.repeat(np.arange(1000), 3)
    tracemalloc.start()
    scores = impostor_scores(e, person)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(scores) == 3000 * 2997 // 2
    assert peak < scores.nbytes + 45e6


def far_by_hand(impostor, far):
    """The smallest number, of all near a score, with a share of at most `far` at it or above."""
    near = [np.nextafter(impostor, np.float32(side * np.inf)) for side in (-1, 1)]
    return min(t for t in np.concatenate([impostor, *near]) if np.mean(impostor >= t) <= far)


@pytest.mark.parametrize("seed", range(12))
def test_far_threshold_is_the_smallest_that_keeps_the_rate(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(100, 400))
    impostor = rng.normal(0, 0.3, n).astype(np.float32)
    if seed % 2:
        impostor = np.round(impostor, 1)
    for far in (0.01, 0.07, 0.29, 0.5, 0.9):
        threshold = far_threshold(impostor, far)
        assert threshold == far_by_hand(impostor, far)
        accepted = np.mean(impostor >= threshold)
        assert accepted <= far < np.mean(impostor >= np.nextafter(np.float32(threshold), np.float32(-1)))
        assert np.mean(impostor.astype(np.float64) >= threshold) == accepted
        assert seed % 2 or accepted == pytest.approx(far, abs=1 / n)
        genuine = rng.normal(0.5, 0.3, 60).astype(np.float32)
        assert tar_at(genuine, impostor, far) == np.mean(genuine >= threshold)


def test_a_rate_that_is_met_exactly_is_used_up():
    """29 of 100 are a share of 0.29, although 0.29 * 100 is below 29."""
    impostor = np.arange(100, dtype=np.float32)
    for k in range(1, 100):
        assert np.sum(impostor >= far_threshold(impostor, k / 100)) == k
        assert np.sum(impostor >= threshold_at_tar(impostor, k / 100)) == k


def test_far_threshold_with_ties_refuses_them_all():
    impostor = np.array([0.1] * 7 + [0.5] * 2 + [0.9])
    assert far_threshold(impostor, 0.1) == np.nextafter(0.5, 1)
    assert far_threshold(impostor, 0.29) == np.nextafter(0.5, 1)
    assert far_threshold(impostor, 0.3) == np.nextafter(0.1, 1)
    assert tar_at([0.5, 0.6], impostor, 0.29) == 0.5


def test_too_few_negatives_are_refused():
    assert far_threshold(np.arange(1000.0), 1e-3) == np.nextafter(998.0, 1e9)
    refused(lambda: far_threshold(np.arange(999.0), 1e-3), "999 pairs", "0.001", "1000 or more")
    refused(lambda: far_threshold([], 0.5), "no pairs of different people")
    refused(lambda: far_threshold([0.1, np.nan, 0.2], 0.5), "not finite")
    for far in (0.0, 1.0, -0.1, np.nan):
        refused(lambda far=far: far_threshold(np.arange(10.0), far), "far=")
    refused(lambda: tar_at([], np.arange(10.0), 0.5), "no pairs of one person")


def test_threshold_at_tar_is_the_highest_that_keeps_the_rate():
    rng = np.random.default_rng(3)
    genuine = np.round(rng.normal(0.5, 0.2, 83), 2).astype(np.float32)
    for tar in (0.001, 0.3, 0.5, 0.9, 0.999, 1.0):
        threshold = threshold_at_tar(genuine, tar)
        assert threshold == max(t for t in genuine if np.mean(genuine >= t) >= tar)
        assert np.mean(genuine >= np.nextafter(np.float32(threshold), np.float32(2))) < tar
    for tar in (0.0, 1.01):
        refused(lambda tar=tar: threshold_at_tar(genuine, tar), "tar=")
    refused(lambda: threshold_at_tar([], 0.5), "no pairs of one person")


def test_cosine_and_distance():
    rng = np.random.default_rng(4)
    a, b = (normalised(rng.normal(size=(50, 6))).astype(np.float64) for _ in range(2))
    distance = np.linalg.norm(a - b, axis=1)
    np.testing.assert_allclose(to_distance(np.sum(a * b, axis=1)), distance, atol=1e-6)
    np.testing.assert_allclose(to_cosine(distance), np.sum(a * b, axis=1), atol=1e-6)
    assert to_distance(1.0000001) == 0 and to_distance(-1.0) == 2 and to_cosine(np.sqrt(2)) == pytest.approx(0)


def test_roc_is_a_part_of_the_whole_curve():
    rng = np.random.default_rng(5)
    genuine = np.round(rng.normal(0.5, 0.2, 400), 3).astype(np.float32)
    impostor = np.round(rng.normal(0, 0.2, 20_000), 3).astype(np.float32)
    genuine[0] = -2
    curve = roc(genuine, impostor, points=60)
    assert 30 < len(curve.far) <= 61
    for threshold, far, tar in zip(*curve, strict=True):
        assert far == np.mean(impostor >= np.float32(threshold)) and tar == np.mean(genuine >= np.float32(threshold))
    assert curve.far[0] == 0 and (curve.far[-1], curve.tar[-1]) == (1, 1)
    assert (np.diff(curve.far) > 0).all() and (np.diff(curve.tar) >= 0).all() and (np.diff(curve.threshold) < 0).all()
    assert 0 < curve.tar[0] < 1
    # Even in the logarithm of the rate.
    assert np.sum((curve.far > 1e-4) & (curve.far <= 1e-3)) > 4


def tar_by_hand(scores, times, far):
    """TAR of plain lists in which each pair is repeated as often as it counts."""
    person = scores.person
    genuine = np.repeat(scores.genuine, [times[person[i]] for i, _ in genuine_pairs(person)])
    pairs = impostor_pairs(person, np.arange(len(scores.impostor)))
    impostor = np.repeat(scores.impostor, times[person[pairs[:, 0]]] * times[person[pairs[:, 1]]])
    return np.mean([np.mean(impostor >= positive) <= far for positive in genuine])


@pytest.mark.parametrize("ties", [False, True])
def test_tar_at_far_finds_the_threshold_of_every_draw(ties, monkeypatch):
    rng = np.random.default_rng(6)
    scores = all_scores(*some_faces(rng, [3, 1, 4, 2, 5, 2], dims=3))
    if ties:
        scores = Scores(np.round(scores.genuine, 1), np.round(scores.impostor, 1), scores.person)
    times = rng.multinomial(6, np.full(6, 1 / 6), 40)
    # One who is drawn alone has no negatives, one with a single image no positives.
    times = np.concatenate([times, [[1] * 6, [6, 0, 0, 0, 0, 0], [0, 6, 0, 0, 0, 0]]])
    for far in (0.05, 0.3):
        found = weighted_tar(scores, far)(times.astype(float))
        assert np.isnan(found[-2:]).all() and not np.isnan(found[:-2]).any()
        np.testing.assert_allclose(found[:-2], [tar_by_hand(scores, t, far) for t in times[:-2]])
        assert found[-3] == tar_at(scores.genuine, scores.impostor, far)
        monkeypatch.setattr(verification, "_BLOCK", 50)
        np.testing.assert_array_equal(weighted_tar(scores, far)(times.astype(float)), found)
        monkeypatch.undo()
    alone = weighted_tar(scores, 0.05)(times[-2:].astype(float))
    assert alone.shape == (2,) and np.isnan(alone).all()


def test_tar_at_far_looks_further_where_a_draw_is_unlike_the_others():
    """A draw of few people may need negatives far from those that decide for all."""
    rng = np.random.default_rng(7)
    e, person = some_faces(rng, [6] * 30, dims=3)
    scores = all_scores(e, person)
    assert len(scores.impostor) > 10_000
    between = templates(e, person) @ templates(e, person).T
    places = (between - 2 * np.eye(30)).argmax(), between.argmin()
    alike, unlike = (np.unravel_index(place, between.shape) for place in places)
    for few in (alike, unlike, [2, 3, 4], np.arange(30)):
        times = np.zeros((3, 30))
        times[:, few] = [[1], [2], [5]]
        expected = [pytest.approx(tar_by_hand(scores, times[0].astype(int), far)) for far in (0.1, 0.3, 0.6)]
        for far, tar in zip((0.1, 0.3, 0.6), expected, strict=True):
            assert weighted_tar(scores, far)(times).tolist() == [tar] * 3


def test_accept_rates_weigh_pairs_by_their_people():
    rng = np.random.default_rng(8)
    e, person = some_faces(rng, [3, 1, 4, 2, 5, 2], dims=3)
    scores = all_scores(e, person * 2)
    threshold = far_threshold(scores.impostor, 0.2)
    rates = accept_rates(scores, threshold, seed=5)
    assert rates.tar.value == np.mean(scores.genuine >= threshold) and rates.tar.n == len(scores.genuine)
    assert rates.far.value == np.mean(scores.impostor >= threshold) and rates.far.n == len(scores.impostor)
    # What the general bootstrap makes of all pairs, one by one.
    who = scores.person[impostor_pairs(scores.person, np.arange(len(scores.impostor)))]
    far = bootstrap(weighted_mean(scores.impostor >= threshold), who, seed=5)
    assert rates.far[2:] == pytest.approx(far)
    mine = scores.person[genuine_pairs(scores.person)[:, 0]]
    names = np.unique(scores.person)
    tar = []

    def statistic(weights):
        of = weights[:, np.searchsorted(names, mine)]
        tar.append(of @ (scores.genuine >= threshold) / np.maximum(of.sum(axis=1), 1e-9))
        return weights.sum(axis=1)

    bootstrap(statistic, names, seed=5)
    assert rates.tar[2:] == pytest.approx(np.quantile(np.concatenate(tar), [0.025, 0.975]))
    # Just at a score it counts, also where the threshold has more digits than the scores.
    highest = float(scores.impostor.max())
    assert accept_rates(scores, highest, repeats=50).far.value == 1 / len(scores.impostor)
    assert accept_rates(scores, np.nextafter(highest, 2), repeats=50).far.value == 0


def test_intervals_cover_the_truth():
    """TAR at FAR 5 % of people drawn anew, against that of very many people."""
    rng = np.random.default_rng(9)

    def drawn(people):
        # Some people are harder to know than others, so pairs of a person are not independent.
        person = np.repeat(np.arange(people), 5)
        spread = rng.choice([0.2, 1.0], people)[person][:, None]
        return all_scores(rng.normal(size=(people, 8))[person] + spread * rng.normal(size=(5 * people, 8)), person)

    many = drawn(400)
    truth = tar_at(many.genuine, many.impostor, 0.05)
    threshold = far_threshold(many.impostor, 0.05)
    at_far, at_threshold, by_pair = 0, 0, 0
    for _ in range(40):
        scores = drawn(25)
        found = tar_at_far(scores, 0.05, repeats=200)
        at_far += found.low <= truth <= found.high
        assert found.low <= found.value <= found.high and found.n == 250
        tar, far = accept_rates(scores, threshold, repeats=200)
        at_threshold += far.low <= 0.05 <= far.high
        pairs = rate(scores.genuine >= threshold, np.arange(250))
        by_pair += pairs.low <= truth <= pairs.high
        assert tar.high - tar.low > pairs.high - pairs.low
    assert at_far >= 34 and at_threshold >= 34 > by_pair + 3


def test_bootstrap_of_rates_is_seeded():
    scores = all_scores(*some_faces(np.random.default_rng(10), [3] * 12))
    assert tar_at_far(scores, 0.1, seed=1) == tar_at_far(scores, 0.1, seed=1) != tar_at_far(scores, 0.1, seed=2)
    assert accept_rates(scores, 0.4, seed=1) == accept_rates(scores, 0.4, seed=1) != accept_rates(scores, 0.4, seed=2)


def test_ten_fold_takes_each_threshold_from_the_other_folds():
    # Two folds whose best thresholds differ: 5 from the first, 1 from the second.
    scores = np.array([4, 6, 4.5, 5.5, 0, 2, 0.5, 1.5, 3, 1.2], np.float32)
    same = np.array([0, 1, 0, 1, 0, 1, 0, 1, 1, 1])
    folds = np.array([7, 7, 7, 7, 3, 3, 3, 3, 3, 3])
    found = ten_fold(scores, same, folds)
    # Fold 3 at 5: only its two different pairs are right; fold 7 at 0.85: only its two pairs of one person are.
    assert found.thresholds == pytest.approx([5, 0.85]) and found.folds == pytest.approx([2 / 6, 2 / 4])
    assert found.accuracy == pytest.approx((2 / 6 + 2 / 4) / 2)
    assert found.right.tolist() == [False, True, False, True, True, False, True, False, False, False]
    assert found.error == pytest.approx(np.std([2 / 6, 2 / 4], ddof=1) / np.sqrt(2))


def test_ten_fold_of_pairs_that_are_told_apart():
    rng = np.random.default_rng(11)
    same, folds = np.tile([1, 0], 100), np.repeat(np.arange(10), 20)
    scores = same + rng.uniform(-0.3, 0.3, 200)
    assert ten_fold(scores, same, folds)[:2] == (1.0, 0.0)
    # Every fold has one pair that none can get right.
    hard = scores.copy()
    hard[::20] = -1
    found = ten_fold(hard, same, folds)
    assert found.accuracy == pytest.approx(0.95) and found.folds == pytest.approx(np.full(10, 0.95))
    assert np.flatnonzero(~found.right).tolist() == list(range(0, 200, 20))
    chance = ten_fold(rng.normal(size=200), same, folds)
    assert 0.35 < chance.accuracy < 0.65
    # Neighbouring numbers of float32 have none between them.
    close = np.where(same, np.nextafter(np.float32(0.5), np.float32(1)), np.float32(0.5)).astype(np.float32)
    assert ten_fold(close, same, folds).accuracy == 1
    refused(lambda: ten_fold(scores, same, np.zeros(200)), "1 folds")
    refused(lambda: ten_fold(scores, same, 1 - same), "one kind only")


LINES = ["A_000\t1\t2", "A_001\t2\t1", "A_000\t1\tA_001\t2", "A_002\t1\tA_000\t2"]
LINES += ["A_002\t1\t2", "A_000\t1\t3", "A_001\t1\tA_002\t2", "A_000\t1\tA_003\t1"]


def write_pairs(path, lines, head="2\t2", ending="\n"):
    path.write_bytes(ending.join([head, *lines, ""]).encode())
    return path


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("separator", ["\t", " "])
def test_pairs_of_lfw(tmp_path, separator, ending):
    lines = [line.replace("\t", separator) for line in LINES]
    path = write_pairs(tmp_path / "pairs.txt", lines, f"2{separator}2", ending)
    found = read_pairs(path, faces_of([3, 2, 2, 1]))
    assert found.pairs.tolist() == [[0, 1], [4, 3], [0, 4], [5, 1], [5, 6], [0, 2], [3, 6], [0, 7]]
    assert found.same.tolist() == [1, 1, 0, 0] * 2 and found.fold.tolist() == [0] * 4 + [1] * 4 and found.left_out == 0
    assert {array.dtype for array in found[:3]} == {np.dtype(np.int32)}
    # An image and a person who are not there.
    some = read_pairs(path, faces_of([2, 2, 2]))
    assert some.pairs.tolist() == [[0, 1], [3, 2], [0, 3], [4, 1], [4, 5], [2, 5]] and some.left_out == 2
    assert some.same.tolist() == [1, 1, 0, 0, 1, 0] and some.fold.tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("line", "text", "words"),
    [
        (1, "10", ["line 1 is '10'"]),
        (1, "2\tx", ["line 1"]),
        (1, "0\t2", ["line 1"]),
        (1, "2\t3", ["8 pairs", "2 x 2 x 3"]),
        (3, "A_001\t2", ["line 3", "2 fields", "<name> <i> <j>"]),
        (3, "A_001\t2\tA_000\t1", ["line 3", "4 fields"]),
        (4, "A_000\t1\t2", ["line 4", "3 fields", "<other name>"]),
        (6, "A_002\tone\t2", ["line 6", "numbers from 1"]),
        (6, "A_002\t0\t2", ["line 6", "numbers from 1"]),
        (6, "A_002\t-1\t2", ["line 6", "numbers from 1"]),
        (7, "A_000\t2\t02", ["line 7", "'A_000' with itself"]),
        (7, "A_000\t2\t2", ["line 7", "'A_000' with itself", "two images"]),
        (8, "A_001\t1\tA_001\t2", ["line 8", "'A_001' with itself", "two people"]),
        (9, "", ["7 pairs"]),
        (8, "", ["line 8", "0 fields"]),
    ],
)
def test_malformed_pairs_are_named_by_their_line(tmp_path, line, text, words):
    lines = ["2\t2", *LINES]
    lines[line - 1] = text
    path = write_pairs(tmp_path / "pairs.txt", lines[1:], lines[0])
    refused(lambda: read_pairs(path, faces_of([3, 2, 2, 1])), str(path), *words)


def test_lists_of_pairs_of_others_are_refused(tmp_path):
    path = write_pairs(tmp_path / "pairs.txt", LINES)
    refused(lambda: read_pairs(path, faces_of([1, 1])), str(path), "no pair", "toys")
    refused(lambda: read_pairs(tmp_path / "none.txt", faces_of([1])), "none.txt", "cannot be read")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    refused(lambda: read_pairs(tmp_path / "bytes.txt", faces_of([1])), "bytes.txt", "text in UTF-16")
    (tmp_path / "empty.txt").write_bytes(b"")
    refused(lambda: read_pairs(tmp_path / "empty.txt", faces_of([1])), "empty.txt", "line 1")


def test_folds_share_nobody():
    faces = faces_of([20, 1, 3, 2, 6] * 14)
    people = np.arange(3, 70)
    found = make_folds(faces, people, 15, seed=0, folds=5)
    assert found.pairs.shape == (150, 2) and found.left_out == 0
    assert (
        found.fold.tolist() == np.repeat(np.arange(5), 30).tolist() and found.same.tolist() == ([1] * 15 + [0] * 15) * 5
    )
    who = faces.person[found.pairs]
    np.testing.assert_array_equal(who[:, 0] == who[:, 1], found.same == 1)
    assert np.isin(who, people).all() and (found.pairs[:, 0] != found.pairs[:, 1]).all()
    assert len(np.unique(np.sort(found.pairs, axis=1), axis=0)) == 150
    seen = [set(who[found.fold == fold].reshape(-1).tolist()) for fold in range(5)]
    assert all(not a & b for a, b in itertools.combinations(seen, 2))
    for fold in range(5):
        # About ten people with pairs of their own for fifteen pairs: those with 190 pairs have no more than others.
        times = np.bincount(who[(found.fold == fold) & (found.same == 1), 0])
        assert times.max() <= 3 and np.sum(times > 0) >= 8
        others = np.bincount(who[(found.fold == fold) & (found.same == 0)].reshape(-1))
        assert others.max() <= 5 and np.sum(others > 0) >= 10
    again, other = make_folds(faces, people, 15, seed=0, folds=5), make_folds(faces, people, 15, seed=1, folds=5)
    np.testing.assert_array_equal(found.pairs, again.pairs)
    assert (found.pairs != other.pairs).any()
    scores = pair_scores(np.eye(70)[faces.person], found.pairs)
    assert ten_fold(scores, found.same, found.fold).accuracy == 1


def test_folds_that_cannot_be_filled_are_refused():
    # Every fold needs two of those with pairs of their own.
    assert len(make_folds(faces_of([6] * 10 + [1] * 10), range(20), 30, seed=0, folds=5).pairs) == 300
    faces = faces_of([3] * 20)
    assert len(make_folds(faces, range(20), 6, seed=0).pairs) == 120
    refused(lambda: make_folds(faces, range(20), 7, seed=0), "6 pairs of one person", "expected 7")
    refused(lambda: make_folds(faces, range(19), 6, seed=0), "19 people for 10 folds")
    # Two people of three images have nine pairs of different people, which three people of one image have not.
    refused(lambda: make_folds(faces_of([6, 1, 6, 1]), range(4), 7, seed=0, folds=2), "7 pairs of different people")


def test_mean_cosine_against_all_pairs():
    rng = np.random.default_rng(12)
    e, person = some_faces(rng, [4, 1, 7, 3])
    expected = impostor_scores(e, person).astype(np.float64).mean()
    assert mean_cosine(e, person) == pytest.approx(expected, abs=1e-6)
    order = rng.permutation(len(e))
    assert mean_cosine(e[order], person[order]) == pytest.approx(expected, abs=1e-6)
    # A collapsed embedding, and one in which everyone has a direction.
    assert mean_cosine(np.ones((15, 5)) + 1e-3 * e, person) > 0.999
    assert mean_cosine(np.eye(4)[person] * 3, person) == pytest.approx(0, abs=1e-7)
    refused(lambda: mean_cosine(e[:3], np.zeros(3)), "1 people")


def test_templates_are_means_of_directions():
    rng = np.random.default_rng(13)
    e = rng.normal(size=(9, 4)) * rng.uniform(0.1, 10, (9, 1))
    group = np.array([5, 0, 5, 2, 2, 0, 5, 2, 2])
    found = templates(e, group)
    assert found.dtype == np.float32 and found.shape == (3, 4)
    for row, number in enumerate([0, 2, 5]):
        mean = np.mean([v / np.linalg.norm(v) for v in e[group == number]], axis=0)
        np.testing.assert_allclose(found[row], mean / np.linalg.norm(mean), rtol=1e-5)
    refused(lambda: templates(np.array([[1.0, 0], [0, 2], [0, -1]]), np.array([0, 1, 1])), "row 1", "length 0")


@pytest.mark.realdata
def test_real_pairs():
    folder = Path(os.environ.get("SUITE_DATA", ""))
    if not (folder / "lfw64_part.tar").is_file() or not (folder / "lfw_pairs.txt").is_file():
        pytest.skip("SUITE_DATA names no folder with lfw64_part.tar and lfw_pairs.txt")
    faces = load_faces(str(folder / "lfw64_part.tar"))
    found = read_pairs(folder / "lfw_pairs.txt", faces)
    assert len(found.pairs) == 3482 and found.left_out == 2518 and found.same.sum() == 2059
    who = faces.person[found.pairs]
    np.testing.assert_array_equal(who[:, 0] == who[:, 1], found.same == 1)
