"""Files of faces in lists of pairs: byte by byte, one image for a name, and refusals that say what to do."""

import dataclasses
import os

import numpy as np
import pytest

from common.datasets.images import write_png
from common.errors import UserError
from face_mter.data.faces import attack_pairs, load_faces, load_pairs, save_pairs
from face_mter.evaluation.lfw import make_folds, read_pairs
from tests.helpers.face_toys import faces_of

PEOPLE = (b"anna", b"Jos\xe9", b"Jos\xe8", "José".encode())


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for person in PEOPLE:
        for number in (1, 2):
            name = os.fsdecode(b"%b/%b_%04d.png" % (person, person, number))
            write_png(tmp_path / "faces" / name, rng.integers(0, 256, (4, 4, 3), np.uint8))
    return tmp_path / "faces"


def test_pairs_to_attack_come_back_whatever_their_files_are_called(folder):
    faces = load_faces(str(folder))
    assert sorted(map(os.fsencode, faces.names)) == sorted(PEOPLE)
    pairs = attack_pairs(faces, [0, 1, 2, 3], 12, seed=0)
    path = folder.parent / "pairs.csv"
    save_pairs(path, faces, pairs)
    assert b"Jos\xe9/Jos\xe9_0001.png" in path.read_bytes()
    assert load_pairs(path, faces).tolist() == pairs.tolist()


def test_pairs_to_verify_name_people_byte_by_byte(folder):
    faces = load_faces(str(folder))
    path = folder.parent / "pairs.txt"
    path.write_bytes(b"1\t2\nanna\t1\t2\nJos\xe9\t1\t2\nJos\xe9\t1\tJos\xe8\t1\nanna\t2\t" + "José\t1\n".encode())
    found = read_pairs(path, faces)
    listed = [[os.fsencode(faces.files[row]).split(b"/")[0] for row in pair] for pair in found.pairs]
    assert listed == [[b"anna"] * 2, [b"Jos\xe9"] * 2, [b"Jos\xe9", b"Jos\xe8"], [b"anna", "José".encode()]]


def test_a_name_of_two_images_is_refused(tmp_path):
    """The list leaves the ending out."""
    faces = faces_of([2, 2, 2])
    faces = dataclasses.replace(faces, files=(*faces.files[:1], "A_000/A_000_0001.png", *faces.files[2:]))
    path = tmp_path / "pairs.txt"
    path.write_text("1\t1\nA_001\t1\t2\nA_000\t1\tA_002\t1\n")
    with pytest.raises(UserError, match=r"pairs.txt: line 3: toys has two images 'A_000/A_000_0001'"):
        read_pairs(path, faces)
    path.write_text("1\t1\nA_001\t1\t2\nA_001\t1\tA_002\t1\n")
    assert len(read_pairs(path, faces).pairs) == 2


def test_lists_in_utf_16_are_named(tmp_path):
    faces = faces_of([2, 2])
    for read, text in ((load_pairs, "attacker,victim\n"), (read_pairs, "1\t1\nA_000\t1\t2\nA_000\t1\tA_001\t1\n")):
        (tmp_path / "pairs").write_text(text, encoding="utf-16")
        with pytest.raises(UserError, match="pairs: is text in UTF-16"):
            read(tmp_path / "pairs", faces)


def test_too_few_people_for_ten_folds_are_told_what_there_is_to_do():
    """Ten is no option, so nobody can ask for fewer."""
    with pytest.raises(UserError, match=r"3 people for 10 folds; expected 20: bring more people, .*evaluation_share"):
        make_folds(faces_of([2] * 3), np.arange(3), 1, seed=0)
    with pytest.raises(UserError, match=r"expected 9: ask for fewer pairs by n_folded, or bring more images"):
        make_folds(faces_of([2] * 20), np.arange(20), 9, seed=0)
