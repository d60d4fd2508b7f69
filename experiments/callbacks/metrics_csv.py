"""metrics.csv: one row per epoch with validation."""

import csv
import io
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from experiments.callbacks.epoch_end import EpochEnd, epochs_trained
from experiments.run_files.atomic_file import write_atomically
from lightning_modules.base import GraftModule


class MetricsFile(EpochEnd):
    """Writes metrics.csv: one row per validated epoch, and one for the end of a schedule that ends within an epoch.

    The file is rewritten as a whole each time, so a run that resumes leaves neither gaps nor repeated rows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.path.is_file():
            with self.path.open(encoding="utf-8", newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= trainer.global_step]

    def epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, GraftModule)
        loss = module.train_loss.compute().item()  # sums over all ranks, so all must call it
        if not trainer.is_global_zero:
            return
        row: dict[str, Any] = {"epoch": epochs_trained(trainer), "step": trainer.global_step}
        row["lr"] = trainer.optimizers[0].param_groups[-1]["lr"]
        scores = {
            name: value.item() for name, value in trainer.callback_metrics.items() if not name.startswith("train/")
        }
        self.rows.append(row | scores | {"train/loss_epoch": loss})
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(self.rows[-1]), lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.path, text.getvalue())
