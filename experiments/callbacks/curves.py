"""Curves besides metrics.csv: sends Weights & Biases and TensorBoard the same rows, pictures and results."""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from experiments.callbacks.epoch_end import EpochEnd
from experiments.callbacks.log import Ending, Log, settings
from experiments.callbacks.metrics_csv import MetricsFile
from experiments.command_line.run_config import RunConfig
from experiments.run_files.run_folder import RunFolder
from lightning_modules.base import GraftModule

STEPS_BETWEEN_ROWS = 5


class LogRows(EpochEnd):
    """Passes the rows of metrics.csv and, every few steps, the training loss to the logs.

    A log that fails is switched off with one line, because training, checkpoints and metrics.csv do not depend on it.
    """

    def __init__(self, logs: list[Log], table: MetricsFile) -> None:
        self.logs = logs
        self.table = table
        self.last_step = 0
        self.matrix: np.ndarray | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.last_step = trainer.global_step
        self.each(lambda log: log.start(trainer.global_step, self.table.rows))

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if self.logs and step % STEPS_BETWEEN_ROWS == 0 and step != self.last_step:  # the same while accumulating
            self.last_step = step
            loss = float(trainer.callback_metrics["train/loss_step"])
            self.each(lambda log: log.row({"train/loss_step": loss}, step))

    def epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.each(lambda log: log.row(self.table.rows[-1], trainer.global_step))

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, module)
        # The first after training is the best checkpoint's own; a CRF's may follow.
        if trainer.state.fn == "validate" and self.matrix is None:
            assert isinstance(module, GraftModule)
            matrix = module.split_scores("val").matrix()
            self.matrix = None if matrix is None else matrix.cpu().numpy()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self.close(exit_code=1)

    def log_results(self, folder: RunFolder, costs: Mapping[str, float], step: int) -> None:
        """Log the results and close the logs. Called when results.json is written."""
        if not self.logs:
            return
        results = json.loads(folder.results.read_text(encoding="utf-8"))
        ending = Ending(step, results, settings(folder, costs), self.matrix, folder)
        self.each(lambda log: log.end(ending))
        self.close(exit_code=0)

    def close(self, exit_code: int) -> None:
        self.each(lambda log: log.close(exit_code))
        self.logs = []

    def each(self, action: Callable[[Log], None]) -> None:
        for log in list(self.logs):
            try:
                action(log)
            except Exception as error:
                self.logs.remove(log)
                given_up(log.name, error)
                with contextlib.suppress(Exception):  # keep what it has so far
                    log.close(exit_code=1)


def make_logs(config: RunConfig, folder: RunFolder, costs: Mapping[str, float], monitor: str) -> list[Log]:
    """Make the logs that `--logger` names, on rank 0 only. metrics.csv is written in any case."""
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return []

    def tensorboard() -> Log:
        from experiments.callbacks.tensorboard_log import TensorBoardLog

        return TensorBoardLog(folder.path / "tensorboard")

    def wandb() -> Log:
        # The client's error reports to its own server delay the end of a run if that server hangs.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        from experiments.callbacks.wandb_log import WandbLog

        return WandbLog(config, folder.path, folder.wandb_id, settings(folder, costs), monitor)

    logs: list[Log] = []
    for name, make in (("tensorboard", tensorboard), ("wandb", wandb)):
        try:
            if name in config.logger:
                logs.append(make())
        except Exception as error:
            given_up(name, error)
    return logs


def given_up(name: str, error: Exception) -> None:
    """Say that a log has failed. No error of a log may end training, which works without it."""
    said = str(error).splitlines() or [""]
    print(
        f"--logger {name} failed and is switched off; training and metrics.csv go on "
        f"({type(error).__name__}: {said[0]})",
        flush=True,
    )
