"""SIGTERM, SIGUSR1 and Ctrl-C end training between two optimiser steps, with a checkpoint to resume from exactly.

SLURM sends SIGUSR1 before the end of a job's time limit (`sbatch --signal=USR1@120`). In a SLURM job, that signal also
queues the job again once the checkpoint is written.
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
"""A second SIGINT within this time is the same Ctrl-C: the terminal and a launcher such as torchrun both send it."""
LIGHTNING = "install a version that Graft was tested with: pip install 'lightning>=2.6,<2.7'"


class Preemption(Checkpoint):
    """Saves and stops at a step that all ranks agree on.

    A signal may reach the ranks at different times, or only one of them. Training cannot stop at an epoch's last batch
    (see `Checkpoints.on_train_batch_end`) or during validation; then the epoch is finished and its own checkpoint is
    used. A second Ctrl-C stops at once. The class is a `Checkpoint` because Lightning calls these last, so that what
    is saved includes what the other callbacks do at the step.
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
        """Handle signals instead of Lightning from now on, until `run_program` restores the earlier handlers.

        Raises:
            ValueError: this version of Lightning has none of the private methods that are switched off here.
        """
        # Lightning's handlers broadcast within a signal handler, and save in the middle of a step.
        switch_off(trainer._signal_connector, "register_signal_handlers")
        # Before each batch Lightning broadcasts whether rank 0 has got SIGTERM, and waits for the GPU to do so.
        switch_off(trainer.fit_loop.epoch_loop, "_broadcast_sigterm_tensor")
        for name in ("_should_accumulate", "_is_training_done"):
            require(trainer.fit_loop.epoch_loop, name)
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
        # A separate process group on the CPU (Gloo), so that agreeing neither waits for the GPU nor mixes with gradient
        # communication.
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
        if self.ask():  # with several ranks the second call returns the answer to the first
            self.stop(self.agreed, "after the last epoch, before the final scores")
        self.training = False

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self.training = False

    def ask(self) -> int:
        """Return the signal that a rank has received, or 0; with several ranks, as of the previous call.

        So all ranks learn of it at the same step and none waits: the all-reduce that is started now completes in the
        background before the next call.
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
        """Leave the Trainer by raising Stopped.

        Args:
            code: exit code of this process. By default 128 + number on rank 0 and 0 on the others, because all ranks
                have agreed and a launcher would take any other code for a failure and kill the remaining processes.
        """
        self.stopping, self.training = True, False
        first = self.trainer.is_global_zero
        line = f"{signal.Signals(number).name} {where}"
        if first and number == signal.SIGUSR1 and "SLURM_JOB_ID" in os.environ:
            line = f"{line}, {requeue()}"
        if code is None:
            code = 128 + number if first else 0
        raise Stopped(line if first else None, code)


def require(owner: object, name: str) -> None:
    """Raise ValueError if `owner`, a part of Lightning, has no private attribute `name`."""
    if not hasattr(owner, name):
        raise ValueError(
            f"Lightning {pl.__version__} has no {type(owner).__name__}.{name}, which stopping at a step needs; "
            f"{LIGHTNING}"
        )


def switch_off(owner: object, name: str) -> None:
    """Replace a private method of Lightning by one that does nothing."""
    require(owner, name)
    setattr(owner, name, lambda: None)


def requeue() -> str:
    """Queue this SLURM job again. Returns what came of it."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # the job id of a task may be that of the whole array
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"not queued again (scontrol: {error.strerror})"
    if done.returncode:
        return f"not queued again ({' '.join(done.stderr.split())})"
    return f"job {job} queued again"
