"""Splits whose samples are files: images with masks, and images with a class each."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datamodules.bands import RGB, read_channels
from datamodules.collate import IGNORE_INDEX
from datamodules.decoding import WHITE, read_mask
from datamodules.errors import DataError
from datamodules.packed_paths import PackedPaths
from datamodules.pairing import Pair


class MaskedImages:
    """A split of image and mask files.

    `labels` gives the meaning of a stored value: a class, or 255 = ignore. Other values are errors, and `fix` ends the
    message of such an error. `read` returns the stored values of a mask file. `white` may be set to the level of white
    in images of more than 8 bits, `in_channels` to the number of their bands.
    """

    def __init__(
        self, pairs: list[Pair], labels: Mapping[int, int], fix: str, read: Callable[[Path], np.ndarray] = read_mask
    ) -> None:
        self.pairs = pairs
        self.labels = dict(labels)
        self.fix = fix
        self.read = read
        self.white = WHITE
        self.in_channels = RGB

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, str]:
        name, image_path, mask_path = self.pairs[index]
        image = read_channels(image_path, self.in_channels, white=self.white)
        mask = self.mask(index)
        if mask.shape != image.shape[:2]:
            (h, w), (ih, iw) = mask.shape, image.shape[:2]
            turned = " (EXIF data turn images, not masks)" if (h, w) == (iw, ih) else ""
            raise DataError(
                f"{mask_path} is {w}x{h} but {image_path} is {iw}x{ih}{turned}; both must be of one size",
                "size mismatch",
            )
        return image, mask, name

    def paths(self, index: int) -> tuple[Path, ...]:
        """Image and mask."""
        return self.pairs[index].image, self.pairs[index].mask

    def decoding_key(self, index: int) -> tuple[Any, ...]:
        """How masks and deep images are read."""
        return self.labels, self.read, self.white, self.in_channels

    def mask(self, index: int) -> np.ndarray:
        """Classes `(H, W)` as uint8, 255 = ignore.

        Raises:
            ValueError: the file cannot be read, or holds a value that `labels` does not name.
        """
        stored = self.read(self.pairs[index].mask)
        size = 1 + max(255, *self.labels)
        table, unknown = np.zeros(size, np.uint8), np.ones(size, np.uint8)
        table[list(self.labels)], unknown[list(self.labels)] = list(self.labels.values()), 0
        if stored.dtype == np.uint8:
            wrong = cv2.LUT(stored, unknown[:256]).astype(bool)
        else:
            clipped = np.clip(stored, 0, size - 1)
            wrong = unknown[clipped].astype(bool) | (clipped != stored)
        if wrong.any():
            raise self.unknown_label(index, int(stored[wrong].min()))
        return cv2.LUT(stored, table[:256]) if stored.dtype == np.uint8 else table[stored]

    def unknown_label(self, index: int, value: int) -> DataError:
        """The error of a mask that holds a value without a meaning."""
        classes = [stored for stored, label in self.labels.items() if label != IGNORE_INDEX]
        ignored = [stored for stored, label in self.labels.items() if label == IGNORE_INDEX]
        allowed = spans(classes) + (f" and {spans(ignored)} (ignored)" if ignored else "")
        path = self.pairs[index].mask
        return DataError(f"{path} has the label value {value}; allowed are {allowed}; {self.fix}", "unknown label")


def identity(num_classes: int, ignored: Sequence[int] = (IGNORE_INDEX,)) -> dict[int, int]:
    """The `labels` of masks that store classes as they are, and values to be ignored."""
    return {label: label for label in range(num_classes)} | dict.fromkeys(ignored, IGNORE_INDEX)


def spans(values: Sequence[int], most: int = 8) -> str:
    """Numbers in words, shortened beyond `most` spans: "0 to 10 and 255"."""
    parts: list[list[int]] = []
    for value in sorted(values):
        if parts and value == parts[-1][1] + 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    words = [str(first) if first == last else f"{first} to {last}" for first, last in parts]
    if len(words) > most:
        words = [*words[: most - 1], "...", words[-1]]
    return ", ".join(words[:-1]) + " and " * (len(words) > 1) + words[-1] if words else "none"


class LabelledImages:
    """A split of image files with a class each.

    `min_side` may be set to the pixels that both sides need to have, `white` to the level of white in images of more
    than 8 bits, `in_channels` to the number of their bands.
    """

    def __init__(self, files: list[tuple[Path, int]]) -> None:
        self.files = PackedPaths(path for path, _ in files)
        self.labels = np.array([label for _, label in files], np.int64)
        self.min_side: int | None = None
        self.white = WHITE
        self.in_channels = RGB

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, str]:
        path, label = self.files[index], int(self.labels[index])
        return (
            read_channels(path, self.in_channels, self.min_side, self.white),
            label,
            f"{path.parent.name}/{path.stem}",
        )

    def paths(self, index: int) -> tuple[Path, ...]:
        """The image."""
        return (self.files[index],)

    def class_labels(self) -> np.ndarray:
        """The class of each image, int64 `(N,)`."""
        return self.labels

    def decoding_key(self, index: int) -> tuple[Any, ...]:
        """The class, how large the image must be, and how deep images are read."""
        return int(self.labels[index]), self.min_side, self.white, self.in_channels
