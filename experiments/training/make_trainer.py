"""Builds Lightning's Trainer from our settings."""

import dataclasses
import logging
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from experiments.callbacks.checkpoints import AtomicCheckpointIO
from experiments.command_line.run_config import RunConfig
from experiments.run_files.launch import is_single_process, slurm_problem
from experiments.run_files.run_folder import RunFolder
from experiments.training.precision import choose_precision


class Patience(EarlyStopping):
    """Early stopping that survives resuming: a run that had already stopped stops again at once."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        trainer.should_stop = self.wait_count >= self.patience


class AutotuneTraining(pl.Callback):
    """Lets cuDNN time its algorithms while training, where all batches have one size.

    Validation images may each have another size, and cuDNN would time its algorithms again for each.
    """

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        torch.backends.cudnn.benchmark = True

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        torch.backends.cudnn.benchmark = False

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        torch.backends.cudnn.benchmark = trainer.state.fn == "fit"

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        torch.backends.cudnn.benchmark = False


class FullySharded(ModelParallelStrategy):
    """FSDP2 over all ranks. Lightning's own default shards over the nodes only, and not at all on a single one."""

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()


def build_trainer(config: RunConfig, folder: RunFolder, callbacks: list[pl.Callback], monitor: str) -> pl.Trainer:
    """Build the Trainer, with the callbacks that flags ask for besides those given; data modules shard by themselves.

    Raises:
        ValueError: the accelerator, the strategy or what it needs is not available here.
    """
    quiet_lightning()
    # Before the Trainer is made: Lightning would wait for the missing processes, or raise an error of its own.
    if config.devices.isdigit() and (problem := slurm_problem(int(config.devices) * config.nodes)):
        raise ValueError(problem)
    try:
        trainer = make(config, folder, callbacks, monitor)
    except (MisconfigurationException, ImportError, ValueError) as error:
        raise ValueError(
            f"--accelerator {config.accelerator} --devices {config.devices} --strategy {config.strategy}: "
            + " ".join(str(error).split())
        ) from error
    # RANK or SLURM_PROCID may be left over from something else: a run of one process is rank 0 whatever they say.
    if trainer.world_size == 1:
        rank_zero_only.rank = 0  # type: ignore[attr-defined]
    if problem := slurm_problem(trainer.world_size):
        raise ValueError(problem)
    if config.sync_batchnorm and trainer.strategy.root_device.type == "cpu":
        raise ValueError("--sync-batchnorm: PyTorch synchronises batch norms on GPUs only; leave it out on a CPU")
    return trainer


def build_scratch_trainer(config: RunConfig, scratch: str, callbacks: list[pl.Callback], monitor: str) -> pl.Trainer:
    """Build the Trainer of a training that keeps no file, with the precision that suits the device.

    Args:
        scratch: a temporary folder.

    Raises:
        ValueError: as `build_trainer`.
    """
    folder = RunFolder(Path(scratch))
    device = build_trainer(config, folder, [], "").strategy.root_device
    config = dataclasses.replace(config, precision=choose_precision(config, device)[0])
    return build_trainer(config, folder, callbacks, monitor)


def quiet_lightning() -> None:
    """Silence Lightning's remarks about hardware that it did not find, and hints that do not apply here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for hint in (
        "`isinstance\\(treespec",
        ".*sync_dist=True",  # scores are of all ranks already
        "The `srun` command is available",  # see `slurm_problem`
        "You're using the WeightAveraging",
    ):
        warnings.filterwarnings("ignore", hint, module="lightning")


def make(config: RunConfig, folder: RunFolder, callbacks: list[pl.Callback], monitor: str) -> pl.Trainer:
    if config.ema:
        callbacks = [*callbacks, EMAWeightAveraging(decay=config.ema)]
    if config.patience:
        callbacks = [*callbacks, Patience(monitor, mode="max", patience=config.patience)]
    if not config.deterministic:
        callbacks = [*callbacks, AutotuneTraining()]
    plugins: list[Any] = [AtomicCheckpointIO()]
    if is_single_process(config):
        plugins.append(LightningEnvironment())  # else a surrounding SLURM job decides about ranks
    return pl.Trainer(
        accelerator=config.accelerator,
        devices=config.devices if config.devices == "auto" else int(config.devices),
        num_nodes=config.nodes,
        strategy=strategy(config),
        precision=None if config.precision == "auto" else config.precision,  # None: only the device is asked for
        sync_batchnorm=config.sync_batchnorm,
        deterministic=config.deterministic,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip_gradient or None,
        max_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        check_val_every_n_epoch=config.validate_every,
        default_root_dir=folder.path,
        logger=False,  # `LogRows` sends W&B and TensorBoard the rows of metrics.csv
        callbacks=callbacks,
        plugins=plugins,
        # Lightning's sampler repeats samples to even the shards, which would change validation scores.
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=False,
    )


def strategy(config: RunConfig) -> str | Strategy:
    return FullySharded() if config.strategy == "fsdp2" else config.strategy


def set_matmul_precision(config: RunConfig, device: torch.device) -> None:
    """Let GPUs multiply float32 matrices as `--matmul-precision` says; convolutions use TensorFloat-32 by default."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision(matmul_precision(config))


def matmul_precision(config: RunConfig) -> str:
    return config.matmul_precision or ("highest" if config.deterministic else "high")
