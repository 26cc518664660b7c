"""Names of files that are no UTF-8, as in an old Latin-1 archive: written, read back and shown, never merged."""

import json
import os

import numpy as np
import pytest
import yaml

from common import files, progress
from common.errors import UserError
from common.evaluation import plots
from common.runs import folder, record
from common.runs.record import Identity

NAMES = [os.fsdecode(name) for name in (b"Jos\xe9", b"Jos\xe8", "José".encode(), b"plain")]


def test_json_gives_back_every_name_and_stays_utf_8(tmp_path):
    files.write_text(tmp_path / "a.json", files.json_text({"names": NAMES, "number": 1.5}, indent=1))
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"names": NAMES, "number": 1.5}
    assert '"José"' in text
    with pytest.raises(ValueError):
        files.json_text(float("nan"), indent=1)


def test_text_has_the_bytes_of_the_names(tmp_path):
    files.write_text(tmp_path / "a.txt", "\n".join(NAMES))
    assert (tmp_path / "a.txt").read_bytes() == b"\n".join(map(os.fsencode, NAMES))
    assert files.read_lines(tmp_path / "a.txt") == NAMES


def test_what_is_shown_can_be_printed_and_tells_names_apart():
    shown = [files.printable(name) for name in NAMES]
    assert len(set(shown)) == 4
    assert shown[2:] == ["José", "plain"]
    for text in shown:
        text.encode("utf-8")


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_lines_end_as_they_will(tmp_path, ending):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + ending.join(["a", "", "b c", ""]).encode())
    assert files.read_lines(tmp_path / "a.txt") == ["a", "", "b c"]


def test_what_is_no_text_is_named(tmp_path):
    for content, words in ((b"a\0b", "NUL"), ("ab".encode("utf-16"), "UTF-16")):
        (tmp_path / "a.txt").write_bytes(content)
        with pytest.raises(UserError, match=f"a.txt: .*{words}"):
            files.read_lines(tmp_path / "a.txt")


def test_a_run_on_such_a_folder_is_recorded_and_found_again(tmp_path, capsys):
    config = {"dataset": str(tmp_path / NAMES[0]), "seed": 0, "seeds": None}

    def body(run):
        run.data(NAMES[0], "0" * 64)
        run.log(f"reading {NAMES[0]}")
        run.row(model=NAMES[0], metric="items", value=1)
        run.row(model=NAMES[1], metric="items", value=2)
        run.metrics(done=1.0)

    who = Identity("adv_lock", "lock", f"python adv_lock/lock.py --dataset {NAMES[0]}")
    results = folder.execute(tmp_path / NAMES[1], who, config, body)
    assert record.read_results(tmp_path / NAMES[1]) == results
    assert yaml.safe_load((tmp_path / NAMES[1] / "config.yaml").read_text(encoding="utf-8")) == config
    assert folder.execute(tmp_path / NAMES[1], who, config, None) == results
    assert len({row["model"] for row in record.read_table(tmp_path / NAMES[1])}) == 2
    assert files.printable(NAMES[0]) in (tmp_path / NAMES[1] / "log.txt").read_text(encoding="utf-8")
    assert files.printable(NAMES[0]) in capsys.readouterr().out


def test_progress_and_figures_show_such_names(tmp_path, capsys):
    clock = iter(range(0, 10_000, 40))
    with progress.Progress(3, f"listing {NAMES[0]}", clock=lambda: next(clock)) as shown:
        shown.add()
    assert files.printable(NAMES[0]) in capsys.readouterr().out
    image = np.zeros((4, 4, 3), np.uint8)
    plots.image_rows({NAMES[0]: [image]}, tmp_path / "a.png", title=NAMES[0], columns=[NAMES[1]])
    plots.grouped_bars(NAMES, {"share": [0.1, 0.2, 0.3, 0.4]}, tmp_path / "b.png", title="shares")
    assert (tmp_path / "a.png").stat().st_size and (tmp_path / "b.png").stat().st_size


def test_png_names_are_all_different():
    names = ["x/a.jpg", "x/a.png", "y/a.jpg", "x/a_png.jpeg", "x/b.JPG"]
    found = files.png_names(names)
    assert found[2] == "y/a.png" and found[4] == "x/b.png"
    assert len(set(found)) == 5
    assert all(name.endswith(".png") for name in found)
