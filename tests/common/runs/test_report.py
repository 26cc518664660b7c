"""Intervals, the console table, and README tables that come from results alone."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from common.errors import UserError
from common.runs import report
from common.runs.folder import execute
from common.runs.record import COLUMNS, Identity, read_table
from common.runs.tables import Value, by_seed, console, interval, lookup, over_seeds, percent, wilson

ROWS = [
    {
        "seed": 0,
        "attack": "pgd",
        "eps": 8 / 255,
        "metric": "accuracy",
        "value": 0.2,
        "n": 50.0,
        "low": None,
        "high": None,
    },
    {
        "seed": 1,
        "attack": "pgd",
        "eps": 8 / 255,
        "metric": "accuracy",
        "value": 0.3,
        "n": 50.0,
        "low": None,
        "high": None,
    },
    {"seed": 0, "attack": "none", "eps": None, "metric": "accuracy", "value": 0.9, "n": 50.0, "low": 0.8, "high": 1.0},
]


# Wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe 1998, table I (score method without continuity correction).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_newcombes_score_interval(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(successes / n, n) == pytest.approx((low, high), abs=5e-5)


def test_an_integer_counts_and_a_float_is_a_rate():
    assert wilson(1, 10) == wilson(0.1, 10) != wilson(1.0, 10) == wilson(10, 10)
    assert wilson(0, 0) == (0.0, 1.0)
    for bad in ((11, 10), (1.5, 10), (-0.1, 10), (math.nan, 10), (1, 0), (0.5, -1)):
        with pytest.raises(ValueError, match="is no rate"):
            wilson(*bad)


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_wilson_holds_the_rate_and_narrows(n, rate):
    low, high = wilson(rate, n)
    assert 0 <= low <= rate + 1e-12 and rate - 1e-12 <= high <= 1
    narrow = wilson(rate, 4 * n)
    assert narrow[1] - narrow[0] < high - low
    assert wilson(rate, n, confidence=0.5)[1] - wilson(rate, n, confidence=0.5)[0] < high - low


# The console


def results(**more):
    base = {"app": "adv_lock", "script": "lock", "dataset": "scenes", "seed": 0, "metrics": {}, "artifacts": {}}
    return base | more


def test_rates_are_per_cent_with_their_interval_and_other_numbers_are_not():
    metrics = {"success": 0.25, "success_n": 100, "loss": 0.5, "examples_n": 7, "count": 3}
    lines = console(Path("runs/x"), results(metrics=metrics, artifacts={"locked": "locked.npz"}), ROWS).splitlines()
    assert lines[1].split() == ["success", "25.0", "%", "[17.5,", "34.3]", "100"]
    assert [line.split() for line in lines[2:5]] == [["loss", "0.5"], ["examples_n", "7"], ["count", "3"]]
    assert any(line.split() == ["0", "none", "accuracy", "90.0", "%", "[80.0,", "100.0]", "50"] for line in lines)
    assert lines[-2:] == ["results  runs/x/results.json", "locked  runs/x/locked.npz"]


def test_spread_over_seeds_stands_in_place_of_an_interval():
    text = console(Path("x"), results(metrics={"rate": 0.4, "rate_std": 0.05, "rate_n": 100}, seed=[0, 1]), [])
    assert text.splitlines()[1].split() == ["rate", "40.0", "±", "5.0", "%", "100"]


def test_a_long_table_is_left_to_its_file():
    assert f"{len(ROWS) * 20} measurements in x/table.csv" in console(Path("x"), results(), ROWS * 20)


# Templates


def test_percent_and_interval():
    assert percent(0.2478) == "24.8" and percent(Value(0.25, std=0.0123)) == "25.0 ± 1.2" and percent("-") == "-"
    assert percent(0.24789, 2) == "24.79"
    assert interval(Value(0.25, n=100)) == "[17.5, 34.3]" and interval(ROWS[2]) == "[80.0, 100.0]"
    assert interval("-") == interval(0.5) == interval(Value(0.5, std=0.1, n=100)) == "-"


def test_value_picks_one_row_or_the_mean_over_seeds():
    value = lookup(ROWS)
    assert value(attack="none", metric="accuracy") == 0.9 and value(attack="none").low == 0.8
    mean = value(attack="pgd", eps=8 / 255)
    assert mean == pytest.approx(0.25) and mean.std == pytest.approx(math.sqrt(0.005))
    assert value(attack="pgd", seed=1) == 0.3 and value(attack="pgd", eps=0.0314) == "-"
    assert value(attack="cw") == "-" and value(attack="cw", default="n/a") == "n/a"
    with pytest.raises(UserError, match="fits 3 rows"):
        value(metric="accuracy")
    with pytest.raises(UserError, match="no column 'atack'"):
        value(atack="pgd")


TEMPLATE = """\
| attack | paper | ours |
|---|---|---|
{% for attack in ["none", "pgd"] %}
| {{ attack }} | {{ published.accuracy[attack] | percent }} | {{ value(attack=attack) | percent }} |
{% endfor %}
"""
MARKED = "# App\n\n<!-- begin: adv_lock/results/demo -->\n{}<!-- end -->\n\nAfter.\n"
RENDERED = "| attack | paper | ours |\n|---|---|---|\n| none | 91.0 | 50.0 |\n| pgd | 10.0 | - |\n"


def test_values_by_seed_and_what_they_say_together():
    """Student's t over the seeds; scipy's own paired test is the oracle."""
    seeds = by_seed(ROWS[::-1])
    assert seeds(attack="pgd") == [0.2, 0.3] and seeds(attack="none") == [0.9] and seeds(attack="cw") == []
    values = [0.31, 0.12, 0.25, -0.02, 0.4]
    found = over_seeds(values)
    oracle = ttest_1samp(values, 0).confidence_interval()
    assert (found, found.low, found.high) == pytest.approx((np.mean(values), *oracle)) and found.n == 5
    assert interval(over_seeds([0.9])) == "-" and over_seeds([]) == "-"


def test_the_console_shows_the_interval_that_a_metric_brings():
    metrics = {"rate": 0.5, "rate_n": 40, "rate_low": 0.2, "rate_high": 0.8, "other": 0.5, "other_n": 40}
    text = console(Path("x"), results(metrics=metrics), [])
    assert re.search(r"rate +50.0 % +\[20.0, 80.0\] +40", text) and "rate_low" not in text
    assert re.search(r"other +50.0 % +\[35.2, 64.8\] +40", text)


@pytest.fixture
def root(tmp_path):
    """A checkout with one app, one finished run that is collected, a template, and a stale README."""

    def body(run):
        run.row(attack="none", metric="accuracy", value=0.5, n=10)
        run.metrics(accuracy=0.5, accuracy_n=10)

    run = tmp_path / "runs" / "demo"
    execute(run, Identity("adv_lock", "lock", "python adv_lock/lock.py"), {"seed": 0}, body)
    (tmp_path / "adv_lock").mkdir()
    (tmp_path / "adv_lock/published.yaml").write_text("accuracy: {none: 0.91, pgd: 0.1}\n")
    (tmp_path / "adv_lock/README.md").write_text(MARKED.format("old\n"))
    (tmp_path / "README.md").write_text("no table here\n")
    assert report.main(["--collect", str(run), "--app", "adv_lock", "--recipe", "demo"], tmp_path) == 0
    (tmp_path / "adv_lock/results/demo.md.j2").write_text(TEMPLATE)
    return tmp_path


def test_collect_copies_what_a_table_needs(root):
    folder = root / "adv_lock/results/demo"
    assert sorted(path.name for path in folder.iterdir()) == ["results.json", "table.csv"]
    for name in ("results.json", "table.csv"):
        assert (folder / name).read_bytes() == (root / "runs/demo" / name).read_bytes()


def test_readmes_are_rendered_and_check_tells_the_stale_one(root, capsys):
    readme = root / "adv_lock/README.md"
    assert report.main(["--check"], root) == 1
    assert str(readme) in capsys.readouterr().out and "old" in readme.read_text()
    assert report.main(["--readme"], root) == 0
    assert readme.read_text() == MARKED.format(RENDERED)
    inode = readme.stat().st_ino
    assert report.main(["--check"], root) == report.main(["--readme"], root) == 0
    assert readme.stat().st_ino == inode, "written although nothing changed"


def test_a_template_may_include_another_beside_it(root):
    results = root / "adv_lock/results"
    (results / "_shared.md.j2").write_text(TEMPLATE)
    (results / "demo.md.j2").write_text('{% include "_shared.md.j2" %}')
    assert report.main(["--readme"], root) == 0
    assert (root / "adv_lock/README.md").read_text() == MARKED.format(RENDERED)
    (results / "demo.md.j2").write_text('{% include "../published.yaml" %}')
    assert report.main(["--readme"], root) == 2


def test_a_marker_may_name_a_template_that_several_tables_share(root, capsys):
    results, readme = root / "adv_lock/results", root / "adv_lock/README.md"
    (results / "demo.md.j2").rename(results / "_shared.md.j2")
    marked = MARKED.replace("results/demo -->", "results/demo using _shared -->")
    readme.write_text(marked.format("old\n"))
    assert report.main(["--readme"], root) == 0 and readme.read_text() == marked.format(RENDERED)
    assert report.main(["--check"], root) == 0
    readme.write_text(marked.replace("_shared", "_absent").format("old\n"))
    assert "_absent.md.j2: no such template" in refused(["--readme"], root, capsys)


def test_key_columns_of_a_script_are_columns_like_any_other(tmp_path):
    def body(run):
        for compared in ("noise", "base"):
            run.row(attack="pgd", compared=compared, metric="gain", value=0.5)
        with pytest.raises(ValueError, match="no column 'other'"):
            run.row(other="x", metric="gain", value=0.5)

    identity = Identity("app", "script", "python app/script.py", ("compared",))
    execute(tmp_path / "x", identity, {"seed": 0}, body)
    table = read_table(tmp_path / "x")
    assert list(table[0]) == [*COLUMNS[:6], "compared", *COLUMNS[6:]]
    value = lookup(table)
    assert value(compared="noise") == 0.5 and value(compared="clean") == "-"
    with pytest.raises(UserError, match="no column 'other'"):
        value(other="x")
    assert "compared" in console(tmp_path, results(), table)


def refused(argv, root, capsys):
    before = (root / "adv_lock/README.md").read_text()
    assert report.main(argv, root) == 2
    err = capsys.readouterr().err
    assert err.startswith("report: ") and err.count("\n") == 1
    assert (root / "adv_lock/README.md").read_text() == before
    return err


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("{{ missing }}", "'missing' is undefined"),
        ("{{ published.absent | percent }}", "absent"),
        ("fine\n{{ value( }}", "line 2"),
        ("{{ value(atack=1) }}", "no column 'atack'"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ value.__globals__ }}", "unsafe"),
    ],
)
def test_a_template_that_does_not_work_is_named(root, capsys, template, named):
    (root / "adv_lock/results/demo.md.j2").write_text(template)
    err = refused(["--readme"], root, capsys)
    assert "demo.md.j2" in err and named in err


@pytest.mark.parametrize(
    "name", ["adv_lock/results/demo.md.j2", "adv_lock/results/demo/table.csv", "adv_lock/results/demo/results.json"]
)
def test_a_missing_file_is_named(root, capsys, name):
    (root / name).unlink()
    assert name in refused(["--readme"], root, capsys)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("<!-- begin: adv_lock/results/demo -->\nno end\n", "no <!-- end -->"),
        (MARKED.format("").replace("<!-- end -->", "<!-- begin: adv_lock/results/demo -->"), "no <!-- end -->"),
        (MARKED.format("").replace("adv_lock/results/demo", "../etc/passwd"), "expected a recipe"),
        (MARKED.format("").replace("adv_lock/results/demo", "adv_lock/results/../demo"), "expected a recipe"),
        (MARKED.format("").replace("demo", "absent"), "absent.md.j2"),
    ],
)
def test_bad_markers_are_named(root, capsys, text, named):
    (root / "adv_lock/README.md").write_text(text)
    assert named in refused(["--readme"], root, capsys)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--collect", "absent", "--app", "adv_lock", "--recipe", "x"], "absent/results.json: no such file"),
        (["--collect", "runs/demo", "--app", "face_mter", "--recipe", "x"], "is a run of adv_lock"),
        (["--collect", "runs/demo", "--app", "adv_lock", "--recipe", "../x"], "expected an app's folder"),
        (["--collect", "runs/demo", "--app", "adv_lock"], "needs --app and --recipe"),
        (["--colect", "runs/demo"], "unrecognized arguments: --colect"),
        ([], "required"),
    ],
)
def test_a_bad_command_line_is_one_line(root, capsys, monkeypatch, argv, named):
    monkeypatch.chdir(root)
    assert named in refused(argv, root, capsys)


def test_an_unfinished_run_is_not_collected(root, capsys):
    (root / "runs/demo/results.json").unlink()
    assert "not finished" in refused(
        ["--collect", str(root / "runs/demo"), "--app", "adv_lock", "--recipe", "x"], root, capsys
    )
    assert not (root / "adv_lock/results/x").exists()


def test_results_survive_collecting_as_json(root):
    stored = json.loads((root / "adv_lock/results/demo/results.json").read_text())
    assert stored["metrics"] == {"accuracy": 0.5, "accuracy_n": 10}
