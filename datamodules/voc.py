"""PASCAL VOC 2012 segmentation. Everingham, Van Gool, Williams, Winn, Zisserman 2010, IJCV 88(2).

20 classes of objects and background; pixels of value 255 (void, the outlines) are ignored. Layout, as published and as
torchvision unpacks it: `VOCdevkit/VOC2012/` with `JPEGImages/`, `SegmentationClass/` and
`ImageSets/Segmentation/{train,val}.txt`; 1,464 training and 1,449 validation images. The test labels are not public.
For heads that detect, the boxes of the same year are read as `voc_boxes.py` says.

The 10,582 training images that most papers report ("trainaug") add those of SBD: Semantic Contours from Inverse
Detectors. Hariharan, Arbelaez, Bourdev, Maji, Malik 2011, ICCV. They are read, if they are there, as PNGs in
`VOC2012/SegmentationClassAug/`, or as published, in `cls/*.mat` of `sbd/` or `benchmark_RELEASE/dataset/` beside
`VOCdevkit/`. Images of VOC's validation split are left out, and VOC's own masks win for VOC's own training images.
"""

from pathlib import Path
from typing import ClassVar

import numpy as np

from datamodules.base import Colour, GraftDataModule, Source, Task
from datamodules.decoding import read_mask
from datamodules.download import ensure_files
from datamodules.errors import DataError
from datamodules.files import MaskedImages, identity
from datamodules.pairing import Pair, pair_listed
from datamodules.voc_boxes import ARCHIVE_2012, NAMES, Sets, boxed_splits

CLASSES: dict[str, Colour] = {
    "background": (0, 0, 0),
    "aeroplane": (128, 0, 0),
    "bicycle": (0, 128, 0),
    "bird": (128, 128, 0),
    "boat": (0, 0, 128),
    "bottle": (128, 0, 128),
    "bus": (0, 128, 128),
    "car": (128, 128, 128),
    "cat": (64, 0, 0),
    "chair": (192, 0, 0),
    "cow": (64, 128, 0),
    "diningtable": (192, 128, 0),
    "dog": (64, 0, 128),
    "horse": (192, 0, 128),
    "motorbike": (64, 128, 128),
    "person": (192, 128, 128),
    "pottedplant": (0, 64, 0),
    "sheep": (128, 64, 0),
    "sofa": (0, 192, 0),
    "train": (128, 192, 0),
    "tvmonitor": (0, 64, 128),
}
SBD_FOLDERS = ("sbd", "benchmark_RELEASE/dataset")
LISTS = "ImageSets/Segmentation"


class Voc(GraftDataModule):
    """21 classes, or 20 of boxes. Trains on crops of `image_size`, validates on whole images, undistorted."""

    tasks: ClassVar[tuple[Task, ...]] = ("segmentation", "detection")
    ap_rule = "voc10"
    class_names = tuple(CLASSES)
    palette = tuple(CLASSES.values())

    def default_size(self) -> tuple[int, int]:
        return 513, 513

    def sources(self) -> dict[str, Source]:
        if self.task == "detection":
            self.class_names, self.palette = NAMES, tuple(CLASSES.values())[1:]
            sets: dict[str, Sets] = {split: (("2012", split),) for split in ("train", "val")}
            return boxed_splits(self.data_dir, "data/voc", sets, [ARCHIVE_2012], download=self.download)
        root = Path(self.data_dir or "data/voc")
        voc = root / "VOCdevkit" / "VOC2012"
        if (root / LISTS).is_dir():  # the folder itself, without VOCdevkit around it
            voc = root.resolve()  # a relative path may have no parents to look for SBD in
            root = voc.parent.parent
        else:
            lists = [f"VOCdevkit/VOC2012/{LISTS}/{split}.txt" for split in ("train", "val")]
            ensure_files(root, lists, [ARCHIVE_2012], download=self.download)
        images, masks = voc / "JPEGImages", voc / "SegmentationClass"
        train, val = (pair_listed(voc / LISTS / f"{split}.txt", images, masks) for split in ("train", "val"))
        pairs = {"train": train + more_pairs(root, voc, train + val), "val": val}
        sources = {
            split: MaskedImages(found, identity(len(CLASSES)), "use the masks of VOC 2012 or SBD", read_mask_or_mat)
            for split, found in pairs.items()
        }
        return dict(sources)


def more_pairs(root: Path, voc: Path, known: list[Pair]) -> list[Pair]:
    """The images of SBD that are not in VOC's own lists, sorted by name."""
    masks = sorted((voc / "SegmentationClassAug").glob("*.png"))
    for folder in SBD_FOLDERS:
        masks = masks or sorted((root / folder / "cls").glob("*.mat"))
    names = {one.name for one in known}
    return [Pair(mask.stem, voc / "JPEGImages" / f"{mask.stem}.jpg", mask) for mask in masks if mask.stem not in names]


def read_mask_or_mat(path: Path) -> np.ndarray:
    """Label ids `(H, W)` of VOC's PNGs or SBD's MATLAB files."""
    if path.suffix != ".mat":
        return read_mask(path)
    from scipy.io import loadmat  # imported here, because most runs read no MATLAB files

    try:
        return np.asarray(loadmat(path)["GTcls"]["Segmentation"][0, 0])
    except Exception as error:  # scipy raises what it likes
        message = f"{path} cannot be read ({' '.join(str(error).split())}); unpack SBD's benchmark.tgz again"
        raise DataError(message, "unreadable") from None
