"""Progress: plain lines in a file, a bar on a terminal that no other line tears."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import textwrap
from pathlib import Path

import numpy as np
import pytest

from common import progress
from common.progress import Progress, blocks, duration, log, track, values_text

ROOT = Path(progress.__file__).resolve().parent.parent


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def printed(capsys):
    """The lines printed so far; none of them has a control character."""

    def lines():
        text = capsys.readouterr().out
        assert not re.search(r"[^\n\x20-\x7e]", text), repr(text)
        assert text == "" or text.endswith("\n")
        return text.splitlines()

    return lines


def at(clock, bar, seconds, done, values=None):
    clock.now = seconds
    bar.update(done, values)


def test_a_file_gets_a_line_every_half_minute(clock, printed):
    with Progress(500, "pgd", clock=clock) as bar:
        for second in range(1, 70):
            at(clock, bar, second, 5 * second)
        clock.now = 100
        bar.update(500)
    assert printed() == [
        "pgd: 150/500 images, 30 s, 70 s left",
        "pgd: 300/500 images, 60 s, 40 s left",
        "pgd: 500/500 images, 100 s",
    ]


def test_a_last_line_follows_others_only(clock, printed):
    with Progress(3, "quick", clock=clock) as bar:
        at(clock, bar, 29, 3)
    assert list(track([1, 2, 3], "items")) == [1, 2, 3]
    assert [(rows.start, rows.stop) for rows in blocks(5, 2, "rows")] == [(0, 2), (2, 4), (4, 5)]
    assert printed() == []
    clock.now = 0
    with Progress(4, "long", units="files", clock=clock) as bar:
        at(clock, bar, 31, 1)
        at(clock, bar, 32, 4)
    assert printed() == ["long: 1/4 files, 31 s, 93 s left", "long: 4/4 files, 32 s"]


def test_what_ends_by_an_exception_has_no_last_line(clock, printed):
    with pytest.raises(KeyboardInterrupt), Progress(4, "long", clock=clock) as bar:
        at(clock, bar, 31, 1)
        bar.update(2)
        raise KeyboardInterrupt
    assert len(printed()) == 1 and progress._open == []


def test_nothing_is_printed_unless_it_is_shown(clock, printed):
    with Progress(4, "silent", shown=False, clock=clock) as bar:
        at(clock, bar, 100, 1)
        bar.line("epoch 1/1: loss 0")
    assert printed() == []


def test_values_are_asked_only_when_they_are_shown(clock, printed):
    asked = []

    def values():
        asked.append(clock.now)
        return {"loss": 0.41236, "test_accuracy": 0.84, "tiny": 3.2e-5, "none": 0.0}

    with Progress(100, "epoch 1/2", units="steps", clock=clock) as bar:
        for second in range(1, 60):
            at(clock, bar, second, second, values)
    assert asked == [30, 59]
    line = "epoch 1/2: 30/100 steps, 30 s, 70 s left; loss 0.412, test accuracy 0.840, tiny 3.2e-05, none 0.000"
    assert printed()[0] == line


def test_the_pace_is_that_since_the_first_update(clock):
    """The first update waits for a compilation, and what was skipped took no time at all."""
    with Progress(1000, "resumed", shown=False, clock=clock) as bar:
        assert bar.seconds_left is None
        bar.skip(500)
        assert bar.seconds_left is None
        at(clock, bar, 20, 510)
        assert bar.seconds_left is None
        at(clock, bar, 30, 610)
        assert bar.seconds_left == pytest.approx(10 / 100 * 390)
    with Progress(1000, "few and long", shown=False, clock=clock) as bar:
        clock.now = 40
        bar.update(250)
        assert bar.seconds_left == pytest.approx(10 / 250 * 750)


def test_an_unknown_total_may_become_known(clock, printed):
    with Progress(None, "reading", units="drivers", clock=clock) as bar:
        at(clock, bar, 30, 3)
        bar.total = 7
        at(clock, bar, 60, 6)
    assert printed() == ["reading: 3 drivers, 30 s", "reading: 6/7 drivers, 60 s, 10 s left"]


def test_a_line_that_stays_puts_the_next_one_off(clock, printed):
    with Progress(4, "epochs", units="steps", clock=clock) as bar:
        at(clock, bar, 30, 1)
        clock.now = 50
        bar.line("epoch 1/2: loss 0.500")
        at(clock, bar, 70, 2)
        at(clock, bar, 80, 4)
        bar.line("epoch 2/2: loss 0.400")
    lines = printed()
    assert [line.split(":")[0] for line in lines] == ["epochs", "epoch 1/2", "epochs", "epoch 2/2"]
    assert lines[2] == "epochs: 4/4 steps, 80 s"


def test_lines_of_nested_work_follow_each_other(clock, printed):
    with Progress(2, "outer", units="steps", clock=clock) as outer:
        at(clock, outer, 31, 1)
        with Progress(2, "inner", clock=clock) as inner:
            at(clock, inner, 62, 1)
            log("said")
        at(clock, outer, 63, 2)
    assert [line.split(":")[0] for line in printed()] == ["outer", "inner", "said", "outer"]


def test_durations_are_short():
    found = [duration(seconds) for seconds in (0.04, 9.94, 9.96, 119.4, 119.6, 119.4 * 60, 7200)]
    assert found == ["0.0 s", "9.9 s", "10 s", "119 s", "2 min", "119 min", "2.0 h"]
    assert values_text({"a_b": 12345.6, "c": float("nan")}) == "a b 1.23e+04, c nan"


def screen(written):
    """The lines on a terminal to which `written` was sent; without those that are empty."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[\w|.|\n", written.replace("\r\n", "\n\r"), re.DOTALL):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part.startswith("\x1b"):
            assert part == "\x1b[A", repr(part)
            row -= 1
        else:
            lines[row] = (lines[row][:column].ljust(column) + part + lines[row][column + 1 :])[:100]
            column += 1
    return [line.rstrip() for line in lines if line.strip()]


def on_terminal(folder, code, *, interrupt_at=None):
    """What a script of this `code` writes to a terminal of 100 columns, and its exit status."""
    script = folder / "script.py"
    head = "from common import progress\nprogress._APPEARS = progress._REDRAWN = 0\n"
    script.write_text(head + textwrap.dedent(code))
    mine, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TQDM_")}
    environment |= {"TERM": "xterm", "PYTHONIOENCODING": "utf-8", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, script], stdout=its, stderr=its, cwd=folder, env=environment)
    os.close(its)
    written = b""
    while True:
        try:
            read = os.read(mine, 4096)
        except OSError:  # so Linux tells the end of it
            break
        if not read:
            break
        written += read
        if interrupt_at is not None and interrupt_at in written:
            process.send_signal(signal.SIGINT)
            interrupt_at = None
    os.close(mine)
    return written.decode(), process.wait(timeout=20)


def test_a_terminal_has_a_bar_and_whole_lines_above_it(tmp_path):
    written, status = on_terminal(
        tmp_path,
        """
        with progress.Progress(3, "pgd") as bar:
            for _ in range(3):
                bar.add(1, lambda: {"loss": 0.5})
                progress.log(f"said {_}")
        print("after")
    """,
    )
    assert status == 0 and "\r" in written
    *said, bar, after = screen(written)
    assert said == ["said 0", "said 1", "said 2"] and after == "after"
    assert re.fullmatch(r"pgd: 100% \|\S+\| 3/3 images, \d\.\d s; loss 0\.500", bar), bar


def test_a_terminal_has_nested_bars_of_which_the_outer_stays(tmp_path):
    written, status = on_terminal(
        tmp_path,
        """
        with progress.Progress(None, "outer", units="steps") as outer:
            outer.add()
            for _ in progress.track("abc", "inner"):
                progress.log(f"said {_}")
            outer.line("epoch 1/1: loss 0.400")
            outer.add()
        print("after")
    """,
    )
    assert status == 0 and "inner:  67%" in written
    *said, bar, after = screen(written)
    assert said == ["said a", "said b", "said c", "epoch 1/1: loss 0.400"] and after == "after"
    assert re.fullmatch(r"outer: 2 steps, \d\.\d s", bar), bar


def test_a_terminal_shows_no_bar_for_quick_work(tmp_path):
    written, status = on_terminal(
        tmp_path,
        """
        progress._APPEARS = 60
        for _ in progress.track("abc", "quick"):
            progress.log("said")
    """,
    )
    assert status == 0 and written == "said\r\n" * 3


def test_an_interruption_leaves_its_message_on_a_line_of_its_own(tmp_path):
    """Also where the bar is that of a generator, which hears of nothing."""
    code = """
        import time
        from dataclasses import dataclass
        from common.runs.options import RunOptions
        from common.runs.script import script
        from common.runs.record import Run

        @dataclass(kw_only=True)
        class Options(RunOptions):
            dataset: str = "none"

        @script(app="app", name="long")
        def long(options: Options, run: Run) -> None:
            with progress.Progress(4, "outer", units="steps") as outer:
                outer.add()
                for _ in progress.blocks(1000, 1, "inner"):
                    time.sleep(0.02)

        long.main([])
    """
    written, status = on_terminal(tmp_path, code, interrupt_at=b"5/1000")
    assert status == 130
    *bars, message = screen(written)
    assert message == "long: interrupted; continue with --resume"
    # An interruption in the middle of a redraw leaves what was drawn before beside it.
    assert {bar.split(":")[0] for bar in bars} <= {"outer", "inner"}, bars


def test_a_dumb_terminal_gets_lines(monkeypatch, capsys, clock):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    with Progress(2, "lines", clock=clock) as bar:
        at(clock, bar, 31, 1)
    assert capsys.readouterr().out == "lines: 1/2 images, 31 s, 31 s left\n"


def test_no_script_loads_the_bar_for_its_help():
    code = "import sys, common.runs.script; sys.exit('tqdm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_no_other_bar_is_used():
    """Keras's own takes every process for a terminal."""
    packages = [path.parent for path in ROOT.glob("*/__init__.py")]
    assert len(packages) >= 7
    for path in (*ROOT.glob("*.py"), *(path for package in packages for path in package.rglob("*.py"))):
        text = path.read_text(encoding="utf-8")
        assert "Progbar" not in text, path
        assert path == ROOT / "common/progress.py" or not re.search(r"^ *(import|from) tqdm", text, re.MULTILINE), path


def test_a_training_has_a_line_for_each_epoch(printed, monkeypatch, tmp_path):
    from tests.helpers.training_toys import fit, network

    # The parts of the loss are in the history, not in the line.
    measured = {"evaluate": lambda: {"test_accuracy": 0.5}, "weight_decay": 0.01}
    measured |= {"checkpoint_folder": tmp_path, "verbose": True}
    fit(network(), epochs=1, **measured)
    values = r"loss \d\.\d{3}, accuracy \d\.\d{3}, test accuracy 0\.500; \d+(\.\d)? s"
    (line,) = printed()
    assert re.fullmatch(rf"epoch 1/1: {values}", line), line
    monkeypatch.setattr(progress, "_LINE", 0.0)
    fit(network(), epochs=3, resume=True, **measured)
    *second, line, _, _, _, last = printed()
    # Three batches an epoch; the first epoch was done before.
    assert [step.split(",")[0] for step in second] == [f"epoch 2/3: {done}/9 steps" for done in (4, 5, 6)]
    assert re.fullmatch(rf"epoch 2/3: {values}, \d+(\.\d)? s left", line), line
    assert re.fullmatch(rf"epoch 3/3: {values}", last), last


def test_quick_epochs_share_a_line(printed, monkeypatch):
    from common.training import loop
    from tests.helpers.training_toys import fit, network

    monkeypatch.setattr(loop, "_LINE_APART", 1e9)
    fit(network(), epochs=4, verbose=True)
    assert [line.split(":")[0] for line in printed()] == ["epoch 1/4", "epoch 4/4"]


def test_a_training_counts_steps_whose_number_nobody_knows(printed, monkeypatch):
    import tensorflow as tf

    from common.training import loop
    from tests.helpers.training_toys import data, network, sgd

    x, y = data(32)
    batches = tf.data.Dataset.from_tensor_slices((x.astype(np.float32) / 255, y)).batch(16).filter(lambda x, y: True)
    monkeypatch.setattr(progress, "_LINE", 0.0)
    loop.train(network(), lambda epoch: batches, loop.cross_entropy, sgd(), epochs=2)
    steps = [re.match(r"(epoch ./2: \S+)", line)[1] for line in printed()]
    assert steps == [f"epoch {at}" for at in ("1/2: 1", "1/2: 2", "1/2: loss", "2/2: 3/4", "2/2: 4/4", "2/2: loss")]
