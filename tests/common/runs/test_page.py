"""The page of runs: every run is on it with its state, and nothing from a label or a path gets out of its place."""

import errno
import fcntl
import re
from html.parser import HTMLParser

import pytest

from common.errors import UserError
from common.runs import page, report
from tests.helpers.runs import HOSTILE, every_state, finished


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return every_state(tmp_path_factory.mktemp("runs"))


def states(runs):
    return {f"{run.script} {run.name}": (run.state, run.problem) for run in page.find_runs(runs)}


def test_every_run_has_its_state(runs):
    found = states(runs)
    assert {name for name, (state, _) in found.items() if state == "finished"} == {
        *("train quick", "train hostile", "attack quick", "demo quick", "evaluation judged")
    }
    assert found["lock quick"] == ("unfinished", "")
    damaged = {name: problem for name, (state, problem) in found.items() if state == "damaged"}
    assert set(damaged) == {"train cut_results", "train cut_table", "train no_figure", "train elsewhere"}
    assert "results.json" in damaged["train cut_results"]
    assert "table.csv: line 2" in damaged["train cut_table"]
    assert damaged["train no_figure"] == "bars.png: no such file"


def test_a_run_that_is_being_written_is_running(tmp_path):
    folder = finished(tmp_path)
    (folder / "results.json").unlink()
    assert states(tmp_path) == {"train quick": ("unfinished", "")}
    with open(folder / ".lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert states(tmp_path) == {"train quick": ("running", "")}


def test_an_unfinished_run_says_how_far_it_came_and_how_to_go_on(runs):
    (found,) = (run for run in page.find_runs(runs) if run.state == "unfinished")
    assert found.last_line.endswith("image 5 of 9")
    assert found.remedy.startswith("python adv_lock/lock.py --config ") and found.remedy.endswith(" --resume")


def test_a_verdict_has_its_sentence_and_its_checks(runs):
    (found,) = (run for run in page.find_runs(runs) if run.name == "judged")
    assert found.verdict["sentence"].startswith("At most 20.0 % (16.0 to 24.0) of 500 examples")
    text = page.render([found])
    assert "20.0 % (16.0 to 24.0) of 500" in text
    assert [text.count(f"<td>{word}</td>") for word in ("yes", "no", "does not apply")] == [1, 1, 1]


def test_labels_are_text_and_paths_stay_in_their_run(runs):
    text = page.render(page.find_runs(runs))
    assert HOSTILE not in text and "&lt;script&gt;alert(2)" in text
    elsewhere = next(run for run in page.find_runs(runs) if run.name == "elsewhere")
    assert [figure.name for figure in elsewhere.figures] == ["images"]


def test_nothing_is_fetched_and_only_the_own_script_runs(runs):
    text = page.render(page.find_runs(runs))
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    assert "default-src 'none'" in text and text.count("<script>") == 1


class _Images(HTMLParser):
    def __init__(self):
        super().__init__()
        self.texts, self.unlabelled = [], 0

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.texts.append(dict(attrs)["alt"])


def test_images_say_what_they_show(runs):
    images = _Images()
    images.feed(page.render([run for run in page.find_runs(runs) if run.script == "attack"]))
    assert images.texts == [
        "robust accuracy basic (n = 200; lines: 95 % intervals). clean: fast 90.0 %; attacked: fast 25.0 %",
        "images. rows of images: clean",
    ]


def test_headlines_stand_beside_the_published_figures(runs):
    section = page._section("adv_lock", [run for run in page.find_runs(runs) if run.name == "quick"], page.ROOT)
    line = next(line for line in section.lines if line.run == "train quick")
    assert (float(line.value), line.value.n) == (0.5, 200)
    assert line.published == pytest.approx([0.2278, 0.2067, 0.2877])
    assert any(line.run == "committed: cifar10_cpu" for line in section.lines)


@pytest.mark.parametrize("app", ["adv_lock", "attention_defense", "face_mter", "mobility_humid", "multimedia_recsys"])
def test_every_headline_names_figures_that_committed_results_have(app):
    published = page.read_published(page.ROOT / app)
    for entry in published["headline"]:
        lines = page._section(app, [], page.ROOT).lines
        assert [line for line in lines if line.measure == entry["measure"]], entry["measure"]


def test_a_headline_that_names_no_figure_is_refused(tmp_path):
    (tmp_path / "paper").mkdir()
    entry = "headline: [{measure: a, metrics: {train: b}, published: [basic.c]}]\nbasic: {d: 0.5}\n"
    (tmp_path / "paper/published.yaml").write_text(entry)
    with pytest.raises(UserError, match=r"basic\.c"):
        page._section("paper", [], tmp_path)


def test_a_long_table_is_cut_and_says_so(runs):
    text = page.render([run for run in page.find_runs(runs) if run.script == "attack"])
    assert f"the first {page.MOST_ROWS} of 500" in text


def test_a_seed_s_figures_are_shown_once(tmp_path):
    parent = finished(tmp_path, config={"seeds": [0]})
    finished(tmp_path, name="quick/seed-0")
    results = parent / "results.json"
    results.write_text(results.read_text().replace('"bars.png"', '"seed-0/bars.png"'))
    by_name = {run.name: [figure.name for figure in run.figures] for run in page.find_runs(tmp_path)}
    assert by_name == {"quick": ["images"], "quick/seed-0": ["bars", "images"]}


def test_the_page_is_a_command(runs, capsys):
    assert report.main([str(runs)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"index\.html: 5 finished, 1 unfinished, 4 damaged; \d\.\d MB", said)
    assert (runs / "index.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["missing"], "missing: no such folder"),
        (["empty"], "empty: holds no runs"),
        (["file"], "file: is a file"),
        (["runs", "--out", "empty"], "is a folder"),
        ([], "one of the arguments"),
        (["runs", "--readme"], "not allowed with"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, monkeypatch, capsys, argv, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    finished(tmp_path / "runs")
    assert report.main(argv) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_a_full_disk_is_one_line(runs, monkeypatch, capsys):
    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(page, "write_text", full)
    assert report.main([str(runs)]) == 2
    assert "No space left" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (48.2, "48 s"), (246, "4 min 6 s"), (4560, "1 h 16 min")]
)
def test_durations_are_said_as_people_do(seconds, text):
    assert page.duration(seconds) == text
