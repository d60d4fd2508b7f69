"""Finds and reads the JSON files of annotations in COCO's format, and the images that they list."""

import json
import math
import os
import re
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any

from datamodules.boxed_names import say_alike
from datamodules.errors import DataError
from datamodules.notes import note
from datamodules.pairing import UNPRINTABLE, kinds, walk
from datamodules.split_folders import SPLITS, split_of

BACKGROUND = "background"
LAYOUT = (
    "--data-dir must name a folder with images and JSON files in COCO's format, as annotations/instances_train.json"
)


def split_in(stem: str) -> str | None:
    """The split that a word in a file's name stands for: instances_train2017."""
    words = [Path(word) for word in re.split(r"[^A-Za-z]+", stem) if word]
    return next((split for word in words if (split := split_of(word))), None)


def annotation_files(root: Path) -> dict[str, Path]:
    """The JSON file of each split, in the order train, val, test; a single one without a split is for training.

    Raises:
        ValueError: there is none, or two for one split.
    """
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))]
    found: dict[str, Path] = {}
    unsplit: list[Path] = []
    others: list[Path] = []
    for folder in folders:
        files = sorted(folder.glob("*.json"))
        instances = [path for path in files if path.name.startswith("instances")]  # beside captions and keypoints
        taken = instances or [path for path in files if holds_annotations(path)]
        others += [] if instances else [path for path in files if path not in taken]
        for path in taken:
            split = (split_of(folder) if folder != root else None) or split_in(path.stem)
            if split is None:
                unsplit.append(path)
            elif split in found:
                raise DataError(f"{found[split]} and {path} are both for {split}; keep one of them")
            else:
                found[split] = path
    if others:
        note(f"{len(others)} JSON files in {root} hold no annotations in COCO's format (first: {others[0]})")
    if not found and len(unsplit) == 1:
        return {"train": unsplit[0]}
    if "train" not in found:
        names = ", ".join(str(path.relative_to(root)) for path in [*found.values(), *unsplit]) or "no annotations"
        raise DataError(f"{root} holds {names}: which is for training? {LAYOUT}")
    if unsplit:
        note(f"passed over in {root}: {', '.join(path.name for path in unsplit)}, whose names tell no split")
    return {split: found[split] for split in SPLITS if split in found}


def holds_annotations(path: Path) -> bool:
    """Whether a JSON file speaks of annotations, by a glance at its beginning and end."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(4_096)
        file.seek(max(0, path.stat().st_size - 4_096))
        return any(
            word in part for part in (start, file.read()) for word in (b'"annotations"', b'"images"', b'"categories"')
        )


def read_annotations(path: Path) -> dict[str, Any]:
    """The content of a JSON file in COCO's format.

    Raises:
        ValueError: it is not of that format.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); export it again") from None
    for key, needs in (("images", ("id", "file_name")), ("annotations", ("image_id", "category_id")),
                       ("categories", ("id", "name"))):  # fmt: skip
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(
            isinstance(row, dict) and need in row for row in rows for need in needs
        ):
            raise DataError(f"{path} is not in COCO's format: it has no list {key} with {' and '.join(needs)} in each")
        check_values(rows, key, path)
    for key, text in (("images", "file_name"), ("categories", "name")):
        for row in content[key]:
            value = row[text]
            if not isinstance(value, str) or not value.strip() or UNPRINTABLE.search(value):
                raise DataError(
                    f"{path}: the {text} of {key} number {row['id']} is {value!a}; write a text of one line"
                )
        twice = [number for number, count in Counter(str(row["id"]) for row in content[key]).items() if count > 1]
        if twice:
            raise DataError(f"{path} lists the id {twice[0]} twice under {key}; give each its own")
    return content


def check_values(rows: list[dict[str, Any]], key: str, path: Path) -> None:
    """Raises ValueError if an id is neither a number nor a text, or a size is no number."""
    for number, row in enumerate(rows):
        for name in ("id", "image_id", "category_id"):
            if (
                name in row
                and not isinstance(row[name], (int, str))
                and (key, name, row[name]) != ("annotations", "id", None)
            ):
                raise DataError(f"{path}: the {name} of entry {number} of {key} is {row[name]!r}; write a whole number")
        for name in ("width", "height") if key == "images" else ():
            if name in row and (not isinstance(row[name], (int, float)) or not row[name] > 0):
                raise DataError(f"{path}: the {name} of entry {number} of {key} is {row[name]!r}; write its pixels")
    kinds = {type(row["id"]) for row in rows if key == "categories"}
    if len(kinds) > 1:
        raise DataError(f"{path}: some ids under {key} are numbers and some are texts; write numbers")


def classes_of(content: dict[str, Any], path: Path, most: float) -> tuple[tuple[str, ...], dict[str, int]]:
    """The names of the classes, background first, and the class of each category name.

    Roboflow lists the name of the project as a category that no annotation has; it is left out.

    Args:
        most: classes at most; `math.inf` for any number.

    Raises:
        ValueError: there are none, too many, or two of one name.
    """
    used = {one["category_id"] for one in content["annotations"]}
    above = {category.get("supercategory") for category in content["categories"]}
    categories = sorted(content["categories"], key=lambda category: category["id"])
    kept = [one["name"] for one in categories if one["id"] in used or one["name"] not in above or len(above) == 1]
    names = (BACKGROUND, *(name for name in kept if name.lower() != BACKGROUND))
    if not 2 <= len(set(names)) == len(names) <= most:
        wanted = "1 or more" if most == math.inf else f"1 to {most - 1}"
        raise DataError(f"{path} names {len(set(names)) - 1} different categories; write {wanted}, each once")
    say_alike(names)
    labels = {name: number for number, name in enumerate(names)}
    return names, labels | {one["name"]: 0 for one in categories if one["name"].lower() == BACKGROUND}


def images_by_name(root: Path) -> dict[str, list[Path]]:
    """All images under `root` by their file name."""
    found: dict[str, list[Path]] = defaultdict(list)
    others: Counter[str] = Counter()
    for path in sorted(walk(root, others)):
        found[path.name].append(path)
    others.pop(".json", None)
    if others:
        note(f"passed over in {root}: {kinds(others)}")
    return found


def find_images(
    content: dict[str, Any], file: Path, split: str, paths: dict[str, list[Path]], root: Path
) -> dict[int, Path]:
    """The path of each listed image by its id.

    Raises:
        ValueError: one is not there or is listed twice, or there are several and it is unclear which is meant.
    """
    found: dict[int, Path] = {}
    missing: list[str] = []
    for image in content["images"]:
        name = image["file_name"].replace("\\", "/")
        candidates = paths.get(os.path.basename(name), [])
        for fits in (
            {path for path in candidates if f"/{path.as_posix()}".endswith(f"/{name.lstrip('./')}")},
            {path for path in candidates if path.is_relative_to(file.parent)},
            {path for path in candidates if split in map(split_in, path.relative_to(root).parts[:-1])},
        ):
            candidates = [path for path in candidates if path in fits] or candidates
        if len(candidates) > 1:
            raise DataError(f"{file} lists {name}, which is {' and '.join(map(str, candidates[:2]))}; keep one of them")
        if candidates:
            found[image["id"]] = candidates[0]
        else:
            missing.append(name)
    if missing:
        raise DataError(
            f"{file} lists {len(content['images'])} images, {len(missing)} of which are not in {root} (first: "
            f"{missing[0]}); put them there or remove their entries"
        )
    twice = [path for path, count in Counter(found.values()).items() if count > 1]
    if twice:
        raise DataError(f"{file} lists {twice[0]} under two ids; put all its annotations under one of them")
    return found


def say_shared_and_unlisted(found: dict[str, dict[int, Path]], paths: dict[str, list[Path]], root: Path) -> None:
    """Say which images are in two splits, and how many are in none.

    Args:
        found: the images of each split.
        paths: all images in `root` by their file name.
    """
    for first, second in combinations(found, 2):
        shared = set(found[first].values()) & set(found[second].values())
        if shared:
            note(f"{len(shared)} images in {root} are in both {first} and {second} (first: {min(shared)})")
    listed = {path for of_split in found.values() for path in of_split.values()}
    left = [path for of_name in paths.values() for path in of_name if path not in listed]
    if left:
        note(f"{len(left)} images in {root} are in no annotation file and are passed over (first: {min(left)})")
