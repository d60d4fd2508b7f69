"""Oxford 102 Flowers: Automated Flower Classification over a Large Number of Classes. Nilsback, Zisserman 2008, ICVGIP.

1,020 training, 1,020 validation and 6,149 test images. Layout, as published and as torchvision unpacks it:
`flowers-102/` with `jpg/image_00001.jpg`, `imagelabels.mat` and `setid.mat`.
"""

from pathlib import Path
from typing import ClassVar

from torchvision.datasets import Flowers102 as Published

from datamodules.base import GraftDataModule, Source, Task
from datamodules.download import Archive, ensure_files
from datamodules.files import LabelledImages

ADDRESS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
FOLDER = "flowers-102"
ARCHIVES = (
    Archive(f"{ADDRESS}102flowers.tgz", "52808999861908f626f3c1f4e79d11fa", 344_862_509, FOLDER),
    Archive(f"{ADDRESS}imagelabels.mat", "e0620be6f572b9609742df49c70aed4d", 502, FOLDER, unpack=False),
    Archive(f"{ADDRESS}setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c", 14_989, FOLDER, unpack=False),
)
SPLITS = {"train": "trnid", "val": "valid", "test": "tstid"}
"""The names that setid.mat has for them."""


class Flowers102(GraftDataModule):
    """102 flowers that grow in the United Kingdom, at 224x224 unless told."""

    tasks: ClassVar[tuple[Task, ...]] = ("classification",)
    class_names = tuple(Published.classes)

    def default_size(self) -> tuple[int, int]:
        return 224, 224

    def sources(self) -> dict[str, Source]:
        from scipy.io import loadmat  # imported here, because most runs read no MATLAB files

        root = Path(self.data_dir or "data/flowers102")
        needs = [f"{FOLDER}/{path}" for path in ("jpg", "imagelabels.mat", "setid.mat")]
        ensure_files(root, needs, ARCHIVES, download=self.download)
        labels = loadmat(str(root / FOLDER / "imagelabels.mat"))["labels"].ravel()
        members = loadmat(str(root / FOLDER / "setid.mat"))
        images = root / FOLDER / "jpg"
        sources = {
            # Images and labels are counted from 1.
            split: LabelledImages(
                [(images / f"image_{one:05d}.jpg", int(labels[one - 1]) - 1) for one in members[key].ravel()]
            )
            for split, key in SPLITS.items()
        }
        return dict(sources)
