"""Trains, and turns errors that a person can do something about into one line; the run folder can still be resumed."""

import os
import signal
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from datamodules.base import GraftDataModule
from datamodules.worker_faults import explain_worker_fault
from experiments.callbacks.finite_loss import resume_hint
from experiments.command_line.process import NO_ROOM, NOT_WRITABLE, RunError, end_with_parent
from experiments.run_files.run_folder import RUN_FOLDER_VARIABLE, RunFolder
from lightning_modules.base import GraftModule


def fit(
    trainer: pl.Trainer, module: GraftModule, data: GraftDataModule, folder: RunFolder, checkpoint: Path | None
) -> None:
    """Train, from the checkpoint if there is one.

    Raises:
        RunError: training cannot go on, for a reason that a person can do something about.
        DataError: a sample cannot be read.
        KeyboardInterrupt: Ctrl-C.
    """
    if checkpoint is not None:
        rank_zero_only(print)(f"goes on from {checkpoint}", flush=True)
    if RUN_FOLDER_VARIABLE in os.environ and trainer.global_rank > 0:
        # SIGKILL: without rank 0, this rank could hang in NCCL for half an hour, and SIGTERM takes effect only at the
        # end of a step.
        end_with_parent(signal.SIGKILL)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:  # Lightning turns Ctrl-C into this
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    except (RuntimeError, OSError, EOFError) as error:
        reason = user_message(error, trainer)
        if reason is None:
            raise
        raise RunError(f"{reason}; {resume_hint(folder)}") from error


def user_message(error: BaseException, trainer: pl.Trainer) -> str | None:
    """Say in a user's terms what the error is and what to do about it; None for a bug."""
    text = str(error)
    worker_fault = explain_worker_fault(error)  # first: a full shared memory is an OSError like a full disk
    if worker_fault is not None:
        return worker_fault
    if isinstance(error, OSError) and error.errno in (*NO_ROOM, *NOT_WRITABLE):
        doing = "free some space" if error.errno in NO_ROOM else "make it writable"
        return f"{error.filename} cannot be written ({error.strerror}); {doing}"
    if out_of_memory(error):
        return (
            "out of memory; lower --batch-size (and raise --accumulate as much) or --image-size, or use --precision "
            "bf16-mixed or --checkpoint-activations"
        )
    if trainer.world_size > 1 and any(word in text for word in ("Connection closed", "Connection reset", "NCCL")):
        return (
            f"rank {trainer.global_rank} lost the connection to another rank; look for the reason in that rank's last "
            "lines of output"
        )
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether memory of the machine or of the GPU could not be had."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
