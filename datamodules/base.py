"""What every data set is: splits of images with targets, one albumentations pipeline each, and their loaders."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar, cast

import albumentations as A
import cv2
import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.loops.progress import _ProcessedTracker
from torch import Tensor

from backbones.backbone import IMAGENET_MEAN, IMAGENET_STD, to_pixels
from datamodules.augmentation import compose, find_augmentation, scale_crop_flip
from datamodules.collate import IGNORE_INDEX, collate
from datamodules.crops import centre_crop, random_crop_flip
from datamodules.errors import DataError
from datamodules.files import LabelledImages, check
from datamodules.loader import Batch, Loader, Normalise, Pixels, TrainingLoader
from datamodules.memory import keep_freed_memory
from datamodules.samples import OnBadSample, Samples, Shuffled
from datamodules.size_rules import SizeRule
from datamodules.source import FileSource, Source
from datamodules.store import Cache, open_store
from datamodules.worker_signals import heed_parent_only

Task = Literal["classification", "segmentation"]
Colour = tuple[int, int, int]
L = TypeVar("L", bound=Loader)
ENOUGH = 2
"""Size of a photograph, in sides of the crop it is to yield, from which more pixels would make no difference."""


class GraftDataModule(LightningDataModule):
    """Base of all data sets. `setup()` builds `train`, `val` and `test` (None where the set has no test split).

    A subclass states `tasks`, sets `class_names` (and `palette`, if it has its own) and writes `default_size` and
    `sources`; `augmentation` and `evaluation` where the usual ones are not for it.
    Batches are `{"image": float32 (B, 3, H, W), "target": int64 (B, H, W) or (B,), "name": list[str]}`.
    """

    tasks: ClassVar[tuple[Task, ...]]
    """What the data set has targets for."""
    ignore_index: int = IGNORE_INDEX
    """Label of pixels that count neither in losses nor in scores."""
    endless_training: bool = False
    """Whether the training source makes samples beyond its length, so that each epoch can have new ones."""
    class_names: tuple[str, ...]
    palette: tuple[Colour, ...] | None = None
    """The data set's own colours of its classes."""
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
        download: bool = False,
        on_bad_sample: Literal["error", "skip"] = "error",
        cache: Cache = "memory",
        augmentation: str | None = None,
    ) -> None:
        """`image_size` is (H, W), None for the data set's own; `batch_size` and `workers` are per process.

        With `download`, a set that may be fetched and is not there is. With `on_bad_sample` "skip", training replaces
        samples that cannot be read by the next, and evaluation leaves them out. `cache` is where decoded samples are
        kept; see `datamodules/store.py`. `augmentation` is a name or file for `datamodules/augmentation.py`, None for
        what suits the data set.

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
        self.download = download
        self.on_bad_sample = on_bad_sample
        self.cache: Cache = cache
        self.augmentation_name = augmentation
        self.normalise = Normalise(mean, std)
        self.resumed: dict[str, int] | None = None
        self._sampler: Shuffled | None = None
        self.train: Samples | None = None
        self.val: Samples | None = None
        self.test: Samples | None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def colours(self) -> tuple[Colour, ...]:
        """RGB in 0..255 of each class, for pictures."""
        return self.palette or distinct_colours(self.num_classes)

    def default_size(self) -> tuple[int, int]:
        """Height and width of the images where the user asks for none."""
        raise NotImplementedError

    def sources(self) -> dict[str, Source]:
        """The splits `train`, `val` and perhaps `test`. Raises DataError where the files are not in order."""
        raise NotImplementedError

    def size_rule(self) -> SizeRule:
        """How an image of the user's own gets the size at which this data set is evaluated."""
        return SizeRule("own" if self.task == "segmentation" else "centre_crop", self.image_size)

    def preprocessing(self) -> dict[str, Any]:
        """What a trained network needs to know about its images, as plain values for a checkpoint. After `setup()`."""
        rule = self.size_rule()
        return {
            "size_rule": rule.kind,
            "size": list(rule.size),
            "mean": list(self.mean),
            "std": list(self.std),
            "colours": [list(colour) for colour in self.colours],
        }

    def preparation(self) -> list[A.BasicTransform]:
        """What images of all splits go through first; nothing random, so that it is done once, not once an epoch."""
        return []

    def augmentation(self) -> list[A.BasicTransform]:
        """What training images go through after that, up to `image_size`: the usual crops, unless a set has its own."""
        if self.task == "segmentation":
            return scale_crop_flip(self.image_size, self.mean)
        return random_crop_flip(self.image_size)

    def evaluation(self) -> list[A.BasicTransform]:
        """What validation and test images go through in its place; nothing random. Masks are scored whole."""
        return [] if self.task == "segmentation" else centre_crop(self.image_size)

    def setup(self, stage: str | None = None) -> None:
        """Build all splits, whatever the stage; a second call changes nothing.

        Raises:
            ValueError: the data are not in order, or fewer than a batch.
        """
        if self.val is not None:
            return
        keep_freed_memory()
        sources = self.sources()
        self.splits = tuple(sources)
        if "train" in sources:
            self._check_batch_size(len(sources["train"]))
            name = self.augmentation_name
            transforms = find_augmentation(name, self.image_size, self.mean) if name else self.augmentation()
            self.train = self._samples(sources["train"], transforms, "replace", endless=self.endless_training)
        for split in set(sources) - {"train"}:
            setattr(self, split, self._samples(sources[split], self.evaluation(), "drop"))
        if self.on_bad_sample == "error":
            # Reading all files now finds what is wrong with them before any training, and fills the store.
            splits = [getattr(self, split) for split in self.splits if isinstance(sources[split], FileSource)]
            check([partial(samples.keep, index) for samples in splits for index in range(len(samples))])

    def _samples(
        self, source: Source, transforms: list[A.BasicTransform], skip: OnBadSample, *, endless: bool = False
    ) -> Samples:
        preparation = self.preparation()
        if isinstance(source, LabelledImages):
            source.least = ENOUGH * max(self.image_size)
        return Samples(
            source,
            compose(transforms),
            self.seed,
            self.normalise,
            endless=endless,
            on_bad_sample=skip if self.on_bad_sample == "skip" else "error",
            store=open_store(self.cache),
            preparation=compose(preparation) if preparation else None,
        )

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

    def train_dataloader(self) -> TrainingLoader:
        """Shuffled whole batches."""
        if self.train is None:
            raise DataError(f"there is no train split in {self.data_dir}; --epochs 0 scores without training")
        self._check_batch_size(len(self.train))
        rank, processes = self._processes()
        sampler = Shuffled(self.train, processes, rank, self.seed)
        loader = self._loader(TrainingLoader, self.train, sampler, drop_last=True)
        self._sampler = sampler
        if self.resumed is not None:
            sampler.resume(**self.resumed)
        loader.progress = self.state_dict
        return loader

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        # Lightning hands the loader's own state to it too late, where an optimiser has asked for the number of steps.
        self.resumed = state_dict

    def state_dict(self) -> dict[str, int]:
        """How many samples of which epoch all processes have trained on, whatever workers have fetched beyond that."""
        assert self.trainer is not None
        assert self._sampler is not None
        loop = self.trainer.fit_loop
        epoch = cast("_ProcessedTracker", loop.epoch_progress.current).processed
        batches = cast("_ProcessedTracker", loop.epoch_loop.batch_progress.current).processed
        # Where --max-steps ends an epoch early, Lightning goes on with the next.
        within = epoch == self._sampler.epoch
        return {"epoch": epoch, "taken": batches * self.batch_size * self.trainer.world_size if within else 0}

    def val_dataloader(self) -> Loader:
        """Every sample exactly once over all processes."""
        return self._evaluation_loader("val", self.val)

    def test_dataloader(self) -> Loader:
        """Every sample exactly once over all processes."""
        return self._evaluation_loader("test", self.test)

    def _evaluation_loader(self, split: str, samples: Samples | None) -> Loader:
        if samples is None:
            raise DataError(f"there is no {split} split; the splits are {', '.join(self.splits)}")
        rank, processes = self._processes()
        if len(samples) < processes:
            raise DataError(f"{processes} processes cannot share {len(samples)} {split} images; use fewer --devices")
        return self._loader(Loader, samples, range(rank, len(samples), processes), drop_last=False)

    def _loader(self, kind: type[L], samples: Samples, sampler: Any, *, drop_last: bool) -> L:
        loader = kind(
            Pixels(samples.pixels),
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.workers > 0,
            worker_init_fn=prepare_worker,
        )
        loader.finish = self.finish
        return loader

    def finish(self, batch: Batch) -> Batch:
        """A batch of bytes, as it comes from the workers, as the network takes it, where the network is."""
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        pixels = batch["image"].to(device, non_blocking=True)
        for one, (height, width) in zip(pixels, batch.get("sizes", ()), strict=False):
            one[height:] = one[:, width:] = self.normalise.colour.to(device)
        target = batch["target"].to(device, non_blocking=True).long()
        return {"image": self.normalise(pixels), "target": target, "name": batch["name"]}

    def to_pixels(self, image: Tensor) -> Tensor:
        """Undo the normalisation: float `(..., 3, H, W)` -> uint8."""
        return to_pixels(image, self.mean, self.std)


def prepare_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # OpenCV would start a thread for every core in every worker
    keep_freed_memory()
    heed_parent_only()


def distinct_colours(count: int) -> tuple[Colour, ...]:
    """`count` colours, black first, by the golden angle in hue and three brightnesses in turn."""
    hues = np.arange(count - 1) * 0.618034 % 1 * 180
    values = np.resize([255, 190, 140], count - 1)
    hsv = np.stack([hues, np.full(count - 1, 190), values], axis=-1).astype(np.uint8)
    rgb = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]
    return ((0, 0, 0), *((int(r), int(g), int(b)) for r, g, b in rgb))
