"""Finds the folders of the splits in a folder of a user's own data, and says what it passes over."""

import re
from collections import Counter
from itertools import combinations
from pathlib import Path

from datamodules.errors import DataError
from datamodules.notes import note
from datamodules.pairing import folders_in, kinds, walk

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"} | {
    split: split for split in SPLITS
}
"""Usual names of split folders, in any case and perhaps with an ending such as "_set"."""


def split_of(folder: Path) -> str | None:
    """The split that a folder's name stands for, or None."""
    name = re.sub(r"[_\- ]?(set|data|dataset|split)$", "", folder.name.lower())
    return SPLIT_NAMES.get(name)


def split_folders(root: Path) -> dict[str, Path]:
    """The folders in `root` by the split that they are named after, in the order train, val, test.

    Raises:
        ValueError: two folders are named after one split, or there is another split without a training split.
    """
    found: dict[str, Path] = {}
    for folder in folders_in(root):
        split = split_of(folder)
        if split in found:
            raise DataError(f"{root} holds {found[split].name}/ and {folder.name}/, both for {split}; keep one of them")
        if split:
            found[split] = folder
    if found and "train" not in found:
        names = ", ".join(f"{folder.name}/" for folder in found.values())
        raise DataError(f"{root} holds {names} but no train/; add train/, or rename what is no split")
    return {split: found[split] for split in SPLITS if split in found}


def say_linked(splits: dict[str, Path]) -> None:
    """Say that a split is the folder of another split under a second name."""
    for first, second in combinations(splits, 2):
        if splits[first].samefile(splits[second]):
            note(f"{splits[second]} is the same folder as {splits[first]}, through a link: both hold the same images")


def holds_images(folder: Path, *, deep: bool = True) -> bool:
    """Whether there is an image in the folder or, if `deep`, below it."""
    return next(walk(folder, Counter(), deep=deep), None) is not None


def contents(folder: Path) -> str:
    """What is directly in a folder, in words, for messages."""
    others: Counter[str] = Counter()
    others.update(path.suffix.lower() for path in walk(folder, others, deep=False))
    parts = [f"{path.name}/" for path in folders_in(folder)]
    shown = ", ".join([*parts[:6], *(["..."] if len(parts) > 6 else []), *([kinds(others)] if others else [])])
    return shown or "nothing"


def say_passed_over(root: Path, folders: list[Path], reason: str) -> None:
    if folders:
        note(f"passed over in {root}: {', '.join(f'{folder.name}/' for folder in folders)}, {reason}")
