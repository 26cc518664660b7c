"""`python -m common.evaluation` and its `verify`, as somebody who brings a model uses them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.evaluation import card
from common.evaluation.verdict import judge
from common.training import checkpoints
from tests.helpers.cluster import clusters
from tests.helpers.digit_defences import classifier, digits

ROOT = Path(__file__).resolve().parents[3]


OPTIONS = ["--model", "digits.keras", "--dataset", "digits.npz", "--n-test", 24, "--eps", "25/255"]


def begun(folder, *words, **environment):
    """A command in `folder`."""
    command = [sys.executable, "-m", *map(str, words)]
    environment |= {"PYTHONPATH": str(ROOT), "PATH": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes)


def asked(folder, *words):
    """Status, stdout and stderr of a command, run in `folder`."""
    process = begun(folder, *words)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


@pytest.fixture
def brought(tmp_path):
    """A folder with a model and its images."""
    checkpoints.save_model(classifier(), tmp_path / "digits.keras")
    x, y, x_test, y_test = digits()
    arrays = {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test}
    whole = {
        name: np.rint(255 * value).astype(np.uint8) if value.ndim == 4 else value for name, value in arrays.items()
    }
    np.savez(tmp_path / "digits.npz", **whole)
    return tmp_path


@pytest.mark.slow
def test_a_verdict_and_its_card_from_the_command_line(brought):
    tmp_path, options = brought, [*OPTIONS]
    options += ["--n-planted", 0, "--n-sample", 4]
    status, out, err = asked(tmp_path, "common.evaluation", *options)
    assert status == 0, err
    assert re.search(
        r"of all 24 images AutoAttack in full would leave [\d.]+ % \([\d.]+ to [\d.]+\), by a sample of 4", out
    )
    assert "first bound: at most" in out and "are answered rightly within L-inf 25/255" in out
    folder = tmp_path / "runs/common/evaluation/digits"
    results = json.loads((folder / "results.json").read_text())
    found = results["metrics"]
    assert found["whole_set_accuracy"] <= found["robust_accuracy"] < found["clean_accuracy"]
    # Its own last line is the command that checks it.
    words = out.strip().splitlines()[-1].partition("python -m ")[2].split()
    status, out, err = asked(tmp_path, *words)
    assert status == 0 and out.startswith("holds: at most") and err == ""
    told = json.loads((folder / "card.json").read_text())
    told["robust"]["value"] = 1.0
    (folder / "card.json").write_text(json.dumps(told))
    status, out, err = asked(tmp_path, *words)
    assert status == 1 and out.count("does not hold: ") == len(out.splitlines()) >= 2 and err == ""
    # A finished run prints its verdict again.
    status, out, err = asked(tmp_path, "common.evaluation", *options)
    assert status == 0 and "to check it anew" in out
    status, out, err = asked(tmp_path, "common.evaluation.verify", "digits.npz", "--model", "digits.keras")
    assert status == 2 and out == "" and err.startswith("verify: digits.npz: ") and err.count("\n") == 1


@pytest.mark.slow
def test_two_workers_find_what_one_finds(brought):
    """Each attacks a half; the chief alone writes."""
    words = ["common.evaluation", *OPTIONS, "--n-planted", 4]
    assert asked(brought, *words, "--name", "one")[0] == 0
    workers = [
        begun(brought, *words, "--name", "two", "--strategy", "multiworker", TF_CONFIG=config) for config in clusters(2)
    ]
    try:
        for worker in workers:
            _, err = worker.communicate(timeout=600)
            assert worker.returncode == 0, err[-3000:]
    finally:
        for worker in workers:
            worker.kill()
    one, two = (brought / "runs/common/evaluation" / name for name in ("one", "two"))
    cards = [json.loads((folder / "card.json").read_text()) for folder in (one, two)]
    for name in ("clean", "robust", "curve", "mechanism", "model"):
        assert cards[0][name] == cards[1][name]
    found = [{check["name"]: (check["passed"], check["value"]) for check in told["checks"]} for told in cards]
    assert found[0] == found[1] and found[0]["B16"][1] is not None
    same = [{step["name"]: (step["new"], step["accuracy"]) for step in told["tried"]} for told in cards]
    assert same[0] == same[1]
    with np.load(one / "examples.npz") as first, np.load(two / "examples.npz") as second:
        for name in first.files:
            np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.slow
def test_an_interrupted_autoattack_goes_on(tmp_path, monkeypatch):
    model = classifier()
    _, _, x, y = digits()
    options = {"eps": 0.1, "planted": 0, "batch_size": 64, "state": tmp_path / "state.npz"}
    first = judge(model, x[:16], y[:16], **options)
    again = judge(model, x[:16], y[:16], **options)
    assert first.robust == again.robust
    assert np.array_equal(first.adversarial, again.adversarial)
    assert card.digest(model) == card.digest(classifier())
