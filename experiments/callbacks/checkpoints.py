"""best.ckpt and last.ckpt: when they are written, and that each is written completely or not at all."""

import os
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from experiments.callbacks.epoch_end import EpochEnd, is_last_batch, is_validated


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file next to it and renames that.

    A reader therefore finds the complete old or new checkpoint, even if the process is killed. Lightning writes into
    the system's temporary folder, from which a move to another disk is a copy.
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


class Checkpoints(EpochEnd, Checkpoint):
    """Saves last.ckpt after every epoch, and before it best.ckpt if it was validated and scored higher than any before.

    Lightning's own callback writes last.ckpt only together with a new best.ckpt, and both before the epoch is over.

    Args:
        monitor: name of the score, as logged; larger is better.
        every: also save last.ckpt after this many optimiser steps; 0: after each epoch only.
    """

    def __init__(self, folder: Path, monitor: str, every: int = 0) -> None:
        self.best, self.last = folder / "best.ckpt", folder / "last.ckpt"
        self.monitor = monitor
        self.every = every
        self.score: float | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        # Not after an epoch's last batch: the epoch's checkpoint follows, and Lightning would resume from one of the
        # batch with a wrong count of epochs. Not while gradients accumulate: they are not part of a checkpoint.
        if is_last_batch(trainer) or (index + 1) % trainer.accumulate_grad_batches:
            return
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # Lightning then validates now, and `epoch_end` is called
        elif self.every and trainer.global_step % self.every == 0:
            trainer.save_checkpoint(self.last)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, module)
        if not is_validated(trainer):
            trainer.save_checkpoint(self.last)

    def epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        score = float(trainer.callback_metrics[self.monitor])
        if self.score is None or score > self.score or self.score != self.score:  # anything is better than NaN
            self.score = score
            trainer.save_checkpoint(self.best)
            if trainer.is_global_zero:
                link(self.best, self.last)
        else:
            trainer.save_checkpoint(self.last)

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score = state_dict["score"]


def link(source: Path, target: Path) -> None:
    """Make `target` a second name of the file `source`, or a copy if the file system has no hard links.

    Neither is ever changed in place, so they may share their bytes: a checkpoint is replaced by renaming another.
    """
    part = target.with_suffix(".part")
    part.unlink(missing_ok=True)
    try:
        os.link(source, part)
    except OSError:
        shutil.copyfile(source, part)
    part.replace(target)
