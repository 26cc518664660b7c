"""Faces from folders and tars, people who train and who are held back, pairs to attack."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.datasets.images import write_png
from common.errors import UserError
from face_mter.data import faces as module
from face_mter.data.faces import (
    LFW,
    LFW_PAIRS,
    attack_pairs,
    load_clips,
    load_faces,
    load_pairs,
    save_pairs,
    split_people,
)
from tests.helpers.face_toys import faces_of

COUNTS = {"Bo": 3, "Al": 1, "Cy": 2}


def refused(call, *words):
    """The one line of the `UserError` that `call` ends in, which must hold every one of `words`."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def write_folder(root, counts, *, seed=0, size=(6, 5)):
    """Images of `size` (height, width): what was written, by file, in the order of people and files."""
    rng, written = np.random.default_rng(seed), {}
    for name in sorted(counts):
        for number in range(1, counts[name] + 1):
            file = f"{name}/{name}_{number:04d}.png"
            written[file] = rng.integers(0, 256, (*size, 3), np.uint8)
            write_png(root / file, written[file])
    return written


def pack(path, root, prefix=""):
    """A tar of the folder, its members in an order that is not theirs."""
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for file in sorted(root.rglob("*.png"), key=lambda file: file.name[::-1]):
            archive.add(file, prefix + file.relative_to(root).as_posix())
    return path


def test_a_folder_and_its_tars_are_the_same_faces(tmp_path):
    written = write_folder(tmp_path / "folder", COUNTS)
    paths = [
        tmp_path / "folder",
        pack(tmp_path / "plain.tar", tmp_path / "folder"),
        pack(tmp_path / "nested.tgz", tmp_path / "folder", "lfw64/"),
    ]
    for path in paths:
        faces = load_faces(str(path))
        assert faces.names == ("Al", "Bo", "Cy") and faces.files == tuple(written)
        assert faces.person.dtype == np.int32 and faces.person.tolist() == [0, 1, 1, 1, 2, 2]
        assert faces.counts.tolist() == [1, 3, 2]
        np.testing.assert_array_equal(faces.images, np.stack(list(written.values())))
        assert faces.sha256 == load_faces(str(paths[0])).sha256
    before = load_faces(str(paths[0])).sha256
    (tmp_path / "folder/Al/Al_0001.png").rename(tmp_path / "folder/Al/Al_0002.png")
    renamed = load_faces(str(paths[0])).sha256
    write_png(tmp_path / "folder/Al/Al_0002.png", 255 - written["Al/Al_0001.png"])
    assert len({before, renamed, load_faces(str(paths[0])).sha256}) == 3


def test_some_people_are_what_a_folder_of_them_would_be(tmp_path):
    write_folder(tmp_path / "all", COUNTS)
    faces = load_faces(str(tmp_path / "all"))
    some = faces.of([0, 2])
    for name in ("Al", "Cy"):
        for file in (tmp_path / "all" / name).iterdir():
            target = tmp_path / "some" / name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    expected = load_faces(str(tmp_path / "some"))
    assert some.names == ("Al", "Cy") and some.person.tolist() == [0, 1, 1] and some.files == expected.files
    assert some.person.dtype == np.int32 and some.sha256 == expected.sha256 != faces.sha256
    np.testing.assert_array_equal(some.images, expected.images)
    for people in ([2, 0], [1, 1], [-1, 0], [2, 3], []):
        with pytest.raises(ValueError, match="ascending"):
            faces.of(people)


def test_grey_becomes_rgb(tmp_path):
    (tmp_path / "Al").mkdir()
    Image.fromarray(np.array([[0, 128], [200, 255]], np.uint8)).save(tmp_path / "Al" / "grey.png")
    images = load_faces(str(tmp_path)).images
    assert images.shape == (1, 2, 2, 3)
    np.testing.assert_array_equal(images[0], np.repeat(np.array([[0, 128], [200, 255]])[..., None], 3, axis=2))


@pytest.mark.parametrize("packed", [False, True])
def test_the_middle_square_is_scaled(tmp_path, packed):
    wide = np.zeros((12, 21, 3), np.uint8)
    wide[:, 4:16] = 250
    tall = np.zeros((21, 12, 3), np.uint8)
    tall[4:16] = 250
    write_png(tmp_path / "in" / "Al" / "tall.png", tall)
    write_png(tmp_path / "in" / "Al" / "wide.png", wide)
    path = str(pack(tmp_path / "in.tar", tmp_path / "in") if packed else tmp_path / "in")
    images = load_faces(path, image_size=8).images
    assert images.shape == (2, 8, 8, 3) and (images == 250).all()
    refused(lambda: load_faces(path), path, "differing sizes", "image-size")
    refused(lambda: load_faces(path, image_size=0), "image_size=0")
    refused(lambda: load_faces("portraits", image_size=6), "image_size=6", "16 or more")


def test_portraits_are_people_drawn_from_the_seed():
    faces = load_faces("portraits", seed=3, image_size=16, people=3, per_person=2)
    assert faces.images.shape == (6, 16, 16, 3) and faces.images.dtype == np.uint8
    assert faces.person.tolist() == [0, 0, 1, 1, 2, 2]
    assert faces.names == ("person_0000", "person_0001", "person_0002") and faces.files[3] == "person_0001/0001.png"
    assert faces.sha256 == load_faces("portraits", seed=3, image_size=16, people=3, per_person=2).sha256
    assert faces.sha256 != load_faces("portraits", seed=4, image_size=16, people=3, per_person=2).sha256
    assert load_faces("portraits", people=1, per_person=1).images.shape == (1, 48, 48, 3)


def test_lfw_is_fetched_by_the_sums_that_scikit_learn_has(tmp_path, monkeypatch):
    from sklearn.datasets import _lfw

    targets = {target.filename: target for target in (_lfw.FUNNELED_ARCHIVE, *_lfw.TARGETS)}
    for ours, name in ((LFW, "lfw-funneled.tgz"), (LFW_PAIRS, "pairs.txt")):
        assert (ours.url, ours.sha256) == (targets[name].url, targets[name].checksum)

    write_folder(tmp_path / "folder", COUNTS)
    archive = pack(tmp_path / "lfw-funneled.tgz", tmp_path / "folder", "lfw_funneled/")
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(module, "fetch", lambda source, folder: asked.append((source, folder)) or archive)
        faces = load_faces("lfw", data_dir=tmp_path / "data")
    assert asked == [(LFW, tmp_path / "data")] and faces.name == "lfw" and faces.names == ("Al", "Bo", "Cy")

    (tmp_path / "data/lfw").mkdir(parents=True)
    (tmp_path / "data/lfw/lfw-funneled.tgz").write_bytes(archive.read_bytes())
    refused(lambda: load_faces("lfw", data_dir=tmp_path / "data"), "lfw-funneled.tgz", "SHA-256", LFW.sha256)


def test_what_is_no_faces_is_refused(tmp_path):
    refused(lambda: load_faces("portrait"), "portrait:", "portraits, lfw")
    (tmp_path / "faces.npz").write_bytes(b"")
    refused(lambda: load_faces(str(tmp_path / "faces.npz")), "faces.npz", "expected a folder")
    refused(lambda: load_faces(str(tmp_path / "none.tar")), "none.tar", "nor a folder or tar that exists")
    write_folder(tmp_path / "in" / "train", COUNTS)
    assert load_faces(str(pack(tmp_path / "train.tar", tmp_path / "in"))).names == ("Al", "Bo", "Cy")
    write_folder(tmp_path / "in" / "test", COUNTS)
    refused(lambda: load_faces(str(pack(tmp_path / "both.tar", tmp_path / "in"))), "both.tar", "train and a test part")
    refused(lambda: load_faces(str(tmp_path / "in")), "a folder inside a class folder")


def test_clips_are_numbered_over_all_people(tmp_path):
    write_folder(tmp_path / "Bo", {"walk": 2, "talk": 3})
    write_folder(tmp_path / "Al", {"talk": 1})
    write_folder(tmp_path / "Cy", {"sing": 1})
    faces, clip = load_clips(tmp_path)
    assert faces.names == ("Al", "Bo", "Cy") and faces.person.tolist() == [0, 1, 1, 1, 1, 1, 2]
    assert clip.tolist() == [0, 1, 1, 1, 2, 2, 3] and clip.dtype == np.int32
    assert faces.files[0] == "Al/talk/talk_0001.png" and faces.files[5] == "Bo/walk/walk_0002.png"
    assert load_clips(tmp_path, image_size=4).faces.images.shape == (7, 4, 4, 3)
    refused(lambda: load_clips(tmp_path / "none"), "none", "cannot be read")
    refused(lambda: load_clips(tmp_path / "Al" / "talk"), "<root>/<person>/<clip>/<frame>")


def test_importing_is_light():
    """`--help` must not wait for TensorFlow, scikit-learn or Pillow."""
    heavy = "tensorflow keras sklearn PIL pooch"
    program = (
        f"import sys, face_mter.evaluation.verification; sys.exit(any(name in sys.modules for name in {heavy.split()}))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def parts_of(split, faces):
    """The parts as sets, after checks that hold for every split."""
    for part in split:
        assert part.dtype == np.int32 and (np.diff(part) > 0).all()
    train, calibration, attack = (set(part.tolist()) for part in split)
    assert not (train & calibration or train & attack or calibration & attack)
    assert train | calibration | attack == set(range(len(faces.names)))
    assert abs(len(calibration) - len(attack)) <= 1
    return train, calibration, attack


def test_people_with_few_images_are_held_back():
    faces = faces_of([1] * 50 + [5] * 20 + [3] * 30)
    train, calibration, attack = parts_of(split_people(faces, seed=0), faces)
    assert train == set(range(50, 70))
    # Either half has its share of pairs of one person, whatever the seed.
    for seed in range(5):
        halves = split_people(faces, seed=seed)[1:]
        assert [int((faces.counts[half] > 1).sum()) for half in halves] == [15, 15]
    again, other = split_people(faces, seed=0), split_people(faces, seed=1)
    assert (set(again.calibration.tolist()), set(again.attack.tolist())) == (calibration, attack)
    assert set(other.calibration.tolist()) != calibration


def test_a_share_is_held_back_where_all_have_enough():
    faces = faces_of([6] * 40)
    train, calibration, attack = parts_of(split_people(faces, seed=0), faces)
    assert (len(train), len(calibration), len(attack)) == (28, 6, 6)
    assert train != set(split_people(faces, seed=1).train.tolist())
    assert len(split_people(faces, seed=0, evaluation_share=0.5).train) == 20
    # Those with too few images count towards the share.
    mixed = faces_of([6] * 30 + [2] * 10)
    train, *_ = parts_of(split_people(mixed, seed=0), mixed)
    assert len(train) == 28 and max(train) < 30


def test_fewer_people_train_and_the_others_are_held_back():
    faces = faces_of([6] * 40)
    most = split_people(faces, seed=0)
    fewer = split_people(faces, seed=0, n_train=10)
    train, calibration, attack = parts_of(fewer, faces)
    assert len(train) == 10 and train < set(most.train.tolist()) and len(calibration | attack) == 30
    assert len(split_people(faces, seed=0, n_train=39).train) == 28


def test_too_few_people_are_refused():
    refused(lambda: split_people(faces_of([5] + [1] * 20), seed=0), "toys", "1 of 21 people", "min_images")
    refused(lambda: split_people(faces_of([5] * 6), seed=0), "2 of 6 people are held out", "evaluation_share")
    refused(lambda: split_people(faces_of([5] * 10), seed=0), "3 of 10 people are held out")
    refused(lambda: split_people(faces_of([5] * 9 + [1] * 8), seed=0), "0 of 8 held-out people", "two images")
    refused(lambda: split_people(faces_of([5] * 9 + [1] * 8 + [2]), seed=0), "1 of 9 held-out people")
    assert len(split_people(faces_of([5] * 9 + [1] * 8 + [2, 2]), seed=0).train) == 9
    faces = faces_of([6] * 40)
    refused(lambda: split_people(faces, seed=0, evaluation_share=1.0), "evaluation_share=1.0")
    refused(lambda: split_people(faces, seed=0, n_train=1), "n_train=1")
    refused(lambda: split_people(faces, seed=0, min_images=0), "min_images=0")
    refused(lambda: split_people(faces, seed=0, evaluation_share=0.98), "40 of 40 people", "leaves 1 to train on")


def check_pairs(pairs, faces, people):
    assert pairs.dtype == np.int32 and len(np.unique(pairs, axis=0)) == len(pairs)
    who = faces.person[pairs]
    assert (who[:, 0] != who[:, 1]).all() and np.isin(who, people).all()
    return who


def test_attack_pairs_are_distinct_and_everyone_has_an_equal_part():
    faces = faces_of([1, 30, 2, 7, 4, 1, 9, 3, 5, 2])
    people = np.array([1, 2, 3, 4, 6, 7, 8, 9])
    pairs = attack_pairs(faces, people, 160, seed=0)
    who = check_pairs(pairs, faces, people)
    for side in who.T:
        times = np.bincount(side, minlength=10)[people]
        assert times.sum() == 160 and times.min() >= 18 and times.max() <= 22
    # The first ones are a list of their own.
    assert (np.bincount(who[:16, 0], minlength=10)[people] == 2).all()
    # Nobody is set upon the same victim over and over, and images vary.
    table = np.zeros((10, 10), int)
    np.add.at(table, tuple(who.T), 1)
    assert (table[np.ix_(people, people)][~np.eye(8, dtype=bool)] > 0).mean() > 0.8
    assert len(np.unique(pairs[who[:, 0] == 1, 0])) > 8
    np.testing.assert_array_equal(pairs, attack_pairs(faces, people, 160, seed=0))
    assert (pairs != attack_pairs(faces, people, 160, seed=1)).any()


@pytest.mark.parametrize("draws", [20, 1, 0])
@pytest.mark.parametrize("ordered", [True, False])
def test_attack_pairs_to_the_last(ordered, draws, monkeypatch):
    """Those that no draw finds are taken from a list."""
    monkeypatch.setattr(module, "_DRAWS", draws)
    monkeypatch.setattr(module, "_DRAWN", 1)
    faces = faces_of([1, 3, 2, 5])
    all_pairs = {
        (i, j)
        for i in range(11)
        for j in range(11)
        if faces.person[i] != faces.person[j] and 0 not in (faces.person[i], faces.person[j]) and (ordered or i < j)
    }
    pairs = attack_pairs(faces, [1, 2, 3], len(all_pairs), seed=0, ordered=ordered)
    check_pairs(pairs, faces, [1, 2, 3])
    assert set(map(tuple, pairs.tolist())) == all_pairs
    refused(
        lambda: attack_pairs(faces, [1, 2, 3], len(all_pairs) + 1, seed=0, ordered=ordered),
        "toys",
        f"{len(all_pairs) + 1} pairs",
        f"have {len(all_pairs)}",
    )


def test_a_pair_and_its_reverse_are_one_without_order():
    faces = faces_of([2] * 12)
    pairs = attack_pairs(faces, np.arange(12), 200, seed=0, ordered=False)
    assert (pairs[:, 0] < pairs[:, 1]).all()
    check_pairs(pairs, faces, np.arange(12))
    both = attack_pairs(faces, np.arange(12), 200, seed=0)
    assert (both[:, 0] > both[:, 1]).any() and (both[:, 0] < both[:, 1]).any()


def test_pairs_of_nobody_are_refused():
    faces = faces_of([2] * 3)
    refused(lambda: attack_pairs(faces, [1], 1, seed=0), "1 people with 2 images", "have 0")
    refused(lambda: attack_pairs(faces, [], 1, seed=0), "0 people")
    refused(lambda: attack_pairs(faces, [0, 1], 0, seed=0), "0 pairs")


def test_pairs_are_kept_by_file_name(tmp_path):
    written = write_folder(tmp_path / "in", {'O"Neil, Jr.': 2, "Zoë": 1, "Al": 2})
    faces = load_faces(str(tmp_path / "in"))
    pairs = attack_pairs(faces, [0, 1, 2], 6, seed=0)
    save_pairs(tmp_path / "pairs.csv", faces, pairs)
    lines = (tmp_path / "pairs.csv").read_text("utf-8").splitlines()
    assert lines[0] == "attacker,victim" and len(lines) == 7
    loaded = load_pairs(tmp_path / "pairs.csv", faces)
    assert loaded.dtype == np.int32
    np.testing.assert_array_equal(loaded, pairs)
    # The same images, wherever they stand.
    more = write_folder(tmp_path / "in", {"Aaron": 3})
    moved = load_faces(str(tmp_path / "in"))
    assert len(moved.files) == len(written) + len(more)
    found = load_pairs(tmp_path / "pairs.csv", moved)
    assert (found != pairs).any()
    np.testing.assert_array_equal(moved.images[found], faces.images[pairs])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["line 1", "attacker,victim"]),
        ("victim,attacker\n", ["line 1"]),
        ("attacker,victim\n", ["no pairs"]),
        ("attacker,victim\n{0},{2}\n{0}\n", ["line 3", "1 fields"]),
        ("attacker,victim\n{0},{2},{2}\n", ["line 2", "3 fields"]),
        ("attacker,victim\n{0},A_009/x.jpg\n", ["line 2", "'A_009/x.jpg'", "toys"]),
        ("attacker,victim\n{0},{2}\n\n{0},{1}\n", ["line 4", "both images are of 'A_000'"]),
        ('attacker,victim\n"{0},{2}\n', ["not a table"]),
    ],
)
def test_lists_of_pairs_that_are_refused(tmp_path, text, words):
    faces = faces_of([2, 2])
    path = tmp_path / "pairs.csv"
    path.write_text(text.format(*faces.files))
    refused(lambda: load_pairs(path, faces), str(path), *words)


def test_a_list_that_cannot_be_read_is_refused(tmp_path):
    refused(lambda: load_pairs(tmp_path / "none.csv", faces_of([2, 2])), "none.csv", "cannot be read")
    (tmp_path / "bytes.csv").write_bytes(b"attacker,victim\n\xff\xfe,a\n")
    refused(lambda: load_pairs(tmp_path / "bytes.csv", faces_of([2, 2])), "bytes.csv", "line 2", "is no image of toys")


@pytest.mark.realdata
def test_real_faces_are_split():
    path = Path(os.environ.get("SUITE_DATA", "")) / "lfw64_part.tar"
    if not path.is_file():
        pytest.skip("SUITE_DATA names no folder with lfw64_part.tar")
    faces = load_faces(str(path))
    assert faces.images.shape == (9377, 64, 64, 3) and len(faces.names) == 3990
    assert all(re.fullmatch(r"(.+)/\1_\d{4}\.jpg", file) for file in faces.files)
    split = split_people(faces, seed=0)
    parts_of(split, faces)
    assert faces.counts[split.train].min() >= 5 > faces.counts[np.concatenate(split[1:])].max()
    check_pairs(attack_pairs(faces, split.attack, 3000, seed=0), faces, split.attack)
