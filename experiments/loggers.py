"""Where curves go besides metrics.csv: Weights & Biases, TensorBoard."""

import netrc
import os
import secrets
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from datamodules.base import GraftDataModule
from experiments.config import RunConfig
from experiments.pictures import samples
from experiments.run_folder import RunFolder
from lightning_modules.base import GraftModule


def make_loggers(config: RunConfig, folder: RunFolder, module: GraftModule, costs: dict[str, float]) -> list[Logger]:
    """The loggers asked for by name. metrics.csv is written in any case."""
    loggers: list[Logger] = []
    if "tensorboard" in config.logger:
        loggers.append(TensorBoardLogger(folder.path, name="", version="tensorboard"))
    if "wandb" in config.logger:
        loggers.append(make_wandb(config, folder, module))
    for logger in loggers:
        logger.log_hyperparams({**vars(config), **costs})
    return loggers


def make_wandb(config: RunConfig, folder: RunFolder, module: GraftModule) -> WandbLogger:
    """A W&B run whose id is kept in the run folder, so that resuming continues it. Offline where there is no key."""
    offline = os.environ.get("WANDB_MODE") == "offline"
    if "WANDB_MODE" not in os.environ and not has_key():
        offline = True
        say("W&B: no API key is set, logging offline")
    run_id = folder.wandb_id.read_text().strip() if folder.wandb_id.is_file() else secrets.token_hex(4)
    logger = WandbLogger(
        name=folder.path.name, save_dir=folder.path, project="graft", id=run_id, resume="allow", offline=offline
    )
    if isinstance(logger.experiment.id, str):  # a dummy on all ranks but the first
        folder.wandb_id.write_text(run_id + "\n")
        logger.experiment.define_metric(module.monitor, summary="max")
        if offline:
            directory = Path(logger.experiment.dir).parent
            say(f"W&B: offline files in {directory}; upload them with: wandb sync {directory}")
    return logger


@rank_zero_only
def close(loggers: list[Logger]) -> None:
    """Write out what W&B still holds back; it commits the last row only then."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


@rank_zero_only
def say(line: str) -> None:
    print(line)


def has_key() -> bool:
    """Whether W&B would find an API key without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class WandbPictures(pl.Callback):
    """At the end of training, prediction masks over validation images and the confusion matrix."""

    def __init__(self, data: GraftDataModule) -> None:
        self.data = data

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        run = next((one.experiment for one in trainer.loggers if isinstance(one, WandbLogger)), None)
        assert isinstance(module, GraftModule)
        if run is None or not trainer.is_global_zero or trainer.state.fn != "validate":
            return
        import wandb

        names = dict(enumerate(self.data.class_names))
        pictures: list[Any] = []
        for image, truth, prediction in samples(module, self.data):
            if self.data.task == "segmentation":
                masks = {
                    kind: {"mask_data": labels, "class_labels": names}
                    for kind, labels in (("prediction", prediction), ("truth", truth))
                }
                pictures.append(wandb.Image(image, masks=masks))
            else:
                pictures.append(wandb.Image(image, caption=f"{names[int(prediction)]} (is {names[int(truth)]})"))
        counts = module.split_scores("val").matrix().cpu().numpy()
        rows = [[names[i], names[j], int(counts[i, j])] for i in range(len(counts)) for j in range(len(counts))]
        table = wandb.Table(columns=["truth", "prediction", "count"], data=rows)
        run.log({"predictions": pictures, "confusion_matrix": table})
