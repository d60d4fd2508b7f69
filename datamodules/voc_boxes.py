"""PASCAL VOC detection. Everingham, Van Gool, Williams, Winn, Zisserman 2010, IJCV 88(2).

Layout as published: `VOCdevkit/VOC2007/` and `VOCdevkit/VOC2012/` with `JPEGImages/`, `Annotations/` and
`ImageSets/Main/`; `--data-dir` may also be such a folder of one year itself. `voc07` trains on the 5,011 images of
trainval 2007, `voc0712` adds the 11,540 of trainval 2012, as the papers do; both are scored on the 4,952 images of test
2007 by the rules of 2007. The papers train on all of trainval and so have no validation images: here the split `val` is
that test set, on which the best epoch is chosen. The boxes of 2012 alone are `voc`: train against val, area under the
curve.
"""

from collections import Counter
from pathlib import Path
from typing import ClassVar

from datamodules.base import GraftDataModule, Source, Task
from datamodules.boxed_files import BoxedFiles, Tally, read_all
from datamodules.download import Archive, ensure_files
from datamodules.errors import DataError
from datamodules.pairing import read_lines
from datamodules.voc_xml import read_xml

NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
LISTS = "ImageSets/Main"
SITE = "https://thor.robots.ox.ac.uk/pascal/VOC"
ARCHIVES_2007 = [
    Archive(f"{SITE}/voc2007/VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64", 460_032_000),
    Archive(f"{SITE}/voc2007/VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f", 451_020_800),
]
ARCHIVE_2012 = Archive(f"{SITE}/voc2012/VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd", 1_999_639_040)
Sets = tuple[tuple[str, str], ...]
"""Pairs of year and list."""


def boxed_splits(
    data_dir: str | None, default: str, sets: dict[str, Sets], archives: list[Archive], *, download: bool
) -> dict[str, Source]:
    """The splits, each of one or more lists of one or more years.

    Raises:
        ValueError: files are missing, or annotations are wrong; one line says what.
    """
    root = Path(data_dir or default)
    if not (root / LISTS).is_dir():
        lists = [f"VOCdevkit/VOC{year}/{LISTS}/{part}.txt" for of_split in sets.values() for year, part in of_split]
        ensure_files(root, lists, archives, download=download)
    tally = Tally()
    found = {split: one_split(root, split, of_split, tally) for split, of_split in sets.items()}
    tally.report(root)
    for split, source in found.items():
        source.say_without(split, root)
    return dict(found)


def one_split(root: Path, split: str, sets: Sets, tally: Tally) -> BoxedFiles:
    images, files = [], []
    for year, part in sets:
        folder = root if (root / LISTS).is_dir() else root / "VOCdevkit" / f"VOC{year}"
        listing = folder / LISTS / f"{part}.txt"
        names = read_lines(listing)
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        if twice:
            raise DataError(f"{listing} lists {twice} twice; list each image once")
        for name in names:
            images.append((name if len(sets) == 1 else f"{year}/{name}", folder / "JPEGImages" / f"{name}.jpg"))
            files.append(folder / "Annotations" / f"{name}.xml")
    missing = [path for (_, image), file in zip(images, files, strict=True) for path in (image, file)
               if not path.is_file()]  # fmt: skip
    if missing:
        raise DataError(f"{len(missing)} files of {split} are missing (first: {missing[0]}); unpack the archive again")
    labels = {name: number for number, name in enumerate(NAMES)}
    return BoxedFiles(images, read_all(f"Reading boxes of {split}", read_xml, files), labels, tally)


class Voc07(GraftDataModule):
    """Trainval 2007 against test 2007. Trains on crops of `image_size`, validates on whole images, undistorted."""

    tasks: ClassVar[tuple[Task, ...]] = ("detection",)
    ap_rule = "voc07"
    class_names = NAMES
    SETS: ClassVar[dict[str, Sets]] = {"train": (("2007", "trainval"),), "val": (("2007", "test"),)}
    ARCHIVES: ClassVar[list[Archive]] = ARCHIVES_2007

    def default_size(self) -> tuple[int, int]:
        return 512, 512

    def sources(self) -> dict[str, Source]:
        return boxed_splits(self.data_dir, "data/voc", self.SETS, self.ARCHIVES, download=self.download)


class Voc0712(Voc07):
    """Trainval 2007 and 2012 against test 2007."""

    SETS: ClassVar[dict[str, Sets]] = {
        "train": (("2007", "trainval"), ("2012", "trainval")), "val": (("2007", "test"),),
    }  # fmt: skip
    ARCHIVES: ClassVar[list[Archive]] = [*ARCHIVES_2007, ARCHIVE_2012]
