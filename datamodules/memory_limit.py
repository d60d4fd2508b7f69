"""How much memory this process may use: the machine has a limit, its control groups and SLURM can set lower ones."""

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

MEBIBYTE = 1 << 20
SLURM_LIMITS = (
    ("SLURM_MEM_PER_NODE", None),
    ("SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"),
    ("SLURM_MEM_PER_GPU", "SLURM_GPUS_ON_NODE"),
)
"""Variables with MiB of memory, and the variable with the number of units that each have so much."""


def memory_limit() -> int:
    """Bytes: the smallest of all limits that hold for this process."""
    return min([machine_memory(), *cgroup_limits(), *slurm_limits(os.environ)])


def machine_memory() -> int:
    """Bytes of memory of the machine; practically infinite where the system does not say (Windows)."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


def cgroup_limits(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Bytes that the control groups of this process allow, from its own group up to the root.

    A group may have no limit of its own while one above it has. Version 2 keeps the limits in `memory.max`, version 1
    in `memory/**/memory.limit_in_bytes`. In a container the groups above its own may be invisible; then the limit is at
    the root of what is mounted.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            mount, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for folder in (group, *group.parents):
            limit = read_limit(mount / folder / name)
            if limit is not None:
                yield limit


def read_limit(path: Path) -> int | None:
    """The number in a file; None if there is no such file, or it says "max"."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return int(text) if text.isdigit() else None


def slurm_limits(environment: Mapping[str, str]) -> Iterator[int]:
    """Bytes that a SLURM job has on this node; a value of 0 means the whole node."""
    for name, unit in SLURM_LIMITS:
        size, units = environment.get(name, ""), environment.get(unit, "") if unit else "1"
        if size.isdigit() and units.isdigit() and int(size):
            yield int(size) * int(units) * MEBIBYTE
