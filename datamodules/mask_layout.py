"""Finds the pairs of image and mask of each split in a folder of a user's own data.

What is found and not read is said in one line; what cannot be understood is refused in one.
"""

import re
from collections import Counter, defaultdict
from pathlib import Path

from datamodules.class_table import LABELMAP, LISTS, TABLES
from datamodules.errors import DataError
from datamodules.notes import note
from datamodules.pairing import Pair, folders_in, list_images, pair, read_lines, walk
from datamodules.split_folders import (
    SPLITS,
    contents,
    holds_images,
    say_linked,
    say_passed_over,
    split_folders,
    split_of,
)

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "img_dir", "photos", "inputs", "input")
MASK_FOLDERS = (
    "masks", "mask", "labels", "label", "segmentationclasspng", "segmentationclass", "annotations", "annotation",
    "ann_dir", "segmentations", "segmentation", "groundtruth", "gt", "targets", "target",
)  # fmt: skip
"""Names in any case, the first that holds images is taken."""
BESIDE = ("masks", "mask", "labels", "label", "annot", "annotations", "gt")
"""What the name of a mask folder may add to that of a split: train/ and train_masks/."""
SPLIT_LISTS = "ImageSets/Segmentation"
LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif")
KNOWN = "images/ and masks/, train/images/ and train/masks/, or x.jpg beside x.png or x_mask.png"


def mask_pairs(root: Path, mask_suffix: str | None, passed_over: Counter[str]) -> dict[str, list[Pair]]:
    """The pairs of each split; without split folders or lists, all are the training split.

    Raises:
        ValueError: no known layout, or an image without a mask; the message names what was found.
    """
    splits = split_folders(root)
    say_linked(splits)
    if splits:
        found: dict[str, list[Pair]] = {}
        for split, folder in splits.items():
            masks = masks_beside(folder)
            if split == "test" and masks is None and not has_masks(folder, mask_suffix):
                note(f"{folder} holds {contents(folder)} but no masks: it is left out")
                continue
            pairs = (
                pair(folder, masks, mask_suffix, passed_over) if masks else pairs_in(folder, mask_suffix, passed_over)
            )
            found[split] = list(pairs.values())
        return found
    images, masks = image_folder(root), mask_folder(root)
    if images and masks and (inside := split_folders(images)):
        return pairs_of_splits(inside, split_folders(masks), masks, mask_suffix, passed_over)
    everything = pairs_in(root, mask_suffix, passed_over)
    texts = sorted((root / SPLIT_LISTS).glob("*.txt"))
    lists = {name: path for path in texts if (name := split_of(path.with_suffix("")))}
    if "train" not in lists:
        return {"train": list(everything.values())}
    return {split: listed(lists[split], everything) for split in SPLITS if split in lists}


def pairs_of_splits(
    images: dict[str, Path], masks: dict[str, Path], root: Path, mask_suffix: str | None, passed_over: Counter[str]
) -> dict[str, list[Pair]]:
    """The pairs of images/train/ and masks/train/, and so on."""
    found = {}
    for split, folder in images.items():
        if split not in masks or (split == "test" and not holds_images(masks[split])):
            if split != "test":
                raise DataError(f"{folder} has no masks: {root} holds {contents(root)}; add {root / folder.name}")
            note(f"{folder} has no masks in {root}: it is left out")
            continue
        found[split] = list(pair(folder, masks[split], mask_suffix, passed_over).values())
    return found


def listed(path: Path, pairs: dict[str, Pair]) -> list[Pair]:
    """The pairs whose names stand in a list.

    Raises:
        ValueError: one of them is not there.
    """
    names = read_lines(path)
    for name in names:
        if name not in pairs:
            raise DataError(f"{path} lists {name}, of which there is no image with a mask; add it or remove the line")
    return [pairs[name] for name in names]


def masks_beside(folder: Path) -> Path | None:
    """`train_masks/` or the like for a folder `train/` of images alone."""
    names = {folder.name.lower() + joint + word for word in BESIDE for joint in ("_", "-", "")}
    beside = [one for one in folders_in(folder.parent) if one.name.lower() in names]
    return beside[0] if beside and holds_images(folder, deep=False) and holds_images(beside[0]) else None


def named(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of the folders of these names, in any case, that holds images."""
    there = {one.name.lower(): one for one in folders_in(folder)}
    holding = [there[name] for name in names if name in there and holds_images(there[name])]
    if len(holding) > 1:
        say_passed_over(folder, holding[1:], f"because {holding[0].name}/ is read")
    return holding[0] if holding else None


def image_folder(folder: Path) -> Path | None:
    return named(folder, IMAGE_FOLDERS)


def mask_folder(folder: Path) -> Path | None:
    return named(folder, MASK_FOLDERS)


def has_masks(folder: Path, mask_suffix: str | None) -> bool:
    """Whether a folder holds any mask that `pairs_in` would find."""
    if mask_folder(folder):
        return True
    flat = image_folder(folder) or folder
    return bool(guessed_endings(files_in(flat), mask_suffix))


def pairs_in(folder: Path, mask_suffix: str | None, passed_over: Counter[str]) -> dict[str, Pair]:
    """The pairs of one split: from a folder of images and one of masks, or from one folder of both.

    Raises:
        ValueError: it holds neither; the message names what it holds.
    """
    images, masks = image_folder(folder), mask_folder(folder)
    if images and masks:
        return pair(images, masks, mask_suffix, passed_over)
    if masks and not images:
        for empty in [one for one in folders_in(folder) if one.name.lower() in IMAGE_FOLDERS]:
            list_images(empty)  # raises, and names what it holds
        raise DataError(f"{folder} holds {contents(folder)}: there are masks in {masks.name}/ but no images/; add it")
    flat = images or folder
    return beside_each_other(flat, mask_suffix, passed_over)


def files_in(folder: Path) -> dict[str, list[Path]]:
    """The images directly in a folder by their stem."""
    files: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(walk(folder, Counter(), deep=False)):
        files[path.stem].append(path)
    return files


def guessed_endings(files: dict[str, list[Path]], mask_suffix: str | None) -> Counter[str]:
    """What the names of masks may add to those of their images ("" for another suffix only), with its frequency."""
    if mask_suffix is not None:
        count = sum(stem + mask_suffix in files for stem in files)
        return Counter({mask_suffix: count}) if count else Counter()
    endings: Counter[str] = Counter()
    endings[""] = sum(
        len(paths) == 2 and len({path.suffix.lower() in LOSSY for path in paths}) == 2 for paths in files.values()
    )
    for stem in files:
        for end in range(1, len(stem)):
            if stem[:end] in files and re.search("[A-Za-z]", stem[end:]):
                endings[stem[end:]] += 1
    return +endings


def beside_each_other(folder: Path, mask_suffix: str | None, passed_over: Counter[str]) -> dict[str, Pair]:
    """The pairs in one folder of x.jpg and x_mask.png, or x.jpg and x.png.

    Raises:
        ValueError: there are none, or an image has no mask.
    """
    others: Counter[str] = Counter()
    list(walk(folder, others, deep=False))
    files = files_in(folder)
    endings = guessed_endings(files, mask_suffix)
    if not endings:
        raise DataError(nothing_paired(folder, others, mask_suffix))
    tables = [name for name in (*LISTS, *TABLES, LABELMAP) if (folder / name).is_file()]
    passed_over.update(others - Counter(Path(name).suffix for name in tables))
    say_passed_over(folder, [one for one in folders_in(folder) if holds_images(one)], "beside images with masks")
    ending = endings.most_common(1)[0][0]
    pairs: dict[str, Pair] = {}
    for stem, paths in files.items():
        if ending and stem.endswith(ending) and stem.removesuffix(ending) in files:
            continue
        image = next((path for path in paths if path.suffix.lower() in LOSSY), paths[0])
        masks = files.get(stem + ending, []) if ending else [path for path in paths if path != image]
        if len(masks) != 1 or (ending and len(paths) != 1):
            what = f"{stem}{ending or '.png'}" if ending else f"{stem}.png"
            raise DataError(
                f"{folder} holds masks beside images, but {image.name} has no mask {what}; add or remove it"
            )
        pairs[stem] = Pair(stem, image, masks[0])
    return pairs


def nothing_paired(folder: Path, others: Counter[str], mask_suffix: str | None) -> str:
    """Why no masks were found in a folder, and what to do."""
    found = f"{folder} holds {contents(folder)}"
    if mask_suffix is not None:
        return f"{found} but no mask whose name ends in --mask-suffix {mask_suffix}"
    if any(folder.glob("*coco*.json")):
        return f"{found}: annotations in COCO's format and no masks; --data coco reads them"
    if others[".json"]:
        return (
            f"{found}: images with .json files and no masks, as labelme writes them; turn these into masks by "
            "labelme2voc, whose JPEGImages/ and SegmentationClassPNG/ are read, or into COCO's format for --data coco"
        )
    if others[".txt"] or others[".xml"]:
        return f"{found}: boxes or polygons but no masks; export masks, or COCO's format for --data coco"
    return f"{found} and no masks that are found; --data folders reads {KNOWN}; rename or move them so"
