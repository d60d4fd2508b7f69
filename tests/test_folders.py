"""A user's own folders: splits, held-out images, names and colours of classes, palettes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import DATAMODULES
from tests.made_trees import CLASSES, LABELS, build, make_pair, make_tree

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.mark.parametrize("layout", ["{split}/{kind}", "{kind}/{split}"])
def test_splits_around_or_inside_the_two_folders(layout: str, tmp_path: Path) -> None:
    counts = {"train": 4, "val": 2, "test": 3}
    for split, count in counts.items():
        for index in range(count):
            images, masks = (tmp_path / layout.format(split=split, kind=kind) for kind in ("images", "masks"))
            make_pair(images, masks, f"{index}", index)
    data = DATAMODULES["folders"]("segmentation", data_dir=str(tmp_path), batch_size=2, workers=0)
    data.setup()
    assert {split: len(getattr(data, split)) for split in data.splits} == counts


def test_a_fifth_is_held_out_whatever_the_order(tmp_path: Path) -> None:
    data = build("folders", "segmentation", tmp_path)
    train, val = ({samples.source[index][2] for index in range(len(samples))} for samples in (data.train, data.val))
    assert len(train) == 10
    assert val == {"05", "08", "11"}, "the hash must choose the same images everywhere"
    assert not train & val
    data = build("folders", "classification", tmp_path / "classes")
    assert data.class_names == ("ants", "bees", "wasps")
    assert data.val.source.labels.tolist() == [0, 1, 2]


def test_class_names_and_colours(tmp_path: Path) -> None:
    make_tree("folders", "segmentation", tmp_path)
    data = build("folders", "segmentation", tmp_path)
    assert data.class_names == tuple(map(str, range(CLASSES)))
    lines = [f"class {i},{i},{2 * i},{3 * i}" for i in range(12)]
    (tmp_path / "classes.csv").write_text("\n".join(["name,r,g,b", *lines]))
    data = build("folders", "segmentation", tmp_path)
    assert data.class_names[11] == "class 11"
    assert data.colours[11] == (11, 22, 33)
    (tmp_path / "classes.txt").write_text("\n".join(f"kind {i}" for i in range(13)) + "\n")
    assert build("folders", "segmentation", tmp_path).class_names[12] == "kind 12"


def test_palette_masks_are_read_as_their_indices(tmp_path: Path) -> None:
    make_tree("folders", "segmentation", tmp_path)
    for path in (tmp_path / "masks").iterdir():
        image = Image.open(path)
        image.load()
        image.putpalette([7 * i % 256 for i in range(768)])
        image.save(path)
    data = DATAMODULES["folders"]("segmentation", data_dir=str(tmp_path), batch_size=2, workers=0)
    data.setup()
    assert set(np.unique(data.val.source[0][1]).tolist()) == {*LABELS, 255}


@pytest.mark.skipif(not (SHARED / "hymenoptera").is_dir(), reason="Hymenoptera is not at ../shared/data/hymenoptera")
def test_hymenoptera() -> None:
    root = str(SHARED / "hymenoptera")
    data = DATAMODULES["folders"]("classification", data_dir=root, workers=0, image_size=(64, 64))
    data.setup()
    assert data.class_names == ("ants", "bees")
    assert (len(data.train), len(data.val)) == (244, 153)
    assert data.val[0]["image"].shape == (3, 64, 64)
