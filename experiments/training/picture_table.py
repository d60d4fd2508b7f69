"""Draws pictures in rows and columns with titles and a legend.

Pillow draws this in a twentieth of matplotlib's time, most of which goes into axes that are not shown.
"""

import importlib.util
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
WIDTH = 216
"""Width of a picture in pixels."""
TALLEST = 3 * WIDTH
"""Largest height of a picture in pixels; taller ones become narrower."""
GAP = 10
FONT_SIZE = 13
LINE = 20
"""Pixels from one line of text to the next."""
LETTERS = 26
"""Letters of a title in one line, about as wide as a picture."""
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def picture_table(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[tuple[str, Colour]],
    legend: Sequence[tuple[str, Colour]] = (),
) -> Image.Image:
    """Draw the pictures of each row beside each other, titles over the first row and the legend on the right.

    Args:
        rows: pictures uint8 `(H, W, 3)`, which may differ in size.
        titles: text and its colour for each picture of the first row.
        legend: name and colour of each entry.
    """
    font = font_of(FONT_SIZE)
    texts = [textwrap.fill(text, LETTERS) for text, _ in titles]
    cells = [[fitted(picture) for picture in row] for row in rows]
    heights = [max(cell.height for cell in row) for row in cells]
    top = GAP + LINE * max(text.count("\n") + 1 for text in texts)
    left_of_legend = GAP + len(texts) * (WIDTH + GAP)
    height = top + sum(heights) + GAP * len(heights)
    lines = (height - GAP) // LINE  # of the legend, which has more columns if it is longer
    entry_width = max((round(font.getlength(name)) for name, _ in legend), default=0) + 2 * LINE + GAP
    canvas = Image.new("RGB", (left_of_legend + math.ceil(len(legend) / lines) * entry_width, height), WHITE)
    draw = ImageDraw.Draw(canvas)
    for column, (text, (_, colour)) in enumerate(zip(texts, titles, strict=True)):
        middle = GAP + column * (WIDTH + GAP) + WIDTH // 2
        draw.multiline_text((middle, top - 6), text, colour, font, anchor="md", align="center")
    for row, row_height in zip(cells, heights, strict=True):
        for column, cell in enumerate(row):
            canvas.paste(cell, (GAP + column * (WIDTH + GAP) + (WIDTH - cell.width) // 2, top))
        top += row_height + GAP
    for entry, (name, colour) in enumerate(legend):
        x, y = left_of_legend + entry // lines * entry_width, GAP + entry % lines * LINE
        draw.rectangle((x, y + 4, x + LINE + 4, y + 13), colour)
        draw.text((x + LINE + 12, y + 8), name, BLACK, font, anchor="lm")
    return canvas


def fitted(picture: np.ndarray) -> Image.Image:
    """The picture, `WIDTH` wide if it is then not too tall; pixels of small pictures stay sharp squares."""
    height, width = picture.shape[:2]
    scale = min(WIDTH / width, TALLEST / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Image.fromarray(picture).resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)


def font_of(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans, which comes with matplotlib and has Greek and Cyrillic letters, or else Pillow's own font."""
    package = importlib.util.find_spec("matplotlib")  # finds it without importing it
    if package is not None and package.origin is not None:
        path = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)
