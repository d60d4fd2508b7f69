"""Splits of image files whose boxes were read from annotation files, and the checks that all such files pass.

A box that no object can have (numbers missing or not finite, an end before its beginning, wholly outside its image, of
an unknown class) is an error, said in one line before training. Boxes that reach over the border are cut there, boxes
without width or height are left out, and boxes that stand twice in one file count once; one line says how many.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.bands import RGB, read_channels
from datamodules.checking import in_threads
from datamodules.decoding import WHITE
from datamodules.errors import DataError
from datamodules.notes import note
from datamodules.objects import LARGEST, Objects, has_sides, is_plausible, objects_of
from datamodules.packed_paths import PackedPaths

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2."""
SLACK = 1.0
"""Pixels by which a box may reach over the border without a word: programs round differently."""
SLACK_OF_FRACTIONS = 0.005
"""The same as a fraction of the image."""


class Found(NamedTuple):
    """An object as its file states it."""

    line: int
    kind: str
    """The class: a name or a number."""
    box: Box
    ignored: bool = False
    """Whether it neither trains nor counts in scores."""


class Annotation(NamedTuple):
    """What one annotation file holds."""

    file: Path | None
    """None: the image has no such file."""
    found: Sequence[Found] = ()
    wrong: Sequence[str] = ()
    """What cannot be read in it, as "LINE: reason"."""
    size: tuple[int, int] | None = None
    """H and W of the image as the file states them; None if it does not."""
    polygons: int = 0
    """Objects that are stated by the points of a polygon."""
    other_image: str = ""
    """The image that the file names, if it is not the one that has the file's own name."""


@dataclass
class Tally:
    """What is wrong or unusual in the annotations of a data set, counted over its files."""

    total: int = 0
    over: int = 0
    without_side: int = 0
    repeated: int = 0
    tiny: int = 0
    """Boxes within the first pixel of their image."""
    polygons: int = 0
    other_image: list[str] = field(default_factory=list)
    """Files that name another image."""
    wrong: list[str] = field(default_factory=list)

    def report(self, root: Path) -> None:
        """Say what is unusual.

        Raises:
            ValueError: some annotations are wrong, or there is no box at all.
        """
        if self.wrong:
            raise DataError(
                f"{root}: {len(self.wrong)} of {self.total} annotations are wrong; correct or remove them. The first: "
                f"{self.wrong[0]}"
            )
        if self.total == self.without_side:
            raise DataError(f"{root} holds no box to learn or to score; annotate some objects")
        if self.tiny == self.total - self.without_side:
            raise DataError(
                f"all {self.tiny} boxes in {root} lie within the first pixel of their image; state them in pixels, not "
                "in fractions of the image"
            )
        for count, what in (
            (self.over, "reach over the border of their image and are cut there"),
            (self.without_side, "have no width or no height and are left out"),
            (self.repeated, "stand twice in their file and count once"),
            (self.polygons, "are those around the points of a polygon, because their line has seven or more numbers"),
        ):
            if count:
                note(f"{count} of {self.total} boxes in {root} {what}")
        if self.other_image:
            note(
                f"{len(self.other_image)} annotation files in {root} name another image than the one with their own "
                f"name, to which their boxes go (first: {self.other_image[0]})"
            )


def read_all(title: str, read: Callable[[Path], Annotation], files: Sequence[Path | None]) -> list[Annotation]:
    """What each file holds, read in threads, with a progress bar if that takes long."""
    return in_threads(title, [partial(read, file) if file else partial(Annotation, None) for file in files])


class BoxedFiles:
    """A split of image files with boxes.

    `white` may be set to the level of white in images of more than 8 bits, `in_channels` to the number of their bands.

    Args:
        images: name and path of each image.
        annotations: of each image.
        labels: the class of each kind of object.
        tally: counts what is wrong or unusual.
        fractions: whether boxes are given in fractions of the image, not in pixels.
    """

    def __init__(
        self,
        images: Sequence[tuple[str, Path]],
        annotations: Sequence[Annotation],
        labels: Mapping[str, int],
        tally: Tally,
        *,
        fractions: bool = False,
    ) -> None:
        self.names = [name for name, _ in images]
        self.files = PackedPaths(path for _, path in images)
        self.annotations = [one.file for one in annotations]
        self.sizes = [one.size for one in annotations]
        self.fractions = fractions
        self.objects = [checked(one, labels, tally, fractions) for one in annotations]
        self.white = WHITE
        self.in_channels = RGB

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Objects, str]:
        image = read_channels(self.files[index], self.in_channels, white=self.white)
        height, width = image.shape[:2]
        stated, file = self.sizes[index], self.annotations[index]
        if stated not in (None, (height, width)):
            raise DataError(
                f"{self.files[index]} is {width}x{height} but {file} states {stated[1]}x{stated[0]}; both must be of "
                "one size",
                "size mismatch",
            )
        objects = self.objects[index]
        sides = np.array([width, height, width, height], np.float64)
        boxes = objects.boxes.astype(np.float64) * (sides if self.fractions else 1)
        boxes = boxes.clip(0, sides)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        if not kept.all() and stated is None and not self.fractions:
            box = ", ".join(f"{value:g}" for value in objects.boxes[~kept][0])
            raise DataError(f"{file}: the box {box} lies outside the image of {width}x{height} pixels; correct it")
        return image, objects_of(boxes[kept], objects.labels[kept], objects.crowd[kept]), self.names[index]

    def paths(self, index: int) -> tuple[Path, ...]:
        """The image, and its annotations if there are some."""
        file = self.annotations[index]
        return (self.files[index],) if file is None else (self.files[index], file)

    def decoding_key(self, index: int) -> tuple[Any, ...]:
        """The boxes, their classes, and how deep images are read."""
        one = self.objects[index]
        return "boxes", one.boxes.tolist(), one.labels.tolist(), one.crowd.tolist(), self.white, self.in_channels

    def say_without(self, what: str, root: Path) -> None:
        """Say how many images have no objects.

        Raises:
            ValueError: no image has an object that counts.
        """
        if all(one.crowd.all() for one in self.objects):
            only = ", only difficult objects" if any(len(one.crowd) for one in self.objects) else ""
            raise DataError(
                f"the {what} images in {root} have no box to learn or to score{only}; annotate some objects"
            )
        empty = sum(not len(one.labels) for one in self.objects)
        if empty:
            note(f"{empty} of {len(self)} {what} images have no object: all background")


def checked(one: Annotation, labels: Mapping[str, int], tally: Tally, fractions: bool) -> Objects:
    """The objects of a file that are in order; the others go to the tally."""
    tally.total += len(one.found) + len(one.wrong)
    tally.wrong += [f"{one.file}:{reason}" for reason in one.wrong]
    tally.polygons += one.polygons
    if one.other_image:
        tally.other_image.append(f"{one.file} names {one.other_image}")
    height, width = (1, 1) if fractions else one.size or (math.inf, math.inf)
    slack = SLACK_OF_FRACTIONS if fractions else SLACK
    kept: dict[tuple[Box, int], bool] = {}
    for object_ in one.found:
        problem = problem_of(object_, labels, width, height, fractions)
        if problem:
            tally.wrong.append(f"{one.file}:{object_.line}: {problem}")
            continue
        x1, y1, x2, y2 = object_.box
        key = object_.box, labels[object_.kind]
        tally.over += x1 < -slack or y1 < -slack or x2 > width + slack or y2 > height + slack
        tally.repeated += key in kept
        if not has_sides(*object_.box):
            tally.without_side += 1
            continue
        tally.tiny += not fractions and x2 <= 1 and y2 <= 1
        kept[key] = object_.ignored
    return objects_of([box for box, _ in kept], [label for _, label in kept], list(kept.values()))


def problem_of(one: Found, labels: Mapping[str, int], width: float, height: float, fractions: bool) -> str | None:
    """Why an object is no box of an image in a class; None if it is one."""
    if one.kind not in labels:
        known = ", ".join(list(labels)[:8]) + ", ..." * (len(labels) > 8)
        return f"class {one.kind} is none of {known}"
    x1, y1, x2, y2 = one.box
    text = f"the box {x1:g}, {y1:g}, {x2:g}, {y2:g}"
    if not all(map(is_plausible, one.box)):
        return f"{text} has a number that is not finite or above {LARGEST:g}"
    if x2 < x1 or y2 < y1:
        return f"{text} ends before it begins"
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        where = "the image, whose fractions are 0 to 1" if fractions else f"the image of {width}x{height} pixels"
        return f"{text} lies outside {where}" if width < math.inf else f"{text} lies outside the image"
    return None
