"""Paths of many files in two arrays, which workers share after a fork, and get in milliseconds where they are spawned.

A list of a million `Path` objects takes seconds to pickle and unpickle for each spawned worker. Forked workers would
copy its memory page by page, because reading a Python object changes its reference count.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np


class PackedPaths:
    """A sequence of paths that cannot be changed."""

    def __init__(self, paths: Iterable[Path]) -> None:
        names = [os.fsencode(path) for path in paths]
        self.letters = np.frombuffer(b"".join(names), np.uint8)
        self.ends = np.cumsum([len(name) for name in names], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Path:
        """Raises IndexError beyond the last one."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} paths, none of number {index}")
        index %= len(self)
        start = self.ends[index - 1] if index else 0
        return Path(os.fsdecode(self.letters[start : self.ends[index]].tobytes()))
