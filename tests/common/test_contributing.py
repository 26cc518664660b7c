"""The sixth paper of CONTRIBUTING.md: one folder, nothing in common, and it runs as it is printed there."""

import importlib
import json
import re
import sys
from pathlib import Path

import keras
import pytest

from common.errors import UserError
from common.runs.record import read_table

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def sixth(tmp_path, monkeypatch):
    script, attack = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    folder = tmp_path / "feature_fog"
    (folder / "attacks").mkdir(parents=True)
    for package in (folder, folder / "attacks"):
        (package / "__init__.py").write_text("")
    (folder / "attack.py").write_text(script)
    (folder / "attacks/fog.py").write_text(attack)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("feature_fog.attack").attack
    for name in [name for name in sys.modules if name.partition(".")[0] == "feature_fog"]:
        sys.modules.pop(name)


@pytest.mark.slow
def test_the_walk_through_runs(sixth, tmp_path):
    layers = [keras.Input((32, 32, 3)), keras.layers.AveragePooling2D(8), keras.layers.Flatten(), keras.layers.Dense(8)]
    keras.Sequential([*layers, keras.layers.ReLU(), keras.layers.Dense(10)]).save("some.keras")
    distances = {}
    for eps in ("1/255", "4/255"):
        options = {"eps": eps, "steps": 3, "n_test": 20, "enough": 0.05, "name": eps.replace("/", "of")}
        results = sixth(sixth.options(model="some.keras", **options))
        distances[eps] = results["metrics"]["feature_distance"]
    assert 0 < distances["1/255"] < distances["4/255"]
    stored = json.loads((tmp_path / "runs/feature_fog/attack/4of255/results.json").read_text())
    assert stored["metrics"]["feature_distance"] == distances["4/255"]
    # The table of an evaluation: rates with n and interval, the control beside the attack, and what it cost.
    table = {(row["attack"], row["metric"]): row for row in read_table(tmp_path / "runs/feature_fog/attack/4of255")}
    assert set(table) == {(a, m) for a in ("fog", "noise") for m in ("accuracy", "success", "gradients")}
    fog, noise = (table[name, "accuracy"] for name in ("fog", "noise"))
    assert fog["n"] == 20 and fog["low"] <= fog["value"] <= fog["high"] and fog["value"] < noise["value"]
    # Two starts of three steps at most; who has had enough takes fewer.
    assert table["noise", "gradients"]["value"] == 0 and 0 < table["fog", "gradients"]["value"] < 6


def test_the_script_of_the_walk_through_is_one(sixth, capsys):
    with pytest.raises(SystemExit) as end:
        sixth.main(["--help"])
    assert end.value.code == 0 and "--eps" in capsys.readouterr().out
    with pytest.raises(UserError, match="no such file or folder"):
        sixth(sixth.options(model="none.keras", n_test=20, name="missing"))
