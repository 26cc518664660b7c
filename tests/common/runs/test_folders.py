"""A run's folder: what it records, when it may be used again, and that nothing in it is ever half-written."""

import contextlib
import errno
import json
import math
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common import files
from common.errors import UserError
from common.runs import folder as folders
from common.runs import record
from common.runs.record import Identity, Run

WHO = Identity("adv_lock", "lock", "python adv_lock/lock.py --seed 1")
CONFIG = {"dataset": "scenes", "data_dir": "data", "name": "x", "seed": 1, "seeds": None, "eps": 0.5, "sweep": [0.1]}


def nothing(run: Run) -> None:
    run.metrics(done=1.0)


def killed(run: Run) -> None:
    run.curve(epoch=1, loss=0.5)
    run.curve(epoch=2, loss=0.4)
    run.checkpoints.mkdir()
    (run.checkpoints / "weights.npz").write_text("weights")
    raise KeyboardInterrupt


def execute(folder, body=nothing, config=CONFIG, **more):
    return folders.execute(folder, WHO, config, body, **more)


def unfinished(folder, **more):
    with pytest.raises(KeyboardInterrupt):
        execute(folder, killed, **more)
    return folder


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# Whatever can be written as UTF-8.
LABELS = st.text(st.characters(codec="utf-8"))


# What is recorded


def test_c9_results_are_as_the_design_has_them(tmp_path):

    def body(run: Run) -> None:
        run.data("scenes-v1", "ab" * 32)
        run.metrics(success=np.float32(0.5), success_n=np.int64(100))
        run.row(model="cnn", attack="lock", norm="l2", eps=1.5, split="test", metric="success", value=0.5, n=100)
        (run.folder / "locked.npz").touch()
        run.artifact("locked", run.folder / "locked.npz")
        run.log("half way")

    results = execute(tmp_path / "deep" / "x", body)
    stored = json.loads((tmp_path / "deep/x/results.json").read_text())
    assert stored == results
    keys = "app script command dataset data_sha256 seed metrics artifacts config environment code seconds"
    assert list(stored) == keys.split()
    assert stored["command"] == WHO.command and stored["config"] == CONFIG and stored["seed"] == 1
    assert stored["dataset"] == "scenes-v1" and stored["data_sha256"] == "ab" * 32
    assert stored["metrics"] == {"success": 0.5, "success_n": 100} and stored["artifacts"] == {"locked": "locked.npz"}
    assert list(stored["environment"]) == [
        "python",
        "tensorflow",
        "keras",
        "device",
        "processor",
        "cores",
        "date",
        "commit",
    ]
    assert stored["environment"]["python"] == sys.version.split()[0] and stored["seconds"] >= 0
    assert (tmp_path / "deep/x/table.csv").read_text() == (
        "seed,model,attack,norm,eps,split,metric,value,n,low,high\n1,cnn,lock,l2,1.5,test,success,0.5,100,,\n"
    )
    assert (tmp_path / "deep/x/log.txt").read_text().endswith(" half way\n")
    assert record.read_config(tmp_path / "deep/x") == CONFIG


def test_c9_the_commit_is_of_this_repository():
    git = subprocess.run(["git", "-C", str(record.ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    expected = git.stdout.strip() if git.returncode == 0 and (record.ROOT / ".git").exists() else "unknown"
    assert record.commit().removesuffix("+dirty") == expected


def test_the_device_is_looked_at_only_when_tensorflow_is_there(monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    assert record.environment("c")["device"] == "CPU"
    gpu = types.SimpleNamespace(name="/physical_device:GPU:0")
    experimental = types.SimpleNamespace(get_device_details=lambda gpu: {"device_name": "NVIDIA H200"})
    config = types.SimpleNamespace(get_visible_devices=lambda kind: [gpu], experimental=experimental)
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(config=config))
    assert record.environment("c")["device"] == "NVIDIA H200"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), True, None, "0.5", [1.0]])
def test_a_metric_that_is_no_finite_number_is_named(tmp_path, value):
    with pytest.raises(ValueError, match="success: expected a finite number") as error:
        execute(tmp_path / "x", lambda run: run.metrics(loss=1.0, success=value))
    assert not isinstance(error.value, UserError)
    assert not (tmp_path / "x/results.json").exists()


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"metric": "m"}, "value"),
        ({"value": math.nan}, "value"),
        ({"value": 1, "low": math.inf}, "low"),
        ({"value": 1, "atack": "pgd"}, "atack"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, named):
    with pytest.raises(ValueError, match=named):
        execute(tmp_path / "x", lambda run: run.row(**row))


@settings(max_examples=25, deadline=None)
@example([(1.0, 1, "a\rb\nc")])
@given(st.lists(st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 10**9), LABELS), max_size=5))
def test_a_table_is_read_as_it_was_written(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("run") / "x"

    def body(run: Run) -> None:
        for value, n, model in rows:
            run.row(value=value, n=n, model=model)

    execute(folder, body)
    if rows:
        read = [(row["value"], row["n"], row["model"] or "", row["seed"]) for row in record.read_table(folder)]
        assert read == [(value, n, re.sub(r"[\r\n\0]", " ", model), 1) for value, n, model in rows]


def test_a_rate_has_its_interval(tmp_path):
    execute(tmp_path / "x", lambda run: run.rate("accuracy", 81 / 263, 263, attack="none"))
    (row,) = record.read_table(tmp_path / "x")
    assert (row["low"], row["high"]) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert (row["metric"], row["n"], row["attack"]) == ("accuracy", 263, "none")


def test_an_artifact_is_a_file_of_the_run(tmp_path):
    (tmp_path / "outside").touch()
    for path in (tmp_path / "outside", tmp_path / "x" / ".." / "outside", tmp_path / "x" / "absent"):
        with pytest.raises(ValueError, match="artifact locked"):
            execute(tmp_path / "x", lambda run, path=path: run.artifact("locked", path), force=True)


# Curves


def test_curves_are_on_disk_at_once_and_a_resumed_run_writes_its_epochs_once(tmp_path):
    folder = unfinished(tmp_path / "x")
    assert (folder / "metrics.csv").read_text() == "epoch,loss\n1,0.5\n2,0.4\n"

    def resumed(run: Run) -> None:
        assert (run.checkpoints / "weights.npz").read_text() == "weights"
        run.curves_until(2)
        assert (run.folder / "metrics.csv").read_text() == "epoch,loss\n1,0.5\n"
        run.curve(epoch=2, loss=0.3)
        run.curve(epoch=3, loss=0.2)

    execute(folder, resumed, resume=True)
    assert (folder / "metrics.csv").read_text() == "epoch,loss\n1,0.5\n2,0.3\n3,0.2\n"


def test_a_resumed_run_counts_the_seconds_it_took_before(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("common.runs.record.time.monotonic", lambda: clock[0])

    def killed_after(seconds):
        def body(run: Run) -> None:
            run.checkpoints.mkdir()
            clock[0] += seconds
            run.curve(epoch=1, loss=0.5)
            raise KeyboardInterrupt

        return body

    def finished_after(seconds):
        def body(run: Run) -> None:
            clock[0] += seconds

        return body

    folder = tmp_path / "x"
    with pytest.raises(KeyboardInterrupt):
        execute(folder, killed_after(40))
    clock[0] = 5.0
    assert execute(folder, finished_after(2), resume=True)["seconds"] == 42
    assert execute(folder, finished_after(3), force=True)["seconds"] == 3


def test_curves_may_start_over_with_other_columns_only_when_none_is_left(tmp_path):
    def body(run: Run) -> None:
        run.curve(epoch=1, loss=0.5)
        with pytest.raises(ValueError, match="columns epoch, accuracy"):
            run.curve(epoch=2, accuracy=0.5)
        run.curves_until(1)
        assert not (run.folder / "metrics.csv").exists()
        run.curve(epoch=1, accuracy=0.5)

    execute(tmp_path / "x", body)
    assert (tmp_path / "x/metrics.csv").read_text() == "epoch,accuracy\n1,0.5\n"


# When a folder may be used


def test_a_finished_run_returns_what_is_stored(tmp_path, capsys):
    first = execute(tmp_path / "x")
    again = execute(
        tmp_path / "x",
        pytest.fail,
        CONFIG | {"name": "y", "data_dir": "d"},
        comparison=folders.Comparison(("name", "data_dir")),
    )
    assert again == first and "finished before" in capsys.readouterr().out
    assert execute(tmp_path / "x", pytest.fail, resume=True) == first


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("resume", [True, False])
def test_d3_another_config_is_refused_and_the_field_named_with_both_values(tmp_path, finished, resume):
    folder = tmp_path / "x"
    execute(folder) if finished else unfinished(folder)
    before = content(folder)
    for change, named in (
        ({"eps": 0.25}, "eps 0.5, now 0.25"),
        ({"sweep": [0.1, 0.2]}, r"sweep \[0.1\], now \[0.1, 0.2\]"),
        ({"seed": 2}, "seed 1, now 2"),
        ({"new": 1}, "new none, now 1"),
        ({"seeds": [0, 1]}, "seeds none, now"),
    ):
        with pytest.raises(UserError, match=f"{folder}: was run with {named}"):
            execute(folder, pytest.fail, CONFIG | change, resume=resume)
    missing = {key: value for key, value in CONFIG.items() if key != "eps"}
    with pytest.raises(UserError, match=r"eps 0\.5, now none"):
        execute(folder, pytest.fail, missing, resume=resume)
    assert content(folder) == before


def test_a_script_can_name_what_does_not_change_its_results(tmp_path):
    first = execute(tmp_path / "x")
    assert execute(tmp_path / "x", pytest.fail, CONFIG | {"eps": 9}, comparison=folders.Comparison(("eps",))) == first


def test_an_unfinished_run_needs_resume_or_force(tmp_path):
    folder = unfinished(tmp_path / "x")
    with pytest.raises(UserError, match="unfinished run; --resume to continue it or --force to start again"):
        execute(folder, pytest.fail)
    assert execute(folder, resume=True)["metrics"] == {"done": 1.0}


def test_force_starts_anew_and_removes_only_what_a_run_wrote(tmp_path):
    folder, outside = tmp_path / "x", tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()

    def body(run: Run) -> None:
        killed_files = ("locked.npz", "images/one.png")
        for name in killed_files:
            (run.folder / name).parent.mkdir(exist_ok=True)
            (run.folder / name).touch()
        run.artifact("locked", run.folder / "locked.npz")
        run.artifact("images", run.folder / "images")
        run.curve(epoch=1, loss=1.0)
        run.checkpoints.mkdir()
        run.metrics(done=1.0)

    execute(folder, body)
    (folder / "notes.txt").write_text("the user's own")
    (folder / "link").symlink_to(outside)
    results = json.loads((folder / "results.json").read_text())
    results["artifacts"] |= {"evil": "../outside/kept", "link": "link", "all": ".", "up": "..", "empty": ""}
    (folder / "results.json").write_text(json.dumps(results))

    def fresh(run: Run) -> None:
        left = {path.name for path in run.folder.iterdir()}
        assert {"notes.txt", "config.yaml", ".lock"} <= left
        assert not {"results.json", "table.csv", "metrics.csv", "log.txt", "checkpoints"} & left

    execute(folder, fresh, CONFIG | {"eps": 9}, force=True)
    assert (outside / "kept").exists() and record.read_config(folder)["eps"] == 9


def test_force_removes_the_artifacts_of_the_last_results(tmp_path):
    def body(run: Run) -> None:
        (run.folder / "images").mkdir()
        (run.folder / "images" / "stale.png").touch()
        run.artifact("images", run.folder / "images")

    execute(tmp_path / "x", body)
    execute(tmp_path / "x", force=True)
    assert not (tmp_path / "x/images").exists()


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("config", [None, "eps: 1\n", "# other/tool: the options of this run\neps: 1\n"])
def test_a_folder_of_something_else_is_refused_even_under_force(tmp_path, force, config):
    (tmp_path / "thesis.tex").touch()
    if config is not None:
        (tmp_path / "config.yaml").write_text(config)
    before = content(tmp_path)
    with pytest.raises(UserError, match=str(tmp_path)):
        execute(tmp_path, pytest.fail, force=force, resume=True)
    assert content(tmp_path) == before


def test_an_empty_folder_and_what_a_kill_leaves_are_fine(tmp_path):
    (tmp_path / "empty").mkdir()
    execute(tmp_path / "empty")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / ".lock").touch()
    (tmp_path / "cut" / ".config.yaml.abc.part").touch()
    execute(tmp_path / "cut" / "seed-0")
    assert execute(tmp_path / "cut")["metrics"] == {"done": 1.0}


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "x", Path("/proc/nowhere/x"), tmp_path / "file", tmp_path / ("x" * 300)):
        with pytest.raises((UserError, OSError), match=str(folder)):
            execute(folder, pytest.fail)


def test_d4_damaged_files_of_a_run_are_named(tmp_path):
    execute(tmp_path / "x")
    for damage in ("", '{"metrics": ', "[]"):
        (tmp_path / "x/results.json").write_text(damage)
        with pytest.raises(UserError, match=r"results\.json"):
            execute(tmp_path / "x", pytest.fail)
    header = (tmp_path / "x/config.yaml").read_text().split("\n")[0]
    for damage in ("eps: [", "name: !!python/object/apply:os.getpid []", "- 1"):
        (tmp_path / "x/config.yaml").write_text(f"{header}\n{damage}")
        with pytest.raises(UserError, match=r"config\.yaml"):
            execute(tmp_path / "x", pytest.fail)
    assert execute(tmp_path / "x", force=True)["metrics"] == {"done": 1.0}


# The disk and other processes


def test_d2_a_full_disk_leaves_the_old_file_whole(tmp_path, monkeypatch):

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    def body(run: Run) -> None:
        run.curve(epoch=1, loss=0.5)
        with monkeypatch.context() as disk:
            disk.setattr(files.os, "fsync", full)
            run.curve(epoch=2, loss=0.4)

    with pytest.raises(UserError, match=r"metrics.csv: cannot be written \(No space left on device\)"):
        execute(tmp_path / "x", body)
    assert (tmp_path / "x/metrics.csv").read_text() == "epoch,loss\n1,0.5\n"
    assert {path.name for path in (tmp_path / "x").iterdir()} == {".lock", "config.yaml", "metrics.csv"}


def test_results_come_last(tmp_path, monkeypatch):
    written = []
    for module in (record, folders):
        monkeypatch.setattr(
            module, "write_text", lambda path, text: (written.append(path.name), files.write_text(path, text))
        )
    execute(tmp_path / "x", lambda run: run.curve(epoch=1, loss=1.0))
    assert written == ["config.yaml", "metrics.csv", "table.csv", "results.json"]


def test_d6_two_runs_in_one_folder(tmp_path):

    def body(run: Run) -> None:
        with pytest.raises(UserError, match=rf"{tmp_path}/x/\.lock: process {os.getpid()} is writing"):
            execute(tmp_path / "x", pytest.fail, resume=True)
        execute(tmp_path / "y")

    execute(tmp_path / "x", body)


def test_a_run_that_finished_while_another_waited_is_not_run_again(tmp_path, monkeypatch):
    folder, locked = tmp_path / "x", folders.locked

    @contextlib.contextmanager
    def late(place):
        monkeypatch.setattr(folders, "locked", locked)
        execute(folder)
        with locked(place):
            yield

    monkeypatch.setattr(folders, "locked", late)
    assert execute(folder, pytest.fail)["metrics"] == {"done": 1.0}


# Several workers


def tf_config(kind, index, *kinds):
    return json.dumps({"cluster": {k: ["h:1", "h:2"] for k in kinds}, "task": {"type": kind, "index": index}})


@pytest.mark.parametrize(
    ("text", "chief"),
    [
        ("", True),
        (tf_config("worker", 0, "worker"), True),
        (tf_config("worker", 1, "worker"), False),
        (tf_config("chief", 0, "chief", "worker"), True),
        (tf_config("worker", 0, "chief", "worker"), False),
        (tf_config("evaluator", 0, "worker"), False),
    ],
)
def test_who_writes(monkeypatch, text, chief):
    monkeypatch.setenv("TF_CONFIG", text)
    assert record.is_chief("multiworker") is chief
    assert record.is_chief("none") is record.is_chief("mirrored") is True


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"task": {"type": "worker"}}', '{"task": 1}', '"x"', "3"])
def test_a_bad_tf_config_is_named(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match="TF_CONFIG"):
        record.is_chief("multiworker")


def test_a_worker_does_everything_and_writes_nothing(tmp_path):
    def body(run: Run) -> None:
        assert not run.chief and run.folder == tmp_path / "x"
        run.log("hello")
        run.curve(epoch=1, loss=1.0)
        run.curves_until(1)
        run.row(value=1.0)
        run.artifact("model", run.folder / "model.keras")
        run.metrics(done=1.0)

    results = execute(tmp_path / "x", body, chief=False)
    assert results["metrics"] == {"done": 1.0} and results["artifacts"] == {"model": "model.keras"}
    assert not (tmp_path / "x").exists()
    # Beside a chief that has begun and holds the lock.
    execute(tmp_path / "x", lambda run: execute(tmp_path / "x", body, chief=False))
    assert execute(tmp_path / "x", pytest.fail, chief=False)["metrics"] == {}
    with pytest.raises(UserError, match="eps"):
        execute(tmp_path / "x", pytest.fail, CONFIG | {"eps": 2}, chief=False)


# Seeds


def sweep(folder, seeds, values=(0.1, 0.3, 0.8), eps=0.5, ran=None, **more):
    def child(seed, place):
        def body(run: Run) -> None:
            if ran is not None:
                ran.append(seed)
            if values[seed] is None:
                raise KeyboardInterrupt
            (run.folder / "model").touch()
            run.artifact("model", run.folder / "model")
            run.metrics(rate=values[seed], rate_n=100, **({"odd": 1} if seed == 0 else {}))
            run.row(metric="rate", value=values[seed], n=100)

        return execute(place, body, CONFIG | {"seed": seed, "eps": eps}, resume=more.get("resume", False))

    more = dict(more)
    config = CONFIG | {"seeds": list(seeds), "eps": eps}
    return folders.execute_seeds(folder, WHO, config, child, force=more.get("force", False))


def test_seeds_are_joined_by_mean_and_sample_deviation(tmp_path):
    results = sweep(tmp_path / "x", (0, 1, 2))
    metrics = results["metrics"]
    assert set(metrics) == {"rate", "rate_std", "rate_n"} and metrics["rate_n"] == 100
    assert metrics["rate"] == pytest.approx(0.4) and metrics["rate_std"] == pytest.approx(math.sqrt(0.13))
    assert results["seed"] == [0, 1, 2] and results["artifacts"]["seed-1/model"] == "seed-1/model"
    assert json.loads((tmp_path / "x/results.json").read_text()) == results
    lines = (tmp_path / "x/table.csv").read_text().splitlines()
    assert [line[:2] for line in lines] == ["se", "0,", "1,", "2,"] and lines[3] == "2,,,,,,rate,0.8,100,,"


def test_a_rate_may_bring_an_interval_of_its_own(tmp_path):
    """Of pairs that share a driver Wilson's would promise too much; over seeds the spread takes its place."""
    found = execute(tmp_path / "one", lambda run: run.intervals({"rate": (0.5, 40, 0.2, 0.8)}))["metrics"]
    assert found == {"rate": 0.5, "rate_n": 40, "rate_low": 0.2, "rate_high": 0.8}

    def child(seed, place):
        def body(run):
            run.intervals({"rate": (0.4 + 0.2 * seed, 40, 0.2, 0.8)})
            run.metrics(far_low=1.0)

        return execute(place, body, CONFIG | {"seed": seed})

    joined = folders.execute_seeds(tmp_path / "many", WHO, CONFIG | {"seeds": [0, 1]}, child)["metrics"]
    assert set(joined) == {"rate", "rate_std", "rate_n", "far_low", "far_low_std"}
    assert joined["rate"] == pytest.approx(0.5)


def test_finished_seeds_are_kept_and_more_may_follow(tmp_path):
    ran = []
    first = sweep(tmp_path / "x", (0, 1), ran=ran)
    assert sweep(tmp_path / "x", (0, 1), ran=ran) == first and ran == [0, 1]
    assert sweep(tmp_path / "x", (0, 1, 2), ran=ran)["seed"] == [0, 1, 2] and ran == [0, 1, 2]
    assert (tmp_path / "x/seed-0/model").exists()
    assert record.read_config(tmp_path / "x")["seeds"] == [0, 1, 2]
    with pytest.raises(UserError, match="eps"):
        sweep(tmp_path / "x", (0, 1), eps=9)


def test_force_forgets_all_seeds_at_once(tmp_path):
    """An interrupted --force must not go on with figures from before it."""
    sweep(tmp_path / "x", (0, 1, 2))
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path / "x", (0, 1, 2), values=(0.2, None, None), force=True, resume=True)
    assert not (tmp_path / "x/results.json").exists() and not (tmp_path / "x/seed-2/results.json").exists()
    results = sweep(tmp_path / "x", (0, 1, 2), values=(None, 0.4, 0.6), resume=True)
    assert results["metrics"]["rate"] == pytest.approx(0.4)


def test_one_run_and_several_seeds_do_not_share_a_folder(tmp_path):
    execute(tmp_path / "one", config=CONFIG | {"seed": 0})
    with pytest.raises(UserError, match="was run with seed"):
        sweep(tmp_path / "one", (0, 1))
    sweep(tmp_path / "many", (0, 1))
    with pytest.raises(UserError, match=r"seeds \[0, 1\], now none"):
        execute(tmp_path / "many", pytest.fail)


def test_a_headline_is_a_row_and_a_metric_and_a_figure_is_drawn_into_the_folder(tmp_path):
    def draw(values, path, *, title):
        path.write_text(f"{title}: {values}")

    def body(run: Run) -> None:
        run.headline("accuracy", 0.75, 40, key="final_accuracy", split="test")
        run.headline("success", 0.5, 40)
        run.figure("curve", draw, [1, 2], title="loss")

    results = execute(tmp_path / "x", body)
    assert results["metrics"] == {"final_accuracy": 0.75, "final_accuracy_n": 40, "success": 0.5, "success_n": 40}
    rows = record.read_table(tmp_path / "x")
    assert [(row["metric"], row["split"], row["value"], row["n"]) for row in rows] == [
        ("accuracy", "test", 0.75, 40),
        ("success", None, 0.5, 40),
    ]
    assert rows[0]["low"] < 0.75 < rows[0]["high"]
    assert results["artifacts"] == {"curve": "curve.png"}
    assert (tmp_path / "x/curve.png").read_text() == "loss: [1, 2]"


def test_a_worker_draws_and_saves_nothing(tmp_path):
    run = Run(tmp_path / "none", WHO, CONFIG, chief=False)
    run.figure("curve", pytest.fail)
    run.save_model("no model")
    run.headline("accuracy", 0.75, 40)
    assert run.finish()["artifacts"] == {} and not (tmp_path / "none").exists()
