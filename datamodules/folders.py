"""Any user's own images, as plain folders.

Segmentation: `images/` and `masks/` (or another usual name), paired by name without suffix; or both in one folder, as
`x.jpg` beside `x.png` or `x_mask.png`. A mask holds a label id in each pixel (grey or palette), 255 = ignore. Folders
of the splits may lie around the two folders (`train/images/`), inside (`images/train/`) or beside each other (`train/`,
`train_masks/`), or `ImageSets/Segmentation/train.txt` lists names. `datamodules/class_table.py` tells where the names,
labels and colours of the classes may stand; without them, the labels in the masks are counted.

Classification: a folder of images per class, around which folders of the splits may lie.

Detection: images with PASCAL VOC's XML files, or with the text files of YOLO's programs; see `boxed_folders.py`.

Splits may have any usual name: train or Training, val, valid or validation, test or testing. Without validation images,
a fifth of the training images is held out, chosen by a hash of their names: the same on every machine. Test images
without labels are left out.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import albumentations as A

from datamodules.base import GraftDataModule, Source, Task
from datamodules.boxed_files import BoxedFiles
from datamodules.boxed_folders import LAYOUT, boxed_folders
from datamodules.class_folders import class_trees
from datamodules.class_table import MOST_CLASSES, ClassTable, read_classes
from datamodules.decoding import read_mask
from datamodules.depth import white_level
from datamodules.errors import DataError
from datamodules.files import LabelledImages, MaskedImages, identity
from datamodules.label_faults import check_classes, count_classes, refuse_numbers, refuse_soft, say_lost_classes
from datamodules.label_scan import scan_labels
from datamodules.mask_layout import mask_pairs
from datamodules.notes import note
from datamodules.pairing import folders_in, hold_out, kinds
from datamodules.size_rules import SizeRule
from datamodules.split_folders import SPLITS, contents, split_folders
from datamodules.turned import note_turned

Finder = Callable[[Path, Counter[str]], Mapping[str, MaskedImages | LabelledImages | BoxedFiles]]
"""Finds the splits in a folder, and counts the files that it passes over."""
LAYOUTS = {
    "segmentation": "--data-dir must name a folder with images/ and masks/",
    "classification": "--data-dir must name a folder with a folder of images per class",
    "detection": LAYOUT,
}


class Folders(GraftDataModule):
    """`images/` + `masks/` or a class-per-folder tree, at `image_size` (256x256 unless told), or boxes (512x512).

    Masks are scored at their own size, whatever `image_size` is.
    """

    tasks: ClassVar[tuple[Task, ...]] = ("classification", "segmentation", "detection")
    takes_mask_suffix = True
    takes_in_channels = True

    def default_size(self) -> tuple[int, int]:
        return (512, 512) if self.task == "detection" else (256, 256)

    def sources(self) -> dict[str, Source]:
        layout = LAYOUTS[self.task]
        if self.data_dir is None:
            raise DataError(f"--data folders needs --data-dir; {layout}")
        root = Path(self.data_dir)
        if not root.is_dir() or not any(root.iterdir()):
            raise DataError(f"{root} is {'empty' if root.is_dir() else 'not a folder'}; {layout}")
        passed_over: Counter[str] = Counter()
        finders: dict[str, Finder] = {
            "segmentation": self._masked,
            "classification": self._labelled,
            "detection": self._boxed,
        }
        sources = finders[self.task](root, passed_over)
        if passed_over:
            note(f"passed over in {root}: {kinds(passed_over)}")
        images = [source.paths(index)[0] for source in sources.values() for index in range(len(source))]
        white = white_level(images, self.in_channels)
        for source in sources.values():
            source.white, source.in_channels = white, self.in_channels
        return dict(sources)

    def _masked(self, root: Path, passed_over: Counter[str]) -> dict[str, MaskedImages]:
        splits = mask_pairs(root, self.mask_suffix, passed_over)
        note_turned([one.image for pairs in splits.values() for one in pairs])
        if "val" not in splits:
            splits["train"], splits["val"] = hold_out(splits["train"], [p.name for p in splits["train"]], root)
        table = find_table(root)
        sources = {
            split: MaskedImages(
                splits[split],
                table.labels if table else identity(MOST_CLASSES),
                "correct the mask, or list all labels in classes.csv",
                table.read if table else read_mask,
            )
            for split in SPLITS
            if split in splits
        }
        self._count_labels(root, sources, table)
        return sources

    def _count_labels(self, root: Path, sources: dict[str, MaskedImages], table: ClassTable | None) -> None:
        """Set the classes from the table or the masks' labels, after comparing all masks with them.

        Raises:
            ValueError: a mask cannot be read, or the labels cannot be meant so.
        """
        skip = self.on_bad_sample == "skip"
        counts = {split: scan_labels(source, self.image_size, root, tolerant=skip) for split, source in sources.items()}
        if not counts["train"].masks:
            raise DataError(
                f"none of the {len(sources['train'])} training masks can be read; --on-bad-sample error says why"
            )
        refuse_soft(counts["train"], f"the masks in {root}")
        refuse_numbers(counts["train"], f"the masks in {root}")
        for split, source in sources.items():
            unknown = [value for value in counts[split].values if value not in source.labels]
            if unknown and not skip:
                raise source.unknown_label(counts[split].first[str(unknown[0])], unknown[0])
        if table:
            self.class_names, self.palette = table.names, table.colours
            check_classes(counts, table, root)
        else:
            self.class_names = tuple(map(str, range(count_classes(counts, root))))
            for source in sources.values():
                source.labels = identity(self.num_classes)
        say_lost_classes(counts["train"], self.class_names, sources["train"].labels, self.image_size)

    def _labelled(self, root: Path, passed_over: Counter[str]) -> dict[str, LabelledImages]:
        images = class_trees(root, passed_over)
        self.class_names = tuple(images["train"])
        if self.num_classes < 2:
            train = split_folders(root).get("train", root)
            inside = folders_in(train)
            meant = f"; is --data-dir {inside[0]} meant?" if len(inside) == 1 and folders_in(inside[0]) else ""
            raise DataError(
                f"{train} holds {contents(train)}: {self.num_classes} class folders, but at least 2 are needed; "
                f"{LAYOUTS[self.task]}{meant}"
            )
        if "val" not in images:
            held = {
                name: hold_out(files, [f"{name}/{path.stem}" for path in files], root / name)
                for name, files in images["train"].items()
            }
            images["train"] = {name: kept for name, (kept, _) in held.items()}
            images["val"] = {name: out for name, (_, out) in held.items()}
        return {
            split: LabelledImages(
                [(path, self.class_names.index(name)) for name, files in images[split].items() for path in files]
            )
            for split in SPLITS
            if split in images
        }

    def _boxed(self, root: Path, passed_over: Counter[str]) -> dict[str, BoxedFiles]:
        self.class_names, sources = boxed_folders(root, passed_over)
        return sources

    def size_rule(self) -> SizeRule:
        return SizeRule("stretch", self.image_size) if self.task == "segmentation" else super().size_rule()

    def preparation(self) -> list[A.BasicTransform]:
        return self.size_rule().transforms() if self.task == "segmentation" else super().preparation()


def find_table(root: Path) -> ClassTable | None:
    """The table of the classes in the data folder or, as Roboflow writes it, in that of the training split."""
    table = read_classes(root)
    train = split_folders(root).get("train")
    return read_classes(train) if table is None and train else table
