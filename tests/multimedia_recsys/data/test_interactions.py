"""Feedback: what is held out, what files are read, and which of them are refused."""

import numpy as np
import pytest

from common.errors import UserError
from multimedia_recsys.data import interactions as feedback
from multimedia_recsys.data.interactions import simulated


def pairs_of(found):
    return set(zip(found.user().tolist(), found.item.tolist(), strict=True))


def test_leave_one_out_splits_each_user_and_keeps_every_item_known():
    rng = np.random.default_rng(0)
    user, item = rng.integers(30, size=300), rng.integers(20, size=300)
    found = feedback.leave_one_out(user, item, users=30, items=20, seed=1)
    given = set(zip(user.tolist(), item.tolist(), strict=True))
    held = {(u, int(i)) for u, i in enumerate(found.test) if i >= 0}
    assert pairs_of(found) | held == given
    assert not pairs_of(found) & held
    assert len(held) >= 25
    assert (found.popularity() > 0)[np.unique(item)].all()
    assert all((np.diff(found.item[a:b]) > 0).all() for a, b in zip(found.start, found.start[1:], strict=False))


def test_the_latest_is_held_out_where_times_are_known():
    user, item = np.array([0, 0, 0, 1, 1]), np.array([3, 1, 2, 3, 1])
    found = feedback.leave_one_out(user, item, users=2, items=4, seed=0, time=np.array([5.0, 9.0, 1.0, 4.0, 2.0]))
    # User 0 saw item 1 last and user 1 item 3; both items have others.
    assert found.test.tolist() == [1, 3]


def test_an_item_that_nobody_else_has_stays_in_training():
    user, item = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 2, 0, 2])
    found = feedback.leave_one_out(user, item, users=3, items=3, seed=0, time=np.arange(5.0))
    # User 0 saw item 1 last, which is his alone; user 1 saw item 0 last, which user 0 has too.
    assert found.test.tolist() == [-1, 0, -1]
    assert pairs_of(found) == {(0, 0), (0, 1), (1, 2), (2, 2)}


def test_users_with_one_item_keep_it():
    found = feedback.leave_one_out(np.array([0, 1, 1, 2]), np.array([0, 0, 1, 1]), users=3, items=2, seed=0)
    assert found.test[0] == found.test[2] == -1
    assert found.test[1] >= 0


def test_seen_names_the_training_items_of_each_row():
    found = feedback.interactions(np.array([0, 0, 2]), np.array([4, 1, 3]), np.array([-1, -1, -1]), items=5)
    row, item = found.seen(np.array([2, 1, 0]))
    assert list(zip(row.tolist(), item.tolist(), strict=True)) == [(0, 3), (2, 1), (2, 4)]


def write(folder, name, text):
    (folder / name).write_text(text)
    return folder


def test_pos_txt_and_the_split_files_are_read(tmp_path):
    write(tmp_path, "pos.txt", "0\t0\n0\t1\n1\t0\n1\t2\n2\t2\n")
    found = feedback.read_feedback(tmp_path, 3, seed=0)
    assert (found.users, found.items) == (3, 3)
    (tmp_path / "pos.txt").unlink()
    write(tmp_path, "trainingset.tsv", "0\t0\t1.0\t0\n1\t2\t1.0\t0\n")
    write(tmp_path, "testset.tsv", "0\t1\t1.0\t0\n")
    found = feedback.read_feedback(tmp_path, 3, seed=0)
    assert pairs_of(found) == {(0, 0), (1, 2)}
    assert found.test.tolist() == [1, -1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0\t0\n0\tx\n", r"pos.txt:2: item 'x'; expected a whole number"),
        ("0\t0\n-1\t1\n", r"pos.txt:2: user '-1'; expected a whole number"),
        ("0\t0\n\n1\t1\n", r"pos.txt:2: user ''; expected"),
        ("0\t0\n0\t7\n", r"pos.txt:2: item 7; there are images of 0 to 2"),
        ("0\t0\n0\t1\n2\t0\n", r"user 1 has no line, but user 2 has"),
        ("0\t1.5\n", r"pos.txt:1: item '1.5'"),
        ("", r"pos.txt: .*(empty|No columns)"),
        ("0\t0\t1\tlate\n", r"pos.txt:1: timestamp 'late'"),
        ("0\t0\n1\t1\n", r"nothing can be held out"),
    ],
)
def test_feedback_that_does_not_do_names_file_and_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        feedback.read_feedback(write(tmp_path, "pos.txt", text), 3, seed=0)


def test_split_files_must_agree(tmp_path):
    write(tmp_path, "trainingset.tsv", "0\t0\n1\t1\n")
    for text, message in (("2\t0\n", "user 2 has no line"), ("0\t1\n0\t2\n", "two lines of one user")):
        write(tmp_path, "testset.tsv", text)
        with pytest.raises(UserError, match=message):
            feedback.read_feedback(tmp_path, 3, seed=0)
    with pytest.raises(UserError, match="expected the feedback in either"):
        feedback.read_feedback(tmp_path / "nowhere", 3, seed=0)


def test_a_csv_names_images(tmp_path):
    write(tmp_path, "who.csv", "user,item,timestamp\nann,red,1\nann,blue.png,3\nbob,blue,1\nbob,red,2\n")
    found = feedback.read_named(tmp_path / "who.csv", ["blue.png", "red.jpg"], seed=0)
    assert pairs_of(found) == {(0, 1), (1, 0)}
    assert found.test.tolist() == [0, 1]
    write(tmp_path, "who.csv", "user,item\nann,red\nann,green\n")
    with pytest.raises(UserError, match=r"who.csv:3: item 'green' has no image"):
        feedback.read_named(tmp_path / "who.csv", ["blue.png", "red.jpg"], seed=0)
    write(tmp_path, "who.csv", "ann,red\nbob,red\n")
    with pytest.raises(UserError, match="no column 'user'"):
        feedback.read_named(tmp_path / "who.csv", ["red.jpg"], seed=0)


def test_simulated_users_follow_their_tastes_and_leave_a_tail():
    rng = np.random.default_rng(3)
    traits = [rng.integers(12, size=600), rng.integers(8, size=600)]
    found = simulated(traits, 800, seed=0)
    again = simulated(traits, 800, seed=0)
    assert np.array_equal(found.item, again.item)
    assert np.array_equal(found.test, again.test)
    # A user's own categories: two of his items share theirs more often than two of anybody's.
    first, second = found.item[:-1], found.item[1:]
    together = found.user()[:-1] == found.user()[1:]
    own = (traits[0][first] == traits[0][second])[together].mean()
    shares = np.bincount(traits[0][found.item]) / len(found.item)
    assert own > 1.3 * (shares**2).sum()
    popularity = np.sort(found.popularity())[::-1]
    assert popularity[:60].sum() > 0.3 * popularity.sum()
    assert (popularity < 5).any()
