"""Masks or boxes in COCO's format. Microsoft COCO: Common Objects in Context. Lin et al. 2014, arXiv:1405.0312.

Read are COCO itself (`annotations/instances_train2017.json`, `train2017/`), and what Roboflow (`train/` with
`_annotations.coco.json`), CVAT (`annotations/instances_default.json`, `images/`), labelme2coco (`annotations.json`,
`JPEGImages/`) and Label Studio (`result.json`, `images/`) export. The split is in the name of the JSON file or of its
folder; without a validation split a fifth of the images is held out, chosen by a hash of their names. Images are looked
for by `file_name` anywhere in `--data-dir`.

Class 0 is background: all pixels without an annotation. The categories follow in the order of their ids, which may have
gaps. Polygons and both kinds of run-length encoding are drawn by pycocotools. Where objects overlap, the smaller one is
on top, and of two of one area the later one. Regions marked `iscrowd` are ignored where no single object is drawn. For
detection, classes are the categories alone, and boxes are taken as `coco_boxes.py` says, with masks for a head that
learns them.
"""

import json
import math
from collections import defaultdict
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datamodules.base import IGNORE_INDEX, GraftDataModule, Source, Task
from datamodules.class_table import MOST_CLASSES
from datamodules.coco_boxes import check_boxes, objects_in
from datamodules.coco_files import (
    LAYOUT,
    annotation_files,
    classes_of,
    find_images,
    images_by_name,
    read_annotations,
    say_shared_and_unlisted,
)
from datamodules.coco_masks import drawn, has_outline, require_pycocotools
from datamodules.decoding import read_image
from datamodules.errors import DataError
from datamodules.notes import note
from datamodules.objects import Objects
from datamodules.pairing import hold_out
from datamodules.split_folders import SPLITS

Annotation = dict[str, Any]


class Coco(GraftDataModule):
    """Masks with background, or boxes. Trains on crops of `image_size`, validates on whole images, undistorted."""

    tasks: ClassVar[tuple[Task, ...]] = ("segmentation", "detection")
    has_object_masks = True

    def default_size(self) -> tuple[int, int]:
        return 512, 512

    def sources(self) -> dict[str, Source]:
        kind = BoxedMasks if self.object_masks else BoxedImages if self.task == "detection" else AnnotatedImages
        if kind is not BoxedImages:
            require_pycocotools()
        root = Path(self.data_dir or "data/coco")
        if not root.is_dir():
            raise DataError(f"{root} is not a folder; {LAYOUT}")
        files = annotation_files(root)
        contents = {split: read_annotations(path) for split, path in files.items()}
        most = math.inf if self.task == "detection" else MOST_CLASSES  # a mask has 8 bits
        names, label_of = classes_of(contents["train"], files["train"], most)
        self.class_names = names[1:] if self.task == "detection" else names
        paths = images_by_name(root)
        found = {split: find_images(content, files[split], split, paths, root) for split, content in contents.items()}
        say_shared_and_unlisted(found, paths, root)
        sources = {split: kind(content, files[split], label_of, found[split]) for split, content in contents.items()}
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
        self.names = {category["id"]: category["name"] for category in content["categories"]}
        self.labels = {number: label_of[name] for number, name in self.names.items() if name in label_of}
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

    def decoding_key(self, index: int) -> tuple[Any, ...]:
        """The annotations of the image, and what their categories mean."""
        text = json.dumps(self.annotations[self.images[index]["id"]], sort_keys=True, default=str)
        return blake2b(text.encode()).hexdigest(), self.labels

    def part(self, indices: list[int]) -> "AnnotatedImages":
        """Some of the images."""
        one = object.__new__(type(self))
        one.file, one.names, one.labels = self.file, self.names, self.labels
        one.annotations = self.annotations
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
                raise self._unknown_category(one["category_id"])
            rle = drawn(one, height, width, self.file)
            if rle is not None:
                (crowds if one.get("iscrowd") else objects).append((rle, self.labels[one["category_id"]]))
        for rle, _ in crowds:
            mask[rle_tools.decode(rle) > 0] = IGNORE_INDEX
        for rle, label in sorted(objects, key=lambda item: -int(rle_tools.area(item[0]))):
            mask[rle_tools.decode(rle) > 0] = label
        return mask

    def _unknown_category(self, number: Any) -> DataError:
        what = f"{self.file} has an annotation of category {number!r}"
        if number in self.names:
            message = f"{what}, {self.names[number]}, which the training annotations do not list; add it there"
        else:
            message = f"{what}, which is none of its classes; list it under categories"
        return DataError(message, "unknown label")

    def _say_unusual(self, content: dict[str, Any]) -> None:
        """Name annotations without an outline, and images without annotations.

        Raises:
            ValueError: no annotation has an outline.
        """
        without = sum(not has_outline(one.get("segmentation")) for one in content["annotations"])
        total = len(content["annotations"])
        if without == total:
            what = "boxes only" if total else "no annotations"
            raise DataError(f"{self.file} holds {what}; export polygons or masks (segmentation) to train on")
        if without:
            note(f"{without} of {total} annotations in {self.file} have a box only: their pixels count as background")
        listed = {image["id"] for image in content["images"]}
        strays = sum(one["image_id"] not in listed for one in content["annotations"])
        if strays:
            note(f"{strays} of {total} annotations in {self.file} are of images that it does not list")
        empty = sum(image["id"] not in self.annotations for image in self.images)
        if empty:
            note(f"{empty} of {len(self.images)} images in {self.file} have no annotation: background throughout")


class BoxedImages(AnnotatedImages):
    """A split of image files with the boxes of their annotations; class 0 is the first category."""

    with_masks: ClassVar[bool] = False
    """Whether each object has a mask."""

    def target(self, index: int, height: int, width: int) -> Objects:
        annotations = self.annotations[self.images[index]["id"]]
        return objects_in(annotations, self.without_background(), height, width, self.file, self.with_masks)

    def decoding_key(self, index: int) -> tuple[Any, ...]:
        return "boxes", *super().decoding_key(index)

    def without_background(self) -> dict[int, int]:
        """The class of each category."""
        return {category: label - 1 for category, label in self.labels.items() if label}

    def _say_unusual(self, content: dict[str, Any]) -> None:
        check_boxes(content, self.file, self.without_background())
        total = len(content["annotations"])
        again = sum(
            len(of_image) - len({(one["category_id"], *one["bbox"]) for one in of_image})
            for of_image in self.annotations.values()
        )
        if again:
            note(f"{again} of {total} boxes in {self.file} stand there twice; both count, as in COCO's own scores")


class BoxedMasks(BoxedImages):
    """The same with the mask of each object."""

    with_masks = True

    def _say_unusual(self, content: dict[str, Any]) -> None:
        super()._say_unusual(content)
        without = sum(not has_outline(one.get("segmentation")) for one in content["annotations"])
        if without:
            raise DataError(
                f"{self.file}: {without} of {len(content['annotations'])} annotations have a box only, and the head "
                "learns masks; export polygons or masks (segmentation), or use --head fasterrcnn"
            )
