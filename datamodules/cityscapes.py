"""Cityscapes: The Cityscapes Dataset for Semantic Urban Scene Understanding. Cordts et al. 2016, arXiv:1604.01685.

Driving scenes of 2048x1024 pixels, 2,975 for training and 500 for validation, in the 19 classes that are scored.
Layout, as published: `leftImg8bit/SPLIT/CITY/CITY_*_leftImg8bit.png` and
`gtFine/SPLIT/CITY/CITY_*_gtFine_labelIds.png`. The label ids 0-33 become train ids as the cityscapesScripts have them;
unscored ones are ignored. Test labels are not public.
"""

from pathlib import Path
from typing import ClassVar

from datamodules.base import IGNORE_INDEX, Colour, GraftDataModule, Source, Task
from datamodules.errors import DataError
from datamodules.files import MaskedImages
from datamodules.pairing import Pair

# name -> (label id, colour), in the order of the train ids
CLASSES: dict[str, tuple[int, Colour]] = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
LABEL_IDS = 34
LABELS = dict.fromkeys(range(LABEL_IDS), IGNORE_INDEX) | {
    label_id: train_id for train_id, (label_id, _) in enumerate(CLASSES.values())
}
BY_HAND = (
    "fetch leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (241 MB) from "
    "https://www.cityscapes-dataset.com/downloads (needs an account) and unpack both there"
)


class Cityscapes(GraftDataModule):
    """19 classes of street scenes. Trains on crops of `image_size`, validates on whole images."""

    tasks: ClassVar[tuple[Task, ...]] = ("segmentation",)
    class_names = tuple(CLASSES)
    palette = tuple(colour for _, colour in CLASSES.values())

    def default_size(self) -> tuple[int, int]:
        return 512, 1024

    def sources(self) -> dict[str, Source]:
        root = Path(self.data_dir or "data/cityscapes")
        sources = {
            split: MaskedImages(city_pairs(root, split), LABELS, "are these gtFine's labelIds?")
            for split in ("train", "val")
        }
        return dict(sources)


def city_pairs(root: Path, split: str) -> list[Pair]:
    """The images of all cities with their masks, sorted by name."""
    images = sorted((root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
    if not images:
        raise DataError(f"{root / 'leftImg8bit' / split} holds no CITY/*_leftImg8bit.png; {BY_HAND}")
    names = [(path, path.name.removesuffix("_leftImg8bit.png")) for path in images]
    masks = root / "gtFine" / split
    return [Pair(name, path, masks / path.parent.name / f"{name}_gtFine_labelIds.png") for path, name in names]
