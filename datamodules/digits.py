"""Handwritten digits, the embedded data set: real and small, with nothing to download.

Classification: the 1,797 digits of 8x8 pixels bundled with scikit-learn (Alpaydin and Kaynak 1998, UCI Optical
Recognition of Handwritten Digits). Segmentation: scenes that paste those digits, at varied size, tilt and colour, onto
crops of the two photographs bundled there, with exact masks. Detection: the same scenes, with a box around each digit.
Training, validation and test scenes share neither a digit nor a pixel of a photograph. A scene is generated each time
it is asked for, in about half a millisecond. In those of digits_turned, digits are turned by up to 60 degrees instead
of 10.
"""

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import albumentations as A
import cv2
import numpy as np
from PIL import Image

from datamodules.base import GraftDataModule, Source, Task
from datamodules.digit_scenes import TILT, BoxedScenes, MaskedScenes, Scenes
from datamodules.size_rules import SizeRule

SPLITS = ("train", "val", "test")


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

    TILT: ClassVar[float] = TILT
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
