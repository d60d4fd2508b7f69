"""What every data set is: splits of images with targets, one albumentations pipeline each, and their loaders."""

import random
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, Protocol

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from backbones.backbone import IMAGENET_MEAN, IMAGENET_STD, to_pixels
from datamodules.errors import DataError

IGNORE_INDEX = 255
Task = Literal["classification", "segmentation"]
Colour = tuple[int, int, int]


class Source(Protocol):
    """The samples of a split as they are stored, before any augmentation."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[np.ndarray, np.ndarray | int, str]:
        """Image uint8 `(H, W, 3)` RGB; mask uint8 `(H, W)` with 255 = ignore, or the class; a name."""
        ...


class Samples(Dataset[dict[str, Any]]):
    """A source behind its pipeline.

    Items are asked for by index, or by `(epoch, index)`. Random augmentation is a function of (seed, epoch, index)
    alone: every sample brings its own generators (20 microseconds), so that neither the number of workers nor the
    number of processes nor a resumed run changes what the network sees.
    """

    def __init__(self, source: Source, pipeline: A.Compose, seed: int, *, endless: bool = False) -> None:
        self.source = source
        self.endless = endless
        self.pipeline = pipeline
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """`image` float32 `(3, H, W)`, normalised; `target` int64 `(H, W)` or `()`; `name`."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image, target, name = self.source[index + epoch * len(self.source) * self.endless]
        # albumentations draws from generators of its own, which seeding numpy, random or torch does not reach.
        generator = np.random.default_rng((self.seed, epoch, index))
        self.pipeline.set_random_state(generator, random.Random(int(generator.integers(2**32))))
        if isinstance(target, np.ndarray):
            out = self.pipeline(image=image, mask=target)
            return {"image": out["image"], "target": out["mask"].long(), "name": name}
        out = self.pipeline(image=image)
        return {"image": out["image"], "target": torch.tensor(target), "name": name}


class Shuffled(DistributedSampler[Any]):
    """This process's share of the training set, anew each epoch, as `(epoch, index)` keys.

    The epoch travels with the index because persistent workers keep the copy of the data set they started with.
    Lightning calls `set_epoch`.
    """

    def __iter__(self) -> Iterator[Any]:
        return ((self.epoch, index) for index in super().__iter__())


class GraftDataModule(LightningDataModule):
    """Base of all data sets. `setup()` builds `train`, `val` and `test` (None where the set has no test split).

    A subclass states `tasks`, sets `class_names` (and `colours`, if it has its own) and writes `default_size`,
    `sources` and `augmentation`; `evaluation` where the images of a split are not all of one size.
    Batches are `{"image": float32 (B, 3, H, W), "target": int64 (B, H, W) or (B,), "name": list[str]}`.
    """

    tasks: ClassVar[tuple[Task, ...]]
    """What the data set has targets for."""
    ignore_index: int = IGNORE_INDEX
    """Label of pixels that count neither in losses nor in scores."""
    endless_training: bool = False
    """Whether the training source makes samples beyond its length, so that each epoch can have new ones."""
    class_names: tuple[str, ...]
    splits: tuple[str, ...]
    """The splits there are, after `setup()`: train, val and, in some sets, test."""

    def __init__(
        self,
        task: Task,
        *,
        data_dir: str | None = None,
        image_size: tuple[int, int] | None = None,
        batch_size: int = 16,
        workers: int = 2,
        seed: int = 0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        """`image_size` is (H, W), None for the data set's own; `batch_size` and `workers` are per process.

        Raises:
            ValueError: the data set has no such task, or a number is out of range.
        """
        super().__init__()
        name = type(self).__name__.lower()
        if task not in self.tasks:
            raise DataError(f"--data {name} is for {' and '.join(self.tasks)} only; for {task} use --data digits")
        for flag, value, least in (("batch-size", batch_size, 1), ("workers", workers, 0), ("seed", seed, 0)):
            if value < least:
                raise DataError(f"--{flag} is {value}; it must be {least} or more")
        self.task = task
        self.data_dir = data_dir
        self.image_size: tuple[int, int] = image_size if image_size is not None else self.default_size()
        if min(self.image_size) < 1:
            raise DataError(f"--image-size is {self.image_size[0]}x{self.image_size[1]}; both sides must be 1 or more")
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.train: Samples | None = None
        self.val: Samples | None = None
        self.test: Samples | None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def colours(self) -> tuple[Colour, ...]:
        """RGB in 0..255 of each class, for pictures."""
        return distinct_colours(self.num_classes)

    def default_size(self) -> tuple[int, int]:
        """Height and width of the images where the user asks for none."""
        raise NotImplementedError

    def sources(self) -> dict[str, Source]:
        """The splits `train`, `val` and perhaps `test`. Raises DataError where the files are not in order."""
        raise NotImplementedError

    def augmentation(self) -> list[A.BasicTransform]:
        """What training images go through, up to `image_size`."""
        raise NotImplementedError

    def evaluation(self) -> list[A.BasicTransform]:
        """What validation and test images go through; nothing random."""
        return []

    def setup(self, stage: str | None = None) -> None:
        """Build all splits, whatever the stage; a second call changes nothing.

        Raises:
            ValueError: the data are not in order, or fewer than a batch.
        """
        if self.train is not None:
            return
        sources = self.sources()
        self._check_batch_size(len(sources["train"]))
        self.splits = tuple(sources)
        pipeline = self._pipeline(self.augmentation())
        self.train = Samples(sources["train"], pipeline, self.seed, endless=self.endless_training)
        self.val = Samples(sources["val"], self._pipeline(self.evaluation()), self.seed)
        if "test" in sources:
            self.test = Samples(sources["test"], self._pipeline(self.evaluation()), self.seed)

    def _pipeline(self, transforms: list[A.BasicTransform]) -> A.Compose:
        # Normalising comes last: pixels stay uint8, as a picture or a deployed model would have them, up to there.
        # The exact nearest neighbour takes the pixel under the centre; the plain one is off by up to half a pixel.
        last = [A.Normalize(mean=self.mean, std=self.std), ToTensorV2()]
        return A.Compose([*transforms, *last], mask_interpolation=cv2.INTER_NEAREST_EXACT)

    def _processes(self) -> tuple[int, int]:
        """This process's rank, and how many there are."""
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def _check_batch_size(self, images: int) -> None:
        _, processes = self._processes()
        if images // processes < self.batch_size:
            each = f" on each of {processes} processes" if processes > 1 else ""
            raise DataError(
                f"--batch-size {self.batch_size}{each} is larger than the {images} training images; "
                f"use at most {images // processes}"
            )

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Shuffled whole batches."""
        assert self.train is not None, "call setup() first"
        self._check_batch_size(len(self.train))
        rank, processes = self._processes()
        sampler = Shuffled(self.train, processes, rank, shuffle=True, seed=self.seed, drop_last=True)
        return self._loader(self.train, sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Every sample exactly once over all processes."""
        return self._evaluation_loader("val", self.val)

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Every sample exactly once over all processes."""
        return self._evaluation_loader("test", self.test)

    def _evaluation_loader(self, split: str, samples: Samples | None) -> DataLoader[dict[str, Any]]:
        if samples is None:
            raise DataError(f"there is no {split} split; the splits are {', '.join(self.splits)}")
        rank, processes = self._processes()
        if len(samples) < processes:
            raise DataError(f"{processes} processes cannot share {len(samples)} {split} images; use fewer --devices")
        return self._loader(samples, range(rank, len(samples), processes), drop_last=False)

    def _loader(self, samples: Samples, sampler: Any, *, drop_last: bool) -> DataLoader[dict[str, Any]]:
        return DataLoader(
            samples,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.workers > 0,
            worker_init_fn=one_thread,
        )

    def to_pixels(self, image: Tensor) -> Tensor:
        """Undo the normalisation: float `(..., 3, H, W)` -> uint8."""
        return to_pixels(image, self.mean, self.std)


def one_thread(worker: int) -> None:
    """OpenCV would start a thread for every core in every worker."""
    cv2.setNumThreads(0)


def scale_crop_flip(image_size: tuple[int, int], mean: Sequence[float]) -> list[A.BasicTransform]:
    """The usual segmentation augmentation: scale by 0.5 to 2, crop to `image_size` (padded with ignore), mirror."""
    fill = tuple(255 * value for value in mean)
    return [
        A.RandomScale(scale_limit=(-0.5, 1.0), area_for_downscale="image", p=1.0),
        A.RandomCrop(*image_size, pad_if_needed=True, fill=fill, fill_mask=IGNORE_INDEX),
        A.HorizontalFlip(p=0.5),
    ]


def distinct_colours(count: int) -> tuple[Colour, ...]:
    """`count` colours, black first, by the golden angle in hue and three brightnesses in turn."""
    hues = np.arange(count - 1) * 0.618034 % 1 * 180
    values = np.resize([255, 190, 140], count - 1)
    hsv = np.stack([hues, np.full(count - 1, 190), values], axis=-1).astype(np.uint8)
    rgb = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]
    return ((0, 0, 0), *((int(r), int(g), int(b)) for r, g, b in rgb))
