"""Scenes of handwritten digits on photographs, with the class of each pixel and the box and mask of each digit."""

from dataclasses import replace
from typing import ClassVar

import cv2
import numpy as np

from datamodules.objects import Objects, objects_of

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
TILT = 10.0
"""Largest rotation of a digit in either direction, in degrees."""
Painted = tuple[int, np.ndarray, int, int]
"""Class of a digit, where its ink is, bool, in a box of the scene, and the box's first row and column."""


class Scenes:
    """Two or three light digits on a dimmed crop of a photograph, as a function of `seed` and the index.

    Indices beyond the length are valid and give further scenes.

    Mask: 0 = background, 1 + d = digit d, if its ink covers at least half of the pixel.
    """

    HEIGHTS: ClassVar[dict[int, tuple[float, float]]] = {2: (0.42, 0.60), 3: (0.40, 0.52)}
    """Range of a digit's height as a fraction of the image's shorter side, by the number of digits in the scene."""
    DIMMED = 0.6
    """Factor on the photograph's brightness, so that light digits stand out anywhere."""
    CONTRAST = 60.0
    """Minimum margin, on a scale of 0..255, by which a digit's luminance exceeds the mean plus one standard deviation
    of the background it covers."""
    WIDEST = 140
    """Most columns of a photograph in one scene: the width of the narrowest strip, so that all splits look alike."""
    INK = (0.3, 0.6)
    """Grey levels in [0, 1] of a glyph below which it is transparent and above which it is opaque; lower levels give
    thicker strokes."""

    def __init__(
        self,
        glyphs: np.ndarray,
        labels: np.ndarray,
        ids: np.ndarray,
        backgrounds: list[np.ndarray],
        size: tuple[int, int],
        count: int,
        seed: tuple[int, ...],
        tilt: float = TILT,
    ) -> None:
        # Many strokes touch the border of their 8x8 pixels; with a margin, they fade out. The glyphs are upsampled here
        # once by cubic interpolation, so that scenes can place them by linear interpolation, which is six times faster.
        margins = np.pad(glyphs, ((0, 0), (1, 1), (1, 1)))
        self.glyphs = {one: cv2.resize(margins[one], None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC) for one in ids}
        self.labels = labels
        self.ids = ids
        self.backgrounds = backgrounds
        self.size = size
        self.count = count
        self.seed = seed
        self.tilt = tilt

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray | Objects, str]:
        image, mask, _ = self.painted(index)
        return image, mask, f"scene-{index:04d}"

    def painted(self, index: int) -> tuple[np.ndarray, np.ndarray, list[Painted]]:
        """The image uint8 `(H, W, 3)`, its mask uint8 `(H, W)`, and where each digit's ink is."""
        generator = np.random.default_rng((*self.seed, index))
        # Channels first while digits are painted: numpy is ten times slower with an innermost dimension of 3.
        image = self.crop(generator).transpose(2, 0, 1).astype(np.float32)
        mask = np.zeros(self.size, np.uint8)
        placed: list[tuple[float, float, float]] = []
        digits: list[Painted] = []
        count = int(generator.integers(min(self.HEIGHTS), max(self.HEIGHTS) + 1))
        for digit in generator.choice(self.ids, count, replace=False):
            height = generator.uniform(*self.HEIGHTS[count]) * min(self.size)
            x, y, _ = place = self.free_place(generator, height, placed)
            placed.append(place)
            # Only the box that a tilted glyph can reach is painted.
            top, left = (max(0, int(centre - 0.8 * height)) for centre in (y, x))
            box = slice(top, int(y + 0.8 * height) + 2), slice(left, int(x + 0.8 * height) + 2)
            under, labels = image[:, *box], mask[box]
            tilt = generator.uniform(-self.tilt, self.tilt)
            alpha = self.ink(digit, x - left, y - top, height, tilt, labels.shape)
            under += alpha * (self.colour(generator, under, alpha)[:, None, None] - under)
            covered = alpha >= 0.5
            labels[covered] = 1 + self.labels[digit]
            digits.append((self.labels[digit], covered, top, left))
        return np.ascontiguousarray(image.round().astype(np.uint8).transpose(1, 2, 0)), mask, digits

    def crop(self, generator: np.random.Generator) -> np.ndarray:
        """A random part of a photograph with the aspect ratio of the scene, flipped half of the time."""
        background = self.backgrounds[generator.integers(len(self.backgrounds))]
        height, width = self.size
        largest = min(background.shape[0] / height, background.shape[1] / width)
        scale = generator.uniform(0.6, 1.0) * min(largest, self.WIDEST / width)
        h, w = max(1, int(height * scale)), max(1, int(width * scale))
        y = generator.integers(background.shape[0] - h + 1)
        x = generator.integers(background.shape[1] - w + 1)
        part = background[y : y + h, x : x + w]
        part = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA if scale > 2.5 else cv2.INTER_LINEAR)
        if generator.random() < 0.5:
            part = cv2.flip(part, 1)
        return cv2.convertScaleAbs(part, alpha=self.DIMMED)

    def free_place(
        self, generator: np.random.Generator, height: float, placed: list[tuple[float, float, float]]
    ) -> tuple[float, float, float]:
        """Of 16 random places, the one farthest from the digits placed so far: (x, y, height)."""
        rows, columns = self.size
        x = generator.uniform(0.4 * height, columns - 0.4 * height, 16)
        y = generator.uniform(0.5 * height, rows - 0.5 * height, 16)
        room = np.full(16, np.inf)
        for other_x, other_y, other_height in placed:  # Digits are narrower than tall.
            room = np.minimum(room, np.hypot((x - other_x) / 0.75, y - other_y) / (height + other_height))
        best = int(room.argmax())
        return float(x[best]), float(y[best]), height

    def ink(self, digit: int, x: float, y: float, height: float, tilt: float, shape: tuple[int, ...]) -> np.ndarray:
        """Opacity, float32 of `shape` in [0, 1], of a digit `height` pixels tall with its centre at (x, y)."""
        glyph = self.glyphs[digit]
        centre = (len(glyph) - 1) / 2
        matrix = cv2.getRotationMatrix2D((centre, centre), tilt, height / (0.8 * len(glyph)))
        matrix[:, 2] += np.array([x - centre, y - centre])
        grey = cv2.warpAffine(glyph, matrix, shape[::-1], flags=cv2.INTER_LINEAR)
        low, high = self.INK
        return np.clip((grey * np.float32(1 / 255) - low) / (high - low), 0, 1)

    def colour(self, generator: np.random.Generator, image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
        """A light tint whose luminance exceeds that of the covered background by at least `CONTRAST`, up to white."""
        behind = (LUMINANCE @ image.reshape(3, -1)).reshape(alpha.shape)
        ink = alpha.sum()
        mean = float((alpha * behind).sum() / ink)
        spread = float((alpha * np.square(behind - mean)).sum() / ink) ** 0.5
        luminance = generator.uniform(min(mean + spread + self.CONTRAST, 245), 255)
        tint = generator.uniform(0.85, 1, 3)
        return np.clip(tint * luminance / (tint @ LUMINANCE), 0, 255).astype(np.float32)


class BoxedScenes(Scenes):
    """The same scenes with the box around each digit's ink, also where another digit covers a part of it."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray | Objects, str]:
        image, _, digits = self.painted(index)
        return image, boxed(digits), f"scene-{index:04d}"


class MaskedScenes(Scenes):
    """The same with the mask of each digit's ink, also where another digit covers a part of it."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray | Objects, str]:
        image, _, digits = self.painted(index)
        masks = [placed_in(self.size, ink, top, left) for _, ink, top, left in digits]
        return image, replace(boxed(digits), masks=np.stack(masks)), f"scene-{index:04d}"


def boxed(digits: list[Painted]) -> Objects:
    """The class of each digit and the box around its ink."""
    boxes = [box_around(ink, top, left) for _, ink, top, left in digits]
    return objects_of(boxes, [label for label, *_ in digits])


def placed_in(size: tuple[int, int], ink: np.ndarray, top: int, left: int) -> np.ndarray:
    """A bool image of H and W `size` with `ink` from row `top` and column `left` on."""
    image = np.zeros(size, bool)
    image[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return image


def box_around(ink: np.ndarray, top: int, left: int) -> tuple[int, int, int, int]:
    """The box around the pixels that are true, in an image in which `ink` begins at row `top` and column `left`."""
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1
