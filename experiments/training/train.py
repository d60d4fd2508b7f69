"""One run: build the data, the network and the Trainer from the settings, train, score, and leave a run folder."""

import dataclasses
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

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
from experiments.training.make_trainer import build_trainer, set_matmul_precision
from experiments.training.network_cost import network_cost
from experiments.training.precision import choose_precision
from experiments.training.rehearse import check_deterministic, check_shapes
from experiments.training.resume import SameStart, check_same_data
from experiments.training.score import score_and_report
from lightning_modules.base import GraftModule


def train(config: RunConfig) -> None:
    """Train and score as the settings say. Nothing is written before data and network are known to work.

    Raises:
        ValueError: the settings, the data or the run folder cannot work; one line says why.
    """
    clock = RunCost()
    device = build_trainer(config, RunFolder(Path(config.out)), [], "").strategy.root_device  # refuses what is not here
    data, module = prepare(config)
    if config.epochs:
        check_shapes(config, module, data.image_size, data.batch_size)
        check_deterministic(config, module, data.image_size, device.type)
    set_matmul_precision(config, device)
    rank: int = rank_zero_only.rank  # type: ignore[attr-defined]
    folder = open_run_folder(config, rank, partial(check_same_data, data=data))
    try:
        checkpoint = folder.last_checkpoint if folder.last_checkpoint.is_file() else None
        precision, reason = choose_precision(config, device, checkpoint)
        if reason and config.epochs:
            rank_zero_only(print)(reason, flush=True)
        run(dataclasses.replace(config, precision=precision), folder, data, module, clock, checkpoint)
    finally:
        unlock(folder)


def run(
    config: RunConfig,
    folder: RunFolder,
    data: GraftDataModule,
    module: GraftModule,
    clock: RunCost,
    checkpoint: Path | None,
) -> None:
    """Train in the folder, from the checkpoint if there is one, then score and write the results."""
    costs = network_cost(module.network, data.image_size, config.in_channels)
    table = MetricsFile(folder.metrics)
    curves = LogRows(make_logs(config, folder, costs, module.monitor), table)
    preemption = Preemption(folder.last_checkpoint)
    callbacks: list[pl.Callback] = [
        FiniteLoss(folder),
        SameStart(checkpoint, data.fingerprint()),
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
    if config.strategy != "fsdp2":  # FSDP2 shards contiguous weights only
        # Convolutions on channels-last maps need no reordering on CPUs and tensor cores.
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.epochs:
        fit(trainer, module, data, folder, checkpoint)
    score_and_report(config, folder, trainer, module, data, crf=crf_settings(config), costs=costs, clock=clock)
    curves.log_results(folder, costs, trainer.global_step)
