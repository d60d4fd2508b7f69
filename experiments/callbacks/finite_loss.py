"""Ends training at a loss that is not finite."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from experiments.command_line.process import RunError
from experiments.run_files.run_folder import RunFolder


def resume_hint(folder: RunFolder) -> str:
    """Where the run can go on."""
    if folder.last_checkpoint.is_file():
        return f"{folder.last_checkpoint} is whole, and the same command goes on from there"
    return "there is no checkpoint yet, and the same command starts anew"


class FiniteLoss(pl.Callback):
    """Ends training at a loss that is no number, before a checkpoint can be made of what it does to the weights.

    On a GPU losses are looked at every ten steps: a look waits for all that was asked of it.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.waiting: list[tuple[int, list[str], Tensor]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self.waiting.append((trainer.global_step, list(batch["name"]), outputs["loss"].detach()))
        if len(self.waiting) >= (1 if module.device.type == "cpu" else 10):
            self.look()

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: Any) -> None:
        self.look()

    def look(self) -> None:
        """Raises RunError if one of the losses since the last look is not finite."""
        waiting, self.waiting = self.waiting, []
        if not waiting or torch.stack([loss for *_, loss in waiting]).isfinite().all():
            return
        step, names, loss = next(one for one in waiting if not one[2].isfinite())
        raise RunError(
            f"the loss is {float(loss)} at step {step}, on the samples {', '.join(names)}; look at these, or lower "
            f"--lr, raise --warmup or set --clip-gradient; {resume_hint(self.folder)}"
        )
