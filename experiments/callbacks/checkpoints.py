"""best.ckpt and last.ckpt: when they are written, and that each is written whole or not at all."""

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the checkpoint and moves into place: killed at any moment, a reader finds the old or the new one.

    Lightning writes into the system's temporary folder, from which a move to another disk is a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        part = path.with_suffix(".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except BaseException as error:
            part.unlink(missing_ok=True)
            cause = error if isinstance(error, OSError) else error.__context__  # torch hides that the disk is full
            if isinstance(cause, OSError):
                raise OSError(cause.errno, cause.strerror, str(path)) from error
            raise
        part.replace(path)


class Checkpoints(Checkpoint):
    """Saves last.ckpt after every epoch, before it best.ckpt where the score is higher than any before.

    Lightning's own callback writes last.ckpt only together with a new best.ckpt, and both before the epoch is over.

    Args:
        monitor: the score, as logged; larger is better.
        every: also save last.ckpt after so many optimiser steps; 0 for epochs only.
    """

    def __init__(self, folder: Path, monitor: str, every: int = 0) -> None:
        self.best, self.last = folder / "best.ckpt", folder / "last.ckpt"
        self.monitor = monitor
        self.every = every
        self.score: float | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        ends = trainer.global_step == trainer.max_steps
        due = ends or (self.every and trainer.global_step % self.every == 0)
        # After an epoch's last batch the epoch's own checkpoint follows: from one of the batch, Lightning goes on with
        # a wrong count of epochs. And gradients that are still being summed are in no checkpoint.
        if not due or is_last_batch(trainer) or (index + 1) % trainer.accumulate_grad_batches:
            return
        if ends and self.score is None:  # --max-steps ended it before the first validation
            trainer.save_checkpoint(self.best)
        trainer.save_checkpoint(self.last)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not is_last_batch(trainer):
            return
        score = float(trainer.callback_metrics[self.monitor])
        if self.score is None or score > self.score or self.score != self.score:  # anything is better than NaN
            self.score = score
            trainer.save_checkpoint(self.best)
        trainer.save_checkpoint(self.last)

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score = state_dict["score"]


def is_last_batch(trainer: pl.Trainer) -> bool:
    """Whether the batch that is being or was just trained on ends its epoch."""
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
