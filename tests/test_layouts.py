"""How users arrange their images: usual names of splits, folders and masks are read, all others are said or refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.errors import DataError
from datamodules.folders import Folders
from tests.fake_data import photo, save, two_labels


def sources(root: Path, task: str = "segmentation", **options: object) -> dict[str, list[str]]:
    """The file names of each split's images, without suffix."""
    found = Folders(task, data_dir=str(root), image_size=(32, 32), **options).sources()
    return {split: [one.paths(index)[0].stem for index in range(len(one))] for split, one in found.items()}


def counts(root: Path, task: str = "segmentation", **options: object) -> dict[str, int]:
    return {split: len(names) for split, names in sources(root, task, **options).items()}


def refusal(root: Path, task: str = "segmentation", **options: object) -> str:
    with pytest.raises(DataError) as caught:
        sources(root, task, **options)
    return str(caught.value)


def make_classes(tree: Path, names: tuple[str, ...] = ("ants", "bees"), count: int = 5, suffix: str = ".png") -> None:
    for name in names:
        for index in range(count):
            save(tree / name / f"{index}{suffix}", photo(index))


def make_pairs(images: Path, masks: Path, count: int = 5, ending: str = "", suffix: str = ".png") -> None:
    for index in range(count):
        save(images / f"{index}.jpg", photo(index))
        save(masks / f"{index}{ending}{suffix}", two_labels(0, 1))


# Splits


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "valid", "test"), ("Training", "Validation", "Testing"), ("TRAIN", "VAL", "TEST"),
        ("training_set", "dev", "test_set"), ("Train Data", "val-split", "testdata"),
    ],
)  # fmt: skip
def test_splits_of_any_usual_name(train: str, val: str, test: str, tmp_path: Path) -> None:
    for name, count in ((train, 6), (val, 2), (test, 3)):
        make_classes(tmp_path / "cls" / name, count=count)
        make_pairs(tmp_path / "seg" / name / "images", tmp_path / "seg" / name / "masks", count)
        make_pairs(tmp_path / "inside" / "Images" / name, tmp_path / "inside" / "Masks" / name, count)
    assert counts(tmp_path / "cls", "classification") == {"train": 12, "val": 4, "test": 6}
    assert counts(tmp_path / "seg") == counts(tmp_path / "inside") == {"train": 6, "val": 2, "test": 3}


def test_splits_that_cannot_be_told_are_refused(tmp_path: Path) -> None:
    make_classes(tmp_path / "a" / "fold_train")
    make_classes(tmp_path / "a" / "fold_held_out")
    assert "fold_held_out/, fold_train/ in" in (said := refusal(tmp_path / "a", "classification"))
    assert "hold the same folders (ants, bees), as splits do; call them train/, val/ and test/" in said
    make_classes(tmp_path / "b" / "train")
    make_classes(tmp_path / "b" / "val")
    make_classes(tmp_path / "b" / "validation")
    assert "holds val/ and validation/, both for val; keep one of them" in refusal(tmp_path / "b", "classification")
    make_classes(tmp_path / "c", ("ants", "bees", "test"))
    assert "holds test/ but no train/; add train/, or rename what is no split" in refusal(
        tmp_path / "c", "classification"
    )
    make_classes(tmp_path / "d", ("bus", "car", "train"))
    said = refusal(tmp_path / "d", "classification")
    assert "train holds 5 .png but no class folders" in said
    assert "rename train/ if it is itself a class" in said


def test_classes_with_equal_folders_inside_are_no_splits(tmp_path: Path) -> None:
    for name in ("ants", "bees"):
        make_classes(tmp_path / name, ("monday", "tuesday"), count=3)
    assert counts(tmp_path, "classification") == {"train": 10, "val": 2}


def test_what_lies_beside_classes_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_classes(tmp_path)
    save(tmp_path / "out" / "resnet50-unet" / "predictions.png", photo(0))
    save(tmp_path / ".ipynb_checkpoints" / "0.png", photo(0))
    save(tmp_path / "ants" / ".ipynb_checkpoints" / "0-checkpoint.png", photo(0))
    save(tmp_path / "__MACOSX" / "ants" / "0.png", photo(0))
    assert counts(tmp_path, "classification") == {"train": 8, "val": 2}
    assert f"note: passed over in {tmp_path}: out/, which hold runs" in capsys.readouterr().out
    make_classes(tmp_path / "train")
    sources(tmp_path, "classification")
    assert "passed over in" in (said := capsys.readouterr().out)
    assert "ants/, bees/, out/, because train/ holds the classes" in said


def test_masks_are_no_class(tmp_path: Path) -> None:
    make_pairs(tmp_path / "Images", tmp_path / "labels")
    said = refusal(tmp_path, "classification")
    assert "holds Images/ and labels/, which are no classes; masks are for a head that segments" in said


def test_images_of_no_class_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_classes(tmp_path)
    make_classes(tmp_path, ("",), count=3)
    assert counts(tmp_path, "classification") == {"train": 8, "val": 2}
    assert f"note: passed over in {tmp_path}: 3 images outside of class folders" in capsys.readouterr().out


@pytest.mark.parametrize("inside", [".", "unknown", "images"])
def test_unlabelled_test_images_are_left_out_in_one_line(
    inside: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for split in ("train", "val"):
        make_classes(tmp_path / "cls" / split)
        make_pairs(tmp_path / "seg" / split / "images", tmp_path / "seg" / split / "masks")
    for task in ("cls", "seg"):
        for index in range(4):
            save(tmp_path / task / "test" / inside / f"{index}.jpg", photo(index))
    assert counts(tmp_path / "cls", "classification") == {"train": 10, "val": 10}
    assert counts(tmp_path / "seg") == {"train": 5, "val": 5}
    said = capsys.readouterr().out.splitlines()
    assert [line.startswith("note: ") and line.endswith(": it is left out") for line in said] == [True, True]


def test_a_run_with_unlabelled_test_images_has_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.run import main

    monkeypatch.delenv("GRAFT_RUN_FOLDER", raising=False)
    for split in ("train", "val"):
        make_classes(tmp_path / "data" / split)
    save(tmp_path / "data" / "test" / "1.jpg", photo(0))
    arguments = [
        "--backbone",
        "lenet5",
        "--head",
        "classifier",
        "--data",
        "folders",
        "--data-dir",
        str(tmp_path / "data"),
    ]
    small = ["--image-size", "32", "--batch-size", "2", "--epochs", "1", "--workers", "0", "--accelerator", "cpu"]
    assert main([*arguments, *small, "--name", "run", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["scores"]) == ["val"]


# Files


def test_all_formats_of_photographs_are_read(tmp_path: Path) -> None:
    make_classes(tmp_path, count=2, suffix=".jpg")
    for number, (suffix, kind) in enumerate(
        [(".jfif", "JPEG"), (".JPE", "JPEG"), (".ppm", "PPM"), (".gif", "GIF"), (".webp", "WEBP"), (".TIF", "TIFF")]
    ):
        Image.fromarray(photo(number)).save(tmp_path / "ants" / f"a{number}{suffix}", format=kind)
    Image.fromarray(photo(9)).save(tmp_path / "ants" / "no suffix", format="PNG")
    data = Folders("classification", data_dir=str(tmp_path), image_size=(32, 32), batch_size=2, workers=0)
    data.setup()
    assert len(data.train) + len(data.val) == 4 + 7


def test_files_that_are_passed_over_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_classes(tmp_path)
    for index in range(3):
        (tmp_path / "ants" / f"{index}.heic").write_bytes(b"x")
    for name in ("a.xcf", "b.xcf", "notes", ".DS_Store", "Thumbs.db", "._0.png"):
        (tmp_path / "bees" / name).write_bytes(b"x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "bees" / "more").symlink_to(tmp_path / "ants", target_is_directory=True)
    (tmp_path / "elsewhere").rmdir()
    assert counts(tmp_path, "classification") == {"train": 8, "val": 2}
    assert (
        f"note: passed over in {tmp_path}: 3 .heic, 2 .xcf, 1 linked folders, 1 without suffix "
        "(pip install pillow-heif to read .heic)"
    ) in capsys.readouterr().out
    for path in (tmp_path / "ants").glob("*.png"):
        path.unlink()
    assert "ants holds 3 .heic (pip install pillow-heif to read .heic) and no images (" in refusal(
        tmp_path, "classification"
    )


def test_a_link_gives_no_image_to_two_classes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    make_classes(elsewhere)
    root.mkdir()
    for name in ("ants", "bees"):
        (root / name).symlink_to(elsewhere / name, target_is_directory=True)
    assert counts(root, "classification") == {"train": 8, "val": 2}, "links to other places are folders like others"
    (root / "wasps").symlink_to(root / "bees", target_is_directory=True)
    assert f"is a link to images that the class bees in {root} has too; remove the link" in refusal(
        root, "classification"
    )
    (root / "wasps").unlink()
    (elsewhere / "bees" / "small").mkdir()
    save(elsewhere / "bees" / "small" / "9.png", photo(9))
    (root / "small").symlink_to(elsewhere / "bees" / "small", target_is_directory=True)
    assert f"{root / 'small'} is a link to images that the class bees" in refusal(root, "classification")


def test_a_split_under_two_names_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_classes(tmp_path / "train")
    (tmp_path / "val").symlink_to(tmp_path / "train", target_is_directory=True)
    assert counts(tmp_path, "classification") == {"train": 10, "val": 10}
    assert "val is the same folder as " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["two\nlines.png", "carriage\rreturn.png", "separator\u2028.png", "latin-\udce9.png"])
def test_names_that_would_break_a_line_are_refused(name: str, tmp_path: Path) -> None:
    make_classes(tmp_path)
    save(tmp_path / "ants" / name, photo(0))
    said = refusal(tmp_path, "classification")
    assert "rename it without line breaks" in said
    assert len(said.splitlines()) == 1


def test_brackets_and_narrow_spaces_in_names(tmp_path: Path) -> None:
    make_classes(tmp_path, ("ants [red]", "bees, large"))
    save(tmp_path / "ants [red]" / "Screenshot 1.00.00\u202fPM [1].png", photo(0))
    assert counts(tmp_path, "classification") == {"train": 9, "val": 2}


def save_pages(path: Path, kind: str, **options: object) -> None:
    first, *more = (Image.fromarray(photo(index)) for index in range(3))
    first.save(path, format=kind, save_all=True, append_images=more, **options)


@pytest.mark.parametrize(("name", "kind"), [("stack.tif", "TIFF"), ("film.gif", "GIF"), ("film.webp", "WEBP")])
def test_files_of_several_pages_are_refused(name: str, kind: str, tmp_path: Path) -> None:
    make_classes(tmp_path)
    save_pages(tmp_path / "ants" / name, kind)
    data = Folders("classification", data_dir=str(tmp_path), image_size=(32, 32), batch_size=2, workers=0)
    with pytest.raises(DataError, match=rf"{name} has 3 pages; save each that is meant as a file of its own"):
        data.setup()


def test_images_too_large_to_decode_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_classes(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    data = Folders("classification", data_dir=str(tmp_path), image_size=(32, 32), batch_size=2, workers=0)
    with pytest.raises(DataError, match=r"\d\.png has 1296 pixels, too many for one sample; cut it into tiles"):
        data.setup()


# Images and masks


def in_one_folder(root: Path) -> None:
    make_pairs(root, root)


def with_ending(root: Path) -> None:
    make_pairs(root, root, ending="_mask")


def deepglobe(root: Path) -> None:
    for index in range(5):
        save(root / "images" / f"{index}_sat.jpg", photo(index))
        save(root / "masks" / f"{index}_label.png", two_labels(0, 1))


def roboflow(root: Path) -> None:
    for split, count in (("train", 4), ("valid", 1)):
        for index in range(count):
            save(root / split / f"{index}_jpg.rf.ab.jpg", photo(index))
            save(root / split / f"{index}_jpg.rf.ab_mask.png", two_labels(0, 1))
        (root / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, cell\n")


def carvana(root: Path) -> None:
    make_pairs(root / "train", root / "train_masks", ending="_mask", suffix=".gif")


def milesial(root: Path) -> None:
    make_pairs(root / "imgs", root / "masks", ending="_mask")


def images_and_labels(root: Path) -> None:
    make_pairs(root / "images", root / "labels")


def cvat(root: Path) -> None:
    colours = np.array([[0, 0, 0], [128, 0, 0]], np.uint8)
    make_pairs(root / "JPEGImages", root / "SegmentationClass")
    make_pairs(root / "JPEGImages", root / "SegmentationObject")
    for path in (root / "SegmentationClass").iterdir():
        save(path, colours[two_labels(0, 1)])
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncell:128,0,0::\n")


def labelme2voc(root: Path) -> None:
    make_pairs(root / "JPEGImages", root / "SegmentationClassPNG")
    (root / "SegmentationClass").mkdir()
    (root / "SegmentationClass" / "0.npy").write_bytes(b"x")
    (root / "class_names.txt").write_text("_background_\ncell\n")


def with_lists(root: Path) -> None:
    make_pairs(root / "JPEGImages", root / "SegmentationClass")
    for split, names in (("train", "0123"), ("val", "4")):
        (root / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names))


@pytest.mark.parametrize(
    "make",
    [
        in_one_folder,
        with_ending,
        deepglobe,
        roboflow,
        carvana,
        milesial,
        images_and_labels,
        cvat,
        labelme2voc,
        with_lists,
    ],
)
def test_layouts_of_other_programs(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path)
    data = Folders("segmentation", data_dir=str(tmp_path), image_size=(32, 32))
    found = data.sources()
    assert {split: len(source) for split, source in found.items()} == {"train": 4, "val": 1}
    assert data.num_classes == 2
    for source in found.values():
        for image, mask in (source.paths(index) for index in range(len(source))):
            assert mask.stem[0] == image.stem[0]
        assert np.array_equal(source[0][1], two_labels(0, 1))


def test_mask_suffix_says_which_masks_are_meant(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_pairs(tmp_path / "images", tmp_path / "masks", ending="_cells")
    make_pairs(tmp_path / "images", tmp_path / "masks", ending="_edges")
    assert "images and " in (said := refusal(tmp_path))
    assert "have no name in common (0.jpg, 1.jpg, ...; 0_cells.png, 0_edges.png, ...)" in said
    assert "--mask-suffix" in said
    assert counts(tmp_path, mask_suffix="_edges") == {"train": 4, "val": 1}
    assert "5 masks without _edges" in capsys.readouterr().out
    assert "--mask-suffix _rim: no name in" in refusal(tmp_path, mask_suffix="_rim")
    with pytest.raises(DataError, match="--mask-suffix is for --data folders"):
        __import__("datamodules").DATAMODULES["voc"]("segmentation", mask_suffix="_mask")


def labelme(root: Path) -> None:
    save(root / "images" / "0.jpg", photo(0))
    (root / "images" / "0.json").write_text("{}")


def coco(root: Path) -> None:
    save(root / "train" / "0.jpg", photo(0))
    (root / "train" / "_annotations.coco.json").write_text("{}")


def yolo(root: Path) -> None:
    save(root / "images" / "0.jpg", photo(0))
    (root / "labels").mkdir()
    (root / "labels" / "0.txt").write_text("0 0.1 0.2 0.3 0.4")


def one_without(root: Path) -> None:
    make_pairs(root / "train", root / "train", ending="_mask")
    save(root / "train" / "late.jpg", photo(0))


def val_without(root: Path) -> None:
    make_pairs(root / "images" / "train", root / "masks" / "train")
    save(root / "images" / "val" / "0.jpg", photo(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            labelme,
            r"images holds 1 \.jpg, 1 \.json: images with \.json files and no masks, as labelme writes them; turn ",
        ),
        (coco, r"train holds 1 \.jpg, 1 \.json: annotations in COCO's format and no masks; --data coco reads them"),
        (yolo, r"images holds 1 \.jpg and no masks that are found; --data folders reads images/ and masks/, "),
        (one_without, r"train holds masks beside images, but late\.jpg has no mask late_mask"),
        (val_without, r"images/val has no masks: .*masks holds train/; add .*masks/val"),
    ],
)
def test_other_layouts_are_refused_with_what_was_found(
    make: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        sources(tmp_path)
