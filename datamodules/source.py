"""The samples of a split as they are stored, before any augmentation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

Sample = tuple[np.ndarray, np.ndarray | int, str]
"""Image uint8 `(H, W, 3)` RGB; mask uint8 `(H, W)` with 255 = ignore, or the class; a name."""


class Source(Protocol):
    """Samples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


@runtime_checkable
class FileSource(Source, Protocol):
    """Samples that are decoded from files of their own; `datamodules/store.py` keeps what comes of it."""

    def paths(self, index: int) -> Sequence[Path]:
        """What is read for a sample."""
        ...

    def recipe(self, index: int) -> Any:
        """What else the sample depends on, to be pickled: how the files are read, and the class."""
        ...
