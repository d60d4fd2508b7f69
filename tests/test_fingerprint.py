"""The fingerprint of a data set changes with its classes and files, and with nothing else."""

import shutil
from pathlib import Path

import numpy as np

from datamodules import DATAMODULES
from tests.fake_data import photo, save, two_labels


def fingerprint(root: Path, task: str = "classification") -> dict[str, str]:
    """The parts by name."""
    data = DATAMODULES["folders"](task, data_dir=str(root), image_size=(32, 32), batch_size=2, workers=0)
    data.setup()
    return dict(part.split(":", 1) for part in data.fingerprint().split())


def make_classes(root: Path) -> Path:
    for split, count in (("train", 4), ("val", 2)):
        for name in ("bees", "wasps"):
            for index in range(count):
                save(root / split / name / f"{index}.png", photo(index))
    return root


def test_a_moved_folder_keeps_its_fingerprint(tmp_path: Path) -> None:
    first = fingerprint(make_classes(tmp_path / "a"))
    assert list(first) == ["classes", "train", "val"]
    assert [part.split(":")[0] for part in first.values()] == ["2", "8", "4"]
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert fingerprint(tmp_path / "b") == first


def test_other_classes_of_the_same_number_change_it(tmp_path: Path) -> None:
    before = fingerprint(make_classes(tmp_path))
    for split in ("train", "val"):
        (tmp_path / split / "bees").rename(tmp_path / split / "ants")
    after = fingerprint(tmp_path)
    assert before["classes"].startswith("2:")
    assert after["classes"].startswith("2:")
    assert after["classes"] != before["classes"]


def test_another_file_in_one_split_changes_the_part_of_that_split(tmp_path: Path) -> None:
    before = fingerprint(make_classes(tmp_path))
    save(tmp_path / "val" / "bees" / "more.png", photo(7))
    after = fingerprint(tmp_path)
    assert after["val"].startswith("5:")
    assert (after["train"], after["classes"]) == (before["train"], before["classes"])
    (tmp_path / "val" / "bees" / "more.png").rename(tmp_path / "val" / "bees" / "renamed.png")
    assert fingerprint(tmp_path)["val"] != after["val"]


def test_a_mask_of_another_size_changes_it(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for index in range(3):
            save(tmp_path / split / "images" / f"{index}.png", photo(index))
            save(tmp_path / split / "masks" / f"{index}.png", two_labels(0, 1))
    before = fingerprint(tmp_path, "segmentation")
    save(tmp_path / "train" / "masks" / "1.png", (photo(3)[..., 0] > 100).astype(np.uint8))
    after = fingerprint(tmp_path, "segmentation")
    assert after["train"] != before["train"]
    assert after["val"] == before["val"]
