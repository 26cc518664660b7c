"""Every entry script there is: quick help, refusals in one line, and a command that repeats its results."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]
ENTRIES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*/*.py"), *ROOT.glob("*/*/__main__.py"))
    if "\n@script(" in path.read_text("utf-8")
)
TINY = ["--n-train", "60", "--n-test", "20", "--epochs", "2", "--batch-size", "20", "--seed", "3"]


def run(script, *options, modules=False):
    """Status, stdout, stderr and processor seconds of a script's command line, from the repository root."""
    before = sum(os.times()[2:4])
    python = [sys.executable, *(["-X", "importtime"] if modules else [])]
    words = [script]
    if script.endswith("/__main__.py"):
        words = ["-m", script.removesuffix("/__main__.py").replace("/", ".")]
    done = subprocess.run([*python, *words, *options], cwd=ROOT, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout, done.stderr, sum(os.times()[2:4]) - before


# All scripts one after another in one process: starting Python and reading the command line's library takes longer than
# any of them.
ASKED = """
import contextlib, io, json, os, runpy, sys

def told(script, *argv):
    # As `python FILE` does, and `python -m PACKAGE`.
    place = "" if script.endswith("__main__.py") else os.path.dirname(os.path.abspath(script))
    sys.argv, sys.path[0] = [script, *argv], place
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            runpy.run_path(script, run_name="__main__")
            status = None
        except SystemExit as end:
            status = end.code
    frameworks = sorted({"tensorflow", "keras", "jax", "torch"} & set(sys.modules))
    return {"status": status, "out": out.getvalue(), "err": err.getvalue(), "frameworks": frameworks}

folder, *scripts = sys.argv[1:]
found = {}
for script in scripts:
    out = os.path.join(folder, script)
    found[script] = {"help": told(script, "--help"), "unknown": told(script, "--no-such-option", "1", "--out", out)}
    found[script]["made"] = os.path.exists(out)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """What each script says to --help and to an unknown option."""
    command = [sys.executable, "-c", ASKED, tmp_path_factory.mktemp("runs"), *ENTRIES]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("script", ENTRIES)
def test_g5_help_needs_no_framework(asked, script):
    told = asked[script]["help"]
    assert told["status"] == 0 and told["err"] == ""
    assert "--seed" in told["out"] and "the run:" in told["out"]
    assert told["frameworks"] == []


@pytest.mark.parametrize("script", ENTRIES)
def test_g7_an_unknown_option_of_any_script_is_one_line(asked, script):
    told = asked[script]["unknown"]
    assert told["status"] == 2 and told["out"] == "" and told["err"].count("\n") == 1
    assert "--no-such-option: unknown option" in told["err"]
    assert not asked[script]["made"]


@pytest.mark.slow
@pytest.mark.parametrize("script", ENTRIES)
def test_g5_help_takes_a_second_and_no_framework(script):
    """Processor time, and the best of three: other work on the machine must not fail it."""
    status, out, imported, seconds = run(script, "--help", modules=True)
    assert status == 0 and "--seed" in out and "the run:" in out
    assert not re.search(r"\| +(tensorflow|keras|jax|torch)\b", imported)
    for _ in range(2):
        if seconds > 1.0:
            seconds = min(seconds, run(script, "--help")[3])
    assert seconds <= 1.0


def test_g6_ci_runs_every_entry_script_with_its_smallest_settings():
    spec = importlib.util.spec_from_file_location("smallest", ROOT / ".ci/smallest.py")
    smallest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(smallest)
    assert sorted(smallest.SMALLEST) == ENTRIES and smallest.MOST_SECONDS <= 60
    assert "python .ci/smallest.py" in (ROOT / ".ci/run").read_text("utf-8")


def stored(folder):
    results = json.loads((folder / "results.json").read_text("utf-8"))
    table = (folder / "table.csv").read_text("utf-8")
    return results, table, (folder / "metrics.csv").read_text("utf-8")


def repeated(command, out):
    """The words of a stored command for another place."""
    python, script, *words = shlex.split(command)
    assert python == "python" and (ROOT / script).is_file()
    words[words.index("--out") + 1] = str(out)
    return script, words


@pytest.mark.slow
def test_c9_the_command_in_results_json_repeats_them(tmp_path, capsys):
    from adv_lock.train_base import train_base
    from common.training import checkpoints

    with pytest.raises(SystemExit) as end:
        train_base.main([*TINY, "--arch=small_cnn", "--out", str(tmp_path / "a")])
    assert end.value.code == 0
    results, table, curves = stored(tmp_path / "a")
    assert re.fullmatch(r"[0-9a-f]{40}(\+dirty)?|unknown", results["environment"]["commit"])
    assert {"python", "tensorflow", "keras", "device"} < set(results["environment"]) and all(
        results["environment"].values()
    )
    assert re.fullmatch("[0-9a-f]{64}", results["data_sha256"]) and results["seed"] == 3
    script, words = repeated(results["command"], tmp_path / "b")
    assert script == "adv_lock/train_base.py"
    with pytest.raises(SystemExit):
        train_base.main(words)
    again, same_table, same_curves = stored(tmp_path / "b")
    assert again["metrics"] == results["metrics"] and again["data_sha256"] == results["data_sha256"]
    assert same_table == table and same_curves == curves
    first, second = (checkpoints.load_model(tmp_path / name / "model.keras").get_weights() for name in "ab")
    assert all((v == w).all() for v, w in zip(first, second, strict=True))


@pytest.mark.slow
def test_c9_a_deterministic_run_repeats_bit_for_bit(tmp_path):
    """In processes of their own: there is no way back from `--deterministic`."""
    from common.training import checkpoints

    script, words = "adv_lock/train_base.py", [*TINY, "--deterministic", "--out", str(tmp_path / "a")]
    for name in "ab":
        status, _, err, _ = run(script, *words)
        assert status == 0, err[-2000:]
        results = stored(tmp_path / name)[0]
        assert results["config"]["deterministic"] is True
        script, words = repeated(results["command"], tmp_path / "b")
    (first, *files), (second, *again) = stored(tmp_path / "a"), stored(tmp_path / "b")
    assert first["metrics"] == second["metrics"] and files == again
    weights = [checkpoints.load_model(tmp_path / name / "model.keras").get_weights() for name in "ab"]
    assert all(np.array_equal(v, w) for v, w in zip(*weights, strict=True))
