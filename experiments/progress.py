"""What a run tells while it runs: a bar on a terminal, lines in a log, metrics.csv, and a table at the end."""

import csv
import io
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, track
from rich.table import Table

from experiments.checkpoints import is_last_batch
from experiments.run_folder import RunFolder
from experiments.whole_file import write_whole

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0


class EpochTable(pl.Callback):
    """metrics.csv: one row an epoch, rewritten whole, so a run that resumes leaves neither gaps nor repeats."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.path.is_file():
            with self.path.open(encoding="utf-8", newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= trainer.global_step]

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or not is_last_batch(trainer):  # --max-steps may end within an epoch
            return
        row: dict[str, Any] = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row["lr"] = trainer.optimizers[0].param_groups[-1]["lr"]
        row |= {name: value.item() for name, value in trainer.callback_metrics.items() if name != "train/loss_step"}
        self.rows.append(row)
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(row), lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.path, text.getvalue())


class ProgressLines(pl.Callback):
    """Loss, score and time left: a bar where the output is a terminal, else a line every ten seconds.

    Either way each finished epoch leaves a line.
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
        line = self.line(trainer)
        if self.bar is not None:
            self.bar.update(self.bar.tasks[0].id, completed=trainer.global_step, description=line)
        elif time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            self.console.print(f"step {trainer.global_step}/{self.total}  {line}", highlight=False)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.score = float(trainer.callback_metrics.get(self.monitor, float("nan")))
        if trainer.is_global_zero:
            seconds = time.monotonic() - self.epoch_started
            loss = float(trainer.callback_metrics["train/loss_epoch"])
            self.console.print(
                f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  loss {loss:.3f}  "
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
        return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  loss {loss:.3f}  {score}{clock(left)} left"


def shown(items: Iterable[Item], total: int, title: str) -> Iterator[Item]:
    """The items as they come, with a bar on a terminal, else a line every ten seconds."""
    console = Console()
    if console.is_terminal:
        yield from track(items, title, total, console=console)
        return
    started = last_line = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            left = (last_line - started) / done * (total - done)
            console.print(f"{title}  {done}/{total}  {clock(left)} left", highlight=False)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"


def print_results(folder: RunFolder, scores: dict[str, Any]) -> None:
    """The final scores of each split, per class where there are such, and where everything lies."""
    table = Table(title="best checkpoint")
    table.add_column("score")
    for split in scores:
        table.add_column(split, justify="right")
    names = [name.split("/", 1)[1] for name in next(iter(scores.values()))]
    for name in names:
        table.add_row(name, *(f"{values[f'{split}/{name}']:.4f}" for split, values in scores.items()))
    console = Console()
    console.print(table)
    files = "config.yaml metrics.csv results.json predictions.png checkpoints/"
    console.print(f"{folder.path}/: {files}", highlight=False, soft_wrap=True)
