"""Which code made a figure: the suite's modules that a run had loaded, by the hashes that git gives their content."""

import functools
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Modules are imported, and so read, after the process began.
_BEGUN = time.time()
EDITED = "edited during the run"
"""In place of the hash of a file that was changed while the run went on: which of its versions ran is not known."""


def blob_hash(path: Path) -> str:
    """The hash that git gives the content of a file, without git."""
    stat = path.stat()
    return _hash(path, stat.st_mtime_ns, stat.st_size)


@functools.cache
def _hash(path: Path, changed: int, size: int) -> str:
    """Once for each version of a file: one process may finish many runs, and a report reads many results."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def loaded(root: Path) -> dict[str, str]:
    """Hashes by path of the modules below `root` that this process has loaded; no tests, no installed packages."""
    found = {}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if not file or not os.path.isabs(file) or not Path(file).is_relative_to(root):
            continue
        path = Path(file)
        name = path.relative_to(root).as_posix()
        if path.suffix != ".py" or name.startswith(("tests/", ".")) or not path.is_file():
            continue
        found[name] = EDITED if path.stat().st_mtime > _BEGUN else blob_hash(path)
    return dict(sorted(found.items()))


def changed_since(commit: str, folders: Sequence[str], root: Path) -> list[str] | None:
    """Modules in `folders` that differ from those of a commit; None where git does not know it."""
    if not re.fullmatch(r"[0-9a-f]{7,40}", commit):
        return None
    command = ["git", "-C", str(root), "diff", "--name-only", commit, "--", *(f"{of}/*.py" for of in folders)]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.split("\n")[:-1]


def changed(results: Mapping[str, Any], root: Path) -> list[str] | None:
    """Modules whose content differs from that with which `results` were made, those that are gone included; None where
    the results hold no hashes, as those of earlier versions do."""
    hashes = results.get("code")
    if hashes is None:
        return None
    return [name for name, old in hashes.items() if not (root / name).is_file() or blob_hash(root / name) != old]
