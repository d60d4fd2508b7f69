"""Decodes image and mask files, and says in one line why one cannot be read."""

import io
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from datamodules.errors import DataError

try:
    from pillow_heif import register_heif_opener
except ImportError:
    pass
else:
    register_heif_opener()

WANTED = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm",
    ".jp2", ".avif", ".heic", ".heif",
)  # fmt: skip
Image.init()
IMAGE_SUFFIXES = {suffix for suffix in WANTED if Image.EXTENSION.get(suffix) in Image.OPEN}
"""What this installation of Pillow can open, of the formats of photographs and masks."""
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # up to twice that size, images are only large

JPEG_END = b"\xff\xd9"
PNG_START = b"\x89PNG"
PNG_RGB8, PNG_GREY8 = bytes((8, 2)), bytes((8, 0))
"""Bit depth and colour type in a PNG header."""
PNG_EXIF = (b"eXIf", b"Raw profile type exif")
ORIENTATION = 0x0112
"""The EXIF tag."""
SUBFILE_TYPE, BITS_PER_SAMPLE, SAMPLES_PER_PIXEL = 254, 258, 277
"""TIFF tags."""
CV2_FLAGS = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_2,  # the flag of the size alone; the first one is colour's
    4: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
WHITE = 65_535
"""The level of white in files of 16 bits, unless a whole data set stays below."""


def is_image(path: Path) -> bool:
    """Whether a file begins as an image does."""
    try:
        with Image.open(path):
            return True
    except Exception:  # decoders raise what they like
        return False


def read_image(path: Path, min_side: int | None = None, white: int = WHITE) -> np.ndarray:
    """uint8 `(H, W, 3)`, RGB.

    Turned upright if EXIF data say so. CMYK, palette and grey images are converted, levels of more than 8 bits scaled
    so that `white` becomes 255, and alpha channels left out. If `min_side` is given, a JPEG file is decoded at 1/2, 1/4
    or 1/8 of its size, as long as both sides keep at least that many pixels; this makes decoding and later resizing
    faster.

    Raises:
        ValueError: the file is truncated, no image, or has bands or pages that it is not clear how to read.
    """
    pixels = read_plain(path, min_side)
    if pixels is not None:
        return pixels
    image = decode(path, upright=True, min_side=min_side)
    return to_rgb(image, str(path), white, deep_colours(path, image))


def to_rgb(image: Image.Image, what: str, white: int = WHITE, levels: np.ndarray | None = None) -> np.ndarray:
    """A decoded image as uint8 `(H, W, 3)`, converted as `read_image` says; `what` names it in errors.

    `levels` `(H, W, 3)` replaces the colours of the image, of which Pillow keeps 8 bits only.

    Raises:
        ValueError: more than 16 bits are in use.
    """
    if levels is None:
        levels = grey_levels(image, what)
    if levels is not None:
        scaled = (levels / (white / 255)).round().clip(0, 255).astype(np.uint8)
        return np.repeat(scaled[..., None], 3, axis=2) if scaled.ndim == 2 else np.ascontiguousarray(scaled)
    return np.array(image.convert("RGB"))


def grey_levels(image: Image.Image, what: str) -> np.ndarray | None:
    """The levels `(H, W)` of a grey image of more than 8 bits; None for all others.

    Raises:
        ValueError: more than 16 bits are in use, or the levels are floating-point numbers.
    """
    if image.mode == "F":
        raise DataError(f"{what} has floating-point pixels; save it with 8 or 16 bits", "unreadable")
    if not image.mode.startswith("I"):
        return None
    levels = np.array(image)
    if levels.min() < 0 or levels.max() > WHITE:
        raise DataError(f"{what} has grey levels of 32 bits; save it with 8 or 16 bits", "unreadable")
    return levels


def deep_colours(path: Path, image: Image.Image) -> np.ndarray | None:
    """The levels, uint16 `(H, W, 3)`, of a decoded PNG or TIFF file of 16-bit colours; None for all others."""
    if image.mode not in ("RGB", "RGBA") or bits_of(path, image) <= 8:
        return None
    stored = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if stored is None or stored.ndim != 3 or stored.dtype != np.uint16 or stored.shape[:2] != image.size[::-1]:
        return None
    return stored[..., 2::-1]


def bits_of(path: Path, image: Image.Image) -> int:
    """Bits a channel of an opened PNG or TIFF file; 8 for all other formats."""
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24]
    if image.format == "TIFF":
        return max(np.ravel(image.tag_v2.get(BITS_PER_SAMPLE, 8)).tolist())  # type: ignore[attr-defined]
    return 8


def read_plain(path: Path, min_side: int | None) -> np.ndarray | None:
    """What `read_image` gives for the usual JPEG and 8-bit RGB PNG; None for all other files, and faulty ones."""
    try:
        return decode_plain(path.read_bytes(), min_side)
    except OSError:  # the slow path in `read_image` reports what is wrong
        return None


def decode_plain(data: bytes, min_side: int | None) -> np.ndarray | None:
    """The same as `read_plain`, from a file's content.

    OpenCV decodes the same pixels as Pillow, a little faster, and threads that do it need not wait for each other.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            # OpenCV fills the rest of a truncated JPEG file with grey, without an error.
            jpeg = image.format == "JPEG" and data.endswith(JPEG_END)
            png = image.format == "PNG" and data[24:26] == PNG_RGB8
            if image.mode != "RGB" or not (jpeg or png) or pages(image) > 1:
                return None
            # Pillow would decode a whole PNG file to find its EXIF data, which may stand at the end.
            turned = image.getexif().get(ORIENTATION, 1) != 1 if jpeg else any(mark in data for mark in PNG_EXIF)
            if turned:
                return None
            reduction = 1
            while jpeg and min_side and reduction < 8 and min(image.size) // (2 * reduction) >= min_side:
                reduction *= 2
    except Exception:  # decoders raise what they like
        return None
    return cv2.imdecode(np.frombuffer(data, np.uint8), CV2_FLAGS[reduction])


def read_grey_png(path: Path) -> np.ndarray | None:
    """Levels uint8 `(H, W)` of a PNG file of 8-bit grey, decoded by OpenCV; None for all other files."""
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
        ValueError: the file is truncated, no image, compressed as JPEG, or has colours in place of ids.
    """
    stored = read_grey_png(path)
    if stored is not None:
        return stored
    image = decode(path)
    if image.format in ("JPEG", "MPO"):
        message = f"{path} is a JPEG file, whose compression changes labels; make the masks again as PNG files"
        raise DataError(message, "unknown label")
    if image.mode not in ("L", "P", "1") and not image.mode.startswith("I"):
        raise DataError(
            f"{path} has pixels of mode {image.mode}; save it as a grey or palette PNG of label ids, "
            "or, with --data folders, list the colours in classes.csv",
            "unknown label",
        )
    mask = np.array(image)
    return mask.astype(np.uint8) if mask.dtype == bool else mask


def decode(path: Path, *, upright: bool = False, min_side: int | None = None) -> Image.Image:
    """The whole image, in the mode of the file, reduced as `read_image` says.

    Raises:
        ValueError: it cannot be read, for whatever reason, or has several pages.
    """
    try:
        with Image.open(path) as image:
            count = pages(image)
            if count > 1:
                raise DataError(f"{path} has {count} pages; save each that is meant as a file of its own", "unreadable")
            bands = image.tag_v2.get(SAMPLES_PER_PIXEL, 1) if image.format == "TIFF" else 0  # type: ignore[attr-defined]
            if bands > len(image.getbands()):
                raise more_bands(path, bands)
            if min_side is not None:
                image.draft(None, (min_side, min_side))
            image.load()
            if upright:
                ImageOps.exif_transpose(image, in_place=True)
            return image
    except DataError:
        raise
    except PermissionError:
        raise DataError(f"{path} may not be read by this user; change its permissions", "unreadable") from None
    except Image.DecompressionBombError as error:
        size = next((word for word in str(error).split() if word.strip("(").isdigit()), "too many").strip("(")
        raise DataError(f"{path} has {size} pixels, too many for one sample; cut it into tiles", "unreadable") from None
    except Exception as error:  # Decoders raise what they like: OSError, SyntaxError, struct.error, ...
        bands = tiff_bands(path)
        if bands > 4:
            raise more_bands(path, bands) from None
        reason = " ".join(str(error).replace(f"'{path}'", "").split()) or type(error).__name__
        if path.is_file() and path.stat().st_size == 0:
            reason = "it has 0 bytes"
        message = f"{path} cannot be read ({reason}); replace the file or remove it"
        raise DataError(message, "unreadable") from None


def more_bands(path: Path, bands: int) -> DataError:
    return DataError(
        f"{path} has {bands} bands, more than colour and alpha; --in-channels {bands} reads all of them with "
        "--data folders; or save the three to be seen as RGB",
        "unreadable",
    )


def pages(image: Image.Image) -> int:
    """Pages of a TIFF file, without reduced copies of the first, or frames of an animation."""
    count = getattr(image, "n_frames", 1) if image.format in ("TIFF", "GIF", "WEBP", "PNG") else 1
    if count == 1 or image.format != "TIFF":
        return count
    reduced = 0
    for page in range(1, count):
        image.seek(page)
        reduced += image.tag_v2.get(SUBFILE_TYPE, 0) & 1  # type: ignore[attr-defined]
    image.seek(0)
    return count - reduced


def tiff_bands(path: Path) -> int:
    """Samples a pixel of a TIFF file; 0 for other files."""
    try:
        with path.open("rb") as file:
            directory = ImageFileDirectory_v2(file.read(8))
            file.seek(directory.next)
            directory.load(file)
            return int(directory.get(SAMPLES_PER_PIXEL, 0))
    except Exception:  # no TIFF file, or one that is broken in whatever way
        return 0
