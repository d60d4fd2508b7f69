"""Any user's own images, as plain folders.

Segmentation: `images/` and `masks/`, paired by name without suffix; a mask holds a label id in each pixel (grey or
palette PNG), 255 = ignore. `train/`, `val/` and `test/` may lie around the two folders (`train/images/`) or inside
(`images/train/`). Names of the classes, in the order of their ids, come from `classes.txt` (one a line) or
`classes.csv` (a header with `name` and, for colours, `r`, `g`, `b`); without either, the masks' labels are counted.
With colours, RGB masks are read by them; rows named void or ignore are no classes. Masks of 0 and 255, as in the ISBI
2012 challenge, are two greys: `background,0,0,0` and `cell,255,255,255`.

Classification: a folder of images per class, around which `train/`, `val/` and `test/` may lie.

Without `val/`, a fifth of the training images is held out, chosen by a hash of their names: the same on every machine.
"""

from functools import partial
from pathlib import Path
from typing import ClassVar

import albumentations as A

from datamodules.base import GraftDataModule, Source, Task
from datamodules.class_table import MOST_CLASSES, read_classes
from datamodules.errors import DataError
from datamodules.size_rules import SizeRule
from datamodules.files import (
    LabelledImages,
    MaskedImages,
    check,
    hold_out,
    identity,
    list_classes,
    pair,
    read_mask,
)

SPLITS = ("train", "val", "test")
LAYOUTS = {
    "segmentation": "--data-dir must name a folder with images/ and masks/",
    "classification": "--data-dir must name a folder with a folder of images per class",
}


class Folders(GraftDataModule):
    """`images/` + `masks/` or a class-per-folder tree, at `image_size` (256x256 unless told)."""

    tasks: ClassVar[tuple[Task, ...]] = ("classification", "segmentation")

    def default_size(self) -> tuple[int, int]:
        return 256, 256

    def sources(self) -> dict[str, Source]:
        layout = LAYOUTS[self.task]
        if self.data_dir is None:
            raise DataError(f"--data folders needs --data-dir; {layout}")
        root = Path(self.data_dir)
        if not root.is_dir() or not any(root.iterdir()):
            raise DataError(f"{root} is {'empty' if root.is_dir() else 'not a folder'}; {layout}")
        return self._masked(root) if self.task == "segmentation" else self._labelled(root)

    def _masked(self, root: Path) -> dict[str, Source]:
        if (root / "train").is_dir():
            pairs = {s: pair(root / s / "images", root / s / "masks") for s in SPLITS if (root / s).is_dir()}
        elif (root / "images" / "train").is_dir():
            pairs = {s: pair(root / "images" / s, root / "masks" / s) for s in SPLITS if (root / "images" / s).is_dir()}
        else:
            pairs = {"train": pair(root / "images", root / "masks")}
        splits = {split: list(found.values()) for split, found in pairs.items()}
        if "val" not in splits:
            splits["train"], splits["val"] = hold_out(splits["train"], [p.name for p in splits["train"]], root)
        table = read_classes(root)
        sources = {
            split: MaskedImages(
                splits[split],
                table.labels if table else identity(MOST_CLASSES),
                "correct the mask, or name all classes in classes.txt",
                table.read if table else read_mask,
            )
            for split in SPLITS
            if split in splits
        }
        if table:
            self.class_names, self.palette = table.names, table.colours
            return dict(sources)
        # A check of all files at the same time: what is wrong is known before training.
        largest = check(
            [partial(source.largest_label, index) for source in sources.values() for index in range(len(source))],
            tolerant=self.on_bad_sample == "skip",
        )
        count = max(largest, default=-1) + 1
        if count < 2:
            raise DataError(
                f"the masks in {root} hold no label but 0 and 255, which is ignored; write 1, 2, ... for the classes, "
                "or list name,r,g,b of each in classes.csv, where 255,255,255 may be a class"
            )
        self.class_names = tuple(map(str, range(count)))
        for source in sources.values():
            source.labels = identity(count)
        return dict(sources)

    def _labelled(self, root: Path) -> dict[str, Source]:
        trees = {s: root / s for s in SPLITS if (root / s).is_dir()} if (root / "train").is_dir() else {"train": root}
        images = {split: list_classes(tree) for split, tree in trees.items()}
        self.class_names = tuple(images["train"])
        if self.num_classes < 2:
            raise DataError(f"{trees['train']} holds {self.num_classes} class folders, not 2; {LAYOUTS[self.task]}")
        for split, classes in images.items():
            for name in classes:
                if name not in self.class_names:
                    raise DataError(f"{trees[split] / name} is no class of {trees['train']}; add it there or remove it")
        if "val" not in images:
            held = {
                name: hold_out(files, [f"{name}/{path.stem}" for path in files], trees["train"] / name)
                for name, files in images["train"].items()
            }
            images["train"] = {name: kept for name, (kept, _) in held.items()}
            images["val"] = {name: out for name, (_, out) in held.items()}
        sources = {
            split: LabelledImages(
                [(path, self.class_names.index(name)) for name, files in images[split].items() for path in files]
            )
            for split in SPLITS
            if split in images
        }
        return dict(sources)

    def size_rule(self) -> SizeRule:
        return SizeRule("stretch", self.image_size) if self.task == "segmentation" else super().size_rule()

    def preparation(self) -> list[A.BasicTransform]:
        return self.size_rule().transforms() if self.task == "segmentation" else []
