"""How far work has come: a bar with the time left on a terminal, a plain line every half minute in a file or a pipe.

    with Progress(len(x), "pgd") as progress:
        for block in blocks:
            ...
            progress.add(len(block))

    for path in track(paths, "reading", units="files"): ...
    for rows in blocks(len(x), 256, "pgd"): ...

Short work shows nothing, so anything that may take ten seconds on a user's data can have one. All of it goes
to stdout. `log` is the `print` that tears no bar.
"""

import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self, TypeVar

from common.files import printable

T = TypeVar("T")
Values = Callable[[], Mapping[str, float]]
"""What is measured on the way, by name; asked only when it is shown, since the answer may have to come from a GPU."""

# In seconds: time before a bar appears, between two updates of a bar, and between two lines in a file.
_APPEARS, _REDRAWN, _LINE = 1.0, 0.5, 30.0

_open: list["Progress"] = []


class Progress:
    """Progress of one piece of work, as a context; several may be open within each other.

    On a terminal it is a bar that appears after a second and remains when it is done, unless it is nested in another.
    Elsewhere it is a line such as `pgd: 120/500 images, 35 s, 110 s left` at most every half minute, and a last one
    if there was one before. The time left is what the pace since the first update makes of the rest: until then work
    compiles. One update says something only where it is a tenth of the work.
    """

    def __init__(
        self,
        total: int | None,
        title: str,
        *,
        units: str = "images",
        shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`total`: how many `units` there are, or None while unknown; it and `title` may be set later.

        Without `shown` nothing is printed, by `line` neither. `clock` gives seconds.
        """
        self.total, self.title = total, title
        self.done = 0
        self._units, self._shown, self._clock = units, shown, clock
        self._values: Values | None = None
        self._bar: Any = None
        self._skipped = 0
        self._paced: tuple[float, int] | None = None
        self._lines = False
        self._reported = -1

    def __enter__(self) -> Self:
        self._begun = self._clock()
        self._on_terminal = _is_terminal()
        self._next = self._begun + (_APPEARS if self._on_terminal else _LINE)
        _open.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and (self._bar is not None or (self._lines and self._reported != self.done)):
            self._show()
        self.close()

    def skip(self, count: int) -> None:
        """Count `count` units as done by an earlier run: they say nothing about the pace."""
        self.done = self._skipped = count

    def update(self, done: int, values: Values | None = None) -> None:
        """Set the units `done` in all, and the `values` to show."""
        self.done, self._values = done, values
        now = self._clock()
        if self._paced is None:
            self._paced = now, done
        if self._shown and now >= self._next:
            self._show()
            self._next = self._clock() + (_REDRAWN if self._on_terminal else _LINE)

    def add(self, count: int = 1, values: Values | None = None) -> None:
        """`count` more units are done."""
        self.update(self.done + count, values)

    def line(self, text: str) -> None:
        """Print a line that stays, such as the result of an epoch."""
        if self._shown:
            log(text)
            self._reported = self.done
            if not self._on_terminal:
                self._next = self._clock() + _LINE

    @property
    def seconds_left(self) -> float | None:
        """An estimate; None without a total or before anything is done."""
        if self.total is None:
            return None
        since, before = self._paced or (self._begun, self._skipped)
        if self.done == before:
            since, before = self._begun, self._skipped
            if 10 * (self.done - before) < self.total - before:
                return None
        if self.done <= before:
            return None
        return max(self.total - self.done, 0) * (self._clock() - since) / (self.done - before)

    def close(self) -> None:
        """End it as it is: a bar stays where it was."""
        if self in _open:
            _open.remove(self)
        if self._bar is not None:
            self._bar.close()
            self._bar = None
            sys.stdout.flush()

    def _show(self) -> None:
        parts = [duration(self._clock() - self._begun)]
        left = self.seconds_left
        if left is not None and self.done < self.total:
            parts.append(f"{duration(left)} left")
        text = ", ".join(parts)
        if self._values is not None:
            text += f"; {values_text(self._values())}"
        if self._on_terminal:
            self._draw(text)
        else:
            of = "" if self.total is None else f"/{self.total}"
            print(printable(f"{self.title}: {self.done}{of} {self._units}, {text}"), flush=True)
            self._lines, self._reported = True, self.done

    def _draw(self, text: str) -> None:
        known = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}" if self.total else "{n_fmt}{bar:0}"
        bar_format = f"{{desc}}: {known} {{unit}}{{postfix}}"
        if self._bar is None:
            arguments = {"unit": self._units, "dynamic_ncols": True, "leave": None, "bar_format": bar_format}
            arguments |= {"desc": printable(self.title), "total": self.total, "initial": self.done, "postfix": text}
            self._bar = _bar()(file=sys.stdout, **arguments)
            return
        self._bar.total, self._bar.n, self._bar.bar_format = self.total, self.done, bar_format
        self._bar.set_description_str(printable(self.title), refresh=False)
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.refresh()


def track(
    items: Iterable[T],
    title: str,
    *,
    total: int | None = None,
    units: str = "images",
    shown: bool = True,
) -> Iterator[T]:
    """`items`, with their `Progress`; `total` where they have no length."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    with Progress(total, title, units=units, shown=shown) as progress:
        for item in items:
            yield item
            progress.add()


def blocks(count: int, size: int, title: str, *, units: str = "images", shown: bool = True) -> Iterator[slice]:
    """`count` rows in slices of `size`, the last one shorter, with their `Progress`."""
    with Progress(count, title, units=units, shown=shown) as progress:
        for first in range(0, count, size):
            rows = slice(first, min(first + size, count))
            yield rows
            progress.add(rows.stop - first)


def log(text: str) -> None:
    """Print `text` on lines of its own, above the bars that are drawn."""
    text = printable(text)
    if any(progress._bar is not None for progress in _open):
        _bar().write(text, file=sys.stdout)
        sys.stdout.flush()
    else:
        print(text, flush=True)


def close_all() -> None:
    """Close what an exception has left open: an abandoned generator is not told of it."""
    for progress in reversed(_open[:]):
        progress.close()


def duration(seconds: float) -> str:
    """Seconds as one reads them: `0.4 s`, `35 s`, `12 min`, `3.5 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 119.5 * 60 else f"{seconds / 3600:.1f} h"


def values_text(values: Mapping[str, float]) -> str:
    """`loss 0.412, test accuracy 0.840` for what is measured under names with underscores."""
    return ", ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in values.items())


def _number(value: float) -> str:
    return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"


def _is_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


@functools.cache
def _bar() -> type:
    # Here, for no script's --help needs it.
    from tqdm import tqdm

    class Bar(tqdm):
        # A thread that looks after bars which are slow to be drawn again: ours are drawn when there is news.
        monitor_interval = 0

    # Its own default lock reaches across processes, by a semaphore of the system that may be missing in a container.
    Bar.set_lock(threading.RLock())
    return Bar
