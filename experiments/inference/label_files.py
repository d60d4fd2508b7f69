"""Label maps as PNG files: class numbers with a palette, or 16 bits where a palette is too small."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

UNLABELLED, UNLABELLED_16 = 255, 65_535
"""Stored for pixels without a label, in files of 8 and of 16 bits."""
MOST_IN_PALETTE = 255


def label_png(labels: np.ndarray, colours: np.ndarray) -> bytes:
    """A PNG file of labels `(H, W)`, -1 for none.

    Up to 255 classes it has 8 bits and the classes' colours as palette, and 255 means no label; above, it has 16 bits
    of grey, and 65535 means no label.
    """
    if len(colours) <= MOST_IN_PALETTE:
        picture = Image.fromarray(np.where(labels < 0, UNLABELLED, labels).astype(np.uint8))
        palette = np.full((256, 3), 0, np.uint8)
        palette[: len(colours)] = colours
        palette[UNLABELLED] = (128, 128, 128)
        picture.putpalette(palette.tobytes())
    else:
        picture = Image.fromarray(np.where(labels < 0, UNLABELLED_16, labels).astype(np.uint16))
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=3)
    return file.getvalue()


def save_labels(labels: np.ndarray, colours: np.ndarray, path: Path) -> None:
    """Write `label_png` to a file."""
    path.write_bytes(label_png(labels, colours))
