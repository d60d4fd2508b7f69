"""The CPU cores that this process may use."""

import os
import sys


def available_cores() -> int:
    """How many there are: on a shared machine, those that the job was given (its CPU affinity)."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
