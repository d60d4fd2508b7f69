"""ImageNet-21k: ImageNet, a Large-Scale Hierarchical Image Database. Deng et al. 2009.

About 14 million images of 21,841 classes, and subsets such as the 10,450 of the release of 2021. Layout: `train/WNID/`
with the images of a class, as its archives unpack, and `val/WNID/` if there is one; without `train/`, the class folders
lie in `--data-dir`. No validation split is published: without `val/`, a fifth of each class's images is held out by a
hash of their names. Classes are numbered in the order of the WordNet ids.

Names: the classes of ImageNet-1k have the names that they have in `--data imagenet`, so that a network goes from one to
the other: `--data imagenet --start-from RUN/checkpoints/best.ckpt` takes the rows of those 1000 classes from the output
layer, and with `--epochs 0` scores the 21k network on them. All others have the first of WordNet's words, from timm
(`pip install "graft[timm]"`), or their id without it. A name that occurs twice has its id behind it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import albumentations as A

from datamodules.base import GraftDataModule, Source, Task
from datamodules.crops import random_crop_flip
from datamodules.errors import DataError
from datamodules.files import LabelledImages
from datamodules.imagenet import NAMES
from datamodules.notes import note
from datamodules.pairing import hold_out, list_classes

LAYOUT = "--data-dir must name a folder with train/WNID/ or WNID/, as the archives of ImageNet-21k unpack"


class ImageNet21k(GraftDataModule):
    """Class folders by WordNet id, at 224x224 unless told."""

    tasks: ClassVar[tuple[Task, ...]] = ("classification",)

    def default_size(self) -> tuple[int, int]:
        return 224, 224

    def sources(self) -> dict[str, Source]:
        root = Path(self.data_dir or "data/imagenet21k")
        tree = root / "train" if (root / "train").is_dir() else root
        images = {"train": list_classes(tree) if tree.is_dir() else {}}
        wnids = {wnid: number for number, wnid in enumerate(images["train"])}
        if len(wnids) < 2:
            raise DataError(f"{tree} holds {len(wnids)} class folders, but at least 2 are needed; {LAYOUT}")
        if (root / "val").is_dir() and tree != root:
            images["val"] = list_classes(root / "val")
            for wnid in images["val"].keys() - wnids.keys():
                raise DataError(f"{root / 'val' / wnid} is no class of {tree}; add it there or remove it")
        else:
            parts = {
                wnid: hold_out(files, [f"{wnid}/{path.stem}" for path in files], tree / wnid)
                for wnid, files in images["train"].items()
            }
            images = {
                "train": {w: part[0] for w, part in parts.items()},
                "val": {w: part[1] for w, part in parts.items()},
            }
        self.class_names = names_of(list(wnids))
        return {
            split: LabelledImages([(path, wnids[wnid]) for wnid, files in classes.items() for path in files])
            for split, classes in images.items()
        }

    def augmentation(self) -> list[A.BasicTransform]:
        return random_crop_flip(self.image_size, least=0.08)


def names_of(wnids: Sequence[str]) -> tuple[str, ...]:
    """A name for each WordNet id, no two alike."""
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        note('classes have their WordNet ids for names; pip install "graft[timm]" has the words')
        return tuple(wnids)
    of_1k = dict(zip(ImageNetInfo("imagenet-1k").label_names(), NAMES, strict=True))
    words = ImageNetInfo("imagenet-22k")
    known = set(words.label_names()) | set(ImageNetInfo("imagenet-21k-goog").label_names())
    names, used = [], set(NAMES)
    for wnid in wnids:
        name = of_1k.get(wnid)
        if name is None:
            name = words.label_name_to_description(wnid).split(",")[0] if wnid in known else wnid
            name = f"{name} ({wnid})" if name in used else name
        used.add(name)
        names.append(name)
    return tuple(names)
