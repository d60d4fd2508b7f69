"""Finds images and their boxes in a folder of a user's own data: PASCAL VOC's XML files, or YOLO's text files.

An annotation file belongs to the image whose path is the same without suffix and without folders that only tell kinds
(`images/`, `labels/`, `JPEGImages/`, `Annotations/`). Splits are, in this order: what a data.yaml of YOLO's programs
names, the lists in `ImageSets/Main/`, and folders that are named after them anywhere on the path; without validation
images, a fifth of the training images is held out.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from datamodules.boxed_files import BoxedFiles, Tally, read_all
from datamodules.boxed_names import NAME_FILES, class_names, numbered_names
from datamodules.class_folders import is_output
from datamodules.errors import DataError
from datamodules.notes import note
from datamodules.pairing import folders_in, hidden, hold_out, numbered_lines, walk
from datamodules.split_folders import SPLITS, say_passed_over, split_of
from datamodules.voc_xml import read_xml
from datamodules.yolo_txt import read_txt

KINDS = ("images", "image", "imgs", "img", "jpegimages", "photos", "labels", "label", "annotations", "annotation",
         "xml", "xmls", "txt")  # fmt: skip
"""Folders, in any case, that tell what kind of files they hold."""
MASKS = ("segmentationclass", "segmentationobject", "segmentationclassaug")
"""Folders, in any case, whose images are masks."""
LISTS = "ImageSets/Main"
LAYOUT = (
    "--data-dir must name a folder with images and PASCAL VOC's XML files or YOLO's text files (labels/ beside images/)"
)
Images = dict[str, Path]
"""Images by their path without suffix and without folders of kinds."""


def boxed_folders(root: Path, others: Counter[str]) -> tuple[tuple[str, ...], dict[str, BoxedFiles]]:
    """The names of the classes, and the splits.

    Raises:
        ValueError: the folder is of no known layout, or annotations are wrong; one line says what and where.
    """
    outputs = [folder for folder in folders_in(root) if is_output(folder)]
    say_passed_over(root, outputs, "which hold runs")
    passed = [*outputs, *(folder for folder in root.rglob("*") if folder.name.lower() in MASKS)]
    files = [path for path in sorted(root.rglob("*")) if belongs(path, root, passed)]
    images = by_key(root, (path for path in walk(root, others) if belongs(path, root, passed)))
    xml = [path for path in files if path.suffix.lower() == ".xml"]
    settings = yolo_settings(files, root)
    texts = [path for path in files if path.suffix.lower() == ".txt" and path.name.lower() not in NAME_FILES]
    labels = by_key(root, (path for path in texts if key_of(path, root) in images or is_label(path, root)), "label")
    if xml and (settings or labels):
        raise DataError(f"{root} holds PASCAL VOC's XML files and YOLO's labels; keep one of them")
    if not images:
        raise DataError(f"{root} holds no images; {LAYOUT}")
    if not xml and not labels:
        coco = [path for path in files if path.suffix.lower() == ".json"]
        meant = f"; it holds {coco[0].name}: is --data coco meant?" if coco else f"; {LAYOUT}"
        raise DataError(f"{root} holds images but no boxes{meant}")
    found = by_key(root, xml, "annotation") if xml else labels
    refuse_strays(found, images, root)
    for kind in (".xml", ".txt", ".yaml", ".yml", ".names"):
        others.pop(kind, None)
    splits = splits_of(images, settings, root)
    if "test" in splits and not any(key in found for key in splits["test"]):
        del splits["test"]
        note(f"the test images in {root} have no annotation files: they are left out")
    read = read_xml if xml else read_txt
    annotations = {
        split: read_all(f"Reading boxes of {split}", read, [found.get(key) for key in keys])
        for split, keys in splits.items()
    }
    names = class_names(annotations["train"]) if xml else numbered_names(settings, files, annotations, root)
    numbers = {name if xml else str(number): number for number, name in enumerate(names)}
    tally = Tally()
    sources = {
        split: BoxedFiles([(key, images[key]) for key in keys], annotations[split], numbers, tally, fractions=not xml)
        for split, keys in splits.items()
    }
    tally.report(root)
    for split, source in sources.items():
        source.say_without(split, root)
    return names, sources


def refuse_strays(found: Images, images: Images, root: Path) -> None:
    """Raises ValueError if there are annotation files without an image."""
    strays = [path for key, path in found.items() if key not in images]
    if strays:
        raise DataError(
            f"{len(strays)} of {len(found)} annotation files in {root} have no image (first: {strays[0]}); add the "
            "images or remove the files"
        )


def belongs(path: Path, root: Path, passed: Sequence[Path]) -> bool:
    """Whether a file is of the data set: not hidden, and in none of the folders that are passed over."""
    return not any(map(hidden, path.relative_to(root).parts)) and not any(one in path.parents for one in passed)


def key_of(path: Path, root: Path) -> str:
    """The path of a file without suffix and without folders of kinds."""
    inside = path.relative_to(root).with_suffix("")
    return "/".join([*(part for part in inside.parts[:-1] if part.lower() not in KINDS), inside.name])


def by_key(root: Path, paths: Iterable[Path], what: str = "image") -> Images:
    """Files by their path without suffix and without folders of kinds, sorted.

    Raises:
        ValueError: two files have one such path.
    """
    found: Images = {}
    for path in sorted(paths):
        key = key_of(path, root)
        if key in found:
            raise DataError(f"{found[key]} and {path} would be one {what}; rename or remove one of them")
        found[key] = path
    return found


def is_label(path: Path, root: Path) -> bool:
    """Whether a text file lies where labels do."""
    folders = {part.lower() for part in path.relative_to(root).parts[:-1]}
    return bool(folders & {"labels", "label"})


def yolo_settings(files: Iterable[Path], root: Path) -> tuple[Path, dict[str, Any]] | None:
    """The file of settings of YOLO's programs, the highest one that names classes, and its content.

    Raises:
        ValueError: it is no YAML, is for keypoints, or another one names other classes.
    """
    found: list[tuple[Path, dict[str, Any]]] = []
    for path in sorted(files, key=lambda path: len(path.parts)):
        if path.suffix.lower() not in (".yaml", ".yml") or len(path.relative_to(root).parts) > 2:
            continue
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise DataError(f"{path} cannot be read as YAML ({' '.join(str(error).split())[:120]})") from None
        if isinstance(content, dict) and ("names" in content or "nc" in content):
            found.append((path, content))
            if "kpt_shape" in content:
                raise DataError(f"{path} is for keypoints (kpt_shape); export labels of boxes or polygons")
            if content.get("names") != found[0][1].get("names"):
                raise DataError(f"{found[0][0]} and {path} name other classes; keep one of them")
    return found[0] if found else None


def splits_of(images: Images, settings: tuple[Path, dict[str, Any]] | None, root: Path) -> dict[str, list[str]]:
    """The keys of the images of each split, in the order train, val, test.

    Raises:
        ValueError: there are no training images, or too few to hold some out.
    """
    found = named_splits(images, *settings) if settings else {}
    found = found or listed_splits(images, root) or folder_splits(images, root)
    if not found.get("train"):
        raise DataError(f"{root} holds images of {', '.join(found) or 'no split'} but none of train; add train/")
    if not found.get("val"):
        found["train"], found["val"] = hold_out(found["train"], found["train"], root)
    for first, second in combinations(found, 2):
        shared = set(found[first]) & set(found[second])
        if shared:
            note(f"{len(shared)} images in {root} are in both {first} and {second} (first: {images[min(shared)]})")
    left = set(images).difference(*found.values())
    if left:
        note(f"{len(left)} images in {root} are of no split and are passed over (first: {images[min(left)]})")
    return {split: found[split] for split in SPLITS if found.get(split)}


def named_splits(images: Images, file: Path, content: Mapping[str, Any]) -> dict[str, list[str]]:
    """The splits that a data.yaml names by folders or lists; none if its paths are of another machine."""
    keys = {path.resolve(): key for key, path in images.items()}
    found: dict[str, list[str]] = {}
    for split in SPLITS:
        given = content.get("valid" if split == "val" and "val" not in content else split)
        places = given if isinstance(given, list) else [given] if given else []
        members: list[str] = []
        for place in map(str, places):
            path = resolved(place, file, content)
            if path is None:
                note(f"{file} names {place} for {split}, which is not there; the folders' names tell the splits")
                return {}
            if path.is_dir():
                members += [key for image, key in keys.items() if path.resolve() in image.parents]
            else:
                members += listed(path, keys)
        if members:
            found[split] = list(dict.fromkeys(members))
    return found


def resolved(place: str, file: Path, content: Mapping[str, Any]) -> Path | None:
    """The folder or list that a data.yaml means; Roboflow writes `../train/images` for `train/images`."""
    base = file.parent / str(content.get("path") or "")
    tries = (base / place, file.parent / place, file.parent / place.replace("\\", "/").removeprefix("../"))
    return next((path for path in tries if path.exists()), None)


def listed(path: Path, keys: Mapping[Path, str]) -> list[str]:
    """The images that a list of paths names. Raises ValueError if one is not there."""
    found = []
    for number, line in numbered_lines(path):
        key = keys.get((path.parent / line).resolve())
        if key is None:
            raise DataError(f"{path}:{number}: there is no image {line}; add it or remove the line")
        found.append(key)
    if len(set(found)) < len(found):
        note(f"{len(found) - len(set(found))} of {len(found)} lines of {path} name an image again: it counts once")
    return found


def listed_splits(images: Images, root: Path) -> dict[str, list[str]]:
    """The splits that lists of names in `ImageSets/Main/` make; `trainval` is train if there is no train."""
    names = {split: root / LISTS / f"{split}.txt" for split in (*SPLITS, "trainval")}
    lists = {split: path for split, path in names.items() if path.is_file()}
    if "trainval" in lists:
        whole = lists.pop("trainval")
        if not ("train" in lists and "val" in lists):
            lists["train"] = whole
    by_name = defaultdict(list)
    for key in images:
        by_name[key.rpartition("/")[2]].append(key)
    found = {}
    for split, path in lists.items():
        members = []
        for number, line in numbered_lines(path):
            name = line if line in by_name else line.split()[0]
            if name not in by_name:
                raise DataError(f"{path}:{number}: there is no image {line}; add it or remove the line")
            members.append(min(by_name[name], key=len))
        twice = [name for name, count in Counter(members).items() if count > 1]
        if twice:
            raise DataError(f"{path} lists {twice[0]} twice; list each image once")
        found[split] = members
    return found


def folder_splits(images: Images, root: Path) -> dict[str, list[str]]:
    """The splits that folders are named after; without any, all images are for training."""
    found: dict[str, list[str]] = defaultdict(list)
    for key, path in images.items():
        parts = path.relative_to(root).parts[:-1]
        split = next((split for part in parts if (split := split_of(Path(part)))), None)
        found[split or ""].append(key)
    if set(found) == {""}:
        return {"train": found[""]}
    found.pop("", None)
    return dict(found)
