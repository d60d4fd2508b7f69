"""Images, masks and class folders on disk: finding, pairing, reading and checking them."""

import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha1
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image, ImageOps
from rich.progress import Progress

from datamodules.collate import IGNORE_INDEX
from datamodules.errors import DataError

T = TypeVar("T")

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
HELD_OUT = 0.2
"""Share of the training images that is held out where a data set has no validation split."""
JPEG_END = b"\xff\xd9"
PNG_START = b"\x89PNG"
PNG_RGB8, PNG_GREY8 = bytes((8, 2)), bytes((8, 0))
"""Bit depth and colour type in a PNG header."""
PNG_EXIF = (b"eXIf", b"Raw profile type exif")
ORIENTATION = 0x0112
"""The EXIF tag."""
CV2_FLAGS = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_2,  # the flag of the size alone; the first one is colour's
    4: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
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


def list_classes(tree: Path) -> dict[str, list[Path]]:
    """The images in each class folder of `tree`, both sorted by name."""
    folders = sorted(path for path in tree.iterdir() if path.is_dir() and not path.name.startswith("."))
    return {folder.name: list(list_images(folder).values()) for folder in folders}


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


def pair_listed(listing: Path, images: Path, masks: Path, suffixes: tuple[str, str] = (".jpg", ".png")) -> list[Pair]:
    """The pairs whose names stand in a file, one a line."""
    return [Pair(name, images / f"{name}{suffixes[0]}", masks / f"{name}{suffixes[1]}") for name in read_lines(listing)]


def read_lines(path: Path) -> list[str]:
    """The first word of each line.

    Raises:
        ValueError: there is no such file, or nothing in it.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing; check --data-dir and the layout")
    lines = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path} is empty; write the name of an image on each line")
    return lines


def hold_out(items: list[T], names: Sequence[str], where: Path) -> tuple[list[T], list[T]]:
    """Four fifths and one fifth, at least one item each; those whose names hash lowest are held out."""
    if len(items) < 2:
        raise DataError(f"{where} holds 1 image, too few to hold one out for validation; add images or a val/ folder")
    by_hash = sorted(range(len(items)), key=lambda i: sha1(names[i].encode()).digest())
    held = set(by_hash[: max(1, round(HELD_OUT * len(items)))])
    return [items[i] for i in range(len(items)) if i not in held], [items[i] for i in sorted(held)]


def read_image(path: Path, least: int | None = None) -> np.ndarray:
    """uint8 `(H, W, 3)`, RGB.

    Turned upright where EXIF data say so. CMYK, palette and grey images are converted, 16-bit grey levels divided by
    257, and alpha channels left out. A JPEG file is decoded at 1/2, 1/4 or 1/8 of its size where that leaves both
    sides at `least` so many pixels: fewer to decode, and to make smaller afterwards.

    Raises:
        ValueError: the file is truncated or no image.
    """
    pixels = read_plain(path, least)
    if pixels is not None:
        return pixels
    return to_rgb(decode(path, upright=True, least=least), str(path))


def to_rgb(image: Image.Image, what: str) -> np.ndarray:
    """A decoded image as uint8 `(H, W, 3)`, converted as `read_image` says; `what` names it in errors.

    Raises:
        ValueError: its levels do not fit into 16 bits.
    """
    if image.mode.startswith("I"):
        levels = np.array(image)
        if levels.min() < 0 or levels.max() > 65_535:
            raise DataError(f"{what} has grey levels of 32 bits; save it with 8 or 16 bits", "unreadable")
        return np.repeat((levels / 257).round().astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise DataError(f"{what} has floating-point pixels; save it with 8 or 16 bits", "unreadable")
    return np.array(image.convert("RGB"))


def read_plain(path: Path, least: int | None) -> np.ndarray | None:
    """What `read_image` gives for the usual JPEG and 8-bit RGB PNG; None for all other files, and faulty ones."""
    try:
        return decode_plain(path.read_bytes(), least)
    except OSError:  # what is wrong with it, the careful way says
        return None


def decode_plain(data: bytes, least: int | None) -> np.ndarray | None:
    """The same of a file's content.

    OpenCV decodes the same pixels as Pillow, a little faster, and threads that do it need not wait for each other.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            # OpenCV fills the rest of a truncated JPEG file with grey, and says nothing.
            jpeg = image.format == "JPEG" and data.endswith(JPEG_END)
            png = image.format == "PNG" and data[24:26] == PNG_RGB8
            if image.mode != "RGB" or not (jpeg or png):
                return None
            # Pillow would decode a whole PNG file to find its EXIF data, which may stand at the end.
            if image.getexif().get(ORIENTATION, 1) != 1 if jpeg else any(mark in data for mark in PNG_EXIF):
                return None
            reduction = 1
            while jpeg and least and reduction < 8 and min(image.size) // (2 * reduction) >= least:
                reduction *= 2
    except Exception:  # decoders raise what they like
        return None
    return cv2.imdecode(np.frombuffer(data, np.uint8), CV2_FLAGS[reduction])


def read_grey_png(path: Path) -> np.ndarray | None:
    """Levels uint8 `(H, W)` of a PNG file of 8-bit grey, by OpenCV as above; None for all other files."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if data[:4] != PNG_START or data[24:26] != PNG_GREY8:
        return None
    stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return stored if stored is not None and stored.ndim == 2 else None


def read_mask(path: Path) -> np.ndarray:
    """Label ids `(H, W)`: grey levels, or the indices of a palette image. As stored, whatever EXIF data say.

    Raises:
        ValueError: the file is truncated, no image, or has colours in place of ids.
    """
    stored = read_grey_png(path)
    if stored is not None:
        return stored
    image = decode(path)
    if image.mode not in ("L", "P", "1") and not image.mode.startswith("I"):
        raise DataError(
            f"{path} has pixels of mode {image.mode}; save it as a grey or palette PNG of label ids, "
            "or, with --data folders, list the colours in classes.csv",
            "unknown label",
        )
    mask = np.array(image)
    return mask.astype(np.uint8) if mask.dtype == bool else mask


def decode(path: Path, *, upright: bool = False, least: int | None = None) -> Image.Image:
    """The whole image, in the mode of the file, reduced as `read_image` says.

    Raises:
        ValueError: it cannot be read, for whatever reason.
    """
    try:
        with Image.open(path) as image:
            if least is not None:
                image.draft(None, (least, least))
            image.load()
            if upright:
                ImageOps.exif_transpose(image, in_place=True)
            return image
    except PermissionError:
        raise DataError(f"{path} may not be read by this user; change its permissions", "unreadable") from None
    except Exception as error:  # Decoders raise what they like: OSError, SyntaxError, struct.error, ...
        reason = " ".join(str(error).replace(f"'{path}'", "").split()) or type(error).__name__
        if path.is_file() and path.stat().st_size == 0:
            reason = "it has 0 bytes"
        message = f"{path} cannot be read ({reason}); replace the file or remove it"
        raise DataError(message, "unreadable") from None


class MaskedImages:
    """A split of image and mask files.

    `labels` tells what a stored value from 0 to 255 means: a class, or 255 = ignore. Other values are errors, and
    `fix` ends the message of such an error. `read` gives the stored values of a mask file.
    """

    def __init__(
        self, pairs: list[Pair], labels: Mapping[int, int], fix: str, read: Callable[[Path], np.ndarray] = read_mask
    ) -> None:
        self.pairs = pairs
        self.labels = dict(labels)
        self.fix = fix
        self.read = read

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, str]:
        name, image_path, mask_path = self.pairs[index]
        image, mask = read_image(image_path), self.mask(index)
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

    def recipe(self, index: int) -> tuple[Any, ...]:
        """How masks are read."""
        return self.labels, self.read

    def mask(self, index: int) -> np.ndarray:
        """Classes `(H, W)` as uint8, 255 = ignore."""
        path = self.pairs[index].mask
        stored = self.read(path)
        small = stored if stored.dtype == np.uint8 else np.clip(stored, 0, 255).astype(np.uint8)
        table, unknown = np.zeros(256, np.uint8), np.ones(256, np.uint8)
        table[list(self.labels)], unknown[list(self.labels)] = list(self.labels.values()), 0
        wrong = cv2.LUT(small, unknown).astype(bool) | (small != stored if small is not stored else False)
        if wrong.any():
            classes = [value for value, label in self.labels.items() if label != IGNORE_INDEX]
            ignored = [value for value, label in self.labels.items() if label == IGNORE_INDEX]
            allowed = spans(classes) + (f" and {spans(ignored)} (ignored)" if ignored else "")
            message = f"{path} has the label value {stored[wrong].min()}; allowed are {allowed}; {self.fix}"
            raise DataError(message, "unknown label")
        return cv2.LUT(small, table)

    def largest_label(self, index: int) -> int:
        """-1 for a mask that is ignored as a whole."""
        mask = self.mask(index)
        labels = mask[mask != IGNORE_INDEX]
        return int(labels.max()) if labels.size else -1


def identity(num_classes: int, ignored: Sequence[int] = (IGNORE_INDEX,)) -> dict[int, int]:
    """Masks that hold classes as they are, and the values in `ignored`."""
    return {label: label for label in range(num_classes)} | dict.fromkeys(ignored, IGNORE_INDEX)


def spans(values: Sequence[int]) -> str:
    """Numbers as a reader wants them: 0 to 10 and 255."""
    parts: list[list[int]] = []
    for value in sorted(values):
        if parts and value == parts[-1][1] + 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    return " and ".join(str(first) if first == last else f"{first} to {last}" for first, last in parts)


class LabelledImages:
    """A split of image files with a class each. `least` may be set to the pixels that both sides need to have."""

    def __init__(self, files: list[tuple[Path, int]]) -> None:
        self.files = files
        self.least: int | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, str]:
        path, label = self.files[index]
        return read_image(path, self.least), label, f"{path.parent.name}/{path.stem}"

    def paths(self, index: int) -> tuple[Path, ...]:
        """The image."""
        return (self.files[index][0],)

    def recipe(self, index: int) -> tuple[Any, ...]:
        """The class, and how large the image must be."""
        return self.files[index][1], self.least


def check(inspections: list[Callable[[], T]], *, tolerant: bool = False) -> list[T]:
    """Run all inspections of files in threads, behind a progress bar if that takes long; the first error is raised.

    Of more than 5,000 only as many are run, evenly spread: the loaders raise the same errors when they get there.
    Where `tolerant`, those that fail have no result.
    """
    inspections = inspections[:: -(-len(inspections) // MOST_CHECKED) or 1]
    return in_threads("Checking the data", inspections, tolerant=tolerant)


def in_threads(title: str, jobs: Sequence[Callable[[], T]], *, tolerant: bool = False) -> list[T]:
    """The results of all jobs, in order, behind a progress bar of that title if they take long."""
    results: list[T] = []
    start = time.monotonic()
    progress = Progress(transient=True, disable=rank_zero_only.rank != 0)  # type: ignore[attr-defined]
    task = progress.add_task(title, total=len(jobs))

    def run(job: Callable[[], T]) -> list[T]:
        try:
            return [job()]
        except DataError:
            if tolerant:
                return []
            raise

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            for result in pool.map(run, jobs):
                results += result
                progress.advance(task)
                if time.monotonic() - start > PATIENCE:
                    progress.start()
        finally:
            if progress.live.is_started:
                progress.stop()
            pool.shutdown(cancel_futures=True)
    return results
