"""ImageNet-1k: ImageNet Large Scale Visual Recognition Challenge. Russakovsky et al. 2015, arXiv:1409.0575.

1,281,167 training and 50,000 validation images of 1000 classes. Layout, as torchvision unpacks the archives:
`train/WNID/*.JPEG` and `val/WNID/*.JPEG`. The validation images may also lie flat in `val/`, as the archive has them,
beside the development kit's `ILSVRC2012_devkit_t12/data/`, which holds their classes. Classes are numbered in the order
of the WordNet ids, as in all published weights. If only some of the classes are there, they are named by their ids.

Instead of the tree, `images/` and `labels.csv` (columns `file`, `index`: the class from 0 to 999) make a validation
split without a training split, for `--epochs 0`. ImageNet-21k is another data set, in `datamodules/imagenet21k.py`.
"""

import csv
from pathlib import Path
from typing import ClassVar

import albumentations as A
from torchvision.models import ResNet50_Weights

from datamodules.base import GraftDataModule, Source, Task
from datamodules.crops import random_crop_flip
from datamodules.errors import DataError
from datamodules.files import LabelledImages
from datamodules.pairing import list_classes, list_images, read_lines

NAMES: tuple[str, ...] = tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
DEVKIT = "ILSVRC2012_devkit_t12/data"
BY_HAND = (
    "fetch ILSVRC2012_img_train.tar (148 GB), ILSVRC2012_img_val.tar (6.7 GB) and ILSVRC2012_devkit_t12.tar.gz from "
    "https://image-net.org/download-images (needs an account); torchvision.datasets.ImageNet(DIR, SPLIT) unpacks them"
)


class ImageNet(GraftDataModule):
    """The 1000 classes of the challenge, at 224x224 unless told."""

    tasks: ClassVar[tuple[Task, ...]] = ("classification",)
    class_names = NAMES

    def default_size(self) -> tuple[int, int]:
        return 224, 224

    def sources(self) -> dict[str, Source]:
        root = Path(self.data_dir or "data/imagenet")
        files = {"val": listed_files(root)} if (root / "labels.csv").is_file() else self._trees(root)
        sources = {split: LabelledImages(found) for split, found in files.items()}
        return dict(sources)

    def _trees(self, root: Path) -> dict[str, list[tuple[Path, int]]]:
        for split in ("train", "val"):
            if not (root / split).is_dir():
                raise DataError(f"{root / split} is missing; {BY_HAND}")
        train = list_classes(root / "train")
        wnids = {wnid: number for number, wnid in enumerate(train)}
        self.class_names = NAMES if len(wnids) == len(NAMES) else tuple(wnids)
        if len(wnids) < 2:
            raise DataError(f"{root / 'train'} holds {len(wnids)} class folders, but at least 2 are needed; {BY_HAND}")
        val = list_classes(root / "val") or flat_classes(root)
        for wnid in val:
            if wnid not in wnids:
                raise DataError(f"the class {wnid} of {root / 'val'} is not in {root / 'train'}; unpack it there too")
        return {
            split: [(path, wnids[wnid]) for wnid, paths in classes.items() for path in paths]
            for split, classes in (("train", train), ("val", val))
        }

    def augmentation(self) -> list[A.BasicTransform]:
        return random_crop_flip(self.image_size, least=0.08)  # Szegedy et al. 2014


def flat_classes(root: Path) -> dict[str, list[Path]]:
    """WordNet id -> validation images, by the development kit's list of one class id for each image in order."""
    from scipy.io import loadmat  # imported here, because most runs read no MATLAB files

    images = [path for _, path in sorted(list_images(root / "val").items())]
    truth = root / DEVKIT / "ILSVRC2012_validation_ground_truth.txt"
    ids = [int(line) for line in read_lines(truth)]
    if len(ids) != len(images):
        raise DataError(f"{truth} has {len(ids)} lines but {root / 'val'} {len(images)} images; unpack both again")
    synsets = loadmat(str(root / DEVKIT / "meta.mat"), squeeze_me=True)["synsets"]
    wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    classes: dict[str, list[Path]] = {}
    for path, one in zip(images, ids, strict=True):
        classes.setdefault(wnids[one], []).append(path)
    return classes


def listed_files(root: Path) -> list[tuple[Path, int]]:
    """The files that `labels.csv` lists, in its order, with their classes."""
    table = root / "labels.csv"
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        found = [(root / "images" / row["file"], int(row["index"])) for row in rows]
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{table} must begin with a line naming file and index, and hold both in each row") from None
    for path, index in found:
        if not 0 <= index < len(NAMES):
            raise DataError(f"{table} gives {path.name} the index {index}; allowed are 0 to {len(NAMES) - 1}")
    return found
