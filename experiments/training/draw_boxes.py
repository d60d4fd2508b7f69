"""Draws boxes with their classes over an image."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

SIDE = 384
"""Small images are enlarged to about so many pixels a side, so that the names of classes can be read."""
LEAST_SCORE = 0.3
"""Detections below it are not drawn: there may be hundreds."""
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def shown(objects: Mapping[str, Any], least: float = LEAST_SCORE) -> dict[str, np.ndarray]:
    """The objects to draw, as arrays: all of a truth, of detections those that score at least so much."""
    arrays = {name: np.asarray(value) for name, value in objects.items()}
    if "scores" not in arrays:
        return arrays
    confident = arrays["scores"] >= least
    return {name: values[confident] for name, values in arrays.items()}


def draw_boxes(
    image: np.ndarray,
    objects: Mapping[str, Any],
    class_names: Sequence[str],
    colours: Sequence[Sequence[int]] | np.ndarray,
    least: float = LEAST_SCORE,
) -> np.ndarray:
    """A copy of an image uint8 `(H, W, 3)`, enlarged if it is small, with boxes, class names and scores.

    Args:
        objects: `boxes` `(N, 4)`, `labels` `(N,)` and, for detections, `scores` `(N,)`.
        colours: RGB in 0..255 of each class.
        least: detections below this score are not drawn.
    """
    canvas = enlarged(image)
    factor = canvas.shape[0] / image.shape[0]
    drawn = shown(objects, least)
    scores = drawn.get("scores", [None] * len(drawn["labels"]))
    # The most confident box is drawn last, over the others.
    for box, label, score in reversed(list(zip(drawn["boxes"], drawn["labels"], scores, strict=True))):
        colour = tuple(int(level) for level in colours[int(label)])
        x1, y1, x2, y2 = (round(float(corner) * factor) for corner in box)
        cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), colour, 2)
        write(canvas, class_names[int(label)] + ("" if score is None else f" {score:.2f}"), (x1, y1), colour)
    return canvas


def enlarged(image: np.ndarray) -> np.ndarray:
    """A copy of an image at the size at which boxes are drawn over it: a whole number of times its own."""
    factor = max(1, SIDE // max(image.shape[:2]))
    return image.repeat(factor, 0).repeat(factor, 1)


def write(canvas: np.ndarray, text: str, corner: tuple[int, int], colour: tuple[int, ...]) -> None:
    """Write on a bar in the box's colour above the corner, or below it at the image's border."""
    text = text.encode("ascii", "replace").decode()  # OpenCV's fonts have no other letters
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)
    x = max(0, min(corner[0], canvas.shape[1] - width - 4))
    y = corner[1] if corner[1] >= height + 6 else corner[1] + height + 6
    cv2.rectangle(canvas, (x, y - height - 6), (x + width + 4, y), colour, cv2.FILLED)
    dark = np.dot(colour, (0.299, 0.587, 0.114)) < 128
    cv2.putText(canvas, text, (x + 2, y - 3), cv2.FONT_HERSHEY_SIMPLEX, 0.45, WHITE if dark else BLACK, 1, cv2.LINE_AA)
