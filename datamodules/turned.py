"""Notes images that EXIF data turn while their masks, which stay as stored, would fit either way."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from datamodules.decoding import ORIENTATION
from datamodules.notes import note

PROBED = 200
"""Images, evenly spaced, that are looked at."""
SIDEWAYS = (5, 6, 7, 8)
"""Orientations that exchange height and width, so that the size of the mask tells which way is meant."""


def note_turned(images: Sequence[Path]) -> None:
    """Say in one line that some images are turned and their masks are not."""
    probed = images[:: -(-len(images) // PROBED) or 1]
    turned = [path for path in probed if fits_either_way(path)]
    if turned:
        note(
            f"EXIF data turn {len(turned)} of {len(probed)} images that were looked at, such as {turned[0]}; masks are "
            "read as stored: look whether they fit, for example with show_data.py"
        )


def fits_either_way(path: Path) -> bool:
    """Whether an image is turned or mirrored to the same height and width."""
    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(ORIENTATION, 1)
            return orientation != 1 and (orientation not in SIDEWAYS or image.width == image.height)
    except Exception:  # decoders raise what they like; reading the file says what is wrong
        return False
