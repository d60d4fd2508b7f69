"""Prediction pictures of several groups on the same images, as data for a page that contains them."""

import base64
import hashlib
import io
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.comparing.groups import Group
from experiments.run_files.read_pictures import Picture
from experiments.run_files.read_run import Run

BUDGET = 16 * 2**20
"""Characters of all pictures in a page, so that it can be mailed."""


def side_by_side(groups: Iterable[Group], budget: int = BUDGET) -> dict[str, Any]:
    """Pictures of one run of each group, the one with the lowest seed that has pictures, as long as the budget lasts.

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
            except OSError:  # files of the index may be missing, or no pictures
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
    """Key of an image: its index and a hash of its pixels, because older runs do not record which data they used."""
    return f"{picture.index}-{digest_of_pixels(picture.image.read_bytes())}"


@lru_cache(maxsize=1024)
def digest_of_pixels(content: bytes) -> str:
    """A hash of the pixels of a PNG; two versions of a library may compress the same pixels differently."""
    return hashlib.sha256(np.asarray(open_png(content)).tobytes()).hexdigest()[:12]


def open_png(content: bytes) -> Image.Image:
    """The picture.

    Raises:
        OSError: it is no PNG.
    """
    return Image.open(io.BytesIO(content), formats=["PNG"])


def embedded(content: Path | str) -> str:
    """A PNG file as a data URI, or the name of a class as it is.

    Raises:
        OSError: the file is missing, or is no PNG.
    """
    if isinstance(content, str):
        return content
    data = content.read_bytes()
    open_png(data)
    return "data:image/png;base64," + base64.b64encode(data).decode()
