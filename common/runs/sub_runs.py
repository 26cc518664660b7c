"""A script that runs other scripts and joins their tables."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import write_text
from common.runs.options import RunOptions, run_name
from common.runs.record import Run
from common.runs.script import Script


class SubRuns:
    """Runs of other scripts under the name of the one that joins them: started, continued or, under --force, started
    again. `results` are those of all parts so far.
    """

    def __init__(self, options: RunOptions, run: Run, *, shared: Sequence[str] = ()) -> None:
        """`shared`: further options, common to the app's scripts, that each part takes from `options`."""
        self.options, self.run, self.shared = options, run, shared
        self.name = run_name(options)
        self.results: list[dict[str, Any]] = []
        # What --force has started again: --resume after an interruption must take none that was finished before.
        self._renewed = run.checkpoints / "renewed.txt"

    def __call__(self, producer: Script, *place: str, **settings: Any) -> Path:
        """The finished run `<own name>/<place>`, its other settings from its section of the config."""
        name = "/".join((self.name, *place))
        wanted = part_options(self.options, producer, *place, shared=self.shared, **settings)
        self.run.log(f"-- {producer.name} {name}")
        anew = self._begins_anew(f"{producer.app} {producer.name} {name}")
        try:
            self.results.append(producer(dataclasses.replace(wanted, force=anew, resume=not anew)))
        except UserError:
            if anew and not self.results and self.run.chief:
                # Refused at once: there is nothing to continue.
                self._renewed.unlink()
                self._renewed.parent.rmdir()
            raise
        return producer.folder(wanted)

    def _begins_anew(self, part: str) -> bool:
        if not (self.options.force or self._renewed.is_file()):
            return False
        renewed = self._renewed.read_text(encoding="utf-8").splitlines() if self._renewed.is_file() else []
        if part in renewed:
            return False
        if self.run.chief:
            self._renewed.parent.mkdir(exist_ok=True)
            write_text(self._renewed, "".join(f"{line}\n" for line in (*renewed, part)))
        return True

    @property
    def minutes(self) -> float:
        """What all parts took, whichever process ran them: the joining run itself, resumed, takes seconds."""
        return sum(result["seconds"] for result in self.results) / 60


def part_options(
    options: RunOptions, producer: Script, *place: str, shared: Sequence[str] = (), **settings: Any
) -> Any:
    """Options of the run `<own name>/<place>` that `SubRuns` makes: `shared` from `options`, `settings`, and the rest
    from the producer's section of the config."""
    name = "/".join((run_name(options), *place))
    own = {field: getattr(options, field) for field in shared if field in producer.fields}
    return producer.options_from(dataclasses.replace(options, name=name), **(own | settings))
