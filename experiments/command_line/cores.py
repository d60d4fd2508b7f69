"""The CPU cores that this process may use."""

import os
import sys


def available_cores() -> int:
    """The number of cores in this process's CPU affinity, which on a shared machine are those of the job."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
