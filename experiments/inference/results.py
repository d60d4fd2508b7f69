"""What a trained network says about one picture: labels, probabilities, an overlay, files."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from experiments.inference.label_files import save_labels

OPACITY = 0.55
"""Opacity of the class colours over the picture."""
ABSTAINED = -1
"""Label of pixels or images whose confidence is below the user's threshold."""
HATCH = 6
"""Width in pixels of the stripes over pixels without a label."""


@dataclass(frozen=True)
class SegmentationResult:
    """A class for each pixel of a picture.

    Args:
        probabilities: float32 `(C, H, W)`, summing to 1 over the classes.
        image: the picture, uint8 `(H, W, 3)`.
        colours: RGB of each class, uint8 `(C, 3)`.
        abstain: labels are -1 where the highest probability is below this.
    """

    probabilities: np.ndarray
    image: np.ndarray
    class_names: tuple[str, ...]
    colours: np.ndarray
    abstain: float = 0.0

    @cached_property
    def scores(self) -> np.ndarray:
        """The probability of each pixel's class, float32 `(H, W)`."""
        return self.probabilities.max(0)

    @cached_property
    def labels(self) -> np.ndarray:
        """Classes `(H, W)`, int64; -1 where the network abstains."""
        labels = self.probabilities.argmax(0)
        return np.where(self.scores < self.abstain, ABSTAINED, labels) if self.abstain else labels

    @cached_property
    def shares(self) -> dict[str, float]:
        """The fraction of the pixels that each class has, in [0, 1], for the classes that occur."""
        counts = np.bincount(self.labels[self.labels >= 0].ravel(), minlength=len(self.class_names))
        return {
            name: float(count) / self.labels.size for name, count in zip(self.class_names, counts, strict=True) if count
        }

    def overlay(self, legend: bool = True) -> Image.Image:
        """The picture under the classes' colours, with a legend below it; black classes show the picture as it is, and
        pixels without a label are striped."""
        return overlay(self.image, self.labels, self.class_names, self.colours, legend=legend)

    def save(self, path: str | Path) -> None:
        """Write the labels as a PNG of class numbers with a palette of the classes' colours; see `label_png`."""
        save_labels(self.labels, self.colours, Path(path))


@dataclass(frozen=True)
class ClassificationResult:
    """A class for a picture.

    Args:
        probabilities: float32 `(C,)`, summing to 1, or each by itself where images have several labels.
        image: the picture, uint8 `(H, W, 3)`.
        colours: unused; both kinds of result are built alike.
        abstain: the label is -1 if the highest probability is below this.
    """

    probabilities: np.ndarray
    image: np.ndarray
    class_names: tuple[str, ...]
    colours: np.ndarray
    abstain: float = 0.0

    @property
    def scores(self) -> np.ndarray:
        """The probability of the most likely class, float32 `()`."""
        return self.probabilities.max()

    @property
    def labels(self) -> int:
        """The most likely class, or -1 if the network abstains."""
        return ABSTAINED if self.scores < self.abstain else int(self.probabilities.argmax())

    @property
    def name(self) -> str:
        """The name of the most likely class; "" if the network abstains."""
        return self.class_names[self.labels] if self.labels >= 0 else ""

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The k most likely classes with their probabilities, the most likely first."""
        order = np.argsort(-self.probabilities, kind="stable")[:k]
        return [(self.class_names[i], float(self.probabilities[i])) for i in order]

    def overlay(self, legend: bool = True) -> Image.Image:
        """The picture with its most likely classes written below it."""
        lines = [f"{name}  {100 * value:.1f} %" for name, value in self.top(3)] if legend else []
        return with_lines(self.image, [(line, None) for line in lines])

    def save(self, path: str | Path) -> None:
        """Write the probabilities as a CSV file of class and probability, the most likely first."""
        rows = [
            f'"{name.replace(chr(34), chr(34) * 2)}",{value:.6f}' for name, value in self.top(len(self.class_names))
        ]
        Path(path).write_text("class,probability\n" + "\n".join(rows) + "\n", encoding="utf-8")


Result = SegmentationResult | ClassificationResult


def overlay(
    image: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...], colours: np.ndarray, *, legend: bool
) -> Image.Image:
    """An image uint8 `(H, W, 3)` under the colours of its labels `(H, W)`; label -1 is striped grey, black is clear."""
    table = np.vstack([colours, [[128, 128, 128]]]).astype(np.uint8)  # the last row is label -1
    mixed = cv2.addWeighted(image, 1 - OPACITY, table[labels], OPACITY, 0)
    black = (table.max(1) == 0)[labels]  # usually the background, under which the picture would be hard to see
    mixed[black] = image[black]
    stripes = np.add.outer(np.arange(labels.shape[0]), np.arange(labels.shape[1])) // HATCH % 2 == 0
    mixed[(labels < 0) & stripes] = (200, 200, 200)
    present = [int(label) for label in np.unique(labels)] if legend else []
    entries = [(class_names[one], colours[one]) for one in present if one >= 0]
    if -1 in present:
        entries.append(("no label", np.array((128, 128, 128), np.uint8)))
    return with_lines(mixed, entries)


def with_lines(image: np.ndarray, entries: list[tuple[str, np.ndarray | None]]) -> Image.Image:
    """An image with entries of a legend below it, each with a square of its colour, in as many rows as they need."""
    from PIL import ImageDraw, ImageFont

    picture = Image.fromarray(image)
    if not entries:
        return picture
    size = min(28, max(11, picture.width // 45))
    font = ImageFont.load_default(size)
    rows: list[list[tuple[int, str, np.ndarray | None]]] = [[]]
    x = size // 2
    for text, colour in entries:
        width = round(font.getlength(text)) + (round(1.3 * size) if colour is not None else 0) + size
        if rows[-1] and x + width > picture.width:
            rows.append([])
            x = size // 2
        rows[-1].append((x, text, colour))
        x += width
    line = round(1.6 * size)
    widest = max(x + round(font.getlength(text)) + 2 * size for row in rows for x, text, _ in row)
    canvas = Image.new("RGB", (max(picture.width, widest), picture.height + line * len(rows) + size // 2), "white")
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for number, row in enumerate(rows):
        top = picture.height + size // 4 + number * line
        for left, text, colour in row:
            if colour is not None:
                box = (left, top + line // 8, left + size, top + line // 8 + size)
                draw.rectangle(box, fill=tuple(map(int, colour)), outline="black")
                left += round(1.3 * size)
            draw.text((left, top), text, fill="black", font=font)
    return canvas
