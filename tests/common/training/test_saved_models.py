"""Model files outlive moves: one of each kind opens in a process that has imported nothing but the loader."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).resolve().parents[3]
SAVED = ROOT / "tests/helpers/saved"
BARE = """
import sys
import numpy as np
from common.training.checkpoints import load_model
stored = np.load(sys.argv[2])
model = load_model(sys.argv[1])
name = sys.argv[3]
inputs = [stored[key] for key in sorted(stored) if key.startswith(f"{name}/input")]
answer = np.asarray(model(*inputs, training=False))
assert np.allclose(answer, stored[f"{name}/answer"], rtol=1e-4, atol=1e-5), answer
"""


@pytest.mark.parametrize("file", sorted(SAVED.glob("*.keras")), ids=lambda path: path.stem)
def test_a_file_kept_opens_in_a_bare_process(file):
    command = [sys.executable, "-c", BARE, file, SAVED / "answers.npz", file.stem]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_file_of_every_registered_kind_is_kept():
    registered = set()
    packages = [path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"]
    for path in (path for package in packages for path in package.rglob("*.py")):
        text = path.read_text("utf-8")
        package = re.search(r'^_PACKAGE = "(\w+)"', text, re.MULTILINE)
        found = re.findall(r"^@keras\.saving\.register_keras_serializable\((.*)\)\nclass (\w+)", text, re.MULTILINE)
        assert all(argument == "_PACKAGE" for argument, _ in found), path
        registered |= {f"{package[1]}>{name}" for _, name in found}
    kept = set()
    for file in SAVED.glob("*.keras"):
        with zipfile.ZipFile(file) as archive:
            kept |= set(re.findall(r'"registered_name": "(\w+>\w+)"', archive.read("config.json").decode()))
    # A model of a class of its own makes its layers itself, and its config does not name them.
    inside = {f"mobility_humid>{name}" for name in ("TripEncoder", "PlaceEncoder", "WayEncoder", "Likeness")}
    assert len(registered) == 10 and registered == kept | inside


def test_no_file_says_what_is_imported(tmp_path):
    @keras.saving.register_keras_serializable("tabnanny")
    class Layer(keras.layers.Layer):
        def call(self, x):
            return x

    path = tmp_path / "foreign.keras"
    images = keras.Input((2,))
    keras.Model(images, Layer()(images)).save(path)
    code = "import sys\nfrom common.training.checkpoints import load_model\n"
    code += "try:\n    load_model(sys.argv[1])\nexcept ValueError as error:\n    print(error)\n"
    code += "sys.exit('tabnanny' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "not a model that can be loaded safely" in done.stdout, done.stderr[-2000:]
