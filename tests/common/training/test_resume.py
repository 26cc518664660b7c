"""Whatever happens to a training, its checkpoints are readable and lead to the weights of an undisturbed one."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import zipfile
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pytest

from common import files
from common.errors import UserError
from common.runs.options import CommonOptions, Count
from common.runs.record import Run
from common.runs.script import script
from common.training import augmentation, checkpoints
from tests.helpers.training_toys import data, eventful_fit, fit, network, same, sgd, weights

ROOT = Path(__file__).resolve().parents[3]

# TensorFlow is imported once and has computed nothing yet, so each training can be a fork.
TRAINER = """
import io, os, sys, time
from pathlib import Path
import keras, numpy as np

def log(*words):
    print(*words, flush=True)

def wait_to_be_killed(*_, **__):
    log("writing")
    time.sleep(600)

def write_half(file, **arrays):
    whole = io.BytesIO()
    savez(whole, **arrays)
    file.write(whole.getvalue()[:len(whole.getvalue()) // 2])
    file.flush()
    wait_to_be_killed()

class Report(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        log("step")
        time.sleep(0.02)

savez = np.savez
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        from common import files
        from tests.helpers.training_toys import eventful_fit, weights
        if line == "half\\n":
            np.savez = write_half
        if line == "whole\\n":
            files._sync = wait_to_be_killed
        model, history = eventful_fit(Path(sys.argv[1]), [Report()] if line == "steps\\n" else [])
        savez(sys.argv[2], *weights(model))
        os._exit(0)
    log(pid)
    os.waitpid(pid, 0)
    log("ended")
"""


@pytest.mark.slow
def test_c3_killed_at_any_moment_and_resumed_gives_the_same_bits(tmp_path):
    """Kill -9 twice at a random step, once half through writing a checkpoint, once before it takes its place."""
    steps = random.randint(1, 7), random.randint(1, 5)
    command = [sys.executable, "-c", TRAINER, tmp_path / "checkpoints", tmp_path / "weights.npz"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        open(tmp_path / "errors", "w") as errors,
        subprocess.Popen(command, cwd=ROOT, stderr=errors, **pipes) as trainer,
    ):
        watchdog = threading.Timer(600, trainer.kill)
        watchdog.start()

        def told(what):
            line = trainer.stdout.readline().strip()
            assert line == what or (what == "a pid" and line.isdigit()), (
                line,
                (tmp_path / "errors").read_text()[-2000:],
            )
            return line

        def training(how):
            trainer.stdin.write(how + "\n")
            trainer.stdin.flush()
            return int(told("a pid"))

        def kill(pid):
            os.kill(pid, signal.SIGKILL)
            # What it said between the last line read and its end.
            while trainer.stdout.readline() != "ended\n":
                pass
            assert not (tmp_path / "weights.npz").exists()

        for count in steps:
            pid = training("steps")
            for _ in range(count):
                told("step")
            kill(pid)
        for moment in ("half", "whole"):
            pid = training(moment)
            told("writing")
            kill(pid)
            assert not (tmp_path / "checkpoints/checkpoint.npz").exists()
        training("undisturbed")
        told("ended")
        trainer.stdin.close()
        watchdog.cancel()
    assert len(list((tmp_path / "checkpoints").glob(".*.part"))) == 2
    model, history = eventful_fit()
    with np.load(tmp_path / "weights.npz") as found:
        assert same(weights(model), [found[name] for name in found.files]), steps
    assert history_in(tmp_path / "checkpoints/checkpoint.npz") == history


def history_in(path):
    return json.loads(files.read_npz(path)["history"].tobytes())


class Stop(keras.callbacks.Callback):
    """Ctrl-C at the beginning of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def quiet_fit(folder=None, callbacks=()):
    """An eventful one without its adversary, which takes longest to compile, and of fewer steps."""
    model = network(dropout=0.4)
    augment = augmentation.crop_and_flip(2)
    history = fit(
        model, epochs=4, batch_size=48, augment=augment, checkpoint_folder=folder, resume=True, callbacks=callbacks
    )
    return model, history


def interrupted(folder, epoch):
    with pytest.raises(KeyboardInterrupt):
        quiet_fit(folder, [Stop(epoch)])


def test_c3_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path):
    interrupted(tmp_path, 3)
    newest = tmp_path / "checkpoint.npz"
    newest.write_bytes(newest.read_bytes()[:500])
    interrupted(tmp_path, 2)
    # The damaged one did not push out the good one: there is still something to go on from.
    assert not newest.exists() and len(history_in(tmp_path / "checkpoint.previous.npz")) == 2
    model, history = quiet_fit(tmp_path)
    whole, expected = quiet_fit()
    assert same(weights(whole), weights(model)) and history == expected


# Saves are killed at 50 of the calls into C that make one up: each is a moment between two changes of the disk. Neither
# framework is needed for a save, and without TensorFlow a process may fork.
WRITER = """
import os, signal, sys, types
from pathlib import Path
for name in ("keras", "tensorflow"):
    sys.modules[name] = types.SimpleNamespace(Model=object, Optimizer=object)
import numpy as np
from common.training import checkpoints

class Variable:
    shape = (300, 100)
    def __init__(self, value):
        self.assign(np.full(self.shape, value, np.float32))
    def __array__(self, dtype=None, copy=None):
        return self.value
    def assign(self, value):
        self.value = value

def having(value):
    return types.SimpleNamespace(variables=[Variable(value) for _ in range(3)])

def save(epoch, die_at=None):
    calls = 0
    def watch(frame, event, argument):
        nonlocal calls
        calls += event == "c_call"
        if calls == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(watch)
    checkpoints.save(folder, having(epoch), having(epoch), [{}] * epoch)
    sys.setprofile(None)
    return calls

folder = Path(sys.argv[1])
save(1)
save(2)
calls, epoch = save(3), 3
# The last ones each: there the file has taken its place.
moments = [1 + i * (calls - 12) // 40 for i in range(40)] + list(range(calls - 11, calls - 1))
for i in moments:
    pid = os.fork()
    if pid == 0:
        save(epoch + 1, i)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    model, optimizer = having(0), having(0)
    found = checkpoints.restore(folder, model, optimizer).epoch
    assert found in (epoch, epoch + 1), (i, found, epoch)
    assert all((v.value == found).all() for v in model.variables + optimizer.variables), i
    print("newest" if found > epoch else "before", flush=True)
    epoch = found
"""


@pytest.mark.slow
def test_d1_fifty_kills_during_saves_leave_fifty_readable_checkpoints(tmp_path):
    command = [sys.executable, "-c", WRITER, tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.split()) == 50 and set(done.stdout.split()) == {"newest", "before"}
    # Many of them while the file was being written.
    assert len(list(tmp_path.glob(".checkpoint.npz.*.part"))) > 20


# A full disk


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def half(file, **arrays):
    file.write(b"PK\x03\x04 half of it")
    full()


FULL = {
    "at once": (files.tempfile, "mkstemp", full),
    "half way": (np, "savez", half),
    "late": (files.os, "fsync", full),
}


@pytest.mark.parametrize("when", FULL)
def test_d2_a_full_disk_leaves_a_checkpoint_to_go_on_from(tmp_path, monkeypatch, when):
    model, optimizer = network(), sgd()
    optimizer.build(model.trainable_variables)
    for epoch in (1, 2):
        checkpoints.save(tmp_path, model, optimizer, [{"loss": 1.0}] * epoch)
    before = weights(model)
    model.set_weights([w + 1 for w in model.get_weights()])
    with (
        monkeypatch.context() as disk,
        pytest.raises(UserError, match=r"checkpoint\.npz: cannot be written \(No space"),
    ):
        disk.setattr(*FULL[when])
        checkpoints.save(tmp_path, model, optimizer, [{"loss": 1.0}] * 3)
    assert not list(tmp_path.glob(".*"))
    assert checkpoints.restore(tmp_path, model, optimizer).epoch == 2 and same(weights(model), before)


@pytest.mark.parametrize("when", ["at once", "half way", "late"])
def test_d2_a_full_disk_leaves_the_old_model_whole(tmp_path, monkeypatch, when):
    model = network()
    checkpoints.save_model(model, tmp_path / "m.keras")
    before = (tmp_path / "m.keras").read_bytes()

    def save(path):
        Path(path).write_bytes(before[:300])
        full()

    with monkeypatch.context() as disk, pytest.raises(UserError, match=r"m\.keras: cannot be written \(No space"):
        disk.setattr(*((model, "save", save) if when == "half way" else FULL[when]))
        checkpoints.save_model(model, tmp_path / "m.keras")
    assert (tmp_path / "m.keras").read_bytes() == before and os.listdir(tmp_path) == ["m.keras"]


@dataclass(kw_only=True)
class Options(CommonOptions):
    epochs: Count = 2
    """Epochs."""


CALLBACKS = []


@script(app="tests", name="resume")
def resume(options: Options, run: Run) -> None:
    history = fit(network(), epochs=options.epochs, checkpoint_folder=run.checkpoints, resume=True, callbacks=CALLBACKS)
    run.metrics(loss=history[-1]["loss"])


def ended(argv, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        resume.main(argv)
    return end.value.code, capsys.readouterr().err


def test_d2_a_full_disk_ends_a_training_with_status_2_and_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as disk:
        saves = iter([np.savez, half])
        disk.setattr(np, "savez", lambda file, **arrays: next(saves)(file, **arrays))
        status, err = ended([], capsys)
    assert status == 2 and err.count("\n") == 1 and "checkpoint.npz: cannot be written (No space left on device)" in err
    assert ended(["--resume"], capsys) == (0, "")
    stored = json.loads(Path("runs/tests/resume/demo/results.json").read_text())
    assert stored["metrics"]["loss"] == fit(network(), epochs=2)[-1]["loss"]


# Resuming what does not fit


def test_d3_a_checkpoint_of_another_network_is_refused(tmp_path):
    """The run's folder refuses another config before; this is for callers of `train` without one."""
    fit(network(), epochs=1, checkpoint_folder=tmp_path)
    with pytest.raises(UserError, match=r"belongs to another model \(\d+ arrays, expected \d+\)"):
        fit(network(norm=True), epochs=2, checkpoint_folder=tmp_path, resume=True)
    with pytest.raises(UserError, match=r"belongs to another optimizer"):
        fit(network(), epochs=2, checkpoint_folder=tmp_path, resume=True, optimizer=keras.optimizers.Adam())


def test_d3_g8_ctrl_c_keeps_the_checkpoint_and_a_changed_option_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "CALLBACKS", [Stop(1)])
    assert ended([], capsys) == (130, "resume: interrupted; continue with --resume\n")
    kept = Path("runs/tests/resume/demo/checkpoints/checkpoint.npz")
    before = kept.read_bytes()
    status, err = ended(["--epochs", "4", "--resume"], capsys)
    assert status == 2 and err.count("\n") == 1 and "was run with epochs 2, now 4" in err
    assert kept.read_bytes() == before and len(history_in(kept)) == 1


def stranger(path):
    files.write_npz(path, {"x_train": np.zeros(3), "y_train": np.zeros(3)})


def other_shape(path):
    arrays = files.read_npz(path)
    arrays["model_00000"] = arrays["model_00000"][..., :2]
    files.write_npz(path, arrays)


def renamed_model(path):
    checkpoints.save_model(network(), path.with_suffix(".keras"))
    path.with_suffix(".keras").rename(path)


DAMAGES = {
    "empty": (lambda path: path.write_bytes(b""), "not a readable .npz"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-200]), "not a readable .npz"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:100]), "not a readable .npz"),
    "text": (lambda path: path.write_text("epoch 3"), "not a readable .npz"),
    "a model renamed": (renamed_model, "no checkpoint of a training"),
    "a data set renamed": (stranger, "no checkpoint of a training"),
    "another shape": (other_shape, r"array 0 has shape \(3, 3, 3, 2\), expected \(3, 3, 3, 4\)"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_d4_what_is_no_checkpoint_is_named_with_the_reason(tmp_path, case):
    damage, message = DAMAGES[case]
    path = tmp_path / "checkpoint.npz"
    model, optimizer = network(), sgd()
    optimizer.build(model.trainable_variables)
    checkpoints.save(tmp_path, model, optimizer, [{"loss": 1.0}])
    damage(path)
    with pytest.raises(UserError, match=message) as error:
        checkpoints.restore(tmp_path, model, optimizer)
    assert str(path) in str(error.value) and "no such file" not in str(error.value)


def other_weights(path):
    """The architecture of one model with the weights of another."""
    other = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
    own = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    with zipfile.ZipFile(path, "w") as archive:
        for model, names in ((own, ("config.json", "metadata.json")), (other, ("model.weights.h5",))):
            model.save(path.with_name("part.keras"))
            with zipfile.ZipFile(path.with_name("part.keras")) as part:
                for name in names:
                    archive.writestr(name, part.read(name))
    path.with_name("part.keras").unlink()


MODEL_DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "text": lambda path: path.write_text("a model"),
    "a data set renamed": stranger,
    "weights of another": other_weights,
}


@pytest.mark.parametrize("case", MODEL_DAMAGES)
def test_d4_what_is_no_model_is_named_with_the_reason(tmp_path, case):
    path = tmp_path / "m.keras"
    checkpoints.save_model(network(), path)
    MODEL_DAMAGES[case](path)
    with pytest.raises(UserError, match=r"m\.keras: not a model that can be loaded safely") as error:
        checkpoints.load_model(path)
    assert "not found" not in str(error.value).lower() and "\n" not in str(error.value)


def test_d4_a_model_that_is_missing_a_folder_or_of_another_format(tmp_path):
    with pytest.raises(UserError, match="no such model file"):
        checkpoints.load_model(tmp_path / "none.keras")
    (tmp_path / "folder.keras").mkdir()
    with pytest.raises(UserError, match=r"folder\.keras: is a folder"):
        checkpoints.load_model(tmp_path / "folder.keras")
    checkpoints.save_model(network(), tmp_path / "m.keras")
    (tmp_path / "m.keras").rename(tmp_path / "m.h5")
    with pytest.raises(UserError, match=r"m\.h5: expected a \.keras"):
        checkpoints.load_model(tmp_path / "m.h5")


def test_d5_checkpoints_and_models_give_the_same_bits(tmp_path):
    model = network(norm=True)
    history = fit(model, epochs=1, checkpoint_folder=tmp_path)
    other, optimizer = network(seed=3, norm=True), sgd()
    optimizer.build(other.trainable_variables)
    restored = checkpoints.restore(tmp_path, other, optimizer)
    assert restored.epoch == 1 and restored.history == history and same(weights(model), weights(other))
    assert int(optimizer.iterations) == 3
    checkpoints.save_model(model, tmp_path / "m.keras")
    x = data()[0] / np.float32(255)
    expected = model(x).numpy()
    assert (expected == other(x).numpy()).all()
    assert (expected == checkpoints.load_model(tmp_path / "m.keras")(x).numpy()).all()
    # Others may read it: a temporary file is for its owner alone.
    (tmp_path / "plain").touch()
    assert (tmp_path / "m.keras").stat().st_mode == (tmp_path / "plain").stat().st_mode
