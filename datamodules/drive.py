"""DRIVE: Ridge-Based Vessel Segmentation in Color Images of the Retina. Staal et al. 2004, IEEE TMI 23(4).

Blood vessels in 40 photographs of retinas, 565x584 pixels. Pixels outside of the camera's field of view are ignored, as
in the published scores. Layout, as published: `training/` with `images/21_training.tif`, `1st_manual/21_manual1.gif`
and `mask/21_training_mask.gif` (the field of view), and `test/` alike, perhaps without `1st_manual/`, which makes it no
split here. The same as PNGs, `train/{images,labels,fov}/21.png`, is read too. Files belong together by the number that
their names begin with. A fifth of the 20 training images is held out for validation, chosen by a hash of the numbers.
"""

import re
from pathlib import Path
from typing import ClassVar

import albumentations as A
import numpy as np

from datamodules.base import IGNORE_INDEX, GraftDataModule, Source, Task
from datamodules.decoding import read_mask
from datamodules.errors import DataError
from datamodules.files import MaskedImages
from datamodules.pairing import Pair, hold_out

# folders of: the split, images, vessels, field of view
LAYOUTS = {
    "train": (("training", "images", "1st_manual", "mask"), ("train", "images", "labels", "fov")),
    "test": (("test", "images", "1st_manual", "mask"), ("test", "images", "labels", "fov")),
}
BY_HAND = "fetch DRIVE (30 MB) from https://drive.grand-challenge.org (needs an account) and unpack training/ there"


class Drive(GraftDataModule):
    """Vessel or background. Trains on crops of `image_size`, validates on whole images."""

    tasks: ClassVar[tuple[Task, ...]] = ("segmentation",)
    class_names = ("background", "vessel")
    palette = ((0, 0, 0), (255, 255, 255))

    def default_size(self) -> tuple[int, int]:
        return 256, 256

    def sources(self) -> dict[str, Source]:
        root = Path(self.data_dir or "data/drive")
        found = {split: numbered_pairs(root, split) for split in LAYOUTS}
        if not found["train"]:
            raise DataError(f"{root / 'training' / 'images'} is missing; {BY_HAND}")
        train, val = hold_out(found["train"], [pair.name for pair in found["train"]], root)
        splits = {"train": train, "val": val} | ({"test": found["test"]} if found["test"] else {})
        sources = {
            split: MaskedImages(pairs, {0: 0, 1: 1, IGNORE_INDEX: IGNORE_INDEX}, "use DRIVE's own masks", read_vessels)
            for split, pairs in splits.items()
        }
        return dict(sources)

    def augmentation(self) -> list[A.BasicTransform]:
        # Vessels have no up or down, but a width: images are turned and mirrored, not scaled.
        fill = tuple(255 * value for value in self.mean)
        return [
            A.RandomCrop(*self.image_size, pad_if_needed=True, fill=fill, fill_mask=IGNORE_INDEX),
            A.HorizontalFlip(p=0.5),
            A.VerticalFlip(p=0.5),
            A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=0.8),
        ]


def numbered_pairs(root: Path, split: str) -> list[Pair]:
    """Images of a split with their vessel masks, sorted by number; none where the split has no masks."""
    for folder, images, vessels, _ in LAYOUTS[split]:
        if (root / folder / images).is_dir() and (root / folder / vessels).is_dir():
            by_number = {number(path): path for path in sorted((root / folder / images).iterdir())}
            masks = {number(path): path for path in sorted((root / folder / vessels).iterdir())}
            for one in sorted(by_number.keys() ^ masks.keys()):
                lacking = vessels if one in by_number else images
                raise DataError(f"{root / folder / lacking} has no file of number {one}; add it or remove its partner")
            return [Pair(one, by_number[one], masks[one]) for one in sorted(by_number)]
    return []


def number(path: Path) -> str:
    digits = re.match(r"\d+", path.name)
    if not digits:
        raise DataError(f"{path} does not begin with a number; DRIVE's files do, remove it")
    return digits[0]


def read_vessels(path: Path) -> np.ndarray:
    """1 on vessels, 0 beside them and 255 outside the field of view, `(H, W)`."""
    vessels, one = read_mask(path), number(path)
    split = path.parents[1]
    folder = split / next(fov for _, _, manual, fov in LAYOUTS["train"] if manual == path.parent.name)
    views = sorted(folder.glob(f"{one}*"))
    if not views:
        raise DataError(f"{folder} has no field of view of number {one}; unpack DRIVE again", "unreadable")
    view = read_mask(views[0])
    if view.shape != vessels.shape:
        (h, w), (vh, vw) = view.shape, vessels.shape
        raise DataError(f"{views[0]} is {w}x{h} but {path} is {vw}x{vh}; both must be of one size", "size mismatch")
    # 0 and 255 in the published GIFs, 0 and 1 in PNGs
    unknown = set(np.unique(vessels).tolist()) - {0, 1, 255}
    if unknown:
        raise DataError(f"{path} has the value {min(unknown)}; 0 is background, 1 or 255 vessel", "unknown label")
    return np.where(view > 0, (vessels > 0).astype(np.uint8), np.uint8(IGNORE_INDEX))
