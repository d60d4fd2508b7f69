"""The prediction pictures of a run folder: predictions/index.json and the PNG files next to it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.run_files.json_file import read_json

PREDICTIONS = "predictions/index.json"


@dataclass(frozen=True)
class Picture:
    """A validation image with its labels and the run's prediction."""

    index: int
    """Index of the image in the validation split."""
    image: Path
    """PNG of the image."""
    truth: Path | str
    """PNG of the labels in the classes' colours; in classification, the name of the class."""
    prediction: Path | str
    """The prediction, in the same form."""


def read_pictures(path: Path) -> tuple[list[Picture], dict[str, str]]:
    """The pictures of an index, and "#rrggbb" of each class; both are empty if an older version wrote no index.

    Raises:
        ValueError: the index cannot be understood, or names a file that is no PNG in its own folder. Run folders are
            passed on to others, and pages and W&B must show nothing but the run's pictures.
    """
    if not path.is_file():
        return [], {}
    index = read_json(path)
    try:
        named = index["task"] == "classification"
        pictures = [
            Picture(
                int(one["index"]),
                picture_path(path.parent, one["image"]),
                str(one["truth"]) if named else picture_path(path.parent, one["truth"]),
                str(one["prediction"]) if named else picture_path(path.parent, one["prediction"]),
            )
            for one in index["samples"]
        ]
        colours = dict(index["colours"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{PREDICTIONS} has no '{error}'") from error
    if not all(re.fullmatch("#[0-9a-fA-F]{6}", str(colour)) for colour in colours.values()):
        raise ValueError(f"{PREDICTIONS} has a colour that is not #rrggbb")
    return pictures, colours


def picture_path(folder: Path, name: Any) -> Path:
    """The path of a picture in the folder; a link must not lead out of it."""
    path = folder / name
    if path.suffix != ".png" or path.resolve().parent != folder.resolve():
        raise ValueError(f"{PREDICTIONS} names {name}, which is no PNG file in its folder")
    return path
