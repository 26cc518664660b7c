"""When a run's folder may be used: started, locked, continued, finished; over several seeds too."""

import contextlib
import fcntl
import os
import shutil
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import UserError
from common.files import write_text
from common.progress import log
from common.runs.record import (
    Identity,
    Run,
    dump,
    is_bound,
    read_config,
    read_csv,
    read_owner,
    read_results,
    write_csv,
    write_results,
)

# What every run writes, the results first; `--force` backs it up until the new run is finished.
_WRITTEN = ("results.json", "table.csv", "metrics.csv", "log.txt", "checkpoints", "tensorboard", "config.yaml")
_BEFORE = ".before"


class Comparison(NamedTuple):
    """How the config of an earlier run is compared with that of a new one: options that are `left_out`, for they have
    no influence on results, and `renamed`, which gives a stored config the names that options have today."""

    left_out: Collection[str] = ()
    renamed: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict


SAME = Comparison()


def execute(
    folder: Path,
    identity: Identity,
    config: Mapping[str, Any],
    body: Callable[[Run], None],
    *,
    comparison: Comparison = SAME,
    resume: bool = False,
    force: bool = False,
    chief: bool = True,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run `body` in `folder`, or return what a finished run with the same config has stored there.

    `force` starts again in a folder that has a config of the same script. What the earlier run wrote (results, tables,
    log, checkpoints and the artifacts that its results name) is backed up in `.before` and removed once the new run is
    finished. Everything else there is left alone, and nothing outside is touched. Input that is refused before there is
    anything to continue from leaves the folder as it was. `check` refuses what can be refused before anything is
    written; it is not called where there are results already.

    Errors: `UserError` for a folder of something else, of another config (naming the field), of an unfinished run
    without `resume`, of a run that another process is writing, and for a folder that cannot be written.
    """

    def stored() -> dict[str, Any] | None:
        # The chief has written the config before its workers look: to them it is an unfinished run.
        return find_finished(folder, identity, config, comparison, resume=resume or not chief, force=force)

    if (results := stored()) is not None:
        return _finished_before(folder, results)
    check()
    if not chief:
        run = Run(folder, identity, config, chief=False)
        body(run)
        return run.finish()
    with locked(folder):
        # Another process may have finished before the lock was taken.
        if (results := stored()) is not None:
            return _finished_before(folder, results)
        begun = begin(folder, identity, config, force=force)
        run = Run(folder, identity, config)
        try:
            body(run)
        except UserError:
            if begun and not run.checkpoints.exists() and not (folder / "metrics.csv").exists():
                _rollback(folder)
            raise
        results = run.finish()
        _remove(folder / _BEFORE)
        return results


def execute_seeds(
    folder: Path,
    identity: Identity,
    config: Mapping[str, Any],
    child: Callable[[int, Path], dict[str, Any]],
    *,
    comparison: Comparison = SAME,
    force: bool = False,
    chief: bool = True,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run `child(seed, folder / "seed-<seed>")` for each of `config["seeds"]` and write their mean and spread.

    The config may be followed by one with more seeds; finished seeds are not run again unless `force`. `check` as in
    `execute`.
    """
    seeds = list(config["seeds"])
    stored = find_finished(folder, identity, config, comparison, resume=True, force=force)
    if stored is not None and stored["seed"] == seeds:
        return _finished_before(folder, stored)
    check()
    with locked(folder) if chief else contextlib.nullcontext():
        if chief and force:
            # All of them now: an interrupted run must not be completed by seeds that were finished before it.
            for seed in seeds:
                if read_owner(folder / f"seed-{seed}") == identity[:2]:
                    _backup(folder / f"seed-{seed}")
        if chief:
            # Settled above: the old config is this one, perhaps with fewer seeds.
            begin(folder, identity, config, force=True)
        children = []
        for i, seed in enumerate(seeds):
            log(f"{identity.script}: seed {seed} ({i + 1} of {len(seeds)})")
            children.append(child(seed, folder / f"seed-{seed}"))
        results = _joined(identity, config, seeds, children)
        if chief:
            rows = [row for seed in seeds for row in read_csv(folder / f"seed-{seed}" / "table.csv")]
            write_csv(folder / "table.csv", identity.all_columns, rows)
            write_results(folder, results)
            _remove(folder / _BEFORE)
    return results


def find_finished(
    folder: Path,
    identity: Identity,
    config: Mapping[str, Any],
    comparison: Comparison = SAME,
    *,
    resume: bool = False,
    force: bool = False,
) -> dict[str, Any] | None:
    """The results stored in `folder` for `config`, or None when a run may start or continue there; writes nothing.

    Errors: as `execute`.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; choose another --out")
    owner = read_owner(folder)
    if owner is None:
        if foreign := sorted(entry.name for entry in folder.iterdir() if not _ours(entry)):
            raise UserError(f"{folder}: holds {foreign[0]} but no config.yaml of a run; choose an empty or new --out")
        return None
    if owner != (identity.app, identity.script):
        raise UserError(f"{folder}: holds a run of {'/'.join(owner)}; choose another --out or --name")
    if force:
        return None
    old = comparison.renamed(read_config(folder))
    ignored = set(comparison.left_out)
    if config.get("seeds") and old.get("seeds"):
        ignored |= {"seed", "seeds"}
    for key in [*config, *(key for key in old if key not in config)]:
        if key not in ignored and old.get(key) != config.get(key):
            raise UserError(
                f"{folder}: was run with {key} {_shown(old.get(key))}, now {_shown(config.get(key))};"
                " choose another --name or --out, or --force to start again"
            )
    if not (folder / "results.json").exists():
        if not resume:
            raise UserError(f"{folder}: holds an unfinished run; --resume to continue it or --force to start again")
        return None
    return read_results(folder)


def begin(folder: Path, identity: Identity, config: Mapping[str, Any], *, force: bool) -> bool:
    """Make `folder` this run's: under `force` back up what the last one wrote, and write `config.yaml`.

    An unfinished run that is continued keeps its config and its files; then the answer is False.
    """
    if read_owner(folder) is not None:
        if not force:
            return False
        _backup(folder)
    header = f"# {identity.app}/{identity.script}: the options of this run, as --config takes them\n"
    write_text(folder / "config.yaml", header + dump(config))
    return True


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create `folder` and hold its `.lock`; `UserError` when another process does or it cannot be written."""
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 20).decode("ascii", "replace").strip() or "unknown"
            raise UserError(
                f"{path}: process {holder} is writing this run; wait for it, or choose another --name or --out"
            ) from None
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(handle)


def _joined(identity: Identity, config: Mapping[str, Any], seeds: list[int], children: list[dict]) -> dict[str, Any]:
    """Results over seeds: the mean of each metric that every seed has, with its sample standard deviation."""
    metrics: dict[str, float] = {}
    for key in children[0]["metrics"]:
        if not all(key in child["metrics"] for child in children) or is_bound(key, children[0]["metrics"]):
            continue
        values = [child["metrics"][key] for child in children]
        mean = statistics.fmean(values)
        if key.endswith("_n"):
            metrics[key] = int(mean) if mean.is_integer() else mean
        else:
            metrics |= {key: mean, f"{key}_std": statistics.stdev(values)}

    def agreed(values: Sequence[Any]) -> Any:
        distinct = list(dict.fromkeys(values))
        return distinct[0] if len(distinct) == 1 else ", ".join(map(str, distinct))

    return {
        "app": identity.app,
        "script": identity.script,
        "command": identity.command,
        "dataset": agreed([child["dataset"] for child in children]),
        "data_sha256": agreed([child["data_sha256"] for child in children]),
        "seed": seeds,
        "metrics": metrics,
        "artifacts": {
            f"seed-{seed}/{name}": f"seed-{seed}/{path}"
            for seed, child in zip(seeds, children, strict=True)
            for name, path in child["artifacts"].items()
        },
        "config": dict(config),
        "environment": {
            key: agreed([child["environment"].get(key, "unknown") for child in children])
            for key in children[0]["environment"]
        },
        "code": {
            name: agreed([child["code"][name] for child in children if name in child.get("code", {})])
            for name in sorted({name for child in children for name in child.get("code", {})})
        },
        "seconds": round(sum(child["seconds"] for child in children), 3),
    }


def _backup(folder: Path) -> None:
    """Move what an earlier run wrote to `.before`, and remove what an interrupted one left since."""
    finished = (folder / "results.json").exists()
    artifacts: list[str] = []
    with contextlib.suppress(UserError, AttributeError):
        # The artifacts of single seeds are replaced by the runs of those seeds.
        named = [str(name) for name in read_results(folder).get("artifacts", {}).values()]
        artifacts = [name for name in named if read_owner(folder.joinpath(*Path(name).parts[:1])) is None]
    if finished:
        _remove(folder / _BEFORE)
    # The results first: from there on the run counts as unfinished, whatever happens to the other files.
    for name in (*_WRITTEN, *artifacts):
        path = folder / name
        if folder.resolve() not in path.resolve().parents or path.name in (".lock", _BEFORE) or not path.exists():
            continue
        if finished:
            target = folder / _BEFORE / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
        else:
            _remove(path)


def _rollback(folder: Path) -> None:
    """Undo `begin`: the folder is as it was before the input was refused."""
    for name in _WRITTEN:
        _remove(folder / name)
    before = folder / _BEFORE
    # The results last: a run counts as finished only once all of it is back.
    for path in sorted(before.rglob("*"), key=lambda path: path.name == "results.json"):
        if path.is_file():
            target = folder / path.relative_to(before)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    _remove(before)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _ours(entry: Path) -> bool:
    """Whether an entry of a folder without config was left by runs: the lock, an incomplete write, another run."""
    return (
        entry.name in (".lock", _BEFORE)
        or (entry.name.startswith(".") and entry.suffix == ".part")
        or bool(read_owner(entry))
    )


def _finished_before(folder: Path, results: dict[str, Any]) -> dict[str, Any]:
    log(f"{folder}: finished before; these are its results (--force runs it again)")
    return results


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
