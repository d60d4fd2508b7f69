"""metrics.csv: one row per epoch."""

import csv
import io
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from experiments.callbacks.checkpoints import is_last_batch
from experiments.run_files.atomic_file import write_atomically


class MetricsFile(pl.Callback):
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
        write_atomically(self.path, text.getvalue())
