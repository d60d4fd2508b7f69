"""What must hold before a run resumes: a readable checkpoint, the same classes, and the same answer on all machines."""

import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from datamodules.base import GraftDataModule
from experiments.command_line.process import RunError
from experiments.run_files.run_folder import RunFolder

FINGERPRINT = "data_fingerprint"
"""Key of the data's fingerprint in checkpoints."""
PRECISION = "precision"
"""Key of the precision of training in checkpoints."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint on the CPU; tensors are read from the file only when they are used.

    Raises:
        ValueError: the file is damaged or no checkpoint of a run.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
            raise ValueError("it holds no state_dict")
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        best = path.with_name("best.ckpt")
        other = f", or copy {best.name} over it to go on from there" if path != best and best.is_file() else ""
        raise ValueError(f"{path} is damaged ({reason[:100]}); delete it to start anew{other}") from error
    return checkpoint


def check_same_data(folder: RunFolder, data: GraftDataModule) -> None:
    """Compare the data with those that the run in the folder was trained on; say so if files were added or removed.

    Raises:
        ValueError: the classes are others, or last.ckpt is damaged.
    """
    if not folder.last_checkpoint.is_file():
        return
    checkpoint = read_checkpoint(folder.last_checkpoint)
    before, now = list(checkpoint["hyper_parameters"]["class_names"]), list(data.class_names)
    if before != now:
        raise ValueError(
            f"--name: {folder.path} was trained on the {len(before)} classes {', '.join(before)}; the data now have "
            f"the {len(now)} classes {', '.join(now)}; give another --name"
        )
    there, here = checkpoint.get(FINGERPRINT), data.fingerprint()
    if there not in (None, here):
        changed = [f"{old} is now {new}" for old, new in zip(there.split(), here.split(), strict=False) if old != new]
        print(
            f"the data have changed since this run began ({'; '.join(changed)}, as NAME:COUNT:HASH); its scores before "
            "and after are not comparable",
            flush=True,
        )


class SameStart(pl.Callback):
    """Makes sure that all ranks resume from last.ckpt, or none, and in one precision; notes data and precision in it.

    Network file systems may show a new file on one machine later than on another. A rank that does not see last.ckpt
    would start anew while the others resume.
    """

    def __init__(self, checkpoint: Path | None, fingerprint: str) -> None:
        self.checkpoint = checkpoint
        self.fingerprint = fingerprint

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        resumes = self.checkpoint is not None
        on_rank_0 = trainer.strategy.broadcast(resumes)
        if trainer.strategy.reduce_boolean_decision(on_rank_0 != resumes, all=False):
            raise RunError("not all machines see the run's last.ckpt yet; wait a minute, then the same command goes on")
        precision = trainer.strategy.broadcast(trainer.precision)
        if trainer.strategy.reduce_boolean_decision(precision != trainer.precision, all=False):
            raise RunError("--precision auto differs between the machines; give --precision bf16-mixed or 32-true")

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[FINGERPRINT] = self.fingerprint
        checkpoint[PRECISION] = str(trainer.precision)
