"""Pictures of explanations: panels with captions, heat over pictures, grids. Pictures are uint8 `(H, W, 3)`, RGB.

Of images with other numbers of bands, what `as_rgb` shows is drawn.
"""

import io
import math

import cv2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from datamodules.bands import as_rgb
from experiments.explaining.target import Target

PANEL = 256
"""Least height of a panel in pixels. Smaller pictures are enlarged by whole numbers, so that pixels stay visible."""
LARGEST = 640
GAP = 8
RING = 9
"""Radius in pixels of the ring around a region that is smaller than that."""
FONT_SIZE = 14
OPACITY = 0.65
"""Opacity of the strongest heat over the picture."""
HOTTEST = 0.92
"""Position in the colour map of the strongest heat. The upper end is a dark red that is lost on dark pictures."""


def enlarged(image: np.ndarray, least: int = PANEL) -> np.ndarray:
    """A small picture, enlarged by a whole number; one that is too large for a panel, reduced."""
    longest = max(image.shape[:2])
    factor = min(math.ceil(least / image.shape[0]), LARGEST // longest)
    if factor > 1:
        return image.repeat(factor, 0).repeat(factor, 1)
    if longest > LARGEST:
        size = [max(1, round(side * LARGEST / longest)) for side in image.shape[1::-1]]
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return image


def panel(image: np.ndarray, caption: str, target: Target | None = None, least: int = PANEL) -> Image.Image:
    """A picture with a caption above it; the pixels of a segmentation's target are outlined."""
    drawn = enlarged(as_rgb(image), least)
    if target is not None and target.pixels is not None:
        chosen = target.pixels.cpu().numpy().astype(np.uint8)
        mask = cv2.resize(chosen, (drawn.shape[1], drawn.shape[0]), interpolation=cv2.INTER_NEAREST)
        edges, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        drawn = drawn.copy()
        cv2.drawContours(drawn, edges, -1, (255, 255, 255), 3)
        cv2.drawContours(drawn, edges, -1, (220, 0, 120), 1)
        x, y, width, height = cv2.boundingRect(mask)
        if max(width, height) < RING:  # too small to be seen
            for colour, thickness in (((255, 255, 255), 4), ((220, 0, 120), 2)):
                cv2.circle(drawn, (x + width // 2, y + height // 2), RING, colour, thickness)
    font = ImageFont.load_default(FONT_SIZE)
    canvas = Image.new("RGB", (drawn.shape[1], drawn.shape[0] + 2 * FONT_SIZE - 4), "white")
    canvas.paste(Image.fromarray(drawn), (0, 2 * FONT_SIZE - 4))
    ImageDraw.Draw(canvas).text((0, 4), shortened(caption, font, drawn.shape[1]), fill="black", font=font)
    return canvas


def outlined(image: np.ndarray, box: dict[str, int]) -> np.ndarray:
    """A picture uint8 `(H, W, C)`, enlarged, with the outline of a box, whose last row and column belong to it."""
    drawn = np.ascontiguousarray(enlarged(as_rgb(image)).copy())
    scale = drawn.shape[1] / image.shape[1]
    first = round(box["left"] * scale), round(box["top"] * scale)
    last = round((box["right"] + 1) * scale) - 1, round((box["bottom"] + 1) * scale) - 1
    cv2.rectangle(drawn, first, last, (255, 255, 255), 4)
    cv2.rectangle(drawn, first, last, (220, 0, 120), 2)
    return drawn


def shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, or its end after three dots, if it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("..." + text) > width:
        text = text[1:]
    return "..." + text


def row(panels: list[Image.Image]) -> Image.Image:
    """Panels beside each other."""
    return table([panels])


def table(rows: list[list[Image.Image]]) -> Image.Image:
    """Panels in rows; columns are as wide as their widest panel."""
    widths = [max(line[i].width for line in rows if i < len(line)) for i in range(max(map(len, rows)))]
    heights = [max(one.height for one in line) for line in rows]
    canvas = Image.new("RGB", (sum(widths) + GAP * (len(widths) + 1), sum(heights) + GAP * (len(rows) + 1)), "white")
    top = GAP
    for line, height in zip(rows, heights, strict=True):
        left = GAP
        for one, width in zip(line, widths, strict=False):
            canvas.paste(one, (left, top))
            left += width + GAP
        top += height + GAP
    return canvas


def colours(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] `(H, W)` as colours from dark blue over green to red."""
    return cv2.applyColorMap((values * HOTTEST * 255).round().astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]


def heat_over(image: np.ndarray, heat: np.ndarray, least: float = 0.0) -> np.ndarray:
    """A pale grey picture under heat `(H, W)`, which is at least 0; zero is transparent.

    Red is the strongest heat, or `least` if that is more.
    """
    largest = max(float(heat.max()), least)
    scaled = heat / largest if largest > 0 else np.zeros_like(heat)
    grey = np.repeat(cv2.cvtColor(np.ascontiguousarray(as_rgb(image)), cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
    opacity = OPACITY * scaled[..., None] ** 0.5
    return ((80 + grey * 0.68) * (1 - opacity) + colours(scaled) * opacity).round().astype(np.uint8)


def signed_picture(values: np.ndarray) -> np.ndarray:
    """Values `(C, H, W)` of any sign as a picture around grey; other numbers of channels than 3 are summed to grey."""
    if len(values) != 3:
        values = np.repeat(values.sum(0, keepdims=True), 3, 0)
    largest = np.abs(values).max() or 1.0
    return ((values / largest * 127 + 128).round().clip(0, 255)).astype(np.uint8).transpose(1, 2, 0)


def tiles(images: list[np.ndarray], columns: int, side: int, gap: int = 2) -> np.ndarray:
    """Pictures of any size in a grid of squares of `side` pixels, each fitted without changing its aspect ratio."""
    rows = math.ceil(len(images) / columns)
    grid = np.full((rows * (side + gap) - gap, columns * (side + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(map(as_rgb, images)):
        scale = side / max(image.shape[:2])
        size = tuple(max(1, round(length * scale)) for length in image.shape[1::-1])
        fitted = cv2.resize(image, size, interpolation=cv2.INTER_NEAREST if scale > 1 else cv2.INTER_AREA)
        top, left = i // columns * (side + gap), i % columns * (side + gap)
        grid[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
    return grid


def figure_picture(figure: Figure, dpi: int = 100) -> Image.Image:
    """A matplotlib figure as a picture."""
    file = io.BytesIO()
    figure.savefig(file, dpi=dpi, format="png")
    return Image.open(file).convert("RGB")
