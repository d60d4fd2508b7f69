"""Lightning's Trainer with our settings."""

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from experiments.callbacks.checkpoints import AtomicCheckpointIO
from experiments.command_line.run_config import RunConfig
from experiments.run_files.run_folder import RunFolder


class Patience(EarlyStopping):
    """Early stopping that a run which had stopped remembers when it goes on."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        trainer.should_stop = self.wait_count >= self.patience


def build_trainer(config: RunConfig, folder: RunFolder, callbacks: list[pl.Callback], monitor: str) -> pl.Trainer:
    """The Trainer, with the callbacks that flags ask for besides those given; data modules shard by themselves.

    Raises:
        ValueError: the accelerator, the strategy or what it needs cannot be had here.
    """
    try:
        return make(config, folder, callbacks, monitor)
    except (MisconfigurationException, ImportError) as error:
        raise ValueError(
            f"--accelerator {config.accelerator} --devices {config.devices} --strategy {config.strategy}: "
            + " ".join(str(error).split())
        ) from error


def make(config: RunConfig, folder: RunFolder, callbacks: list[pl.Callback], monitor: str) -> pl.Trainer:
    if config.ema:
        callbacks = [*callbacks, EMAWeightAveraging(decay=config.ema)]
    if config.patience:
        callbacks = [*callbacks, Patience(monitor, mode="max", patience=config.patience)]
    return pl.Trainer(
        accelerator=config.accelerator,
        devices=config.devices if config.devices == "auto" else int(config.devices),
        num_nodes=config.nodes,
        strategy=strategy(config),
        precision=config.precision,  # type: ignore[arg-type]
        sync_batchnorm=config.sync_batchnorm,
        deterministic=config.deterministic,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip_gradient or None,
        max_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        default_root_dir=folder.path,
        logger=False,  # `Curves` hands W&B and TensorBoard what metrics.csv gets
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        # Lightning's sampler repeats samples to even the shards, which would change validation scores.
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=False,
    )


def strategy(config: RunConfig) -> str | Strategy:
    return ModelParallelStrategy(save_distributed_checkpoint=False) if config.strategy == "fsdp2" else config.strategy
