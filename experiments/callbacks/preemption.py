"""SIGTERM, SIGUSR1 and Ctrl-C end training between two optimiser steps, with a checkpoint it goes on from exactly.

SIGUSR1 is what SLURM sends ahead of the end of a job's time (`sbatch --signal=USR1@120`): there, the job is queued
again once the checkpoint is written.
"""

import os
import signal
import subprocess
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from experiments.command_line.process import SIGNALS, Stopped

SAME_PRESS_S = 1.0
"""A terminal and a launcher such as torchrun both pass one Ctrl-C on; a second one within this time is the first."""


class Preemption(Checkpoint):
    """Saves and stops where all processes agree that a signal has come; signals reach them at different times, or one.

    The last batch of an epoch is no place to stop (see `WithinEpoch`), and validation has none: there the epoch is
    finished with its own checkpoint. A second Ctrl-C stops at once. A `Checkpoint`, since Lightning calls these last:
    what other callbacks do with the step is then part of what is saved.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.received = 0
        self.received_at = 0.0
        self.training = False
        self.stopping = False
        self.group: dist.ProcessGroup | None = None
        self.asked: tuple[dist.Work, torch.Tensor] | None = None
        self.agreed = 0

    def listen(self, trainer: pl.Trainer) -> None:
        """Handle signals instead of Lightning from now on, until `run_program` restores the earlier handlers."""
        # Lightning's handlers broadcast within a signal handler, and save in the middle of a step.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        # It asks before each batch whether rank 0 has got SIGTERM, and waits for the GPU to hear it.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        self.trainer = trainer
        for one in SIGNALS:
            signal.signal(one, self.handle)

    def handle(self, number: int, frame: FrameType | None) -> None:
        again = bool(self.received)
        if again and number == signal.SIGINT and time.monotonic() - self.received_at > SAME_PRESS_S:
            raise KeyboardInterrupt
        if self.stopping or again:
            return
        self.received, self.received_at = number, time.monotonic()
        if not self.training:
            if isinstance(launcher := self.trainer.strategy.launcher, _SubprocessScriptLauncher):
                launcher.kill(signal.SIGTERM)
            self.stop(number, "outside of training", code=128 + number)

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # Of its own, and on the CPU whatever the network is on: no wait for a GPU, no mixing with gradients.
        if trainer.world_size > 1:
            self.group = cast("dist.ProcessGroup", dist.new_group(backend="gloo"))

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.training = True

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate():
            return
        number = self.ask()
        if number and not loop._is_training_done:
            trainer.save_checkpoint(self.checkpoint)
            self.stop(number, f"after step {trainer.global_step}, saved in {self.checkpoint}")

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.agreed:
            self.stop(self.agreed, f"after epoch {trainer.current_epoch}")

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.ask()
        if self.ask():  # in several processes the second answers the first
            self.stop(self.agreed, "after the last epoch, before the final scores")
        self.training = False

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self.training = False

    def ask(self) -> int:
        """The signal that some process has got; with several processes, as of the call before this one.

        They so learn it at the same step, and none waits for the others: what is asked now is answered meanwhile.
        """
        if self.group is None:
            self.agreed = self.received
        else:
            if self.asked is not None:
                work, answer = self.asked
                work.wait()
                self.agreed = int(answer)
            mine = torch.tensor(self.received)
            self.asked = dist.all_reduce(mine, dist.ReduceOp.MAX, self.group, async_op=True), mine
        return self.agreed

    def stop(self, number: int, where: str, code: int | None = None) -> NoReturn:
        """Leave the Trainer; `code` is the process's exit code, if not that of rank 0 alone.

        The others end with 0 where all have agreed: their launcher would take anything else for a failure, and kill.
        """
        self.stopping, self.training = True, False
        first = self.trainer.is_global_zero
        line = f"{signal.Signals(number).name} {where}"
        if first and number == signal.SIGUSR1 and "SLURM_JOB_ID" in os.environ:
            line = f"{line}, {requeue()}"
        if code is None:
            code = 128 + number if first else 0
        raise Stopped(line if first else None, code)


def requeue() -> str:
    """Ask SLURM to run this job once more; says how that went."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # the number of one task may be that of the whole array
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"not queued again (scontrol: {error.strerror})"
    if done.returncode:
        return f"not queued again ({' '.join(done.stderr.split())})"
    return f"job {job} queued again"
