"""The sixth paper of CONTRIBUTING.md: one folder, nothing in common, and it runs as it is printed there."""

import importlib
import json
import re
import sys
from pathlib import Path

import keras
import pytest

from common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def sixth(tmp_path, monkeypatch):
    code = re.search(
        r"^```python\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )[1]
    folder = tmp_path / "feature_fog"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "attack.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("feature_fog.attack").attack
    for name in ("feature_fog.attack", "feature_fog"):
        sys.modules.pop(name)


@pytest.mark.slow
def test_the_walk_through_runs(sixth, tmp_path):
    layers = [keras.Input((32, 32, 3)), keras.layers.AveragePooling2D(8), keras.layers.Flatten(), keras.layers.Dense(8)]
    keras.Sequential([*layers, keras.layers.ReLU(), keras.layers.Dense(10)]).save("some.keras")
    distances = {}
    for eps in ("1/255", "4/255"):
        results = sixth(sixth.options(model="some.keras", eps=eps, steps=3, n_test=20, name=eps.replace("/", "of")))
        distances[eps] = results["metrics"]["feature_distance"]
    assert 0 < distances["1/255"] < distances["4/255"]
    stored = json.loads((tmp_path / "runs/feature_fog/attack/4of255/results.json").read_text())
    assert stored["metrics"]["feature_distance"] == distances["4/255"]


def test_the_script_of_the_walk_through_is_one(sixth, capsys):
    with pytest.raises(SystemExit) as end:
        sixth.main(["--help"])
    assert end.value.code == 0 and "--eps" in capsys.readouterr().out
    with pytest.raises(UserError, match="no such file or folder"):
        sixth(sixth.options(model="none.keras", n_test=20, name="missing"))
