"""Boxes from annotations in COCO's format, each checked before training.

A box that no object can have (a number missing or not finite, a negative side, wholly outside its image, of an unknown
category or image) is an error. Boxes that reach over the image's border are cut there, and boxes without width or
height, of which COCO itself has a few, are left out; one line says how many.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.coco_files import BACKGROUND
from datamodules.coco_masks import object_masks
from datamodules.errors import DataError
from datamodules.notes import note
from datamodules.objects import LARGEST, Objects, has_sides, is_plausible, objects_of

Annotation = Mapping[str, Any]
SLACK = 1.0
"""Pixels by which a box may reach over the border without a word: programs round differently."""


def objects_in(
    annotations: Sequence[Annotation],
    labels: Mapping[int, int],
    height: int,
    width: int,
    file: Path,
    with_masks: bool = False,
) -> Objects:
    """The objects of an image, cut at its border, without those that have no width or height.

    Raises:
        ValueError: one lies outside the image, whose size the file did not state, or cannot be drawn.
    """
    boxes, classes, crowd, kept = [], [], [], []
    for one in annotations:
        x, y, w, h = map(float, one["bbox"])
        box = (max(0.0, x), max(0.0, y), min(float(width), x + w), min(float(height), y + h))
        if has_sides(*box):
            boxes.append(box)
            classes.append(labels[one["category_id"]])
            crowd.append(bool(one.get("iscrowd")))
            kept.append(one)
        elif has_sides(x, y, x + w, y + h):
            raise DataError(
                f"{file}: bbox {one['bbox']} of annotation {one.get('id')} lies outside its image of {width}x{height} "
                "pixels; correct or remove it"
            )
    found = objects_of(boxes, classes, crowd)
    return replace(found, masks=object_masks(kept, height, width, file)) if with_masks else found


def check_boxes(content: Mapping[str, Any], file: Path, labels: Mapping[int, int]) -> None:
    """Check all annotations of a file, and say what is unusual.

    Raises:
        ValueError: some are wrong; the message counts them and shows the first.
    """
    images = {image["id"]: image for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    refuse_repeated(content, file)
    wrong: list[str] = []
    over = without_side = crowds = tiny = 0
    for one in content["annotations"]:
        problem = problem_of(one, images, labels, names)
        if problem:
            wrong.append(f"annotation {one.get('id')} of {name_of(one, images)}: {problem}")
            continue
        x, y, w, h = map(float, one["bbox"])
        image = images[one["image_id"]]
        if not has_sides(x, y, x + w, y + h):
            without_side += 1
            continue
        crowds += bool(one.get("iscrowd"))
        tiny += x + w <= 1 and y + h <= 1
        over += x < -SLACK or y < -SLACK or beyond(x + w, image.get("width")) or beyond(y + h, image.get("height"))
    total = len(content["annotations"])
    if wrong:
        raise DataError(
            f"{file}: {len(wrong)} of {total} annotations are wrong; correct or remove them. The first: {wrong[0]}"
        )
    if total == without_side + crowds:
        only = " but crowds" if crowds else ""
        raise DataError(f"{file} holds no box to learn or to score{only}; annotate some objects")
    if tiny == total - without_side:
        raise DataError(
            f"{file}: all {tiny} boxes lie within the first pixel of their image; state them in pixels, not in "
            "fractions of the image"
        )
    if over:
        most = "; is bbox written as two corners? COCO's is [x, y, width, height]" if over > total / 2 else ""
        note(f"{over} of {total} boxes in {file} reach over the border of their image and are cut there{most}")
    if without_side:
        note(f"{without_side} of {total} boxes in {file} have no width or no height and are left out")
    annotated = {one["image_id"] for one in content["annotations"]}
    if len(annotated) < len(images):
        note(f"{len(images) - len(annotated)} of {len(images)} images in {file} have no annotation: all background")


def refuse_repeated(content: Mapping[str, Any], file: Path) -> None:
    """Raises ValueError if an id occurs twice among the annotations."""
    counts = Counter(one["id"] for one in content["annotations"] if one.get("id") is not None)
    repeated = [number for number, count in counts.items() if count > 1]
    if repeated:
        raise DataError(
            f"{file}: {len(repeated)} ids of annotations occur more than once (first: {repeated[0]}); number them anew"
        )


def problem_of(
    one: Annotation, images: Mapping[int, Any], labels: Mapping[int, int], names: Mapping[int, str]
) -> str | None:
    """Why an annotation is no box of an image in a class; None if it is one."""
    if one["image_id"] not in images:
        return "no image has that id"
    category = one["category_id"]
    if category not in names:
        return f"category {category!r} is not listed under categories"
    if category not in labels:
        is_background = names[category].lower() == BACKGROUND
        why = "which has no boxes" if is_background else "which the training annotations do not list; add it there"
        return f"its category is {names[category]}, {why}"
    if one.get("iscrowd") not in (None, 0, 1):
        return f"iscrowd is {one['iscrowd']!r}, neither 0 nor 1"
    box = one.get("bbox")
    numbers = [value for value in box if isinstance(value, (int, float))] if isinstance(box, list) else []
    if len(numbers) != 4 or len(box) != 4:  # type: ignore[arg-type]
        return f"bbox is {box!s:.60}, not [x, y, width, height]"
    if not all(map(is_plausible, numbers)):
        return f"bbox {box} has a number that is not finite or above {LARGEST:g}"
    x, y, w, h = numbers
    if w < 0 or h < 0:
        return f"bbox {box} has a negative side (its end lies before its beginning)"
    image = images[one["image_id"]]
    height, width = image.get("height", math.inf), image.get("width", math.inf)
    # In float32, as boxes are kept.
    ends_before = np.float32(x + w) <= 0 or np.float32(y + h) <= 0
    if (ends_before or np.float32(x) >= width or np.float32(y) >= height) and has_sides(x, y, x + w, y + h):
        return f"bbox {box} lies outside the image of {width}x{height} pixels"
    return None


def name_of(one: Annotation, images: Mapping[int, Any]) -> str:
    image = images.get(one["image_id"])
    return image["file_name"] if image else f"image {one['image_id']!r}"


def beyond(end: float, size: float | None) -> bool:
    return size is not None and end > size + SLACK
