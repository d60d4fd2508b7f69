"""Finds the class folders of each split in a folder of a user's own images.

What is found and not read is said in one line; what cannot be understood is refused in one.
"""

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

from datamodules.errors import DataError
from datamodules.mask_layout import IMAGE_FOLDERS, MASK_FOLDERS, named
from datamodules.notes import note
from datamodules.pairing import folders_in, list_classes, list_images, walk
from datamodules.split_folders import contents, say_linked, say_passed_over, split_folders

SPLIT_LIKE = re.compile("train|val|test|dev|hold|fold|eval|^(tr|trn|va|vl|te|ts|tst)$", re.IGNORECASE)
RUN_FILES = ("config.yaml", "results.json", "predictions.png")


def class_trees(root: Path, passed_over: Counter[str]) -> dict[str, dict[str, list[Path]]]:
    """The images of each class in each split; without split folders, all are the training split.

    Raises:
        ValueError: it is unclear what is a split and what is a class, or a split has no class folders.
    """
    splits = split_folders(root)
    say_linked(splits)
    if not splits:
        outputs = [folder for folder in folders_in(root) if is_output(folder)]
        classes = [folder for folder in folders_in(root) if folder not in outputs]
        refuse_split_like(root, classes)
        refuse_masks(root, classes)
        refuse_twice(root, classes)
        say_passed_over(root, outputs, "which hold runs")
        count_beside(root, passed_over)
        say_unusual(root, classes)
        return {"train": {folder.name: list(list_images(folder, passed_over).values()) for folder in classes}}
    others = [folder for folder in folders_in(root) if folder not in splits.values()]
    say_passed_over(root, others, f"because {splits['train'].name}/ holds the classes")
    trees = {}
    for split, folder in splits.items():
        if split == "test" and (reason := unlabelled(folder, splits["train"])):
            note(f"{folder} {reason}: it is left out")
            continue
        if not folders_in(folder):
            raise DataError(
                f"{folder} holds {contents(folder)} but no class folders; put the images of each class into a folder, "
                f"or rename {folder.name}/ if it is itself a class"
            )
        refuse_twice(folder, folders_in(folder))
        count_beside(folder, passed_over)
        trees[split] = list_classes(folder, passed_over)
        for name in trees[split].keys() - trees["train"].keys():
            raise DataError(f"{folder / name} is no class of {splits['train']}; add it there or remove it")
        missing = [name for name in trees["train"] if name not in trees[split]]
        if missing:
            note(f"{folder} has no images of {', '.join(missing[:8])}{', ...' * (len(missing) > 8)}")
    say_unusual(splits["train"], folders_in(splits["train"]))
    return trees


def say_unusual(tree: Path, classes: list[Path]) -> None:
    """Say that class folders hold folders, or that two of them differ in case only."""
    deep = [folder for folder in classes if folders_in(folder)]
    if deep:
        inside = ", ".join(f"{one.name}/" for one in folders_in(deep[0])[:3])
        note(
            f"{len(deep)} of {len(classes)} class folders in {tree} hold folders ({deep[0].name}/: {inside}); all "
            f"images below {deep[0].name}/ are of the class {deep[0].name}"
        )
    names = Counter(folder.name.casefold() for folder in classes)
    alike = [folder.name for folder in classes if names[folder.name.casefold()] > 1]
    if alike:
        note(f"the class folders {', '.join(alike[:8])} in {tree} differ in case only: each is a class of its own")


def count_beside(tree: Path, passed_over: Counter[str]) -> None:
    """Count the images beside the class folders of a tree, which belong to no class."""
    beside = sum(1 for _ in walk(tree, Counter(), deep=False))
    passed_over.update({"images outside of class folders": beside} if beside else {})


def refuse_masks(root: Path, classes: list[Path]) -> None:
    """Raises ValueError if the class folders are one of images and one of masks."""
    if len(classes) == 2 and named(root, IMAGE_FOLDERS) in classes and named(root, MASK_FOLDERS) in classes:
        names = " and ".join(f"{folder.name}/" for folder in classes)
        raise DataError(
            f"{root} holds {names}, which are no classes; masks are for a head that segments, such as --head unet"
        )


def refuse_twice(tree: Path, classes: list[Path]) -> None:
    """Raises ValueError if a link makes one folder of images belong to two classes."""
    if not any(folder.is_symlink() for folder in classes):
        return
    real = sorted((folder.resolve(), folder) for folder in classes)  # a folder comes right before what lies in it
    for (outer, first), (inner, second) in pairwise(real):
        if inner.is_relative_to(outer):
            link, other = (second, first) if second.is_symlink() else (first, second)
            raise DataError(
                f"{link} is a link to images that the class {other.name} in {tree} has too; remove the link, or make "
                "it a folder of its own"
            )


def unlabelled(test: Path, train: Path) -> str:
    """Why the images of a test split have no classes; empty if they have."""
    names = {folder.name for folder in folders_in(test)}
    if not names:
        return f"holds {contents(test)} but no class folders"
    if not names & {folder.name for folder in folders_in(train)}:
        return f"holds {contents(test)}, none of which is a class of {train}"
    return ""


def refuse_split_like(root: Path, classes: list[Path]) -> None:
    """Raises ValueError if the class folders look like splits: the same folders below, and a name like that of one."""
    below = [{one.name for one in folders_in(folder)} for folder in classes]
    shared = set.intersection(*below) if len(below) > 1 else set()
    if len(shared) > 1 and any(SPLIT_LIKE.search(folder.name) for folder in classes):
        names = ", ".join(f"{folder.name}/" for folder in classes)
        raise DataError(
            f"{names} in {root} hold the same folders ({', '.join(sorted(shared)[:3])}), as splits do; call them "
            "train/, val/ and test/"
        )


def is_output(folder: Path) -> bool:
    """Whether a folder is a run's output, or holds such folders."""
    return any((one / name).is_file() for one in (folder, *folders_in(folder)) for name in RUN_FILES)
