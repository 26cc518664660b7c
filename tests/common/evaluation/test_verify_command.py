"""`python -m common.evaluation` and its `verify`, as somebody who brings a model uses them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.evaluation import card
from common.evaluation.verdict import judge
from common.training import checkpoints
from tests.helpers.digit_defences import classifier, digits

ROOT = Path(__file__).resolve().parents[3]


def asked(folder, *words):
    """Status, stdout and stderr of a command, run in `folder`."""
    command = [sys.executable, "-m", *map(str, words)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, env=environment)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_a_verdict_and_its_card_from_the_command_line(tmp_path):
    model = classifier()
    checkpoints.save_model(model, tmp_path / "digits.keras")
    x, y, x_test, y_test = digits()
    arrays = {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test}
    whole = {
        name: np.rint(255 * value).astype(np.uint8) if value.ndim == 4 else value for name, value in arrays.items()
    }
    np.savez(tmp_path / "digits.npz", **whole)
    options = ["--model", "digits.keras", "--dataset", "digits.npz", "--n-test", 24, "--eps", "25/255"]
    status, out, err = asked(tmp_path, "common.evaluation", *options, "--n-planted", 0)
    assert status == 0, err
    assert "first bound: at most" in out and "are answered rightly within L-inf 25/255" in out
    folder = tmp_path / "runs/common/evaluation/digits"
    results = json.loads((folder / "results.json").read_text())
    assert results["metrics"]["robust_accuracy"] < results["metrics"]["clean_accuracy"]
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
    status, out, err = asked(tmp_path, "common.evaluation", *options, "--n-planted", 0)
    assert status == 0 and "to check it anew" in out
    status, out, err = asked(tmp_path, "common.evaluation.verify", "digits.npz", "--model", "digits.keras")
    assert status == 2 and out == "" and err.startswith("verify: digits.npz: ") and err.count("\n") == 1


@pytest.mark.slow
def test_an_interrupted_autoattack_goes_on(tmp_path, monkeypatch):
    model = classifier()
    _, _, x, y = digits()
    options = {"eps": 0.1, "planted": 0, "batch_size": 64, "state": tmp_path / "state.npz"}
    whole = judge(model, x[:16], y[:16], **{**options, "state": None})
    first = judge(model, x[:16], y[:16], **options)
    again = judge(model, x[:16], y[:16], **options)
    assert whole.robust == first.robust == again.robust
    assert np.array_equal(first.adversarial, again.adversarial)
    assert card.digest(model) == card.digest(classifier())
