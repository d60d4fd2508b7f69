"""Data and flags that cannot be meant are refused in one line that names the file and the way out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules import DATAMODULES, checking
from datamodules.digits import Digits
from datamodules.errors import DataError
from tests.fake_data import save
from tests.made_trees import CLASSES, make_mask, make_tree


@pytest.fixture(autouse=True)
def _few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Digits, "SCENES", {"train": 24, "val": 7, "test": 5})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def one_more_image(root: Path) -> None:
    save(root / "images" / "more.png", np.zeros((30, 40, 3), np.uint8))


def one_more_mask(root: Path) -> None:
    save(root / "masks" / "more.png", np.zeros((30, 40), np.uint8))


def small_mask(root: Path) -> None:
    save(root / "masks" / "03.png", make_mask(0)[:20])


def colour_mask(root: Path) -> None:
    save(root / "masks" / "03.png", np.zeros((30, 43, 3), np.uint8))


def large_label(root: Path) -> None:
    (root / "classes.txt").write_text("\n".join(map(str, range(CLASSES))))
    save(root / "masks" / "03.png", np.full((30, 43), 11, np.uint8))


def large_camvid_label(root: Path) -> None:
    save(root / "valannot" / "val2.png", np.full((30, 40), 12, np.uint8))


def one_label(root: Path) -> None:
    for path in (root / "masks").iterdir():
        save(path, (np.array(Image.open(path)) == 255).astype(np.uint8) * 255)


def no_images(root: Path) -> None:
    for path in (root / "images").iterdir():
        path.unlink()


def one_class(root: Path) -> None:
    for name in ("bees", "wasps"):
        (root / name).rename(root.parent / name)


def unknown_class(root: Path) -> None:
    for name in ("ants", "bees"):
        save(root / "train" / name / "1.png", np.zeros((9, 9, 3), np.uint8))
    save(root / "val" / "flies" / "1.png", np.zeros((9, 9, 3), np.uint8))


SEGMENTATION = ("folders", "segmentation")
CLASSIFICATION = ("folders", "classification")
CAMVID = ("camvid", "segmentation")
BAD: list[tuple[tuple[str, str], Callable[[Path], Any], str]] = [
    (SEGMENTATION, one_more_image, r"images/more\.png has no mask; add .*masks/more\.png or remove the image"),
    (SEGMENTATION, one_more_mask, r"masks/more\.png has no image; add one named more to .*images or remove the mask"),
    (SEGMENTATION, small_mask, r"masks/03\.png is 40x20 but .*images/03\.png is 43x30; both must be of one size$"),
    (SEGMENTATION, colour_mask, r"masks/03\.png has pixels of mode RGB; save it as a grey or palette PNG"),
    (SEGMENTATION, large_label, r"masks/03\.png has the label value 11; allowed are 0 to 10 and 255 \(ignored\); "),
    (
        SEGMENTATION,
        one_label,
        "hold no label but 0 and 255, and 255 is ignored; write 1, 2, ",
    ),
    (SEGMENTATION, no_images, "images holds no images .*; check --data-dir"),
    (SEGMENTATION, lambda root: truncate(root / "images" / "05.png"), r"images/05\.png cannot be read .*; replace"),
    (SEGMENTATION, lambda root: truncate(root / "masks" / "05.png"), r"masks/05\.png cannot be read .*; replace"),
    (
        SEGMENTATION,
        lambda root: (root / "classes.csv").write_text("a,b\n1,2\n"),
        r"classes\.csv, line 1: 'a,b'; the file must begin with the ",
    ),
    (SEGMENTATION, lambda root: (root / "classes.txt").write_text("a\na\n"), r"names 1 different classes; write 2 to"),
    (CLASSIFICATION, lambda root: truncate(root / "bees" / "3.jpg"), r"bees/3\.jpg cannot be read .*; replace"),
    (CLASSIFICATION, lambda root: (root / "flies").mkdir(), "flies holds no images .*; check --data-dir"),
    (
        CLASSIFICATION,
        one_class,
        "holds ants/: 1 class folders, but at least 2 are needed; --data-dir must name a folder with a folder",
    ),
    (CLASSIFICATION, unknown_class, "val/flies is no class of .*train; add it there or remove it"),
    (CAMVID, large_camvid_label, r"valannot/val2\.png has the label value 12; allowed are 0 to 10 and 11 and 255"),
    (CAMVID, lambda root: (root / "val.txt").unlink(), r"val\.txt is missing; --data-dir must name a folder with tr"),
    (CAMVID, lambda root: (root / "val.txt").write_text("other\n"), r"val\.txt lists other, which .*val does not hold"),
    (CAMVID, lambda root: (root / "val.txt").write_text("\n"), r"val\.txt is empty; write the name of an image on"),
]


@pytest.mark.parametrize(("case", "spoil", "message"), BAD)
def test_bad_data_is_refused_in_one_line(
    case: tuple[str, str], spoil: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    make_tree(*case, tmp_path)
    spoil(tmp_path)
    data = DATAMODULES[case[0]](case[1], data_dir=str(tmp_path), batch_size=2)
    with pytest.raises(ValueError, match=message) as caught:
        data.setup()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "task", "options", "message"),
    [
        ("camvid", "segmentation", {"data_dir": "nowhere"}, "^nowhere is not a folder; --data-dir must name a folder"),
        ("camvid", "classification", {}, "^--data camvid is for segmentation only; for classification use --data digi"),
        ("folders", "segmentation", {}, "^--data folders needs --data-dir; --data-dir must name a folder with images/"),
        ("folders", "classification", {"data_dir": "nowhere"}, "^nowhere is not a folder; --data-dir must name a fold"),
        ("digits", "segmentation", {"batch_size": 0}, "^--batch-size is 0; it must be 1 or more$"),
        ("digits", "segmentation", {"workers": -1}, "^--workers is -1; it must be 0 or more$"),
        ("digits", "segmentation", {"image_size": (0, 64)}, "^--image-size is 0x64; both sides must be 1 or more$"),
    ],
)
def test_bad_flags_are_refused_in_one_line(
    name: str, task: str, options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        DATAMODULES[name](task, **options).setup()


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is empty; --data-dir must name a folder with images/ and masks/"):
        DATAMODULES["folders"]("segmentation", data_dir=str(tmp_path)).setup()


def test_a_broken_file_beyond_the_check_is_one_line_from_a_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checking, "MOST_CHECKED", 1)
    make_tree("camvid", "segmentation", tmp_path)
    broken = tmp_path / "val" / "val3.png"
    truncate(broken)
    data = DATAMODULES["camvid"]("segmentation", data_dir=str(tmp_path), batch_size=2, workers=1)
    data.setup()
    with pytest.raises(DataError) as caught:
        list(data.val_dataloader())
    assert str(caught.value).startswith(f"{broken} cannot be read (")
    assert "\n" not in str(caught.value)
