"""The small classics of torchvision: CIFAR-10, CIFAR-100, MNIST, Fashion-MNIST, as images of 32x32 pixels.

CIFAR: Learning Multiple Layers of Features from Tiny Images. Krizhevsky 2009. MNIST: Gradient-Based Learning Applied to
Document Recognition. LeCun, Bottou, Bengio, Haffner 1998. Fashion-MNIST: Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747.

Layouts are torchvision's: `cifar-10-batches-py/`, `cifar-100-python/`, `MNIST/raw/*-ubyte` and `FashionMNIST/raw/`, the
last two gzipped or not. The 28x28 images of MNIST and Fashion-MNIST get a black border, as for LeNet-5. Validation
uses the last 5,000 training images, as many as He et al. 2015 hold out of CIFAR-10 (at most a fifth of the images);
test uses the published test images.
"""

import gzip
from pathlib import Path
from typing import ClassVar

import albumentations as A
import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100

from datamodules.base import GraftDataModule, Source, Task
from datamodules.download import Archive, ensure_files
from datamodules.errors import DataError
from datamodules.size_rules import SizeRule

SIDE = 32
MOST_HELD_OUT = 5_000
FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
MNIST_ADDRESS = "https://ossci-datasets.s3.amazonaws.com/mnist/"
# The publishers' server has no HTTPS; the checksums of the files are compared.
FASHION_ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"


class Arrays:
    """A split held in memory: images uint8 `(N, 32, 32, 3)` and their classes."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, name: str) -> None:
        self.images = images
        self.labels = labels
        self.name = name

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, str]:
        return self.images[index], int(self.labels[index]), f"{self.name}-{index:05d}"

    def class_labels(self) -> np.ndarray:
        """The class of each image."""
        return self.labels


class SmallImages(GraftDataModule):
    """Base class of the four data sets.

    Training images are shifted randomly by up to 1 / `shift` of a side and, if `mirrors` is set, flipped horizontally
    at random.
    """

    tasks: ClassVar[tuple[Task, ...]] = ("classification",)
    mirrors: ClassVar[bool] = True
    shift: ClassVar[int] = 8  # 4 of 32 pixels, as He et al. 2015 shift CIFAR-10

    def default_size(self) -> tuple[int, int]:
        return SIDE, SIDE

    def arrays(self, root: Path) -> tuple[Arrays, Arrays]:
        """Read the published training and test images; may set `class_names`."""
        raise NotImplementedError

    def sources(self) -> dict[str, Source]:
        train, test = self.arrays(Path(self.data_dir or f"data/{self.name or type(self).__name__.lower()}"))
        kept = len(train) - min(MOST_HELD_OUT, len(train) // 5)
        return {
            "train": Arrays(train.images[:kept], train.labels[:kept], "train"),
            "val": Arrays(train.images[kept:], train.labels[kept:], "val"),
            "test": test,
        }

    def augmentation(self) -> list[A.BasicTransform]:
        height, width = self.image_size
        borders = [A.PadIfNeeded(height + 2 * (height // self.shift), width + 2 * (width // self.shift))]
        return [
            *self.evaluation(),
            *borders,
            A.RandomCrop(height, width),
            *([A.HorizontalFlip(p=0.5)] if self.mirrors else []),
        ]

    def size_rule(self) -> SizeRule:
        return SizeRule("stretch", self.image_size)

    def evaluation(self) -> list[A.BasicTransform]:
        return [] if self.image_size == (SIDE, SIDE) else [A.Resize(*self.image_size)]


class Cifar10(SmallImages):
    """Ten classes of things, 50,000 training and 10,000 test images."""

    published: ClassVar[type[CIFAR10]] = CIFAR10
    size: ClassVar[int] = 170_498_071

    def arrays(self, root: Path) -> tuple[Arrays, Arrays]:
        kind = self.published
        archive = Archive(kind.url, kind.tgz_md5, self.size)
        ensure_files(root, [f"{kind.base_folder}/{kind.meta['filename']}"], [archive], download=self.download)
        try:
            train, test = kind(root, train=True), kind(root, train=False)
        except RuntimeError:
            raise DataError(
                f"{root / kind.base_folder} has other files than {kind.url}; delete it and use --download"
            ) from None
        self.class_names = tuple(train.classes)
        return tuple(  # type: ignore[return-value]
            Arrays(one.data, np.array(one.targets), name) for one, name in ((train, "train"), (test, "test"))
        )


class Cifar100(Cifar10):
    """A hundred classes of things, 50,000 training and 10,000 test images."""

    published: ClassVar[type[CIFAR10]] = CIFAR100
    size: ClassVar[int] = 169_001_437


class Mnist(SmallImages):
    """Handwritten digits, 60,000 training and 10,000 test images."""

    class_names = tuple(map(str, range(10)))
    mirrors: ClassVar[bool] = False  # a flipped digit is another digit or none
    shift: ClassVar[int] = 16  # no further than the border
    folder: ClassVar[str] = "MNIST/raw"
    archives: ClassVar[tuple[Archive, ...]] = tuple(
        Archive(f"{MNIST_ADDRESS}{file}-ubyte.gz", digest, size, "MNIST/raw", unpack=False)
        for file, digest, size in (
            ("train-images-idx3", "f68b3c2dcbeaaa9fbdd348bbdeb94873", 9_912_422),
            ("train-labels-idx1", "d53e105ee54ea40749a09fcbcd1e9432", 28_881),
            ("t10k-images-idx3", "9fb629c4189551a2d022fa330f9573f3", 1_648_877),
            ("t10k-labels-idx1", "ec29112dd5afa0611ce80d1b7f02629c", 4_542),
        )
    )

    def arrays(self, root: Path) -> tuple[Arrays, Arrays]:
        files = [f"{self.folder}/{archive.name.removesuffix('.gz')}" for archive in self.archives]
        ensure_files(root, [f"{file}*" for file in files], self.archives, download=self.download)
        images, labels, test_images, test_labels = (read_idx(root / file) for file in files)
        return in_colour(images, labels, "train"), in_colour(test_images, test_labels, "test")


class FashionMnist(Mnist):
    """Ten kinds of clothes, 60,000 training and 10,000 test images."""

    name = "fashion_mnist"
    class_names = FASHION
    mirrors: ClassVar[bool] = True
    folder: ClassVar[str] = "FashionMNIST/raw"
    archives: ClassVar[tuple[Archive, ...]] = tuple(
        Archive(f"{FASHION_ADDRESS}{file}-ubyte.gz", digest, size, "FashionMNIST/raw", unpack=False)
        for file, digest, size in (
            ("train-images-idx3", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26_421_880),
            ("train-labels-idx1", "25c81989df183df01b3e8a0aad5dffbe", 29_515),
            ("t10k-images-idx3", "bef4ecab320f06d8554ea6380940ec79", 4_422_102),
            ("t10k-labels-idx1", "bb300cfdad3c16e7a12a480ee83cd310", 5_148),
        )
    )


def read_idx(path: Path) -> np.ndarray:
    """The array of bytes in an IDX file, plain or gzipped."""
    packed = path.with_name(f"{path.name}.gz")
    file = path if path.is_file() else packed
    try:
        data = gzip.decompress(file.read_bytes()) if file == packed else file.read_bytes()
        kind, axes = data[2], data[3]
        shape = np.frombuffer(data, ">i4", axes, 4)
        if kind != 8:
            raise ValueError("not an IDX file of bytes")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}); delete it and use --download", "unreadable") from None


def in_colour(images: np.ndarray, labels: np.ndarray, name: str) -> Arrays:
    """Grey images `(N, 28, 28)` with a black border, as RGB `(N, 32, 32, 3)`."""
    if len(images) != len(labels):
        raise DataError(f"there are {len(images)} {name} images but {len(labels)} labels; delete the files, --download")
    border = [(0, 0), *(((SIDE - side) // 2, SIDE - side - (SIDE - side) // 2) for side in images.shape[1:])]
    return Arrays(np.repeat(np.pad(images, border)[..., None], 3, axis=-1), labels, name)
