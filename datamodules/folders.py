"""Any user's own images, as plain folders.

Segmentation: `images/` and `masks/`, paired by name without suffix; a mask holds a label id in each pixel (grey or
palette PNG), 255 = ignore. `train/`, `val/` and `test/` may lie around the two folders (`train/images/`) or inside
(`images/train/`). Names of the classes, in the order of their ids, come from `classes.txt` (one a line) or
`classes.csv` (a header with `name` and, for colours, `r`, `g`, `b`); without either, the masks' labels are counted.

Classification: a folder of images per class, around which `train/`, `val/` and `test/` may lie.

Without `val/`, a fifth of the training images is held out, chosen by a hash of their names: the same on every machine.
"""

import csv
from collections.abc import Sequence
from functools import partial
from hashlib import sha1
from pathlib import Path
from typing import ClassVar, TypeVar

import albumentations as A

from datamodules.base import IGNORE_INDEX, Colour, GraftDataModule, Source, Task, distinct_colours, scale_crop_flip
from datamodules.errors import DataError
from datamodules.files import LabelledImages, MaskedImages, check, list_images, pair

T = TypeVar("T")

SPLITS = ("train", "val", "test")
HELD_OUT = 0.2
MOST_CLASSES = IGNORE_INDEX
LAYOUTS = {
    "segmentation": "--data-dir must name a folder with images/ and masks/",
    "classification": "--data-dir must name a folder with a folder of images per class",
}


class Folders(GraftDataModule):
    """`images/` + `masks/` or a class-per-folder tree, at `image_size` (256x256 unless told)."""

    tasks: ClassVar[tuple[Task, ...]] = ("classification", "segmentation")
    _colours: tuple[Colour, ...] | None = None

    @property
    def colours(self) -> tuple[Colour, ...]:
        return self._colours or distinct_colours(self.num_classes)

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
        named = read_classes(root)
        sources = {
            split: MaskedImages(
                splits[split],
                len(named) if named else MOST_CLASSES,
                (IGNORE_INDEX,),
                "correct the mask, or name all classes in classes.txt",
            )
            for split in SPLITS
            if split in splits
        }
        largest = check(
            [partial(source.largest_label, index) for source in sources.values() for index in range(len(source))]
        )
        if named:
            self.class_names = tuple(named)
            if None not in named.values():
                self._colours = tuple(colour for colour in named.values() if colour)
        else:
            count = max(largest) + 1
            if count < 2:
                raise DataError(
                    f"the masks in {root} hold no label but 0 and 255, which is ignored; "
                    "write 1, 2, ... for the classes, or name the classes in classes.txt"
                )
            self.class_names = tuple(map(str, range(count)))
        for source in sources.values():
            source.num_classes = self.num_classes
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
        check([partial(readable, source, index) for source in sources.values() for index in range(len(source))])
        return dict(sources)

    def augmentation(self) -> list[A.BasicTransform]:
        height, width = self.image_size
        if self.task == "segmentation":
            return [*self.evaluation(), *scale_crop_flip(self.image_size, self.mean)]
        return [
            A.RandomResizedCrop((height, width), scale=(0.35, 1.0), area_for_downscale="image"),
            A.HorizontalFlip(p=0.5),
        ]

    def evaluation(self) -> list[A.BasicTransform]:
        height, width = self.image_size
        if self.task == "segmentation":
            return [A.Resize(height, width, area_for_downscale="image")]
        # The usual centre crop of 7/8: objects as large as in the training crops, sides in proportion.
        margin = (round(height / 0.875), round(width / 0.875))
        return [A.SmallestMaxSize(max_size_hw=margin, area_for_downscale="image"), A.CenterCrop(height, width)]


def readable(source: LabelledImages, index: int) -> None:
    source[index]


def list_classes(tree: Path) -> dict[str, list[Path]]:
    """The images in each class folder of `tree`, both sorted by name."""
    folders = sorted(path for path in tree.iterdir() if path.is_dir() and not path.name.startswith("."))
    return {folder.name: list(list_images(folder).values()) for folder in folders}


def hold_out(items: list[T], names: Sequence[str], where: Path) -> tuple[list[T], list[T]]:
    """Four fifths and one fifth, at least one item each; those whose names hash lowest are held out."""
    if len(items) < 2:
        raise DataError(f"{where} holds 1 image, too few to hold one out for validation; add images or a val/ folder")
    by_hash = sorted(range(len(items)), key=lambda i: sha1(names[i].encode()).digest())
    held = set(by_hash[: max(1, round(HELD_OUT * len(items)))])
    return [items[i] for i in range(len(items)) if i not in held], [items[i] for i in sorted(held)]


def read_classes(root: Path) -> dict[str, Colour | None]:
    """Names, with colours if the file has them, in the order of the ids; empty if there is no file."""
    text, table = root / "classes.txt", root / "classes.csv"
    named: list[tuple[str, Colour | None]] = []
    if text.is_file():
        path = text
        named = [(line.strip(), None) for line in text.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    elif table.is_file():
        path = table
        with table.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file, skipinitialspace=True):
                try:
                    colour = (int(row["r"]), int(row["g"]), int(row["b"])) if "r" in row else None
                    named.append((row["name"], colour))
                except (KeyError, TypeError, ValueError):
                    raise DataError(f"{path} must begin with the line name or name,r,g,b; {row} does not fit") from None
    else:
        return {}
    if not 2 <= len(dict(named)) == len(named) <= MOST_CLASSES:
        raise DataError(f"{path} names {len(dict(named))} different classes; write 2 to {MOST_CLASSES}, each once")
    return dict(named)
