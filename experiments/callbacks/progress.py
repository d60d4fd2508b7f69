"""Shows loss, score and time left during training."""

import time
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from experiments.callbacks.epoch_end import EpochEnd, epochs_trained
from experiments.command_line.progress import SECONDS_BETWEEN_LINES, duration
from lightning_modules.base import GraftModule

SECONDS_BETWEEN_UPDATES = 0.2
"""Seconds between two updates of the progress bar."""


class ProgressLines(EpochEnd):
    """Shows loss, score and time left: as a bar on a terminal, else as a line every ten seconds.

    Either way each validated epoch leaves a line. The loss is read only when it is shown, because reading it waits for
    all queued GPU work.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.console = Console()
        self.bar: Progress | None = None
        self.score = float("nan")
        self.first_step = 0
        self.total = 0
        self.started = self.last_line = self.epoch_started = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.first_step, self.total = trainer.global_step, int(trainer.estimated_stepping_batches)
        self.started = self.last_line = time.monotonic()
        if trainer.is_global_zero and self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=self.console
            )
            self.bar.start()
            self.bar.add_task("starting", total=self.total, completed=self.first_step)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.epoch_started = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if not trainer.is_global_zero:
            return
        if time.monotonic() - self.last_line < (SECONDS_BETWEEN_LINES if self.bar is None else SECONDS_BETWEEN_UPDATES):
            return
        self.last_line = time.monotonic()
        line = self.line(trainer)
        if self.bar is not None:
            self.bar.update(self.bar.tasks[0].id, completed=trainer.global_step, description=line)
        else:
            self.console.print(f"step {trainer.global_step}/{self.total}  {line}", highlight=False)

    def epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, GraftModule)
        self.score = float(trainer.callback_metrics[self.monitor])
        loss = float(module.train_loss.compute())  # sums over all ranks, so all must call it
        if trainer.is_global_zero:
            seconds = time.monotonic() - self.epoch_started
            self.console.print(
                f"epoch {epochs_trained(trainer):g}/{trainer.max_epochs}  loss {loss:.3f}  "
                f"{self.monitor} {self.score:.3f}  took {seconds:.0f} s",
                highlight=False,
            )

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.stop()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self.stop()

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def line(self, trainer: pl.Trainer) -> str:
        done = max(1, trainer.global_step - self.first_step)
        left = (time.monotonic() - self.started) / done * (self.total - trainer.global_step)
        loss = float(trainer.callback_metrics.get("train/loss_step", float("nan")))
        score = "" if self.score != self.score else f"{self.monitor} {self.score:.3f}  "
        return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  loss {loss:.3f}  {score}{duration(left)} left"
