"""Build the data, the network and the Trainer from the settings; fit, test and leave a run folder."""

from pathlib import Path

import lightning.pytorch as pl
import torch

from datamodules.base import GraftDataModule
from experiments.callbacks.checkpoints import Checkpoints
from experiments.callbacks.curves import LogRows, make_logs
from experiments.callbacks.finite_loss import FiniteLoss
from experiments.callbacks.metrics_csv import MetricsFile
from experiments.callbacks.preemption import Preemption
from experiments.callbacks.progress import ProgressLines
from experiments.callbacks.run_cost import RunCost
from experiments.command_line.run_config import RunConfig
from experiments.run_files.run_folder import RunFolder, open_run_folder, unlock
from experiments.training.build import crf_settings, prepare
from experiments.training.fit import fit
from experiments.training.make_trainer import build_trainer
from experiments.training.network_cost import network_cost
from experiments.training.score import finish
from lightning_modules.base import GraftModule


def train(config: RunConfig) -> None:
    """Run what the settings ask for. Nothing is written before data and network are known to work.

    Raises:
        ValueError: the settings, the data or the run folder cannot work; one line says why.
    """
    clock = RunCost()
    data, module = prepare(config)
    build_trainer(config, RunFolder(Path(config.out)), [], module.monitor)  # refuses what cannot be had here
    folder = open_run_folder(config)
    try:
        run(config, folder, data, module, clock)
    finally:
        unlock(folder)


def run(
    config: RunConfig,
    folder: RunFolder,
    data: GraftDataModule,
    module: GraftModule,
    clock: RunCost,
) -> None:
    """Train in the folder, from where it stands, then score and write the results."""
    costs = network_cost(module.network, data.image_size)
    table = MetricsFile(folder.metrics)
    curves = LogRows(make_logs(config, folder, costs, module.monitor), table)
    preemption = Preemption(folder.last_checkpoint)
    callbacks: list[pl.Callback] = [
        FiniteLoss(folder),
        clock,
        table,
        ProgressLines(module.monitor),
        curves,
        Checkpoints(folder.checkpoints, module.monitor, config.checkpoint_every),
        preemption,
    ]
    trainer = build_trainer(config, folder, callbacks, module.monitor)
    preemption.listen(trainer)
    if config.compile:
        module.compile_network()
    if config.strategy != "fsdp2":  # which shards contiguous weights only
        # Convolutions on channels-last maps need no reordering on CPUs and tensor cores.
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.epochs:
        fit(trainer, module, data, folder)
    finish(config, folder, trainer, module, data, crf_settings(config), costs, clock)
    curves.finish(folder, costs, trainer.global_step)
