"""Ends training at a loss that is not finite."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from experiments.command_line.process import RunError
from experiments.run_files.run_folder import RunFolder

STEPS_BETWEEN_CHECKS = {"cpu": 1}
"""Steps between checks, by type of device; 10 on others, because reading a loss makes them wait."""


def resume_hint(folder: RunFolder) -> str:
    """Say where the run can be resumed."""
    if folder.last_checkpoint.is_file():
        return f"{folder.last_checkpoint} is whole, and the same command goes on from there"
    return "there is no checkpoint yet, and the same command starts anew"


class FiniteLoss(pl.Callback):
    """Ends training at a loss that is NaN or infinite, before weights that it has changed are saved.

    On a GPU, losses are checked only every ten steps, because reading them waits for all queued GPU work. They are
    always checked before a checkpoint, by all ranks together: the gradients of one rank reach the weights of all.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.waiting: list[tuple[int, list[str], Tensor]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self.waiting.append((trainer.global_step, list(batch["name"]), outputs["loss"].detach()))
        if len(self.waiting) >= STEPS_BETWEEN_CHECKS.get(module.device.type, 10):
            self.check()

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: Any) -> None:
        bad = self.first_bad()
        if trainer.strategy.reduce_boolean_decision(bad is not None, all=False):
            self.fail(bad, trainer)

    def check(self) -> None:
        """Raise RunError if one of the losses since the last check is not finite."""
        bad = self.first_bad()
        if bad is not None:
            self.fail(bad)

    def first_bad(self) -> tuple[int, list[str], Tensor] | None:
        """Return the first loss since the last check that is not finite, with its step and the names of its samples."""
        waiting, self.waiting = self.waiting, []
        if not waiting or torch.stack([loss for *_, loss in waiting]).isfinite().all():
            return None
        return next(one for one in waiting if not one[2].isfinite())

    def fail(self, bad: tuple[int, list[str], Tensor] | None, trainer: pl.Trainer | None = None) -> None:
        advice = f"lower --lr, raise --warmup or set --clip-gradient; {resume_hint(self.folder)}"
        if bad is None:
            assert trainer is not None
            raise RunError(f"the loss is not finite on another rank, up to step {trainer.global_step}; {advice}")
        step, names, loss = bad
        raise RunError(
            f"the loss is {float(loss)} at step {step}, on the samples {', '.join(names)}; look at these, or {advice}"
        )
