"""Boxes from annotation files: what is read, and every mistake in them said in one line before training."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest

from datamodules.coco import Coco
from experiments.run import main
from tests.fake_data import photo, save

CONTENT = {
    "images": [
        {"id": 7, "file_name": "a.png", "height": 36, "width": 40},
        {"id": 9, "file_name": "b.png", "height": 36, "width": 40},
        {"id": 4, "file_name": "c.png", "height": 36, "width": 40},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 8, "bbox": [2, 3.5, 10, 20]},
        {"id": 2, "image_id": 7, "category_id": 3, "bbox": [30, 20, 10.4, 5], "iscrowd": 1},
        {"id": 3, "image_id": 9, "category_id": 3, "bbox": [-5, -6, 15, 60]},
        {"id": 4, "image_id": 9, "category_id": 3, "bbox": [5, 6, 0, 3]},
    ],
    "categories": [{"id": 8, "name": "nucleus"}, {"id": 3, "name": "cell"}],
}


def write(root: Path, content: dict) -> None:
    for split in ("train", "val"):
        for index, name in enumerate(("a.png", "b.png", "c.png")):
            save(root / split / name, photo(index, 36, 40))
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))


def sources(root: Path) -> tuple[Coco, dict]:
    data = Coco("detection", data_dir=str(root))
    return data, data.sources()


def test_boxes_and_classes_of_cocos_format(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write(tmp_path, CONTENT)
    data, found = sources(tmp_path)
    assert data.class_names == ("cell", "nucleus")
    assert len(found["train"]) == 3
    image, objects, name = found["train"][0]
    assert (image.shape, name) == ((36, 40, 3), "a")
    assert objects.boxes.tolist() == [[2, 3.5, 12, 23.5], [30, 20, 40, 25]]
    assert objects.labels.tolist() == [1, 0]
    assert objects.crowd.tolist() == [False, True]
    _, cut, _ = found["train"][1]
    assert cut.boxes.tolist() == [[0, 0, 10, 36]]
    _, none, _ = found["train"][2]
    assert none.boxes.shape == (0, 4)
    said = capsys.readouterr().out
    assert "1 of 4 boxes in" in said
    assert "reach over the border of their image and are cut there" in said
    assert "have no width or no height and are left out" in said
    assert "1 of 3 images in" in said


def test_any_number_of_categories(tmp_path: Path) -> None:
    more = [{"id": number, "name": f"kind {number}"} for number in range(100, 500)]
    write(tmp_path, CONTENT | {"categories": CONTENT["categories"] + more})
    data, found = sources(tmp_path)
    assert len(data.class_names) == len(CONTENT["categories"]) + 400
    assert found["train"][0][1].labels.tolist() == [1, 0]


WRONG = {
    "negative": ({"bbox": [20, 3, -10, 5]}, r"bbox \[20, 3, -10, 5\] has a negative side"),
    "nan": ({"bbox": [math.nan, 3, 10, 5]}, "has a number that is not finite"),
    "infinite": ({"bbox": [1, 3, math.inf, 5]}, "has a number that is not finite"),
    "gigantic": ({"bbox": [1, 3, 10**400, 5]}, "has a number that is not finite or above"),
    "beside": ({"bbox": [40, 3, 10, 5]}, "lies outside the image of 40x36 pixels"),
    "crowd": ({"iscrowd": "0"}, "iscrowd is '0', neither 0 nor 1"),
    "text": ({"category_id": "8"}, "category '8' is not listed under categories"),
    "outside": ({"bbox": [50, 3, 10, 5]}, r"bbox \[50, 3, 10, 5\] lies outside the image of 40x36 pixels"),
    "short": ({"bbox": [50, 3, 10]}, r"bbox is \[50, 3, 10\], not \[x, y, width, height\]"),
    "missing": ({"bbox": None}, "bbox is None, not"),
    "class": ({"category_id": 12}, "category 12 is not listed under categories"),
    "image": ({"image_id": 12}, "annotation 1 of image 12: no image has that id"),
    "repeated": ({"id": 2}, r"1 ids of annotations occur more than once \(first: 2\); number them anew"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_annotations_are_one_line_before_training(kind: str, tmp_path: Path) -> None:
    change, message = WRONG[kind]
    content = copy.deepcopy(CONTENT)
    content["annotations"][0] |= change
    write(tmp_path, content)
    with pytest.raises(ValueError, match=message) as caught:
        sources(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "train" / "_annotations.coco.json") in str(caught.value)
    if kind != "repeated":
        assert "1 of 4 annotations are wrong; correct or remove them. The first: annotation 1 of" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("images", {"width": "40"}, "the width of entry 0 of images is '40'; write its pixels"),
        ("images", {"height": 0}, "the height of entry 0 of images is 0; write its pixels"),
        ("images", {"id": [1]}, r"the id of entry 0 of images is \[1\]; write a whole number"),
        ("annotations", {"image_id": [1]}, "the image_id of entry 0 of annotations"),
        ("annotations", {"category_id": None}, "the category_id of entry 0 of annotations is None"),
        (
            "images",
            {"file_name": "a\n.png"},
            r"the file_name of images number 7 is 'a\\n.png'; write a text of one line",
        ),
        ("categories", {"name": " "}, "the name of categories number 8 is ' '; write a text of one line"),
        ("categories", {"id": "a"}, "some ids under categories are numbers and some are texts"),
        ("annotations", 5, "it has no list annotations with image_id and category_id in each"),
    ],
)
def test_values_of_another_kind_are_one_line(key: str, change: object, message: str, tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    content[key][0] = content[key][0] | change if isinstance(change, dict) else change
    write(tmp_path, content)
    with pytest.raises(ValueError, match=message) as caught:
        sources(tmp_path)
    assert "\n" not in str(caught.value)


def test_repeated_images_and_files_without_boxes_are_refused(tmp_path: Path) -> None:
    write(tmp_path, CONTENT | {"images": [*CONTENT["images"], CONTENT["images"][0]]})
    with pytest.raises(ValueError, match="lists the id 7 twice under images; give each its own"):
        sources(tmp_path)
    write(tmp_path, CONTENT | {"annotations": []})
    with pytest.raises(ValueError, match="holds no box to learn or to score; annotate some objects"):
        sources(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iscrowd": 1}, "holds no box to learn or to score but crowds; annotate some objects"),
        ({"bbox": [0.1, 0.2, 0.5, 0.5]}, "all 4 boxes lie within the first pixel of their image; state them in pixels"),
    ],
)
def test_boxes_that_are_all_wrong_in_one_way_are_refused(change: dict, message: str, tmp_path: Path) -> None:
    write(tmp_path, CONTENT | {"annotations": [one | change for one in CONTENT["annotations"]]})
    with pytest.raises(ValueError, match=message):
        sources(tmp_path)


def test_files_that_contradict_themselves_or_another_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    renamed = [CONTENT["images"][0], CONTENT["images"][1] | {"file_name": "a.png"}, CONTENT["images"][2]]
    write(tmp_path, CONTENT | {"images": renamed})
    with pytest.raises(ValueError, match=r"lists .*a\.png under two ids; put all its annotations under one of them"):
        sources(tmp_path)
    write(tmp_path, CONTENT)
    file = tmp_path / "val" / "_annotations.coco.json"
    file.write_text(json.dumps(CONTENT | {"categories": [{"id": 8, "name": "debris"}, {"id": 3, "name": "cell"}]}))
    with pytest.raises(ValueError, match="its category is debris, which the training annotations do not list"):
        sources(tmp_path)
    file.write_text("")
    sources(tmp_path)
    assert f"1 JSON files in {tmp_path} hold no annotations in COCO's format (first: {file})" in capsys.readouterr().out
    file.write_text("[" * 100_000 + '"annotations"')
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        sources(tmp_path)


def test_odd_annotations_are_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Corners for sides, a box twice, one too thin for float32, names alike, images in both splits or in none."""
    boxes = [[20, 10, 38, 30], [20, 10, 38, 30], [10, 10, 35, 30], [5, 6, 1e-9, 3]]
    annotations = [{"id": number, "image_id": 7, "category_id": 3, "bbox": box} for number, box in enumerate(boxes)]
    for name in ("a.png", "b.png"):
        save(tmp_path / name, photo(0, 36, 40))
    content = {
        "images": [dict(CONTENT["images"][0])],
        "annotations": annotations,
        "categories": [{"id": 8, "name": "Cell "}, {"id": 3, "name": "cell"}],
    }
    for split in ("train", "val"):
        (tmp_path / f"instances_{split}.json").write_text(json.dumps(content))
    _, found = sources(tmp_path)
    assert found["train"][0][1].boxes.tolist() == [[20, 10, 40, 36], [20, 10, 40, 36], [10, 10, 40, 36]]
    said = capsys.readouterr().out
    assert "is bbox written as two corners? COCO's is [x, y, width, height]" in said
    assert "1 of 4 boxes in" in said
    assert "stand there twice; both count" in said
    assert "have no width or no height and are left out" in said
    assert "the classes cell, Cell  differ in case or spaces only" in said
    assert "are in both train and val" in said
    assert "are in no annotation file and are passed over" in said
    del content["images"][0]["height"], content["images"][0]["width"]
    content["annotations"][0]["bbox"] = [50, 3, 9, 9]
    (tmp_path / "instances_train.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"bbox \[50, 3, 9, 9\] of annotation 0 lies outside its image of 40x36 pixels"
    ):
        sources(tmp_path)[1]["train"][0]


def test_a_missing_image_is_one_line(tmp_path: Path) -> None:
    write(tmp_path, CONTENT)
    (tmp_path / "train" / "b.png").unlink()
    (tmp_path / "val" / "b.png").unlink()
    with pytest.raises(ValueError, match=r"lists 3 images, 1 of which are not in .* \(first: b.png\)"):
        sources(tmp_path)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_cached_and_fresh_samples_are_the_same(cache: str, tmp_path: Path) -> None:
    """The cache of masks of the same files is another."""
    write(tmp_path, CONTENT)
    data = Coco("detection", data_dir=str(tmp_path), cache=cache, workers=0, batch_size=1, image_size=(36, 40))
    data.setup()
    for _ in range(2):
        sample = data.val[0]
        assert sample["target"]["boxes"].tolist() == [[2, 3.5, 12, 23.5], [30, 20, 40, 25]]
        assert sample["target"]["iscrowd"].tolist() == [0, 1]
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (1, 3, 36, 40)
    assert batch["target"][0]["boxes"].shape[1] == 4


def test_a_run_trains_on_a_folder_with_images_without_objects(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write(tmp_path / "data", CONTENT)
    arguments = [
        "--backbone", "mobilenet_v3_small", "--head", "retinanet", "--head-options", "{width: 32}", "--data", "coco",
        "--data-dir", str(tmp_path / "data"), "--out", str(tmp_path), "--name", "one", "--image-size", "48",
        "--batch-size", "1", "--epochs", "2", "--workers", "0", "--accelerator", "cpu",
    ]  # fmt: skip
    assert main(arguments) == 0
    results = json.loads((tmp_path / "one" / "results.json").read_text())
    assert results["protocol"]["classes"] == ["cell", "nucleus"]
    assert np.isfinite(results["scores"]["val"]["map"])


def test_a_wrong_box_ends_the_program_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    content = copy.deepcopy(CONTENT)
    content["annotations"][0]["bbox"] = [20, 3, -10, 5]
    write(tmp_path, content)
    arguments = ["--backbone", "resnet18", "--head", "fcos", "--data", "coco", "--data-dir", str(tmp_path)]
    assert main([*arguments, "--out", str(tmp_path / "runs"), "--accelerator", "cpu"]) != 0
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "has a negative side" in lines[0]
    assert not (tmp_path / "runs").exists()
