"""Boxes from PASCAL VOC's XML and YOLO's text files: what is read, and every mistake in one line before training."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datamodules.folders import Folders
from datamodules.voc_boxes import NAMES, Voc07, Voc0712
from experiments.run import main
from tests.fake_data import SIDE, TRAIN, VAL, make_voc_boxes, photo, save, write_list, write_xml


def read(root: Path) -> tuple[Folders, dict]:
    data = Folders("detection", data_dir=str(root))
    return data, data.sources()


def yolo(root: Path, labels: dict[str, str], names: str | None = "names: [cat, dog]\n") -> Path:
    """Images of 40x20 pixels for train and val with label files; a text of None has no file."""
    for split in ("train", "val"):
        for index, (name, text) in enumerate(labels.items()):
            save(root / "images" / split / f"{name}.png", photo(index, 20, 40))
            if text is not None:
                path = root / "labels" / split / f"{name}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    if names is not None:
        (root / "data.yaml").write_text(names)
    return root


def voc(root: Path, objects: list[tuple], size: tuple[int, int] | None = (SIDE, SIDE)) -> Path:
    """Five images with these objects, in VOC's folders without lists."""
    for index in range(5):
        save(root / "JPEGImages" / f"{index}.png", photo(index))
        write_xml(root / "Annotations" / f"{index}.xml", objects, size)
    return root


def test_yolos_lines_are_fractions_of_the_image(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    labels = {
        "a": "1 0.5 0.5 0.25 0.5\n\n0 0.1 0.9 0.2 0.2\n",
        "b": "0 0.05 0.5 0.3 0.5\n0 0.5 0.5 0 0.1\n1 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.1 0.1\n",
        "c": "0 0.25 0.25 0.5 0.25 0.5 0.75\n",
        "d": "",
        "e": None,
    }
    data, sources = read(yolo(tmp_path, labels))
    assert data.class_names == ("cat", "dog")
    assert list(sources) == ["train", "val"]
    image, objects, name = sources["train"][0]
    assert (image.shape, name) == ((20, 40, 3), "train/a")
    assert objects.boxes == pytest.approx(np.array([[15, 5, 25, 15], [0, 16, 8, 20]]), abs=1e-4)
    assert objects.labels.tolist() == [1, 0]
    assert sources["train"][1][1].boxes == pytest.approx(np.array([[0, 5, 8, 15], [18, 9, 22, 11]]), abs=1e-4)
    assert sources["train"][2][1].boxes == pytest.approx(np.array([[10, 5, 20, 15]]), abs=1e-4)
    assert not len(sources["train"][3][1].boxes)
    assert not len(sources["train"][4][1].boxes)
    said = capsys.readouterr().out
    assert "2 of 14 boxes in" in said
    assert "reach over the border of their image and are cut there" in said
    assert "have no width or no height and are left out" in said
    assert "stand twice in their file and count once" in said
    assert "are those around the points of a polygon, because their line has seven or more numbers" in said
    assert "2 of 5 train images have no object: all background" in said


def test_vocs_pixels_are_counted_from_one(tmp_path: Path) -> None:
    objects = [("dog", (1, 1, 10, 20), 0), ("cat", (3.5, 4, 36, 36), 1), ("dog", (5, 5, 5, 5), 0)]
    data, sources = read(voc(tmp_path, objects))
    assert data.class_names == ("cat", "dog")
    assert len(sources["train"]) + len(sources["val"]) == 5
    one = sources["train"][0]
    assert one[1].boxes.tolist() == [[0, 0, 10, 20], [2.5, 3, 36, 36], [4, 4, 5, 5]]
    assert one[1].labels.tolist() == [1, 0, 1]
    assert one[1].crowd.tolist() == [False, True, False]


@pytest.mark.parametrize("where", ["beside", "split", "lists"])
def test_layouts_of_xml(where: str, tmp_path: Path) -> None:
    """As Roboflow exports, split folders of both kinds, and lists with masks beside that are no images."""
    for index in range(6):
        split = "train" if index < 4 else "valid"
        folders = {
            "beside": (split, split), "split": (f"images/{split}", f"annotations/{split}"),
            "lists": ("JPEGImages", "Annotations"),
        }[where]  # fmt: skip
        save(tmp_path / folders[0] / f"my photo {index}.jpg", photo(index))
        write_xml(tmp_path / folders[1] / f"my photo {index}.xml", [("x", (2, 2, 9, 9), 0)])
        save(tmp_path / "SegmentationClass" / f"my photo {index}.png", photo(index)[..., 0])
    if where == "lists":
        write_list(tmp_path, "train", [f"my photo {index}" for index in range(4)])
        write_list(tmp_path, "val", ["my photo 4", "my photo 5"])
    _, sources = read(tmp_path)
    assert {split: len(source) for split, source in sources.items()} == {"train": 4, "val": 2}
    assert all(len(sources["val"][index][1].boxes) == 1 for index in range(2))


@pytest.mark.parametrize("where", ["roboflow", "lists", "beside", "elsewhere"])
def test_layouts_of_text_files(where: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A data.yaml whose paths begin with ../, lists of paths, label files beside their images, and no names at all."""
    for index in range(6):
        split = "train" if index < 4 else "valid"
        image, label = {
            "roboflow": (f"{split}/images", f"{split}/labels"), "lists": ("images", "labels"),
            "beside": ("obj_train_data", "obj_train_data"), "elsewhere": (f"{split}/images", f"{split}/labels"),
        }[where]  # fmt: skip
        save(tmp_path / image / f"{index}.jpg", photo(index))
        (tmp_path / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / label / f"{index}.txt").write_text(f"{index % 3} 0.5 0.5 0.5 0.5\n")
    if where == "roboflow":
        (tmp_path / "data.yaml").write_text(
            "train: ../train/images\nval: ../valid/images\nnc: 3\nnames: {0: a, 1: b, 2: c}\n"
        )
        (tmp_path / "README.roboflow.txt").write_text("a data set\n")
    elif where == "lists":
        (tmp_path / "train.txt").write_text("".join(f"images/{index}.jpg\n" for index in range(4)))
        (tmp_path / "val.txt").write_text("./images/4.jpg\n./images/5.jpg\n")
        (tmp_path / "data.yaml").write_text("train: train.txt\nval: val.txt\nnames: [a, b, c]\n")
    elif where == "beside":
        (tmp_path / "obj.names").write_text("a\nb\nc\n")
    data, sources = read(tmp_path)
    assert data.class_names == (("0", "1", "2") if where == "elsewhere" else ("a", "b", "c"))
    assert sum(map(len, sources.values())) == 6
    if where != "beside":
        assert {split: len(source) for split, source in sources.items()} == {"train": 4, "val": 2}
    assert ("the classes are called 0 to 2" in capsys.readouterr().out) == (where == "elsewhere")


WRONG_LINES = {
    "four": ("1 0.5 0.5 0.5", "4 numbers, not 5: class, x, y, width, height"),
    "six": ("1 0.5 0.5 0.5 0.5 0.9", "a sixth one is the score of a prediction"),
    "pixels": ("1 20 10 5 5", "20 is not from 0 to 1"),
    "negative": ("1 0.5 0.5 -0.1 0.2", "-0.1 is not from 0 to 1"),
    "nan": ("1 0.5 nan 0.1 0.2", "has a number that is not finite"),
    "word": ("cat 0.5 0.5 0.1 0.2", "'cat' is no number"),
    "class": ("2 0.5 0.5 0.1 0.2", "class 2 is none of 0, 1"),
    "commas": ("1,0.5,0.5,0.1,0.2", "write spaces between them"),
    "half": ("0.5 0.5 0.5 0.1 0.2", "the class is 0.5; it must be a whole number of at least 0"),
}


@pytest.mark.parametrize("kind", WRONG_LINES)
def test_wrong_lines_are_named_before_training(kind: str, tmp_path: Path) -> None:
    line, message = WRONG_LINES[kind]
    yolo(tmp_path, {"a": "0 0.5 0.5 0.1 0.1\n", "b": "0 0.5 0.5 0.1 0.1\n"})
    (tmp_path / "labels" / "train" / "b.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(ValueError, match="1 of 5 annotations are wrong; correct or remove them. The first: ") as caught:
        read(tmp_path)
    assert f"{tmp_path}/labels/train/b.txt:2: " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


WRONG_OBJECTS = {
    "swapped": (("dog", (9, 1, 3, 8), 0), "ends before it begins"),
    "nan": (("dog", (1, 1, "nan", 8), 0), "has a number that is not finite"),
    "gigantic": (("dog", (1, 1, "1e300", 8), 0), "has a number that is not finite or above 1e+09"),
    "mark": (("dog", (1, 1, 3, 8), "perhaps"), "the mark difficult of an object (dog) is 'perhaps', neither 0 nor 1"),
    "outside": (("dog", (50, 1, 60, 8), 0), "lies outside the image of 36x36 pixels"),
    "negative": (("dog", (-9, 1, -3, 8), 0), "lies outside the image"),
    "word": (("dog", (1, "two", 3, 8), 0), "ymin is 'two', which is no number"),
    "missing": (("dog", (1, "", 3, 8), 0), "ymin is missing"),
    "nameless": (("", (1, 2, 3, 8), 0), "an object has no name"),
}


@pytest.mark.parametrize("kind", WRONG_OBJECTS)
def test_wrong_objects_are_named_before_training(kind: str, tmp_path: Path) -> None:
    one, message = WRONG_OBJECTS[kind]
    voc(tmp_path, [("dog", (1, 1, 9, 9), 0)])
    write_xml(tmp_path / "Annotations" / "2.xml", [("dog", (1, 1, 9, 9), 0), one])
    with pytest.raises(ValueError, match="1 of 6 annotations are wrong") as caught:
        read(tmp_path)
    assert f"{tmp_path}/Annotations/2.xml:9: " in str(caught.value)
    assert message in str(caught.value)


def replace(root: Path, old: str, new: str) -> None:
    """Change the text of an annotation file."""
    path = root / "Annotations/1.xml"
    path.write_text(path.read_text().replace(old, new))


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "malformed": (lambda root: (root / "Annotations/1.xml").write_text("<annotation>\n<object>\n"),
                  "1.xml:3: it is no whole XML file (no element found)"),
    "empty": (lambda root: (root / "Annotations/1.xml").write_text(""), "1.xml:1: it is no whole XML file"),
    "encoding": (lambda root: (root / "Annotations/1.xml").write_text('<?xml version="1.0" encoding="klingon"?><a/>'),
                 "1.xml:1: "),
    "two boxes": (lambda root: replace(root, "</bndbox>", "</bndbox><bndbox/>"), "an object (dog) has 2 bndbox"),
    "other tag": (lambda root: replace(root, "object>", "Object>"), "1.xml:4: <Object> is <object> in PASCAL VOC's"),
    "size": (lambda root: replace(root, "<width>36", "<width>wide"), "1.xml:3: the width of the image is 'wide'"),
    "empty list": (lambda root: write_list(root, "train", []), "train.txt is empty; write the name of an image"),
    "list": (lambda root: (write_list(root, "train", []), (root / "ImageSets/Main/train.txt").write_bytes(b"\xe9\n")),
             "train.txt cannot be read as text in UTF-8"),
    "fractions": (lambda root: [write_xml(path, [("dog", (0.1, 0.1, 0.5, 0.9), 0)])
                                for path in (root / "Annotations").iterdir()], "all 5 boxes in"),
    "difficult": (lambda root: [write_xml(path, [("dog", (1, 1, 9, 9), 1)])
                                for path in (root / "Annotations").iterdir()],
                  "have no box to learn or to score, only difficult objects"),
    "other": (lambda root: (root / "Annotations/1.xml").write_text("<kml/>"), "its root is <kml>, not <annotation>"),
    "no image": (lambda root: (root / "JPEGImages/1.png").unlink(), "1 of 5 annotation files in"),
    "two images": (lambda root: save(root / "JPEGImages/1.jpg", photo(1)), "would be one image"),
    "listed": (lambda root: write_list(root, "train", ["0", "1", "9"]), "train.txt:3: there is no image 9"),
    "listed twice": (lambda root: write_list(root, "train", ["0", "1", "1"]), "train.txt lists 1 twice"),
    "both": (lambda root: (root / "JPEGImages/1.txt").write_text("0 .5 .5 .1 .1"), "keep one of them"),
    "nothing": (lambda root: [path.unlink() for path in (root / "Annotations").iterdir()], "holds images but no boxes"),
    "no boxes": (lambda root: [write_xml(path, []) for path in (root / "Annotations").iterdir()], "holds no box"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_files_that_do_not_fit_are_one_line(kind: str, tmp_path: Path) -> None:
    change, message = FILES[kind]
    change(voc(tmp_path, [("dog", (1, 1, 9, 9), 0)]))
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a, a]\n", "names the class a twice"),
        ("names: []\n", "has no names of classes"),
        ("nc: 3\nnames: [a, b]\n", "states nc: 3 but names 2 classes"),
        ("names: {1: a, 2: b}\n", "names must be numbered 0, 1, 2"),
        ("names: [a\n", "cannot be read as YAML"),
        ("names: {0: a, b: b}\n", "names must be numbered 0, 1, 2"),
        ("names: [yes, no]\n", "the name of class 0 is a bool; write it in quotes"),
        ("names: [[a, b], c]\n", "the name of class 0 is a list; write it in quotes"),
        ("names: [a, '']\n", "the name of class 1 is ''; write a text of one line"),
        ("nc: 20000\n", "has no names of classes"),
        ("names: [a, b]\nkpt_shape: [17, 3]\n", "is for keypoints"),
    ],
)
def test_wrong_settings_are_one_line(text: str, message: str, tmp_path: Path) -> None:
    yolo(tmp_path, {"a": "0 0.5 0.5 0.1 0.1\n"}, text)
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path)
    assert f"{tmp_path}/data.yaml" in str(caught.value)


def test_odd_lists_and_names_are_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    voc(tmp_path / "a", [("Dog", (1, 1, 9, 9), 0), ("dog", (1, 1, 9, 9), 0)])
    write_list(tmp_path / "a", "train", ["0", "1", "2"])
    write_list(tmp_path / "a", "val", ["2", "3"])
    data, _ = read(tmp_path / "a")
    assert data.class_names == ("Dog", "dog")
    said = capsys.readouterr().out
    assert "the classes Dog, dog differ in case only" in said
    assert "1 images in" in said
    assert "are in both train and val" in said
    assert "are of no split and are passed over" in said
    yolo(tmp_path / "b", {"a": "0 0.5 0.5 0.1 0.1\n"}, None)
    for split, text in (("train", "a\nb\n"), ("val", "b\na\n")):
        (tmp_path / "b" / "labels" / split / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match="list other classes; keep one of them"):
        read(tmp_path / "b")
    (tmp_path / "b" / "train.txt").write_text("images/train/a.png\nimages/train/a.png\n")
    (tmp_path / "b" / "labels" / "val" / "classes.txt").write_text("a\nb\n")
    settings = tmp_path / "b" / "data.yaml"
    settings.write_text("train: train.txt\nval: images/val\nnames: [c, d]\n")
    assert read(tmp_path / "b")[0].class_names == ("c", "d")
    said = capsys.readouterr().out
    assert f"classes.txt lists other classes than {settings}; the latter's are taken" in said
    assert "1 of 2 lines of" in said
    (tmp_path / "b" / "other.yml").write_text("names: [e]\n")
    with pytest.raises(ValueError, match="name other classes; keep one of them"):
        read(tmp_path / "b")


def test_files_that_name_another_image_are_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    voc(tmp_path, [("dog", (1, 1, 9, 9), 0)])
    for number, name in ((0, "000000.jpg"), (1, r"C:\photos\1.png"), (2, ""), (3, "3")):
        file = tmp_path / "Annotations" / f"{number}.xml"
        file.write_text(file.read_text().replace(f"{number}.jpg", name))
    read(tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    assert f"1 annotation files in {tmp_path} name another image" in said
    assert "0.xml names 000000.jpg)" in said


def test_a_number_that_is_no_class_is_one_line(tmp_path: Path) -> None:
    yolo(tmp_path, {"a": "1e30 0.5 0.5 0.1 0.1\n"}, None)
    with pytest.raises(ValueError, match=r"is of class 1\d{30}; number the classes 0, 1, 2 and so on") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_sizes_that_differ_and_boxes_outside_are_said_when_the_image_is_read(tmp_path: Path) -> None:
    _, sources = read(voc(tmp_path / "a", [("dog", (1, 1, 9, 9), 0)], (SIDE, SIDE + 4)))
    with pytest.raises(ValueError, match=r"is 36x36 but .*\.xml states 40x36"):
        sources["train"][0]
    _, sources = read(voc(tmp_path / "b", [("dog", (50, 1, 60, 9), 0)], None))
    with pytest.raises(ValueError, match=r"the box 49, 0, 60, 9 lies outside the image of 36x36 pixels"):
        [sources[split][index] for split in sources for index in range(len(sources[split]))]


def test_published_voc(tmp_path: Path) -> None:
    make_voc_boxes(tmp_path)
    for kind, count in ((Voc07, TRAIN), (Voc0712, 2 * TRAIN + VAL)):
        data = kind("detection", data_dir=str(tmp_path), workers=0, batch_size=2, image_size=(32, 32))
        sources = data.sources()
        assert (len(sources["train"]), len(sources["val"])) == (count, VAL)
        assert (data.class_names, data.ap_rule) == (NAMES, "voc07")
    _, objects, _ = sources["train"][1]
    assert objects.labels.tolist() == [NAMES.index("person"), NAMES.index("dog")]
    assert objects.crowd.tolist() == [False, True]
    folder = tmp_path / "VOCdevkit" / "VOC2007" / "Annotations"
    for path in folder.glob("1*.xml"):
        path.write_text(path.read_text().replace("<difficult>0", "<difficult>1"))
    with pytest.raises(ValueError, match="the val images in .* have no box to learn or to score, only difficult"):
        data.sources()
    listing = folder.parent / "ImageSets" / "Main" / "test.txt"
    listing.write_text(listing.read_text() + "100001\n")
    with pytest.raises(ValueError, match=r"test.txt lists 100001 twice; list each image once"):
        data.sources()
    (folder / "000003.xml").unlink()
    with pytest.raises(ValueError, match=r"1 files of train are missing \(first: .*000003.xml\)"):
        data.sources()


@pytest.mark.parametrize(("fit", "shape"), [("own", (20, 40)), ("stretch", (32, 48)), ("within", (24, 48))])
def test_images_fit_as_asked(fit: str, shape: tuple[int, int], tmp_path: Path) -> None:
    yolo(tmp_path, {"a": "1 0.5 0.5 0.25 0.5\n"})
    data = Folders("detection", data_dir=str(tmp_path), image_size=(32, 48), batch_size=1, workers=0, fit=fit)
    data.setup()
    sample = data.val[0]
    assert tuple(sample["image"].shape[1:]) == shape
    height, width = shape
    expected = [[0.375 * width, 0.25 * height, 0.625 * width, 0.75 * height]]
    assert sample["target"]["boxes"].numpy() == pytest.approx(np.array(expected), abs=1e-3)
    batch = next(iter(data.train_dataloader()))
    assert tuple(batch["image"].shape[2:]) == (shape if fit == "within" else (32, 48))


def test_a_run_trains_on_text_files_and_states_its_rule(tmp_path: Path) -> None:
    yolo(tmp_path / "data", {"a": "1 0.5 0.5 0.25 0.5\n", "b": "", "c": "0 0.5 0.5 0.5 0.5\n"})
    arguments = [
        "--backbone", "mobilenet_v3_small", "--head", "retinanet", "--head-options", "{width: 32}", "--data", "folders",
        "--data-dir", str(tmp_path / "data"), "--out", str(tmp_path), "--name", "one", "--image-size", "48",
        "--batch-size", "2", "--epochs", "1", "--workers", "0", "--accelerator", "cpu", "--ap-rule", "voc10",
    ]  # fmt: skip
    assert main(arguments) == 0
    protocol = json.loads((tmp_path / "one" / "results.json").read_text())["protocol"]
    assert (protocol["ap_rule"], protocol["fit"], protocol["classes"]) == ("voc10", "own", ["cat", "dog"])


def test_rules_and_sizes_of_boxes_are_refused_where_nothing_is_detected(capsys: pytest.CaptureFixture) -> None:
    for flag in (["--ap-rule", "voc07"], ["--fit", "stretch"]):
        assert main(["--backbone", "lenet5", "--head", "classifier", *flag, "--accelerator", "cpu"]) != 0
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert flag[0] in line
        assert "heads that detect" in line
