"""Loads the settings, the data and the network of a finished run."""

from pathlib import Path

import torch
import yaml

from datamodules.base import GraftDataModule
from experiments.command_line.run_config import RunConfig
from experiments.training.build import build_data
from lightning_modules.segmentation import SegmentationModule


def load_segmentation(path: str, data_dir: str | None) -> tuple[GraftDataModule, SegmentationModule]:
    """The data and the module of a run, ready to evaluate, on a GPU where there is one.

    Args:
        data_dir: where the data lie now; None for where the run had them.

    Raises:
        ValueError: the run is no segmentation, or its settings or data do not fit this version.
    """
    values = yaml.safe_load((Path(path) / "config.yaml").read_text(encoding="utf-8"))
    if data_dir is not None:
        values["data_dir"] = data_dir
    try:
        config = RunConfig(**values)
    except TypeError as error:
        raise ValueError(f"{path}/config.yaml was written by another version of Graft: {error}") from error
    data = build_data(config)
    if data.task != "segmentation":
        raise ValueError(f"{path} is a run of {config.head}, a {data.task} head; a CRF refines segmentations")
    data.setup("fit")
    module = SegmentationModule.load_from_checkpoint(
        Path(path) / "checkpoints" / "best.ckpt", weights_only=True, map_location="cpu"
    )
    return data, module.eval().to("cuda" if torch.cuda.is_available() else "cpu")
