"""Reads images of a number of bands other than three, for `--in-channels`, and shows such images as RGB.

One band is a grey image, two are grey and alpha, four are RGB and alpha, or any bands of a TIFF file. TIFF files are
read by tifffile, whether their bands are interleaved, in planes or in pages. Bands are never made up or left out: a
file that has another number of them is refused.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from datamodules.checking import in_threads
from datamodules.decoding import WHITE, bits_of, decode, grey_levels, read_image
from datamodules.errors import DataError
from datamodules.source import Source

RGB = 3
TIFF_SUFFIXES = (".tif", ".tiff")
MOST_MEASURED = 500
"""Images, evenly spaced, from which mean and standard deviation are computed."""
LEAST_STD = 1 / 255
"""Standard deviation that is used for a band of constant value."""


def read_channels(path: Path, channels: int = RGB, min_side: int | None = None, white: int = WHITE) -> np.ndarray:
    """uint8 `(H, W, channels)`: RGB, or as many bands as the file must have.

    Raises:
        ValueError: the file cannot be read, or has another number of bands.
    """
    if channels == RGB:
        return read_image(path, min_side, white)
    return check_bands(scaled(stored_bands(path), white), channels, str(path))


def check_bands(image: np.ndarray, channels: int, what: str) -> np.ndarray:
    """The image `(H, W, channels)`; a ValueError if it has another number of bands."""
    if image.shape[2] != channels:
        bands = f"{image.shape[2]} band{'s' if image.shape[2] > 1 else ''}"
        raise DataError(f"{what} has {bands}, but --in-channels is {channels}; all images must have as many", "bands")
    return image


def scaled(bands: np.ndarray, white: int) -> np.ndarray:
    """Levels as uint8, so that `white` becomes 255 if they have more than 8 bits."""
    if bands.dtype == np.uint8:
        return np.ascontiguousarray(bands)
    return (bands / (white / 255)).round().clip(0, 255).astype(np.uint8)


def stored_bands(path: Path) -> np.ndarray:
    """All bands of a file, uint8 or uint16 `(H, W, bands)`, turned upright if EXIF data say so, TIFF files as stored.

    Raises:
        ValueError: the file cannot be read, or its levels are neither 8 nor 16 bits.
    """
    if path.suffix.lower() in TIFF_SUFFIXES:
        return tiff_bands(path)
    image = decode(path, upright=True)
    deep = image.mode in ("RGB", "RGBA") and bits_of(path, image) > 8
    if deep:  # Pillow keeps 8 bits only
        stored = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
        if stored is not None and stored.ndim == 3 and stored.shape[:2] == image.size[::-1]:
            return stored[..., [2, 1, 0, 3][: stored.shape[2]]]
    levels = grey_levels(image, str(path))
    return pillow_bands(image) if levels is None else levels.astype(np.uint16)[..., None]


def pillow_bands(image: Image.Image) -> np.ndarray:
    """The bands of a decoded image, uint8 `(H, W, bands)`; palettes and other colour spaces become RGB."""
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    elif image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("RGB")
    return np.atleast_3d(np.array(image))


def tiff_bands(path: Path) -> np.ndarray:
    """The bands of a TIFF file, uint8 or uint16 `(H, W, bands)`.

    Raises:
        ValueError: tifffile is missing, or the file holds something else.
    """
    try:
        import tifffile
    except ImportError:
        raise DataError(
            f"{path}: --in-channels reads TIFF files with tifffile, which is not installed: pip install 'graft[tiff]'"
        ) from None
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            pixels, axes = series.asarray(), series.axes
    except PermissionError:
        raise DataError(f"{path} may not be read by this user; change its permissions", "unreadable") from None
    except Exception as error:  # a damaged file makes the decoders raise what they like
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be read ({reason}); replace the file or remove it", "unreadable") from None
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if pixels.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path} has levels of type {pixels.dtype}; save it with 8 or 16 bits", "unreadable")
    others = [axis for axis in range(pixels.ndim) if axes[axis] not in "YX" and pixels.shape[axis] > 1]
    if "Y" not in axes or "X" not in axes or len(others) > 1:
        shape = "x".join(map(str, pixels.shape))
        raise DataError(f"{path} has {shape} levels (axes {axes}); save height, width and bands only", "unreadable")
    order = [axes.index("Y"), axes.index("X"), *others]
    rest = [axis for axis in range(pixels.ndim) if axis not in order]
    return pixels.transpose(*order, *rest).reshape(*(pixels.shape[axis] for axis in order[:2]), -1)


def is_deep(path: Path) -> bool:
    """Whether a file has more than 8 bits a band; False if it cannot be read, which reading it for training says."""
    try:
        return stored_bands(path).dtype != np.uint8
    except DataError:
        return False


def highest_level(path: Path) -> int:
    """The highest level of a file of more than 8 bits a band; 0 for other files."""
    bands = stored_bands(path)
    return 0 if bands.dtype == np.uint8 else int(bands.max())


def mean_and_std(source: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each band in [0, 1], over at most 500 images of a split.

    Raises:
        ValueError: none of them can be read.
    """
    step = -(-len(source) // MOST_MEASURED)
    jobs = [partial(sums_of, source, index) for index in range(0, len(source), step)]
    parts = in_threads("Measuring the bands of the images", jobs, tolerant=True)
    if not parts:
        raise DataError(f"none of the {len(jobs)} training images that were tried can be read: {first_error(source)}")
    # Sums of integers, so that the result depends neither on the order nor on the machine.
    pixels, levels, squares = (np.sum(np.stack(one), 0) for one in zip(*parts, strict=True))
    mean = levels / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
    return as_plain(mean / 255), as_plain(np.maximum(std / 255, LEAST_STD))


def as_plain(values: np.ndarray) -> tuple[float, ...]:
    return tuple(round(value, 6) for value in values.tolist())


def sums_of(source: Source, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The number of pixels, and the sums of levels and of their squares, int64 `(bands,)`, of one image."""
    image = source[index][0]
    counts = np.stack([np.bincount(band.ravel(), minlength=256) for band in np.moveaxis(image, 2, 0)])
    values = np.arange(256)
    return counts.sum(1), counts @ values, counts @ values**2


def first_error(source: Source) -> str:
    try:
        source[0]
    except DataError as error:
        return str(error)
    return ""


def as_rgb(image: np.ndarray) -> np.ndarray:
    """An image uint8 `(H, W, C)` as a picture to look at, `(H, W, 3)`: its first three bands, or its first as grey."""
    return image[..., :RGB] if image.shape[2] >= RGB else np.repeat(image[..., :1], RGB, axis=2)


def describe(mean: Sequence[float], std: Sequence[float]) -> str:
    """Mean and standard deviation of each band in words."""
    return ", ".join(f"{m:.3f} ± {s:.3f}" for m, s in zip(mean, std, strict=True))
