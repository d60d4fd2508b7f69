"""The depth of images of more than 8 bits, which rarely fill 16 bits, judged over a whole data set."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules import bands
from datamodules.checking import in_threads
from datamodules.decoding import WHITE, bits_of, decode, deep_colours, grey_levels
from datamodules.errors import DataError
from datamodules.notes import note

DEEP_SUFFIXES = (".png", ".tif", ".tiff", "")
PROBED = 64
"""Files, evenly spaced, that are looked at to learn whether a set has deep images at all."""
DEPTHS = (8, 10, 12, 14, 16)


def white_level(images: Sequence[Path], in_channels: int = bands.RGB) -> int:
    """The level of white in the images of more than 8 bits a channel: the end of the fewest bits that hold all levels.

    What was found is said in one line, as are fourth bands of TIFF files that are not asked for.
    """
    candidates = [path for path in images if path.suffix.lower() in DEEP_SUFFIXES]
    probed = candidates[:: -(-len(candidates) // PROBED) or 1]
    deep, level = is_deep, highest_level
    if in_channels == bands.RGB:
        say_fourth_band(probed)
    else:
        deep, level = bands.is_deep, bands.highest_level
    if not any(map(deep, probed)):
        return WHITE
    jobs = [partial(level, path) for path in candidates]
    highest = max(in_threads("Measuring the depth of the images", jobs, tolerant=True), default=0)
    bits = next(bits for bits in DEPTHS if highest < 1 << bits)
    if highest and bits < 16:
        note(
            f"images of 16 bits reach level {highest} at most: all are read as {bits} bits, with {2**bits - 1} as white"
        )
        return (1 << bits) - 1
    return WHITE


def is_deep(path: Path) -> bool:
    """Whether a file has more than 8 bits a channel, by its header."""
    try:
        with Image.open(path) as image:
            return image.mode.startswith("I") or bits_of(path, image) > 8
    except Exception:  # decoders raise what they like; reading the file says what is wrong
        return False


def highest_level(path: Path) -> int:
    """The highest level of a file of more than 8 bits a channel; 0 for other files."""
    if not is_deep(path):
        return 0
    image = decode(path)
    levels = grey_levels(image, str(path))
    if levels is None:
        levels = deep_colours(path, image)
    return 0 if levels is None else int(levels.max())


def say_fourth_band(paths: Sequence[Path]) -> None:
    """Say that a fourth band of TIFF files is left out, unless it is opaque throughout."""
    for path in paths:
        if path.suffix.lower() not in (".tif", ".tiff"):
            continue
        try:
            image = decode(path)
        except DataError:  # reading the image says it
            continue
        if image.mode == "RGBA" and np.array(image.getchannel("A")).min() < 255:
            note(
                f"TIFF files such as {path} have a fourth band, marked as alpha: it is left out; --in-channels 4 lets "
                "the network see it"
            )
            return
