"""Oxford-IIIT Pet: Cats and Dogs. Parkhi, Vedaldi, Zisserman, Jawahar 2012, CVPR.

3,680 training and 3,669 test images of 37 breeds. Classification: the breed. Segmentation: pet or background, by the
trimap; its third value, the outline, which the authors call "not classified", is ignored. Layout, as published:
`images/*.jpg`, `annotations/trimaps/*.png`, `annotations/{trainval,test}.txt`, possibly in torchvision's folder
`oxford-iiit-pet`. There is no validation list: a fifth of trainval is held out, chosen by a hash of the names.
"""

from pathlib import Path
from typing import ClassVar

from datamodules.base import IGNORE_INDEX, GraftDataModule, Source, Task
from datamodules.download import Archive, ensure_files
from datamodules.errors import DataError
from datamodules.files import LabelledImages, MaskedImages
from datamodules.pairing import Pair, hold_out

ADDRESS = "https://www.robots.ox.ac.uk/~vgg/data/pets/data/"
ARCHIVES = (
    Archive(f"{ADDRESS}images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c", 791_918_971, "oxford-iiit-pet"),
    Archive(f"{ADDRESS}annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f", 19_173_078, "oxford-iiit-pet"),
)
NEEDS = ("images", "annotations/trainval.txt", "annotations/test.txt", "annotations/trimaps")
TRIMAP = {1: 1, 2: 0, 3: IGNORE_INDEX}


class Pet(GraftDataModule):
    """37 breeds, or pet and background."""

    tasks: ClassVar[tuple[Task, ...]] = ("segmentation", "classification")

    def default_size(self) -> tuple[int, int]:
        return (320, 320) if self.task == "segmentation" else (224, 224)

    def sources(self) -> dict[str, Source]:
        root = Path(self.data_dir or "data/pet")
        if not (root / "annotations").is_dir():
            ensure_files(root, [f"oxford-iiit-pet/{path}" for path in NEEDS], ARCHIVES, download=self.download)
            root = root / "oxford-iiit-pet"
        lists = {split: read_list(root / "annotations" / f"{split}.txt") for split in ("trainval", "test")}
        breeds = {label: name.rsplit("_", 1)[0] for found in lists.values() for name, label in found}
        train, val = hold_out(lists["trainval"], [name for name, _ in lists["trainval"]], root / "images")
        splits = {"train": train, "val": val, "test": lists["test"]}
        images, trimaps = root / "images", root / "annotations" / "trimaps"
        sources: dict[str, Source] = {}
        if self.task == "classification":
            self.class_names = tuple(breeds[label] for label in sorted(breeds))
            numbers = {label: number for number, label in enumerate(sorted(breeds))}
            for split, found in splits.items():
                sources[split] = LabelledImages([(images / f"{n}.jpg", numbers[label]) for n, label in found])
        else:
            self.class_names = ("background", "pet")
            for split, found in splits.items():
                pairs = [Pair(n, images / f"{n}.jpg", trimaps / f"{n}.png") for n, _ in found]
                sources[split] = MaskedImages(pairs, TRIMAP, "use the published trimaps")
        return sources


def read_list(path: Path) -> list[tuple[str, int]]:
    """(image, class id) of each line `IMAGE CLASS-ID SPECIES BREED-ID`."""
    try:
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line[:1] not in ("", "#")]
        return [(row[0], int(row[1])) for row in rows]
    except (OSError, IndexError, ValueError):
        message = f"{path} is missing or not a list of IMAGE CLASS-ID SPECIES BREED-ID; unpack annotations.tar.gz again"
        raise DataError(message) from None
