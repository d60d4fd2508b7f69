"""The CPU cores that this process may use, and the processor that they belong to."""

import os
import platform
import sys
from pathlib import Path


def available_cores() -> int:
    """The number of cores in this process's CPU affinity, which on a shared machine are those of the job."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def cpu_info() -> dict[str, str]:
    """What Linux says about the first core, by its names; empty on other systems."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    entries = [line.split(":", 1) for line in reversed(lines) if ":" in line]
    return {name.strip(): value.strip() for name, value in entries}


def processor_name() -> str:
    """The processor's name, or only its architecture where the system does not tell."""
    return cpu_info().get("model name") or platform.processor() or platform.machine()
