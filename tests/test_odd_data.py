"""Folders, tables and annotations that are nearly right: what is odd about them is said in one line, or refused."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules.base import GraftDataModule
from datamodules.coco import Coco
from datamodules.errors import DataError
from datamodules.folders import Folders
from tests.fake_data import photo, two_labels


def picture(path: Path, pixels: np.ndarray | None = None, **how: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo(0, 24, 24) if pixels is None else pixels).save(path, **how)


def classes(root: Path, *folders: str) -> Path:
    for folder in folders:
        for i in range(3):
            picture(root / folder / f"{i}.jpg")
    return root


def pairs(root: Path, images: str = "images", masks: str = "masks", count: int = 4) -> Path:
    for i in range(count):
        picture(root / images / f"{i}.png")
        picture(root / masks / f"{i}.png", two_labels(0, 1, 24, 24))
    return root


def build(kind: type[GraftDataModule], task: Any, root: Path) -> GraftDataModule:
    data = kind(task, data_dir=str(root), image_size=(16, 16), batch_size=1, workers=0, cache="none")
    data.setup()
    return data


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("train/a", "train/b", "val/a"), "val has no images of b"),
        (("a", "b/indoors"), "1 of 2 class folders in .* hold folders .b/: indoors/.; all images below b/ are of the"),
        (("Cat", "cat"), "the class folders Cat, cat in .* differ in case only"),
    ],
)
def test_odd_class_folders_are_said(
    folders: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(Folders, "classification", classes(tmp_path, *folders))
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert re.search(said, notes[0])


def test_abbreviated_splits_are_no_classes(tmp_path: Path) -> None:
    classes(tmp_path, "tr/a", "tr/b", "te/a", "te/b")
    with pytest.raises(DataError, match=r"te/, tr/ in .* hold the same folders \(a, b\), as splits do"):
        build(Folders, "classification", tmp_path)


def test_mmsegmentations_folders_are_read(tmp_path: Path) -> None:
    pairs(tmp_path, "img_dir/train", "ann_dir/train")
    pairs(tmp_path, "img_dir/val", "ann_dir/val", 2)
    data = build(Folders, "segmentation", tmp_path)
    assert (len(data.train), len(data.val)) == (4, 2)


def test_colours_may_be_hexadecimal(tmp_path: Path) -> None:
    pairs(tmp_path)
    for i in range(4):
        picture(
            tmp_path / "masks" / f"{i}.png", np.array([[0, 0, 0], [255, 0, 16]], np.uint8)[two_labels(0, 1, 24, 24)]
        )
    (tmp_path / "classes.csv").write_text("name,color\nground,#000000\nblock,FF0010\n")
    data = build(Folders, "segmentation", tmp_path)
    assert data.colours == ((0, 0, 0), (255, 0, 16))
    np.testing.assert_array_equal(data.train.source[0][1], two_labels(0, 1, 24, 24))
    (tmp_path / "classes.csv").write_text("name,color\nground,#000000\nblock,red\n")
    with pytest.raises(DataError, match=r"classes.csv, line 3: 'block,red' does not fit; .* name,color \(as #ff0000\)"):
        build(Folders, "segmentation", tmp_path)


@pytest.mark.parametrize(("orientation", "size", "notes"), [(3, (24, 24), 1), (6, (24, 24), 1), (1, (24, 24), 0)])
def test_turned_images_whose_masks_fit_either_way_are_said(
    orientation: int, size: tuple[int, int], notes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(tmp_path / "images" / "0.png", photo(0, *size), exif=exif)
    build(Folders, "segmentation", tmp_path)
    assert capsys.readouterr().out.count("note: EXIF data turn 1 of 4 images that were looked at, such as ") == notes


def test_an_animated_png_is_refused(tmp_path: Path) -> None:
    pairs(tmp_path)
    frames = [Image.fromarray(photo(i, 24, 24)) for i in range(2)]
    frames[0].save(tmp_path / "images" / "0.png", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"0\.png has 2 pages"):
        build(Folders, "segmentation", tmp_path)


def annotated(root: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """Two images with a square each, and the JSON file after `edit`."""
    content: dict[str, Any] = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 24, "width": 24} for i in range(4)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1 + i % 2, "segmentation": [[2, 2, 12, 2, 12, 12, 2, 12]]}
            for i in range(4)
        ],
    }
    for i in range(4):
        picture(root / "images" / f"{i}.png")
    edit(content)
    (root / "annotations.json").write_text(json.dumps(content))
    return root


def first(key: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content[key][0].update(changes)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (first("images", id=1), "lists the id 1 twice under images; give each its own"),
        (first("categories", name=None), "the name of categories number 1 is None; write a text"),
        (first("annotations", segmentation=[[2, 2, 12, 2, 12, 12, 5]]), "an odd number of coordinates"),
        (first("annotations", segmentation=[[math.nan, 2, 12, 2, 12, 12]]), "a coordinate is no number"),
        (first("annotations", segmentation={"size": [24, 24], "counts": [9, 9]}), "add up to 18 pixels of 576"),
        (first("annotations", category_id="1"), "annotation of category '1', which is none of its classes"),
    ],
)
def test_odd_annotations_are_refused(edit: Callable[[dict[str, Any]], Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        build(Coco, "segmentation", annotated(tmp_path, edit))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (first("annotations", image_id=77), "note: 1 of 4 annotations in .* are of images that it does not list"),
        (first("annotations", segmentation=[[2, 2, 12, 2]]), "note: 1 of 4 annotations in .* have a box only"),
    ],
)
def test_annotations_that_do_not_count_are_said(
    edit: Callable[[dict[str, Any]], Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(Coco, "segmentation", annotated(tmp_path, edit))
    assert re.search(said, capsys.readouterr().out)
