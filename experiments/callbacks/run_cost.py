"""What a run costs: seconds, images a second, memory. Kept in checkpoints, so that a run that resumes counts on."""

import resource
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
        self.epoch_started = time.monotonic()  # also where it starts within an epoch

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

    def figures(self) -> dict[str, float | None]:
        """Seconds of all sessions; of this one, images that all processes trained on in a second and peak memory."""
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated() / 2**20
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts in KiB
        return {
            "wall_time_s": round(self.seconds(), 1),
            "train_images_per_s": round(self.images / self.training, 2) if self.training else None,
            "peak_memory_mib": round(peak),
        }
