"""What a process of a file or a repository may take. Apart from fetch.py: readers do without HTTP, and start sooner."""

from __future__ import annotations

import resource
import signal
from pathlib import Path


def limit(memory: int, seconds: int, wall: int) -> None:
    """Bound this process: bytes of memory more than now, seconds of CPU, seconds by the clock."""
    status = Path("/proc/self/status").read_text()
    now = int(status.partition("VmData:")[2].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (now + memory, now + memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Should the container's memory end all the same, it is this process that ends.
    Path("/proc/self/oom_score_adj").write_text("1000")
    signal.alarm(wall)  # whatever it is doing then, it ends
