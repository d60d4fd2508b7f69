"""Small data sets in the layouts of `camvid` and `folders`, whose pixels tell their labels, and their data modules."""

from pathlib import Path
from typing import Any

import numpy as np

from datamodules import DATAMODULES
from datamodules.base import GraftDataModule
from tests.fake_data import make_fake, save
from tests.test_shards import make_shards

CLASSES = 11
LABELS = (0, 4, 10)
STEP = 25
"""Grey levels between the labels of a made image: pixels of class c are about 25 c."""


def make_mask(index: int, height: int = 30, width: int = 40) -> np.ndarray:
    """Two vertical stripes and a block, elsewhere for each index; a corner is to be ignored."""
    mask = np.full((height, width), LABELS[0], np.uint8)
    mask[:, width // 2 + index :] = LABELS[1]
    mask[height // 3 : height // 2 + index, : width // 3] = LABELS[2]
    mask[:4, :4] = 255
    return mask


def make_pair(images: Path, masks: Path, name: str, index: int, **size: int) -> None:
    mask = make_mask(index, **size)
    save(images / f"{name}.png", np.repeat((mask * STEP)[..., None], 3, axis=2))
    save(masks / f"{name}.png", mask)


def make_tree(name: str, task: str, root: Path) -> str | None:
    """Data of 10 training and some validation images for data set `name`; None where it brings its own."""
    if name in ("digits", "digits_turned"):
        return None
    if name == "camvid":
        for split, count in (("train", 10), ("val", 5)):
            for index in range(count):
                make_pair(root / split, root / f"{split}annot", f"{split}{index}", index)
            (root / f"{split}.txt").write_text("".join(f"{split}{index}\n" for index in range(count)))
        return str(root)
    if name == "folders" and task == "segmentation":
        for index in range(13):
            make_pair(root / "images", root / "masks", f"{index:02d}", index % 5, width=40 + index)
        return str(root)
    if name == "folders" and task == "classification":
        for label in ("ants", "bees", "wasps"):
            for index in range(5):
                save(root / label / f"{index}.jpg", np.full((30, 40 + index, 3), 10 * index, np.uint8))
        return str(root)
    if name == "shards":
        return str(make_shards(root, task))
    return make_fake(name, task, root)


def build(name: str, task: str, root: Path, **options: Any) -> GraftDataModule:
    data = DATAMODULES[name](task, data_dir=make_tree(name, task, root), **{"batch_size": 4, "workers": 0} | options)
    data.setup()
    return data
