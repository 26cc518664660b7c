"""Run the commands and Python examples of the READMEs, as a newcomer would, in the repository root.

Blocks fenced as `sh` are run in order, then those fenced as `python`, joined into one program. In `sh full` (default
settings, minutes each; `make demo-full` has them), `sh download`, `sh gpu` and others with a word after the language,
the scripts' options are checked and nothing is run. Images that a README assumes are made first.
"""

import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

FENCE = re.compile(r"^```(sh|sh \w+|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SCRIPT = re.compile(r"python (\w+/\w+\.py)( .*)?")
# `make test` follows in .ci/run itself, and `make setup` is what made this Python.
ELSEWHERE = {"make test", "make setup"}


def photos(root: Path) -> None:
    """Two classes of full-size photographs, one of them turned by EXIF, one with alpha."""
    random = np.random.default_rng(0)
    for name, warmth in (("beach", (1.0, 0.9, 0.7)), ("forest", (0.5, 0.8, 0.5))):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(6):
            coarse = (random.uniform(60, 255, (9, 12, 3)) * warmth).astype(np.uint8)
            image = Image.fromarray(coarse).resize((480, 360) if i % 2 else (640, 480), Image.Resampling.BICUBIC)
            exif = Image.Exif()
            if i == 0:
                exif[0x0112] = 6
            image.save(root / name / f"{i}.jpg", exif=exif, quality=92)
    image = Image.fromarray(random.integers(0, 256, (10, 10, 4), np.uint8), "RGBA")
    image.resize((300, 300), Image.Resampling.BICUBIC).save(root / "forest" / "cut_out.png")


def main(readmes: list[str]) -> None:
    photos(Path("my_photos"))
    for readme in readmes:
        blocks = FENCE.findall(Path(readme).read_text("utf-8"))
        for language, code in blocks:
            lines = (line.split("  #")[0].strip() for line in code.replace("\\\n", " ").splitlines())
            for command in (line for line in lines if line and not line.startswith("#") and line not in ELSEWHERE):
                if language == "sh":
                    _run(["bash", "-c", command], f"{readme}: {command}")
                elif language != "python" and SCRIPT.fullmatch(command):
                    _run(["bash", "-c", f"{command} --print-config"], f"{readme}: options of {command}")
        if examples := "".join(code for language, code in blocks if language == "python"):
            _run([sys.executable, "-c", examples], f"{readme}: Python examples")


def _run(command: list[str], title: str) -> None:
    started, worked = time.monotonic(), _worked()
    print(f"-- {title}", flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{title}: status {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    print(f"   {time.monotonic() - started:.1f} s, {_worked() - worked:.1f} s of processor time", flush=True)


def _worked() -> float:
    """Seconds of processor time that ended commands have taken."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main(sys.argv[1:])
