"""Annotations in COCO's format, as COCO and other programs write them, become masks."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle_tools

from datamodules.coco import Coco
from datamodules.errors import DataError
from tests.fake_data import TRAIN, VAL, make_coco, photo, save

CELL, NUCLEUS = 3, 8
BLOCK = [[4.0, 4.0, 12.0, 4.0, 12.0, 12.0, 4.0, 12.0]]


def annotation(image: int, segmentation: Any, category: int = CELL, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": 0} | more


def write(path: Path, annotations: list[dict[str, Any]], names: list[str], *, of: str = "{}", **more: Any) -> None:
    """A JSON file of images that are called `of`, each an id; `annotations` beside those of image 0."""
    images = [{"id": i, "file_name": of.format(name), "height": 36, "width": 40} for i, name in enumerate(names)]
    categories = [{"id": NUCLEUS, "name": "nucleus"}, {"id": CELL, "name": "cell"}]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories} | more))


def save_photos(folder: Path, names: list[str]) -> None:
    for index, name in enumerate(names):
        save(folder / name, photo(index, 36, 40))


def load(root: Path) -> tuple[Coco, dict[str, Any]]:
    data = Coco("segmentation", data_dir=str(root))
    return data, data.sources()


def block(row: int, column: int, height: int, width: int, label: int, mask: np.ndarray | None = None) -> np.ndarray:
    mask = np.zeros((36, 40), np.uint8) if mask is None else mask
    mask[row : row + height, column : column + width] = label
    return mask


def test_cocos_own_layout(tmp_path: Path) -> None:
    make_coco(tmp_path)
    data, sources = load(tmp_path)
    assert data.class_names == ("background", "person", "bottle", "toothbrush")
    assert {split: len(source) for split, source in sources.items()} == {"train": TRAIN, "val": VAL}
    image, mask, name = sources["val"][1]
    assert (image.shape[:2], mask.shape, name) == ((38, 37), (38, 37), "000000000001")
    assert (mask[:, 1] == 255).all(), "a crowd is ignored"
    assert (mask[12:20, 2:20] == 1).all()
    assert (mask[4:10, 4:10] == 3).all(), "the smaller object is on top, although it is a later class"


def outlines() -> list[Any]:
    mask = np.asfortranarray(block(4, 4, 8, 8, 1))
    packed = rle_tools.encode(mask)
    runs = np.diff(np.flatnonzero(np.diff(np.r_[2, mask.ravel("F"), 2])), prepend=0)[1:].tolist()
    return [BLOCK, {"size": [36, 40], "counts": packed["counts"].decode()}, {"size": [36, 40], "counts": runs}]


def test_polygons_and_run_lengths_give_one_mask(tmp_path: Path) -> None:
    names = [f"{index}.png" for index in range(3)]
    save_photos(tmp_path / "images", names)
    shapes = outlines()
    assert sum(shapes[2]["counts"]) == 36 * 40
    for split in ("train", "val"):
        write(tmp_path / f"{split}.json", [annotation(i, shape) for i, shape in enumerate(shapes)], names)
    _, sources = load(tmp_path)
    for index in range(3):
        assert np.array_equal(sources["train"][index][1], block(4, 4, 8, 8, 1)), index


@pytest.mark.parametrize("order", [1, -1])
def test_smaller_objects_lie_on_top_and_of_equal_ones_the_later(order: int, tmp_path: Path) -> None:
    save_photos(tmp_path, ["0.png", "1.png"])
    large = [[0.0, 0.0, 30.0, 0.0, 30.0, 30.0, 0.0, 30.0]]
    shifted = [[x + 4 for x in BLOCK[0]]]
    both = [annotation(0, BLOCK, NUCLEUS), annotation(0, large, CELL)][::order]
    equal = [annotation(1, BLOCK, NUCLEUS), annotation(1, shifted, CELL)][::order]
    for split in ("train", "val"):
        write(tmp_path / f"{split}.json", [*both, *equal], ["0.png", "1.png"])
    _, sources = load(tmp_path)
    assert np.array_equal(sources["train"][0][1], block(4, 4, 8, 8, 2, block(0, 0, 30, 30, 1)))
    first, second = (block(4, 4, 8, 8, 2), 1) if order == 1 else (block(8, 8, 8, 8, 1), 2)
    expected = block(8, 8, 8, 8, second, first) if order == 1 else block(4, 4, 8, 8, second, first)
    assert np.array_equal(sources["train"][1][1], expected)


def roboflow(root: Path, names: list[str]) -> None:
    for split in ("train", "valid"):
        save_photos(root / split, names)
        categories = [{"id": 0, "name": "cells", "supercategory": "none"}] + [
            {"id": i, "name": name, "supercategory": "cells"} for i, name in ((CELL, "cell"), (NUCLEUS, "nucleus"))
        ]
        write(root / split / "_annotations.coco.json", [annotation(0, BLOCK)], names, categories=categories)


def cvat(root: Path, names: list[str]) -> None:
    save_photos(root / "images" / "default", names)
    write(root / "annotations" / "instances_default.json", [annotation(0, BLOCK), annotation(1, BLOCK)], names)


def labelme2coco(root: Path, names: list[str]) -> None:
    save_photos(root / "JPEGImages", names)
    write(root / "annotations.json", [annotation(0, BLOCK)], names, of="JPEGImages/{}")


def label_studio(root: Path, names: list[str]) -> None:
    save_photos(root / "images", [f"4f-{name}" for name in names])
    write(root / "result.json", [annotation(0, BLOCK)], names, of="images\\4f-{}")


def several_folders(root: Path, names: list[str]) -> None:
    for index, name in enumerate(names):
        save(root / f"camera{index % 2}" / "same.png" if index < 2 else root / "more" / name, photo(index, 36, 40))
    files = ["camera0/same.png", "camera1/same.png", *names[2:]]
    write(root / "train.json", [annotation(0, BLOCK)], files)


@pytest.mark.parametrize("make", [roboflow, cvat, labelme2coco, label_studio, several_folders])
def test_layouts_of_other_programs(make: Any, tmp_path: Path) -> None:
    make(tmp_path, [f"{index}.png" for index in range(6)])
    data, sources = load(tmp_path)
    assert data.class_names == ("background", "cell", "nucleus")
    split = {len(source) for source in sources.values()}
    assert split == ({6} if make is roboflow else {5, 1})
    masks = [sources[name][i][1] for name in sources for i in range(len(sources[name]))]
    assert any(np.array_equal(mask, block(4, 4, 8, 8, 1)) for mask in masks)
    assert any(not mask.any() for mask in masks), "an image without annotations is background"


def test_what_is_unusual_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_photos(tmp_path, ["0.png", "1.png", "2.png"])
    write(tmp_path / "train.json", [annotation(0, BLOCK), annotation(0, [])], ["0.png", "1.png", "2.png"])
    (tmp_path / "other.json").write_text("[1, 2]")
    load(tmp_path)
    said = capsys.readouterr().out
    assert "1 of 2 annotations in " in said
    assert "have a box only: their pixels count as background" in said
    assert "2 of 3 images in " in said


@pytest.mark.parametrize(
    ("annotations", "names", "more", "message"),
    [
        ([annotation(0, [])], ["0.png"], {}, r"train\.json holds boxes only; export polygons or masks"),
        (
            [annotation(0, BLOCK)],
            ["0.png", "gone.png"],
            {},
            r"lists 2 images, 1 of which are not in .* gone\.png\); put",
        ),
        (
            [annotation(0, BLOCK)],
            ["0.png"],
            {"images": 3},
            r"is not in COCO's format: it has no list images with id and",
        ),
        ([annotation(0, BLOCK)], ["0.png"], {"categories": []}, r"names 0 different categories; write 1 to 254"),
        ([annotation(0, BLOCK)], ["twice.png"], {}, r"lists twice\.png, which is .* and .*; keep one of them"),
    ],
)
def test_faulty_annotations(annotations: list, names: list[str], more: dict, message: str, tmp_path: Path) -> None:
    save_photos(tmp_path, ["0.png", "1.png"])
    for folder in ("a", "b"):
        save_photos(tmp_path / folder, ["twice.png"])
    write(tmp_path / "train.json", annotations, names, **more)
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_faults_of_single_images_are_named(tmp_path: Path) -> None:
    save_photos(tmp_path, ["0.png", "1.png", "2.png"])
    small = {"size": [3, 3], "counts": [0, 9]}
    shapes = [annotation(0, small, id=17), annotation(1, BLOCK, 5)]
    for split in ("train", "val"):
        write(tmp_path / f"{split}.json", shapes, ["0.png", "1.png", "2.png"])
    save(tmp_path / "2.png", photo(0, 40, 36))
    _, sources = load(tmp_path)
    for index, message in (
        (0, r"train\.json: annotation 17 cannot be drawn \(its run lengths are for 3x3 pixels\)"),
        (1, r"has an annotation of category 5, which is none of its classes"),
        (2, r"2\.png is 36x40 but .*train\.json lists it as 40x36"),
    ):
        with pytest.raises(DataError, match=message):
            sources["train"][index]


def test_no_annotations_at_all(tmp_path: Path) -> None:
    save_photos(tmp_path, ["0.png"])
    with pytest.raises(DataError, match="holds no annotations: which is for training"):
        load(tmp_path)


def test_without_pycocotools_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(DataError, match=r"pycocotools, which is not installed: pip install 'graft\[coco\]'$"):
        load(tmp_path)
