"""What goes wrong during training, said in one line with what to do; the run folder stays one that can go on."""

import errno
import os
import signal
import traceback

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from datamodules.base import GraftDataModule
from experiments.callbacks.finite_loss import resume_hint
from experiments.command_line.process import RunError, end_with_parent
from experiments.run_files.run_folder import RUN_FOLDER_VARIABLE, RunFolder
from lightning_modules.base import GraftModule

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


def fit(trainer: pl.Trainer, module: GraftModule, data: GraftDataModule, folder: RunFolder) -> None:
    """Train, from last.ckpt where there is one.

    Raises:
        RunError: it cannot go on, for a reason that a person can do something about.
        DataError: a sample cannot be read.
        KeyboardInterrupt: Ctrl-C.
    """
    checkpoint = folder.last_checkpoint if folder.last_checkpoint.is_file() else None
    if checkpoint is not None:
        rank_zero_only(print)(f"goes on from {checkpoint}", flush=True)
    if RUN_FOLDER_VARIABLE in os.environ and trainer.global_rank > 0:
        end_with_parent(signal.SIGKILL)  # NCCL would wait for it for half an hour, and SIGTERM for a step's end
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:  # what Lightning makes of Ctrl-C
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    except (RuntimeError, OSError, EOFError) as error:
        reason = user_message(error, trainer)
        if reason is None:
            raise
        raise RunError(f"{reason}; {resume_hint(folder)}") from error


def user_message(error: BaseException, trainer: pl.Trainer) -> str | None:
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
