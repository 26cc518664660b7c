"""Which code made a figure: hashes as git has them, and what has changed since."""

import json
import os
import subprocess
import sys
import types

import pytest

from common.runs import code, record, report

GIT = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}


def git(root, *words):
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, env={**os.environ, **GIT}
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with two modules, one of which is loaded, and a committed result made by it."""
    for name in ("app/lib.py", "app/other.py", "common/core.py", "tests/test_lib.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n")
        os.utime(tmp_path / name, (1e9, 1e9))
    for name in ("app/lib.py", "common/core.py", "tests/test_lib.py"):
        module = types.ModuleType(name)
        module.__file__ = str(tmp_path / name)
        monkeypatch.setitem(sys.modules, f"of_{name}", module)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def stored(checkout, **results):
    place = checkout / "app/results/demo"
    place.mkdir(parents=True, exist_ok=True)
    environment = {"commit": git(checkout, "rev-parse", "HEAD")}
    (place / "results.json").write_text(json.dumps({"environment": environment} | results))


def test_a_hash_is_that_of_git(checkout):
    assert code.blob_hash(checkout / "app/lib.py") == git(checkout, "rev-parse", "HEAD:app/lib.py")


def test_a_run_holds_the_modules_that_it_had_loaded(checkout):
    found = code.loaded(checkout)
    assert list(found) == ["app/lib.py", "common/core.py"]
    assert found["app/lib.py"] == git(checkout, "rev-parse", "HEAD:app/lib.py")
    (checkout / "app/lib.py").write_text("# edited while it was running\n")
    os.utime(checkout / "app/lib.py", (4e9, 4e9))
    assert code.loaded(checkout)["app/lib.py"] == code.EDITED


def test_figures_older_than_their_code_are_listed_and_no_others(checkout):
    stored(checkout, code=code.loaded(checkout))
    assert report.older_than_code(checkout) == []
    (checkout / "app/other.py").write_text("# not loaded by that run\n")
    assert report.older_than_code(checkout) == []
    (checkout / "app/lib.py").write_text("# better\n")
    (checkout / "common/core.py").unlink()
    assert report.older_than_code(checkout) == [
        "app/results/demo: changed since it was made: app/lib.py, common/core.py"
    ]


def test_of_results_without_hashes_git_tells_what_has_changed_since_their_commit(checkout):
    stored(checkout)
    (checkout / "app/other.py").write_text("# any module of the app may have been loaded\n")
    (line,) = report.older_than_code(checkout)
    assert line.startswith("app/results/demo: since commit ") and line.endswith(" 1 modules of app and common changed")
    stored(checkout, environment={"commit": "unknown"})
    assert "it is not known how many modules" in report.older_than_code(checkout)[0]


def test_check_prints_the_list_and_does_not_fail_for_it(checkout, capsys):
    stored(checkout, code={"app/gone.py": "0" * 40})
    assert report.main(["--check"], checkout) == 0
    assert "changed since it was made: app/gone.py" in capsys.readouterr().out


def test_the_suite_itself_is_recorded():
    assert {"common/runs/record.py", "common/runs/code.py"} <= set(code.loaded(record.ROOT))
