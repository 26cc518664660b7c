"""Who and what a line of feedback means: ids are text, the latest counts, and what could be either is refused."""

import os
import types

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from multimedia_recsys.data import attack_folders
from multimedia_recsys.data.catalog import Catalog, Images
from multimedia_recsys.data.categories import parse_class
from multimedia_recsys.data.interactions import interactions, leave_one_out, read_feedback, read_named
from multimedia_recsys.data.visual_features import read_visual, write_visual

NAMES = ["a.jpg", "b.jpg", "c.jpg"]
OTHERS = "".join(f"{user},{item},1\n" for user in ("u2", "u3") for item in "abc")


def named(folder, content, names=NAMES):
    path = folder / "who.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_named(path, names, seed=0)


def pairs_of(found):
    return list(zip(found.user().tolist(), found.item.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_of_what_was_bought_twice_the_latest_time_counts(tmp_path, seed):
    lines = ["u1,a,1\n", "u1,b,50\n", "u1,c,20\n", "u1,a,100\n"]
    mixed = np.random.default_rng(seed).permutation(lines)
    found = named(tmp_path, "user,item,timestamp\n" + "".join(mixed) + OTHERS)
    assert found.test[0] == 0
    # Once in training at the most, and not where it is held out.
    assert [item for user, item in pairs_of(found) if user == 0] == [1, 2]


def test_the_order_of_rows_changes_nothing():
    rng = np.random.default_rng(0)
    user, item, time = rng.integers(9, size=200), rng.integers(12, size=200), rng.integers(50, size=200)
    found = [
        leave_one_out(user[order], item[order], users=9, items=12, seed=0, time=time[order].astype(float))
        for order in (np.arange(200), rng.permutation(200))
    ]
    assert found[0].test.tolist() == found[1].test.tolist()
    assert pairs_of(found[0]) == pairs_of(found[1])


def test_a_name_without_its_ending_must_mean_one_image(tmp_path):
    names = ["a.jpg", "b.jpg", "a.png"]
    with pytest.raises(UserError, match=r"who.csv:3: item 'a' is the name of two images; write the ending too"):
        named(tmp_path, "user,item\nu1,b\nu1,a\nu2,a\n", names)
    found = named(tmp_path, "user,item\nu1,a.png\nu1,b\nu2,a.jpg\nu2,b\nu3,b\nu3,a.png\n", names)
    assert sorted({*found.item.tolist(), *found.test[found.test >= 0].tolist()}) == [0, 1, 2]
    # A whole name is that image, though it is another's without the ending, too.
    found = named(tmp_path, "user,item\nu1,a.jpg\nu1,b\nu2,a.jpg\nu2,b\n", ["a.jpg.png", "b.png", "a.jpg"])
    assert 0 not in found.item


def test_a_test_item_that_is_in_training_is_refused(tmp_path):
    (tmp_path / "trainingset.tsv").write_text("0\t0\n0\t1\n1\t0\n1\t1\n")
    (tmp_path / "testset.tsv").write_text("1\t2\n0\t1\n")
    with pytest.raises(UserError, match=r"testset.tsv:2: item 1 of user 0 is in trainingset.tsv too"):
        read_feedback(tmp_path, 3, seed=0)
    (tmp_path / "testset.tsv").write_text("0\t2\n1\t2\n0\t2\n")
    with pytest.raises(UserError, match=r"testset.tsv:3: two lines of one user, 0"):
        read_feedback(tmp_path, 3, seed=0)
    (tmp_path / "testset.tsv").write_text("0\t2\n1\t2\n")
    assert read_feedback(tmp_path, 3, seed=0).test.tolist() == [2, 2]


@pytest.mark.parametrize("line", [",b", " ,b", "", '"",b'])
def test_a_line_without_a_user_is_refused(tmp_path, line):
    with pytest.raises(UserError, match=r"who.csv:3: names no user"):
        named(tmp_path, f"user,item\nu1,a\n{line}\nu2,a\n")


def test_users_are_text(tmp_path):
    users = [b"007", b"7", b"7.0", b"True", b"TRUE", b"NA", b"1E5", b"100000", b"Jos\xe9", b"Jos\xe8", "José".encode()]
    lines = b"".join(b"%b,%b\n" % (user, item) for user in users for item in (b"a", b"b"))
    assert named(tmp_path, b"user,item\n" + lines).users == len(users)


def test_items_are_the_names_of_their_files_byte_by_byte(tmp_path):
    names = [os.fsdecode(name) for name in (b"Jos\xe9.jpg", b"Jos\xe8.jpg", b"007.jpg", b"7.jpg")]
    lines = b"".join(b"%b,%b\n" % (user, item) for user in (b"u1", b"u2") for item in (b"Jos\xe9", b"Jos\xe8", b"7"))
    found = named(tmp_path, b"user,item\n" + lines, names)
    assert sorted({*found.item.tolist(), *found.test.tolist()}) == [0, 1, 3]


GOOD = "user,item\nu1,a\nu1,b\nu2,a\nu2,b\n"


@pytest.mark.parametrize(
    "dress",
    [
        lambda text: text.encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("\n", "\r").encode(),
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.replace(",", ", ", 1).encode(),
        lambda text: text.replace("\n", ",\n").replace("item,", "item").encode(),
        lambda text: "\n".join(f'"{line}"'.replace(",", '","') for line in text.splitlines()).encode(),
        lambda text: text.replace("user", "shop,user").replace("\nu", "\nx,u").encode(),
    ],
)
def test_the_dialects_of_csv_say_the_same(tmp_path, dress):
    found, plain = named(tmp_path, dress(GOOD)), named(tmp_path, GOOD)
    assert (pairs_of(found), found.test.tolist()) == (pairs_of(plain), plain.test.tolist())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user,item,timestamp\nu1,a,1,5\nu1,b,2,5\n", r"who.csv:2: '5' comes after the last column, timestamp"),
        ("user,item\n0,a,b\n1,b,a\n", r"who.csv:2: 'b' comes after the last column, item"),
        ("user,item\nu1,a\nu1,b,7\n", r"who.csv:3: '7' comes after the last column"),
        ("user;item\nu1;a\n", r"no column 'user'; its first line is 'user;item', expected user,item"),
        ("user,item,timestamp\nu1,a,1\nu1,b,01.05.2014\n", r"who.csv:3: timestamp '01.05.2014'; expected a number"),
        ("user,item\nu1,a\nu2\n", r"who.csv:3: item '' has no image"),
        (GOOD.encode("utf-16"), r"who.csv: is text in UTF-16"),
        (b"user,item\nu1\0,a\n", r"who.csv: holds NUL bytes"),
        ("user,item\n", r"who.csv: is empty"),
    ],
)
def test_what_is_no_such_table_is_refused_with_its_cause(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        named(tmp_path, content)


def test_further_columns_of_the_original_layout_are_passed_over(tmp_path):
    (tmp_path / "pos.txt").write_text("0\t0\t5\t9\tx\n0\t1\t5\t8\tx\n1\t0\t5\t1\tx\n1\t1\t5\t2\tx\n")
    assert read_feedback(tmp_path, 2, seed=0).test.tolist() == [0, 1]
    (tmp_path / "pos.txt").write_text("0,0\n0,1\n")
    with pytest.raises(UserError, match=r"pos.txt:1: user '0,0'; expected a whole number from 0, lines are user<TAB>"):
        read_feedback(tmp_path, 2, seed=0)


def catalog_of(names):
    count = len(names)
    images = np.arange(count * 48, dtype=np.uint8).reshape(count, 4, 4, 3)
    feedback = interactions(np.arange(count), np.arange(count), np.full(count, -1), items=count)
    return Catalog("toys", Images(images), feedback, tuple(names), "0" * 64)


def extracted_of(count):
    rng = np.random.default_rng(0)
    return types.SimpleNamespace(label=np.arange(count) % 2, prob=rng.random(count), features=rng.random((count, 3)))


def test_classes_in_another_order_than_the_items_are_refused(tmp_path):
    """features.npy says by its order alone whose features a row holds."""
    names = ["a.jpg", "b.png", os.fsdecode(b"Jos\xe9.png")]
    write_visual(tmp_path, catalog_of(names), extracted_of(3), ["hat", "sock"])
    found = read_visual(tmp_path, names)
    assert found.label.tolist() == [0, 1, 0] and found.names == ("hat", "sock")
    path = tmp_path / "classes.csv"
    header, *lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + lines[0].replace(b"a.jpg", b"a") + b"".join(lines[1:]))
    assert np.array_equal(read_visual(tmp_path, names).features, found.features)
    path.write_bytes(header + lines[0] + lines[2] + lines[1])
    with pytest.raises(
        UserError, match=r"classes.csv:3: ImageID 'Jos.*', the shop has 'b.png' there; bring classes.csv"
    ):
        read_visual(tmp_path, names)
    path.write_bytes(header + b"".join(lines))
    with pytest.raises(UserError, match=r"classes.csv:2: ImageID 'a.jpg', the shop has 'x.jpg' there"):
        read_visual(tmp_path, ["x.jpg", *names[1:]])


def test_features_of_attacked_images_are_scaled_as_the_clean_ones(tmp_path):
    """Or one attacked item with a large feature would bring all others nearer to zero."""
    names = ["a.jpg", "b.jpg", "c.jpg"]
    write_visual(tmp_path / "clean", catalog_of(names), extracted_of(3), ["hat", "sock"])
    clean, extracted = read_visual(tmp_path / "clean", names), extracted_of(3)
    assert clean.scale == np.abs(clean.features).max()
    extracted.features[1] = 50
    write_visual(tmp_path / "attacked", catalog_of(names), extracted, ["hat", "sock"], started=clean)
    attacked = read_visual(tmp_path / "attacked", names)
    assert attacked.features.max() == 50 and attacked.scale == clean.scale
    (tmp_path / "attacked/scale.txt").write_text("much\n")
    with pytest.raises(UserError, match=r"scale.txt: expected a number"):
        read_visual(tmp_path / "attacked", names)


def test_attacked_images_of_one_name_but_for_the_ending_are_two_files(tmp_path):
    catalog = catalog_of(["a.jpg", "b.jpg", "a.png", "a_png.jpg", "../a.jpg"])
    items = np.arange(5)
    attack_folders.write_images(tmp_path / "images", catalog, items, lambda images, _: 255 - images)
    assert len(list((tmp_path / "images").iterdir())) == 5
    assert (tmp_path / "images" / "b.png").is_file()
    found = attack_folders.read_images(tmp_path / "images", catalog, items)
    np.testing.assert_array_equal(found, 255 - catalog.images.read(items))
    assert np.asarray(Image.open(tmp_path / "images" / "b.png")).shape == (4, 4, 3)


def test_a_name_of_two_classes_is_refused():
    names = ("crane", "owl", "crane", "7")
    with pytest.raises(UserError, match="--origin-class: 'crane' is the name of the classes 0, 2; give a number"):
        parse_class("crane", names, "--origin-class")
    assert [parse_class(text, names, "--origin-class") for text in ("owl", "2", "7")] == [1, 2, 3]
