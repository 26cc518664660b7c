"""What comes from outside is data: nothing is unpickled, evaluated or run, and no size is taken on trust."""

import importlib.util
import io
import json
import os
import re
import socket
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from common.runs.options import CommonOptions
from common.runs.record import Run
from common.runs.script import script

ROOT = Path(__file__).resolve().parents[2]
# Assembled here, so that this list is not found by the search it feeds.
FORBIDDEN = [
    r"\bpickle\b", r"\bdill\b", r"\bjoblib\b", r"(?<![.\w])eval\(", r"(?<![.\w])exec\(",
    r"yaml\.(unsafe_|full_)?load\(", r"safe_mode\s*=\s*False", r"allow_pickle\s*=\s*True", r"shell\s*=\s*True",
    r"\bos\.(system|popen)\(", r"enable_unsafe_deserialization",
]  # fmt: skip


def tracked():
    """The files of the project as git knows them; without git, those that are not its products."""
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z", "-co", "--exclude-standard"], capture_output=True)
    if listed.returncode == 0 and (ROOT / ".git").exists():
        return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
    products = {".venv", "build", "runs", "data"}
    return [p for p in ROOT.rglob("*") if p.is_file() and p.relative_to(ROOT).parts[0] not in products]


def test_e1_nothing_unpickles_evaluates_or_calls_a_shell():
    sources = [path for path in tracked() if path.suffix not in (".png", ".npz", ".keras", ".md", ".lock")]
    assert len(sources) > 60
    found = [
        f"{path.relative_to(ROOT)}:{number}: {pattern}"
        for path in sources
        if path != Path(__file__)
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        for pattern in FORBIDDEN
        if re.search(pattern, line)
    ]
    assert not found


# Hostile files


class Payload:
    """What makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def dense(units=3, **options):
    import keras

    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units, name="dense", **options)])


def with_link(path, secret):
    """The model file with its kernel replaced by a link to a data set of the file `secret`."""
    import h5py

    dense().save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    stored = io.BytesIO(parts["model.weights.h5"])
    with h5py.File(stored, "r+") as weights:
        place = next(
            name for name in ("layers/dense/vars", "_layer_checkpoint_dependencies/dense/vars") if name in weights
        )
        del weights[place]["0"]
        weights[place]["0"] = h5py.ExternalLink(str(secret), "kernel")
    parts["model.weights.h5"] = stored.getvalue()
    pack(path, parts)


def pack(path, parts):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def tar_with(path, member):
    from PIL import Image

    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "PNG")
    with tarfile.open(path, "w") as archive:
        for name in ("cat/a.png", "dog/a.png"):
            info = tarfile.TarInfo(name)
            info.size = len(image.getvalue())
            archive.addfile(info, io.BytesIO(image.getvalue()))
        member.size = len(image.getvalue()) if member.isreg() else 0
        archive.addfile(member, io.BytesIO(image.getvalue()))


def hard_link():
    info = tarfile.TarInfo("cat/b.png")
    info.type, info.linkname = tarfile.LNKTYPE, "../outside.png"
    return info


def object_array(path, folder):
    arrays = {f"x_{part}": np.zeros((4, 8, 8, 3), np.uint8) for part in ("train", "test")}
    arrays |= {"y_train": np.array([Payload(folder)] * 4, object), "y_test": np.zeros(4, np.int32)}
    np.savez(path, **arrays)


def lambda_layer(path, folder):
    import keras

    place = str(folder)
    layer = keras.layers.Lambda(lambda x, place=place: __import__("os").mkdir(place) or x, output_shape=(4,))
    keras.Sequential([keras.Input((4,)), layer]).save(path)
    Path(place).rmdir() if Path(place).exists() else None


def linked_h5(path, folder):
    import h5py

    with h5py.File(path, "w") as file:
        file["model_weights"] = h5py.ExternalLink(str(path.with_name("secret.h5")), "kernel")


HOSTILE = {
    "an object array": ("--dataset", "a.npz", object_array),
    "a python tag": (
        "--config",
        "a.yaml",
        lambda path, folder: path.write_text(f"name: !!python/object/apply:os.mkdir ['{folder}']\n"),
    ),
    "a Lambda layer": ("--model", "a.keras", lambda_layer),
    "an external link": ("--model", "a.h5", linked_h5),
    "an external link renamed": ("--model", "a.keras", linked_h5),
    "an external link inside": ("--model", "a.keras", lambda path, _: with_link(path, path.with_name("secret.h5"))),
    "a way out of a tar": ("--dataset", "a.tar", lambda path, _: tar_with(path, tarfile.TarInfo("../outside.png"))),
    "a hard link in a tar": ("--dataset", "a.tar", lambda path, _: tar_with(path, hard_link())),
}


@dataclass(kw_only=True)
class Options(CommonOptions):
    model: Path | None = None
    """Model."""


@script(app="tests", name="victim")
def victim(options: Options, run: Run) -> None:
    from common import datasets
    from common.training import checkpoints

    datasets.load(options.dataset, n_train=4, n_test=4)
    if options.model is not None:
        checkpoints.load_model(options.model)


@pytest.mark.parametrize("case", HOSTILE)
def test_e2_hostile_files_are_refused_and_nothing_is_written_or_run(tmp_path, monkeypatch, capsys, case):
    import h5py

    place = tmp_path / "inner"
    place.mkdir()
    monkeypatch.chdir(place)
    with h5py.File(place / "secret.h5", "w") as secret:
        secret["kernel"] = np.ones((4, 3), np.float32)
    option, name, write = HOSTILE[case]
    write(place / name, tmp_path / "pwned")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        victim.main([option, name, "--out", "run"])
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1 and name in err, err
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before and not (tmp_path / "pwned").exists()


def npy_header(shape):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return header.getvalue()


def bombs(folder):
    """Files of a few kilobytes that declare ten GiB: in an array's header, in a model's configuration, in its weights,
    and (three GiB, for lack of bits) in the directory of an archive."""
    import h5py

    many = 52_000
    pack(folder / "array.npz", {"x_train.npy": npy_header((many, many)) + bytes(100)})
    pack(folder / "directory.npz", {"x_train.npy": npy_header((768, 2**20)) + bytes(100)})
    data = bytearray((folder / "directory.npz").read_bytes())
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = (3 * 2**30 + 128).to_bytes(4, "little")
    (folder / "directory.npz").write_bytes(data)
    for name in ("array", "directory"):
        (folder / name).mkdir()
        (folder / name / "checkpoint.npz").write_bytes((folder / f"{name}.npz").read_bytes())

    dense().save(folder / "plain.keras")
    with zipfile.ZipFile(folder / "plain.keras") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = parts["config.json"].decode()
    layers = json.loads(config)
    for layer in layers["config"]["layers"]:
        if layer["class_name"] == "Dense":
            layer["config"]["units"] = 700_000_000
    pack(folder / "units.keras", parts | {"config.json": json.dumps(layers)})
    stored = io.BytesIO(parts["model.weights.h5"])
    with h5py.File(stored, "r+") as weights:
        place = next(
            name for name in ("layers/dense/vars", "_layer_checkpoint_dependencies/dense/vars") if name in weights
        )
        del weights[place]["0"]
        weights[place].create_dataset("0", (many, many), "f4", chunks=(100, 100), compression="gzip")
    pack(folder / "weights.keras", parts | {"model.weights.h5": stored.getvalue()})
    (folder / "plain.keras").unlink()


BOMBS = sorted(["array", "directory", "units.keras", "weights.keras"] + ["array.npz", "directory.npz"] * 2)


def defused(folder):
    """The names of what is refused for its size, once for each function that reads it."""
    import keras

    from common import datasets, files
    from common.training import checkpoints

    model = dense()
    optimizer = keras.optimizers.SGD()
    optimizer.build(model.trainable_variables)
    loaders = {
        ".keras": [checkpoints.load_model],
        ".npz": [files.read_npz, lambda path: datasets.load(str(path))],
        "": [lambda path: checkpoints.restore(path, model, optimizer)],
    }
    names = []
    for path in folder.iterdir():
        for load in loaders[path.suffix]:
            with pytest.raises(UserError, match=r"declares|cannot come out of") as error:
                load(path)
            assert path.name in str(error.value)
            names.append(path.name)
    return sorted(names)


def test_e3_declared_sizes_are_refused(tmp_path):
    bombs(tmp_path)
    assert all(path.stat().st_size < 4096 for path in tmp_path.rglob("*") if path.is_file())
    assert defused(tmp_path) == BOMBS


DEFUSE = """
import resource, sys
from pathlib import Path
from tests.helpers.high_water import peak
from test_supply_chain import defused

# Should they be let through one day, they must not take the machine along.
resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
print(*defused(Path(sys.argv[1])), peak())
"""


@pytest.mark.slow
def test_e3_declared_sizes_are_refused_before_they_take_memory(tmp_path):
    bombs(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", DEFUSE, tmp_path],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests/common'}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *refused, peak = done.stdout.split()
    assert refused == BOMBS
    assert int(peak) < 2**30


def test_e5_requirements_and_lock_agree():
    """What is pinned is what is locked, with a hash for each."""
    pins = re.findall(r"^([\w.-]+==[\w.]+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    lock = (ROOT / "requirements.lock").read_text()
    assert len(pins) > 12
    assert [pin for pin in pins if f"\n{pin} \\" not in f"\n{lock}"] == []
    blocks = re.split(r"\n(?=\S)", lock.strip())
    assert all(re.match(r"[\w.-]+==[\w.]+", block) and "--hash=sha256:" in block for block in blocks)
    assert "--require-hashes -r requirements.lock" in (ROOT / "Makefile").read_text()


def test_e6_the_suite_runs_with_the_network_off():
    """The fixture of `tests/conftest.py` is there for every test: addresses of other machines are refused, here and in
    the processes that tests start; those of this one are not."""
    for attempt in (
        lambda: socket.create_connection(("192.0.2.1", 80), timeout=5),
        lambda: socket.socket(socket.AF_INET6).connect(("2001:db8::1", 80)),
        lambda: socket.getaddrinfo("example.org", 80),
    ):
        with pytest.raises(RuntimeError, match="network off"):
            attempt()
    assert urllib.request.getproxies()["https"] == "http://127.0.0.1:9"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=5):
        pass


def test_modules_are_named_after_no_library():
    """A script's folder is first on sys.path, so a module or folder there would hide a library of the same name."""
    apps = {path.parent for path in ROOT.glob("*/__init__.py")} - {ROOT / "common"}
    for path in (file for app in apps for file in app.glob("*.py") if file.stem != "__init__"):
        assert path.stem not in sys.stdlib_module_names, path
        assert importlib.util.find_spec(path.stem) is None, path
    for path in (folder.parent for app in apps for folder in app.glob("*/__init__.py")):
        assert path.name not in sys.stdlib_module_names, path
        spec = importlib.util.find_spec(path.name)
        # The repository's own folder of data sets, which holds no module.
        assert spec is None or {Path(place).name for place in spec.submodule_search_locations} == {"data"}, path
        assert spec is None or spec.loader is None, path
