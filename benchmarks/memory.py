"""The memory a process has taken, from the kernel. Needs Linux (/proc)."""

from __future__ import annotations

import re
from pathlib import Path


def peak_mb() -> float:
    """The most this process has had in memory, in megabytes (10^6).

    Not from getrusage: its peak is the parent's where that was higher.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise SystemExit("/proc/self/status has no VmHWM")
    return round(int(found[1]) * 1024 / 1e6, 1)
