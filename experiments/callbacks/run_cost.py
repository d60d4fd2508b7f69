"""What a run costs: seconds, images a second, memory. Kept in checkpoints, so that a resumed run adds to them."""

import sys
import time
from typing import Any

import lightning.pytorch as pl
import torch


class RunCost(pl.Callback):
    """Measures training; `figures` go into results.json."""

    def __init__(self) -> None:
        self.before = 0.0  # seconds of the sessions that this one continues
        self.started = time.monotonic()
        self.images = 0
        self.training = 0.0
        self.epoch_started = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.epoch_started = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.epoch_started = time.monotonic()  # also if it starts within an epoch

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self.images += len(batch["image"]) * trainer.world_size

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self.training += time.monotonic() - self.epoch_started

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before = state_dict["seconds"]

    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    def figures(self, device: torch.device) -> dict[str, float | None]:
        """Wall time in seconds over all sessions; images per second over all ranks and peak memory of this session.

        Args:
            device: what the network is on; on a GPU its memory is counted, elsewhere that of this process.
        """
        return {
            "wall_time_s": round(self.seconds(), 1),
            "train_images_per_s": round(self.images / self.training, 2) if self.training else None,
            "peak_memory_mib": round(peak_memory_mib(device)),
        }


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory in MiB: allocated on a GPU, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource  # not on Windows, where importing this file must not fail

    unit = 1 if sys.platform == "darwin" else 2**10  # macOS counts in bytes, Linux in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
