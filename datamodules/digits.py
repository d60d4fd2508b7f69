"""Handwritten digits, the embedded data set: real and small, with nothing to download.

Classification: the 1,797 digits of 8x8 pixels bundled with scikit-learn (Alpaydin and Kaynak 1998, UCI Optical
Recognition of Handwritten Digits). Segmentation: scenes that paste those digits, at varied size, tilt and colour, onto
crops of the two photographs bundled there, with exact masks. Detection: the same scenes, with a box around each digit.
Training, validation and test scenes share neither a digit nor a pixel of a photograph. A scene is generated each time
it is asked for, in about half a millisecond. In those of digits_turned, digits are turned by up to 60 degrees instead
of 10.
"""

import gzip
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import albumentations as A
import cv2
import numpy as np
from PIL import Image

from datamodules.base import GraftDataModule, Source, Task
from datamodules.objects import Objects, objects_of
from datamodules.size_rules import SizeRule

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
SPLITS = ("train", "val", "test")
Painted = tuple[int, np.ndarray, int, int]
"""Class of a digit, where its ink is, bool, in a box of the scene, and the box's first row and column."""


class Digits(GraftDataModule):
    """Single digits to classify, or scenes in which digits and background are to be segmented."""

    tasks: ClassVar[tuple[Task, ...]] = ("classification", "segmentation", "detection")
    has_object_masks = True

    SCENES: ClassVar[dict[str, int]] = {"train": 448, "val": 128, "test": 128}
    """Number of scenes in each split; the training scenes are new in every epoch."""
    HELD_OUT: ClassVar[float] = 0.15
    """Fraction of the digits of each class that goes to validation, and again to test."""
    STRIPS: ClassVar[dict[str, tuple[int, int]]] = {"train": (0, 360), "val": (360, 500), "test": (500, 640)}
    """Columns of both photographs (640 wide) from which the scenes of a split are cropped."""

    TILT: ClassVar[float] = 10.0
    """Largest rotation of a digit of a scene in either direction, in degrees."""

    def default_size(self) -> tuple[int, int]:
        return (32, 32) if self.task == "classification" else (64, 64)

    def sources(self) -> dict[str, Source]:
        images, labels, photographs = bundled_with_sklearn()
        glyphs = (images * (255 / 16)).round().astype(np.uint8)
        parts = split_digits(labels, self.HELD_OUT)
        self.class_names = tuple(map(str, range(10)))
        if self.task == "classification":
            return {split: LoneDigits(glyphs, labels, ids, self.image_size) for split, ids in parts.items()}
        scenes = MaskedScenes if self.object_masks else BoxedScenes if self.task == "detection" else Scenes
        if self.task == "segmentation":
            self.class_names = ("background", *self.class_names)
        self.endless_training = True
        return {
            split: scenes(
                glyphs,
                labels,
                parts[split],
                [photograph[:, slice(*self.STRIPS[split])] for photograph in photographs],
                self.image_size,
                self.SCENES[split],
                # Runs of all seeds are scored on the same scenes.
                (self.seed, 0) if split == "train" else (0, SPLITS.index(split)),
                self.TILT,
            )
            for split in SPLITS
        }

    def augmentation(self) -> list[A.BasicTransform]:
        # No flips: a flipped digit is another digit or none.
        return [A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=0.8)]

    def size_rule(self) -> SizeRule:
        return SizeRule("stretch" if self.task == "classification" else "own", self.image_size)

    def evaluation(self) -> list[A.BasicTransform]:
        return []  # digits and scenes are generated at `image_size`


class DigitsTurned(Digits):
    """The same scenes with digits that lean up to 60 degrees; a 6 still differs from a 9."""

    tasks: ClassVar[tuple[Task, ...]] = ("segmentation", "detection")
    TILT: ClassVar[float] = 60.0


def bundled_with_sklearn() -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Images of digits in 0..16 `(1797, 8, 8)`, their labels `(1797,)`, and two photographs uint8 `(427, 640, 3)`.

    Read from scikit-learn's files without importing it, which would also import half of scipy and take as long as an
    epoch of a small network.
    """
    package = find_spec("sklearn")
    folder = Path(package.origin or "").parent / "datasets" if package else Path()
    table, pictures = folder / "data" / "digits.csv.gz", sorted((folder / "images").glob("*.jpg"))
    if not table.is_file() or len(pictures) != 2:  # another release, which keeps them elsewhere
        from sklearn.datasets import load_digits, load_sample_images

        bundle = load_digits()
        return bundle.images, bundle.target.astype(int), load_sample_images().images
    with gzip.open(table, "rt", encoding="utf-8") as file:
        rows = np.loadtxt(file, delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(int), [np.asarray(Image.open(path)) for path in pictures]


def split_digits(labels: np.ndarray, held_out: float) -> dict[str, np.ndarray]:
    """Indices of the digits of each split: the same fraction of every class, and the same split for all seeds."""
    generator = np.random.default_rng(0)
    parts: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for label in range(10):
        ids = generator.permutation(np.flatnonzero(labels == label))
        n = round(held_out * len(ids))
        for split, part in zip(SPLITS, (ids[2 * n :], ids[:n], ids[n : 2 * n]), strict=True):
            parts[split].append(part)
    return {split: np.sort(np.concatenate(part)) for split, part in parts.items()}


class LoneDigits:
    """One digit fills the image: uint8 `(H, W, 3)`, white on black."""

    def __init__(self, glyphs: np.ndarray, labels: np.ndarray, ids: np.ndarray, size: tuple[int, int]) -> None:
        self.glyphs = glyphs
        self.labels = labels
        self.ids = ids
        self.size = size

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, str]:
        digit = self.ids[index]
        image = cv2.resize(self.glyphs[digit], self.size[::-1], interpolation=cv2.INTER_CUBIC)
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), int(self.labels[digit]), f"digit-{digit:04d}"

    def class_labels(self) -> np.ndarray:
        """The class of each digit."""
        return self.labels[self.ids]


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
        tilt: float = Digits.TILT,
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
