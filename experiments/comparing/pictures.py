"""Prediction pictures of several groups on the same images, as data that a page carries within itself."""

import base64
import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.comparing.groups import Group
from experiments.run_files.read_run import Picture, Run

BUDGET = 16 * 2**20
"""Characters of pictures in a page, which is to be mailed."""


def side_by_side(groups: Iterable[Group], budget: int = BUDGET) -> dict[str, Any]:
    """One run of each group, that of the lowest seed which has pictures, as long as the budget lasts.

    Returns:
        `images`: of all that any of the runs has pictures of, "key", "index", "image" and "truth"; `groups`: by label,
        the run's "name", "seed" and "predictions" by key; `left_out`: how many groups the budget had no room for;
        `colours` of the classes. Pictures are data URIs, or names of classes in classification.
    """
    images: dict[str, dict[str, Any]] = {}
    shown: dict[str, dict[str, Any]] = {}
    colours: dict[str, str] = {}
    left_out = 0
    for group in groups:
        run = first_with_pictures(group)
        if run is None:
            continue
        if budget <= 0:
            left_out += 1
            continue
        predictions = {}
        for picture in run.pictures:
            try:
                key, image = identity(picture), embedded(picture.image)
                truth, prediction = embedded(picture.truth), embedded(picture.prediction)
            except OSError:  # an index may outlive its files
                continue
            if key not in images:
                images[key] = {"key": key, "index": picture.index, "image": image, "truth": truth}
                budget -= len(image) + len(truth)
            predictions[key] = prediction
            budget -= len(prediction)
        shown[group.label] = {"name": run.name, "seed": run.seed, "predictions": predictions}
        colours |= run.colours
    ordered = sorted(images.values(), key=lambda one: (one["index"], one["key"]))
    return {"images": ordered, "groups": shown, "left_out": left_out, "colours": colours}


def first_with_pictures(group: Group) -> Run | None:
    return min((run for run in group.runs if run.pictures), key=lambda run: (run.seed or 0, run.name), default=None)


def identity(picture: Picture) -> str:
    """Equal for the same image: data of one protocol may still be other data."""
    return f"{picture.index}-{digest_of_pixels(picture.image.read_bytes(), picture.image)}"


@lru_cache(maxsize=1024)
def digest_of_pixels(content: bytes, path: Path) -> str:
    """Of what is seen, as two versions of a library may compress it differently.

    Raises:
        OSError: the file is no picture.
    """
    return hashlib.sha256(np.asarray(Image.open(path)).tobytes()).hexdigest()[:12]


def embedded(content: Path | str) -> str:
    """A PNG as a data URI; the name of a class as it is."""
    if isinstance(content, str):
        return content
    return "data:image/png;base64," + base64.b64encode(content.read_bytes()).decode()
