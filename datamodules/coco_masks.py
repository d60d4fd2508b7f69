"""Draws the polygons and run lengths of annotations in COCO's format, by pycocotools."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.errors import DataError


def require_pycocotools() -> None:
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError:
        raise DataError(
            "--data coco draws masks with pycocotools, which is not installed: pip install 'graft[coco]'"
        ) from None


def drawn(annotation: Mapping[str, Any], height: int, width: int, file: Path) -> Any | None:
    """The compressed run lengths of an annotation; None if it has no outline.

    Raises:
        ValueError: it cannot be drawn.
    """
    try:
        return run_lengths(annotation.get("segmentation"), height, width)
    except Exception as error:  # pycocotools raises what it likes
        reason = " ".join(str(error).split()) or type(error).__name__
        message = f"{file}: annotation {annotation.get('id')} cannot be drawn ({reason}); correct or remove it"
        raise DataError(message, "unreadable") from None


def object_masks(annotations: Sequence[Mapping[str, Any]], height: int, width: int, file: Path) -> np.ndarray:
    """The mask of each annotation, all of which have an outline: bool `(N, height, width)`.

    Raises:
        ValueError: one cannot be drawn.
    """
    from pycocotools import mask as rle_tools

    masks = np.zeros((len(annotations), height, width), bool)
    for mask, one in zip(masks, annotations, strict=True):
        mask[:] = rle_tools.decode(drawn(one, height, width, file)) > 0
    return masks


def has_outline(segmentation: Any) -> bool:
    """Whether there is anything to draw: run lengths, or a polygon of three points. Others count as boxes."""
    if isinstance(segmentation, list):
        return any(len(polygon) >= 6 for polygon in segmentation)
    return bool(segmentation)


def run_lengths(segmentation: Any, height: int, width: int) -> Any | None:
    """Polygons, or run lengths as a list or compressed, as compressed run lengths; None if there is no outline.

    Raises:
        ValueError: run lengths are of another size than the image, or half a point ends a polygon.
    """
    from pycocotools import mask as rle_tools

    if not has_outline(segmentation):
        return None
    if isinstance(segmentation, list):
        if any(len(polygon) % 2 for polygon in segmentation):
            raise ValueError("a polygon has an odd number of coordinates")
        # Four numbers would be taken for a box.
        polygons = [[float(x) for x in polygon] for polygon in segmentation if len(polygon) >= 6]
        if not np.isfinite(np.concatenate(polygons)).all():
            raise ValueError("a coordinate is no number")
        return rle_tools.merge(rle_tools.frPyObjects(polygons, height, width))
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"its run lengths are for {segmentation['size'][1]}x{segmentation['size'][0]} pixels")
    if isinstance(segmentation["counts"], list):
        if sum(segmentation["counts"]) != height * width:
            raise ValueError(f"its run lengths add up to {sum(segmentation['counts'])} pixels of {height * width}")
        return rle_tools.frPyObjects(segmentation, height, width)
    return segmentation
