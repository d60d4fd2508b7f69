"""Images, masks and class folders on disk: finding, pairing, reading and checking them."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from rich.progress import Progress

from datamodules.base import IGNORE_INDEX
from datamodules.errors import DataError

T = TypeVar("T")

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
MOST_CHECKED = 5_000
PATIENCE = 2.0
"""Seconds of checking before a progress bar appears."""


def list_images(folder: Path) -> dict[str, Path]:
    """All images under `folder`, sorted, by their path in it without suffix.

    Raises:
        ValueError: there is no such folder or no image in it, or two images differ in their suffix only.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; check --data-dir and the layout")
    images: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            key = path.relative_to(folder).with_suffix("").as_posix()
            if key in images:
                raise DataError(f"{images[key]} and {path} differ in their suffix only; keep one of them")
            images[key] = path
    if not images:
        raise DataError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}); check --data-dir")
    return images


class Pair(NamedTuple):
    """An image and its mask."""

    name: str
    image: Path
    mask: Path


def pair(images: Path, masks: Path) -> dict[str, Pair]:
    """Images and masks of the same name.

    Raises:
        ValueError: one is without the other.
    """
    found, labels = list_images(images), list_images(masks)
    for key, path in found.items():
        if key not in labels:
            raise DataError(f"{path} has no mask; add {masks / key}.png or remove the image")
    for key, path in labels.items():
        if key not in found:
            raise DataError(f"{path} has no image; add one named {key} to {images} or remove the mask")
    return {key: Pair(key, path, labels[key]) for key, path in found.items()}


def read_image(path: Path) -> np.ndarray:
    """uint8 `(H, W, 3)`, RGB.

    Raises:
        ValueError: the file is truncated or no image.
    """
    return np.array(decode(path, "RGB"))


def read_mask(path: Path) -> np.ndarray:
    """Label ids `(H, W)`: grey levels, or the indices of a palette image.

    Raises:
        ValueError: the file is truncated, no image, or has colours in place of ids.
    """
    image = decode(path, None)
    if image.mode not in ("L", "P", "1", "I", "I;16"):
        raise DataError(f"{path} has pixels of mode {image.mode}; save it as a grey or palette PNG of label ids")
    mask = np.array(image)
    return mask.astype(np.uint8) if mask.dtype == bool else mask


def decode(path: Path, mode: str | None) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert(mode) if mode else image.copy()
    except Exception as error:  # Decoders raise what they like: OSError, SyntaxError, struct.error, ...
        reason = " ".join(str(error).replace(f"'{path}'", "").split()) or type(error).__name__
        raise DataError(f"{path} cannot be read ({reason}); replace the file or remove it") from None


class MaskedImages:
    """A split of image and mask files.

    Labels from 0 to `num_classes - 1` are classes, those in `ignored` become 255, and others are errors. `fix` ends
    the message of such an error.
    """

    def __init__(self, pairs: list[Pair], num_classes: int, ignored: tuple[int, ...], fix: str) -> None:
        self.pairs = pairs
        self.num_classes = num_classes
        self.ignored = ignored
        self.fix = fix

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, str]:
        name, image_path, mask_path = self.pairs[index]
        image, mask = read_image(image_path), read_mask(mask_path)
        if mask.shape != image.shape[:2]:
            (h, w), (ih, iw) = mask.shape, image.shape[:2]
            raise DataError(f"{mask_path} is {w}x{h} but {image_path} is {iw}x{ih}; both must be of one size")
        known = (mask >= 0) & (mask < self.num_classes)
        if not known.all():
            unknown = set(np.unique(mask[~known]).tolist()) - set(self.ignored)
            if unknown:
                ignored = " and ".join(map(str, self.ignored))
                raise DataError(
                    f"{mask_path} has the label value {min(unknown)}; "
                    f"allowed are 0 to {self.num_classes - 1} and {ignored} (ignored); {self.fix}"
                )
            mask = np.where(known, mask, IGNORE_INDEX)
        return image, mask.astype(np.uint8), name

    def largest_label(self, index: int) -> int:
        """-1 for a mask that is ignored as a whole."""
        mask = self[index][1]
        labels = mask[mask != IGNORE_INDEX]
        return int(labels.max()) if labels.size else -1


class LabelledImages:
    """A split of image files with a class each."""

    def __init__(self, files: list[tuple[Path, int]]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, str]:
        path, label = self.files[index]
        return read_image(path), label, f"{path.parent.name}/{path.stem}"


def check(inspections: list[Callable[[], T]]) -> list[T]:
    """Run all inspections of files in threads, behind a progress bar if that takes long; the first error is raised.

    Of more than 5,000 only as many are run, evenly spread: the loaders raise the same errors when they get there.
    """
    inspections = inspections[:: -(-len(inspections) // MOST_CHECKED)]
    results = []
    start = time.monotonic()
    progress = Progress(transient=True, disable=rank_zero_only.rank != 0)  # type: ignore[attr-defined]
    task = progress.add_task("Checking the data", total=len(inspections))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            for result in pool.map(lambda inspect: inspect(), inspections):
                results.append(result)
                progress.advance(task)
                if time.monotonic() - start > PATIENCE:
                    progress.start()
        finally:
            if progress.live.is_started:
                progress.stop()
            pool.shutdown(cancel_futures=True)
    return results
