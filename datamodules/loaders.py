"""The data loaders of a data module: their batches, on the network's device, and where a resumed run continues."""

from typing import Any, Literal, TypeVar, cast

import cv2
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.loops.progress import _ProcessedTracker
from torch import Tensor

from backbones.backbone import to_pixels
from datamodules.collate import collate
from datamodules.errors import DataError
from datamodules.loader import Batch, EqualBatches, Loader, Normalise, TrainingLoader, Uint8Dataset
from datamodules.memory import keep_freed_memory
from datamodules.notes import note
from datamodules.samples import Samples, Shuffled
from datamodules.worker_signals import ignore_signals_except_parents

L = TypeVar("L", bound=Loader)


class DataModuleWithLoaders(LightningDataModule):
    """Makes the loaders of the splits, which a subclass builds in `setup()`.

    Every rank yields the same number of batches from each loader. A batch of a validation or test loader may be empty
    (B = 0, H and W = `image_size`): the rank has no samples left, or none of them can be read.
    """

    task: Literal["classification", "segmentation", "detection"]
    data_dir: str | None
    image_size: tuple[int, int]
    in_channels: int
    batch_size: int
    workers: int
    seed: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Standard deviation of each band, in [0, 1]; empty until `setup()` if it is to be measured."""
    normalise: Normalise
    splits: tuple[str, ...]
    """The names of the splits that exist, set by `setup()`."""

    def __init__(self) -> None:
        super().__init__()
        self.train: Samples | None = None
        self.val: Samples | None = None
        self.test: Samples | None = None
        self.resumed: dict[str, int] | None = None
        self._sampler: Shuffled | None = None
        self._normalise_on: dict[torch.device, Normalise] = {}

    def _processes(self) -> tuple[int, int]:
        """This process's rank, and the number of ranks."""
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def _lower_batch_size(self, images: int) -> None:
        """Make batches as small as it takes for one per rank, and say so.

        Raises:
            ValueError: there are fewer images than ranks.
        """
        _, processes = self._processes()
        most = images // processes
        if most == 0:
            raise DataError(f"{processes} processes cannot share {images} training images; use fewer --devices")
        if most < self.batch_size:
            needs = f"on each of {processes} processes needs more" if processes > 1 else "is larger"
            note(f"--batch-size {self.batch_size} {needs} than the {images} training images; it is lowered to {most}")
            self.batch_size = most

    def train_dataloader(self) -> TrainingLoader:
        """Shuffled batches, all of `batch_size`; a remainder of the epoch that fills no batch is left out."""
        if self.train is None:
            raise DataError(f"there is no train split in {self.data_dir}; --epochs 0 scores without training")
        self._lower_batch_size(len(self.train))
        rank, processes = self._processes()
        sampler = Shuffled(self.train, processes, rank, self.seed)
        loader = self._loader(TrainingLoader, self.train, batch_size=self.batch_size, sampler=sampler, drop_last=True)
        self._sampler = sampler
        if self.resumed is not None:
            sampler.resume(**self.resumed)
        loader.progress = self.state_dict
        return loader

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        # Keep the state until the loader is made: Lightning restores a loader's own state too late if the optimiser
        # has already asked for the number of steps.
        self.resumed = state_dict
        if self._sampler is not None:  # under FSDP2, Lightning restores after it has made the loader
            self._sampler.resume(**state_dict)

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its samples all ranks together have trained on.

        Samples that workers have only prefetched do not count.
        """
        assert self.trainer is not None
        assert self._sampler is not None
        loop = self.trainer.fit_loop
        epoch = cast("_ProcessedTracker", loop.epoch_progress.current).processed
        batches = cast("_ProcessedTracker", loop.epoch_loop.batch_progress.current).processed
        # If --max-steps ended an epoch early, Lightning resumes with the next one.
        within = epoch == self._sampler.epoch
        return {"epoch": epoch, "taken": batches * self.batch_size * self.trainer.world_size if within else 0}

    def val_dataloader(self) -> Loader:
        """Every sample exactly once over all ranks, in equally many batches on each rank; some may be empty."""
        return self._evaluation_loader("val", self.val)

    def test_dataloader(self) -> Loader:
        """Every sample exactly once over all ranks, in equally many batches on each rank; some may be empty."""
        return self._evaluation_loader("test", self.test)

    def _evaluation_loader(self, split: str, samples: Samples | None) -> Loader:
        if samples is None:
            raise DataError(f"there is no {split} split; the splits are {', '.join(self.splits)}")
        rank, processes = self._processes()
        if len(samples) < processes:
            raise DataError(f"{processes} processes cannot share {len(samples)} {split} images; use fewer --devices")
        batches = EqualBatches(len(samples), self.batch_size, rank, processes)
        return self._loader(Loader, samples, batch_sampler=batches)

    def _loader(self, kind: type[L], samples: Samples, **batching: Any) -> L:
        loader = kind(
            Uint8Dataset(samples.pixels),
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=self._device().type == "cuda",
            persistent_workers=self.workers > 0,
            worker_init_fn=prepare_worker,
            **batching,
        )
        loader.to_device_and_normalise = self.to_device_and_normalise
        return loader

    def _device(self) -> torch.device:
        """Where the network is."""
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def to_device_and_normalise(self, batch: Batch) -> Batch:
        """Move a uint8 batch from the workers to the network's device, fill its padding with the mean colour and
        normalise it.

        The program never waits for the device here: copies to a GPU start from pinned memory and are non-blocking, and
        the constants of the normalisation stay on the device.
        """
        device = self._device()
        if not batch["name"]:
            return self._empty_batch(device)
        if device not in self._normalise_on:
            self._normalise_on[device] = self.normalise.to(device)
        normalise = self._normalise_on[device]
        # Non-blocking copies to Apple's MPS can deliver a buffer that the host has already reused.
        non_blocking = device.type != "mps"
        pixels = batch["image"].to(device, non_blocking=non_blocking)
        for one, (height, width) in zip(pixels, batch.get("sizes", ()), strict=False):
            one[height:] = one[:, width:] = normalise.colour
        more = {"target_sizes": batch["target_sizes"]} if "target_sizes" in batch else {}
        if self.task == "detection":
            target: Any = [
                {key: value.to(device, non_blocking=non_blocking) for key, value in objects.items()}
                for objects in batch["target"]
            ]
            more |= {"sizes": batch["sizes"]} if "sizes" in batch else {}
        else:
            target = batch["target"].to(device, non_blocking=non_blocking).long()
        if "border_weights" in batch:
            more["border_weights"] = batch["border_weights"].to(device, non_blocking=non_blocking)
        return {"image": normalise(pixels), "target": target, "name": batch["name"]} | more

    def _empty_batch(self, device: torch.device) -> Batch:
        height, width = self.image_size
        shape = (0, height, width) if self.task == "segmentation" else (0,)
        image = torch.zeros(0, self.in_channels, height, width, device=device)
        if self.task == "detection":
            return {"image": image, "target": [], "name": []}
        return {"image": image, "target": torch.zeros(shape, dtype=torch.long, device=device), "name": []}

    def to_pixels(self, image: Tensor) -> Tensor:
        """Undo the normalisation: float `(..., C, H, W)` -> uint8."""
        return to_pixels(image, self.mean, self.std)


def prepare_worker(worker: int) -> None:
    """Settings of a data-loader worker; it does not inherit them from the training process unless it is forked."""
    cv2.setNumThreads(0)  # OpenCV would start one thread per core in every worker
    keep_freed_memory()
    ignore_signals_except_parents()
