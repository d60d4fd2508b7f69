"""Counts the labels that all masks of a split hold, before training; the result is cached if that took long."""

import os
import pickle
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from datamodules.cache_folder import cache_folder, read_json, write_json
from datamodules.checking import PATIENCE, in_threads
from datamodules.collate import IGNORE_INDEX
from datamodules.files import MaskedImages

FORMAT = 1
"""To be raised if the meaning of a cached file changes."""
MANY = 8
"""Labels in a mask above which it may be one of soft edges or of object numbers."""


class MaskLabels(NamedTuple):
    """The stored values of one mask."""

    values: np.ndarray
    """Sorted."""
    kept: np.ndarray
    """The values that remain after shrinking."""
    deep: bool
    """Whether they are stored in more than 8 bits."""
    between: int
    """Pixels of neither the lowest nor the highest value, in masks of many values."""
    ramp: int
    """Those of them with a lower and a higher value beside them."""


@dataclass
class LabelCounts:
    """The stored values of all masks of a split."""

    masks: int = 0
    first: dict[str, int] = field(default_factory=dict)
    """Value, as text because JSON has no other keys -> index of the first mask that holds it."""
    kept: list[int] = field(default_factory=list)
    """Values of which a pixel remains after shrinking, in any mask."""
    ignored_alone: int = 0
    """Masks of 255 and no other value but 0."""
    ignored_with_labels: int = 0
    """Masks of 255 and other values besides 0."""
    many: int = 0
    """Masks of many values."""
    numbered: int = 0
    """Those of them whose values, without 0, run from 1 without gaps."""
    highest: list[int] = field(default_factory=list)
    """The different highest values of those."""
    deep: bool = False
    """Whether any mask is stored in more than 8 bits."""
    between: int = 0
    ramp: int = 0

    @property
    def values(self) -> list[int]:
        """All values that occur, sorted."""
        return sorted(map(int, self.first))

    @property
    def labels(self) -> list[int]:
        """All but 255."""
        return [value for value in self.values if value != IGNORE_INDEX]

    @property
    def soft(self) -> bool:
        """Whether nearly all pixels of many values lie between lower and higher ones, as smoothing leaves them."""
        return self.ramp > 0.7 * self.between

    @property
    def numbers_objects(self) -> bool:
        """Whether the values look like numbers of objects: 1, 2, ... without gaps, in 16 bits or up to a different
        number in each mask."""
        varies = len(self.highest) > 2
        return self.many > self.masks / 2 and self.numbered == self.many and (varies or self.deep)


def scan_labels(source: MaskedImages, size: tuple[int, int], data_dir: Path, *, tolerant: bool = False) -> LabelCounts:
    """Read all masks of a split in threads and count their stored values, before and after shrinking to `size`.

    With `tolerant`, masks that cannot be read are left out.

    Raises:
        ValueError: a mask cannot be read.
    """
    name = f"mask-labels-{state_hash(source, size)}.json"
    files = [folder / name for folder in (data_dir / ".graft", cache_folder()) if folder is not None]
    for path in files:
        cached = read_json(path)
        if cached is not None:
            return LabelCounts(**cached)
    start = time.monotonic()
    jobs = [partial(labels_of, source, index, size) for index in range(len(source))]
    counts = add_up(in_threads("Counting the labels of the masks", jobs, tolerant=tolerant))
    if time.monotonic() - start > PATIENCE and counts.masks == len(source):
        any(write_json(path, asdict(counts)) for path in files)  # to the first that can be written
    return counts


def labels_of(source: MaskedImages, index: int, size: tuple[int, int]) -> tuple[int, MaskLabels]:
    """The index, and the stored values of its mask."""
    mask = source.read(source.pairs[index].mask)
    if mask.dtype == np.uint8:
        values = np.flatnonzero(cv2.calcHist([mask], [0], None, [256], [0, 256]))
    else:
        values = np.unique(mask)
    between = ramp = 0
    if len(values) > MANY:
        levels = mask if mask.dtype == np.uint8 else mask.astype(np.float32)
        middle = (mask > values[0]) & (mask < values[-1])
        around = np.ones((3, 3), np.uint8)
        rising = (cv2.erode(levels, around) < levels) & (cv2.dilate(levels, around) > levels)
        between, ramp = int(middle.sum()), int((middle & rising).sum())
    return index, MaskLabels(values, shrunk_values(mask, size, values), mask.dtype != np.uint8, between, ramp)


def shrunk_values(mask: np.ndarray, size: tuple[int, int], values: np.ndarray) -> np.ndarray:
    """The values that are left where `mask` is resized to `size` (H, W), as training does it."""
    if mask.shape[0] <= size[0] and mask.shape[1] <= size[1]:
        return values
    small = mask if mask.dtype == np.uint8 else mask.astype(np.int32)
    return np.unique(cv2.resize(small, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT))


def add_up(masks: list[tuple[int, MaskLabels]]) -> LabelCounts:
    total = LabelCounts(masks=len(masks))
    kept: set[int] = set()
    highest: set[int] = set()
    for index, one in masks:
        values = one.values.tolist()
        for value in values:
            total.first.setdefault(str(value), index)
        kept.update(one.kept.tolist())
        if IGNORE_INDEX in values and max(values) == IGNORE_INDEX:
            alone = set(values) <= {0, IGNORE_INDEX}
            total.ignored_alone += alone
            total.ignored_with_labels += not alone
        if len(values) > MANY:
            total.many += 1
            total.numbered += values[-1] == len(values) - (values[0] == 0)
            highest.add(values[-1])
        total.deep |= one.deep
        total.between += one.between
        total.ramp += one.ramp
    total.kept, total.highest = sorted(kept), sorted(highest)
    return total


def state_hash(source: MaskedImages, size: tuple[int, int]) -> str:
    """A hash of the masks' names, sizes and dates, and of how they are read."""
    total = blake2b(pickle.dumps((FORMAT, size, source.read)), digest_size=16)
    for one in source.pairs:
        try:
            state = os.stat(one.mask)
        except OSError:  # reading names the file
            continue
        total.update(f"{os.path.abspath(one.mask)}\0{state.st_size} {state.st_mtime_ns}".encode("utf-8", "replace"))
    return total.hexdigest()
