"""Masks or boxes in COCO's format. Microsoft COCO: Common Objects in Context. Lin et al. 2014, arXiv:1405.0312.

Read are COCO itself (`annotations/instances_train2017.json`, `train2017/`), and what Roboflow (`train/` with
`_annotations.coco.json`), CVAT (`annotations/instances_default.json`, `images/`), labelme2coco (`annotations.json`,
`JPEGImages/`) and Label Studio (`result.json`, `images/`) export. The split is in the name of the JSON file or of its
folder; without a validation split a fifth of the images is held out, chosen by a hash of their names. Images are looked
for by `file_name` anywhere in `--data-dir`.

Class 0 is background: all pixels without an annotation. The categories follow in the order of their ids, which may have
gaps. Polygons and both kinds of run-length encoding are drawn by pycocotools. Where objects overlap, the smaller one is
on top, and of two of one area the later one. Regions marked `iscrowd` are ignored where no single object is drawn. For
detection, classes are the categories alone, and boxes are taken as `coco_boxes.py` says.
"""

import json
import os
import re
from collections import Counter, defaultdict
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datamodules.base import IGNORE_INDEX, GraftDataModule, Source, Task
from datamodules.class_table import MOST_CLASSES
from datamodules.coco_boxes import check_boxes, objects_in
from datamodules.decoding import read_image
from datamodules.errors import DataError
from datamodules.layout import SPLITS, split_of
from datamodules.notes import note
from datamodules.objects import Objects
from datamodules.pairing import hold_out, kinds, walk

BACKGROUND = "background"
LAYOUT = (
    "--data-dir must name a folder with images and JSON files in COCO's format, as annotations/instances_train.json"
)
Annotation = dict[str, Any]


class Coco(GraftDataModule):
    """Masks with background, or boxes. Trains on crops of `image_size`, validates on whole images, undistorted."""

    tasks: ClassVar[tuple[Task, ...]] = ("segmentation", "detection")

    def default_size(self) -> tuple[int, int]:
        return 512, 512

    def sources(self) -> dict[str, Source]:
        kind = BoxedImages if self.task == "detection" else AnnotatedImages
        if self.task == "segmentation":
            require_pycocotools()
        root = Path(self.data_dir or "data/coco")
        if not root.is_dir():
            raise DataError(f"{root} is not a folder; {LAYOUT}")
        files = annotation_files(root)
        contents = {split: read_annotations(path) for split, path in files.items()}
        names, label_of = classes_of(contents["train"], files["train"])
        self.class_names = names[1:] if self.task == "detection" else names
        paths = images_by_name(root)
        sources = {
            split: kind(content, files[split], label_of, find_images(content, files[split], split, paths, root))
            for split, content in contents.items()
        }
        if "val" not in sources:
            everything = sources["train"]
            stems = [Path(image["file_name"]).stem for image in everything.images]
            train, val = hold_out(list(range(len(everything))), stems, root)
            sources |= {"train": everything.part(train), "val": everything.part(val)}
        return {split: sources[split] for split in SPLITS if split in sources}


class AnnotatedImages:
    """A split of image files whose masks are drawn from annotations."""

    def __init__(self, content: dict[str, Any], file: Path, label_of: dict[str, int], paths: dict[int, Path]) -> None:
        self.file = file
        self.images: list[dict[str, Any]] = [image for image in content["images"] if image["id"] in paths]
        self.files = [paths[image["id"]] for image in self.images]
        names = {category["id"]: category["name"] for category in content["categories"]}
        self.labels = {number: label_of[name] for number, name in names.items() if name in label_of}
        self.annotations: dict[int, list[Annotation]] = defaultdict(list)
        for one in content["annotations"]:
            self.annotations[one["image_id"]].append(one)
        self._say_unusual(content)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray | Objects, str]:
        image = read_image(self.files[index])
        height, width = image.shape[:2]
        listed = self.images[index]
        expected = (listed.get("height", height), listed.get("width", width))
        if expected != (height, width):
            raise DataError(
                f"{self.files[index]} is {width}x{height} but {self.file} lists it as {expected[1]}x{expected[0]}; "
                "both must be of one size",
                "size mismatch",
            )
        return image, self.target(index, height, width), Path(listed["file_name"]).with_suffix("").as_posix()

    def target(self, index: int, height: int, width: int) -> np.ndarray | Objects:
        """What is to be learned of an image of that size."""
        return self.mask(index, height, width)

    def paths(self, index: int) -> tuple[Path, ...]:
        """The image."""
        return (self.files[index],)

    def recipe(self, index: int) -> tuple[Any, ...]:
        """The annotations of the image, and what their categories mean."""
        text = json.dumps(self.annotations[self.images[index]["id"]], sort_keys=True, default=str)
        return blake2b(text.encode()).hexdigest(), self.labels

    def part(self, indices: list[int]) -> "AnnotatedImages":
        """Some of the images."""
        one = object.__new__(type(self))
        one.file, one.labels, one.annotations = self.file, self.labels, self.annotations
        one.images, one.files = [self.images[i] for i in indices], [self.files[i] for i in indices]
        return one

    def mask(self, index: int, height: int, width: int) -> np.ndarray:
        """Classes uint8 `(height, width)`, 255 = ignore.

        Raises:
            ValueError: an annotation cannot be drawn, or is of a category that is no class.
        """
        from pycocotools import mask as rle_tools

        mask = np.zeros((height, width), np.uint8)
        crowds: list[tuple[Any, int]] = []
        objects: list[tuple[Any, int]] = []
        for one in self.annotations[self.images[index]["id"]]:
            if one["category_id"] not in self.labels:
                message = (
                    f"{self.file} has an annotation of category {one['category_id']}, which is none of its classes"
                )
                raise DataError(f"{message}; list it under categories", "unknown label")
            try:
                rle = run_lengths(one.get("segmentation"), height, width)
            except Exception as error:  # pycocotools raises what it likes
                reason = " ".join(str(error).split()) or type(error).__name__
                message = f"{self.file}: annotation {one.get('id')} cannot be drawn ({reason}); correct or remove it"
                raise DataError(message, "unreadable") from None
            if rle is not None:
                (crowds if one.get("iscrowd") else objects).append((rle, self.labels[one["category_id"]]))
        for rle, _ in crowds:
            mask[rle_tools.decode(rle) > 0] = IGNORE_INDEX
        for rle, label in sorted(objects, key=lambda item: -int(rle_tools.area(item[0]))):
            mask[rle_tools.decode(rle) > 0] = label
        return mask

    def _say_unusual(self, content: dict[str, Any]) -> None:
        """Name annotations without an outline, and images without annotations.

        Raises:
            ValueError: no annotation has an outline.
        """
        without = sum(not one.get("segmentation") for one in content["annotations"])
        total = len(content["annotations"])
        if without == total:
            what = "boxes only" if total else "no annotations"
            raise DataError(f"{self.file} holds {what}; export polygons or masks (segmentation) to train on")
        if without:
            note(f"{without} of {total} annotations in {self.file} have a box only: their pixels count as background")
        empty = sum(image["id"] not in self.annotations for image in self.images)
        if empty:
            note(f"{empty} of {len(self.images)} images in {self.file} have no annotation: background throughout")


class BoxedImages(AnnotatedImages):
    """A split of image files with the boxes of their annotations; class 0 is the first category."""

    def target(self, index: int, height: int, width: int) -> Objects:
        return objects_in(self.annotations[self.images[index]["id"]], self.without_background(), height, width)

    def recipe(self, index: int) -> tuple[Any, ...]:
        return "boxes", *super().recipe(index)

    def without_background(self) -> dict[int, int]:
        """The class of each category."""
        return {category: label - 1 for category, label in self.labels.items() if label}

    def _say_unusual(self, content: dict[str, Any]) -> None:
        check_boxes(content, self.file, self.without_background())


def require_pycocotools() -> None:
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError:
        raise DataError(
            "--data coco draws masks with pycocotools, which is not installed: pip install 'graft[coco]'"
        ) from None


def run_lengths(segmentation: Any, height: int, width: int) -> Any | None:
    """Polygons, or run lengths as a list or compressed, as compressed run lengths; None if there is no outline.

    Raises:
        ValueError: run lengths are of another size than the image.
    """
    from pycocotools import mask as rle_tools

    if not segmentation:
        return None
    if isinstance(segmentation, list):
        # Four numbers would be taken for a box.
        polygons = [[float(x) for x in polygon] for polygon in segmentation if len(polygon) >= 6]
        return rle_tools.merge(rle_tools.frPyObjects(polygons, height, width)) if polygons else None
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"its run lengths are for {segmentation['size'][1]}x{segmentation['size'][0]} pixels")
    if isinstance(segmentation["counts"], list):
        return rle_tools.frPyObjects(segmentation, height, width)
    return segmentation


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
    for folder in folders:
        files = sorted(folder.glob("*.json"))
        instances = [path for path in files if path.name.startswith("instances")]  # beside captions and keypoints
        for path in instances or [path for path in files if holds_annotations(path)]:
            split = (split_of(folder) if folder != root else None) or split_in(path.stem)
            if split is None:
                unsplit.append(path)
            elif split in found:
                raise DataError(f"{found[split]} and {path} are both for {split}; keep one of them")
            else:
                found[split] = path
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
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); export it again") from None
    for key, needs in (("images", ("id", "file_name")), ("annotations", ("image_id", "category_id")),
                       ("categories", ("id", "name"))):  # fmt: skip
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(need in row for row in rows for need in needs):
            raise DataError(f"{path} is not in COCO's format: it has no list {key} with {' and '.join(needs)} in each")
    return content


def classes_of(content: dict[str, Any], path: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    """The names of the classes, background first, and the class of each category name.

    Roboflow lists the name of the project as a category that no annotation has; it is left out.

    Raises:
        ValueError: there are none, too many, or two of one name.
    """
    used = {one["category_id"] for one in content["annotations"]}
    above = {category.get("supercategory") for category in content["categories"]}
    categories = sorted(content["categories"], key=lambda category: category["id"])
    kept = [one["name"] for one in categories if one["id"] in used or one["name"] not in above or len(above) == 1]
    names = (BACKGROUND, *(name for name in kept if name.lower() != BACKGROUND))
    if not 2 <= len(set(names)) == len(names) <= MOST_CLASSES:
        raise DataError(
            f"{path} names {len(set(names)) - 1} different categories; write 1 to {MOST_CLASSES - 1}, each once"
        )
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
        ValueError: one is not there, or there are several and it is unclear which is meant.
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
    return found
