"""What goes wrong during training, said in one line with what to do; the run folder stays one that can go on."""

import errno
import os
import signal
import traceback
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from datamodules.base import GraftDataModule
from experiments.orphan import end_with_parent
from experiments.outcome import Fault
from experiments.run_folder import CHOSEN, RunFolder
from lightning_modules.base import GraftModule

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


def fit(trainer: pl.Trainer, module: GraftModule, data: GraftDataModule, folder: RunFolder) -> None:
    """Train, from last.ckpt where there is one.

    Raises:
        Fault: it cannot go on, for a reason that a person can do something about.
        DataError: a sample cannot be read.
        KeyboardInterrupt: Ctrl-C.
    """
    checkpoint = folder.last_checkpoint if folder.last_checkpoint.is_file() else None
    if checkpoint is not None:
        rank_zero_only(print)(f"goes on from {checkpoint}", flush=True)
    if CHOSEN in os.environ and trainer.global_rank > 0:
        end_with_parent(signal.SIGKILL)  # NCCL would wait for it for half an hour, and SIGTERM for a step's end
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:  # what Lightning makes of Ctrl-C
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    except (RuntimeError, OSError, EOFError) as error:
        reason = explained(error, trainer)
        if reason is None:
            raise
        raise Fault(f"{reason}; {standing(folder)}") from error


def explained(error: BaseException, trainer: pl.Trainer) -> str | None:
    """What a person would call the error, and what to do about it; None for a bug."""
    text = str(error)
    if isinstance(error, OSError) and error.errno in (*NO_ROOM, *NOT_WRITABLE):
        doing = "free some space" if error.errno in NO_ROOM else "make it writable"
        return f"{error.filename} cannot be written ({error.strerror}); {doing}"
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text:
        return (
            "out of memory; lower --batch-size (and raise --accumulate as much) or --image-size, or use --precision "
            "bf16-mixed or --checkpoint-activations"
        )
    if lost_worker(error):
        return "a loader process was killed, as the system does when memory runs out; use fewer --workers"
    if trainer.world_size > 1 and any(word in text for word in ("Connection closed", "Connection reset", "NCCL")):
        return f"rank {trainer.global_rank} lost another process of this run; what that one said last is the reason"
    return None


def lost_worker(error: BaseException) -> bool:
    """Whether a loader process died: the DataLoader says so, or a batch that it had made cannot be taken over."""
    taking_over = any(frame.name.startswith("rebuild_storage") for frame in traceback.extract_tb(error.__traceback__))
    return "DataLoader worker" in str(error) or taking_over


def standing(folder: RunFolder) -> str:
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
        """Raises Fault if one of the losses since the last look is not finite."""
        waiting, self.waiting = self.waiting, []
        if not waiting or torch.stack([loss for *_, loss in waiting]).isfinite().all():
            return
        step, names, loss = next(one for one in waiting if not one[2].isfinite())
        raise Fault(
            f"the loss is {float(loss)} at step {step}, on the samples {', '.join(names)}; look at these, or lower "
            f"--lr, raise --warmup or set --clip-gradient; {standing(self.folder)}"
        )
