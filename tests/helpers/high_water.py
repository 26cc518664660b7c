"""The most memory that this program has held, for scripts that tests start."""

import resource
from pathlib import Path


def peak() -> int:
    """Bytes. From the kernel where it says so: `getrusage` begins with the peak of what started this program."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
