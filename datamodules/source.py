"""The samples of a split as they are stored, before any augmentation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from datamodules.objects import Objects

Sample = tuple[np.ndarray, np.ndarray | int | Objects, str]
"""Image uint8 `(H, W, 3)` RGB; mask uint8 `(H, W)` with 255 = ignore, or the class, or the objects; a name."""


class Source(Protocol):
    """Samples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


@runtime_checkable
class FileSource(Source, Protocol):
    """Samples that are decoded from files, so that caching the result saves time; see `datamodules/sample_cache.py`."""

    def paths(self, index: int) -> Sequence[Path]:
        """The files that a sample is read from."""
        ...

    def decoding_key(self, index: int) -> Any:
        """Everything else that the sample depends on, as picklable values: how its files are read, and its class."""
        ...


@runtime_checkable
class SourceWithClasses(Protocol):
    """Samples whose classes are known without decoding their images."""

    def class_labels(self) -> np.ndarray | None:
        """The class of each sample, int64 `(N,)`; None if the samples have masks instead."""
        ...


@runtime_checkable
class SourceOfSeveralLabels(Protocol):
    """Samples that have any number of labels. The target of each is its number in the source."""

    def labels_of(self, number: int) -> np.ndarray:
        """0 or 1 for each class, uint8 `(C,)`."""
        ...
