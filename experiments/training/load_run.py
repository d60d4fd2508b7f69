"""Loads the settings, the data and the network of a finished run."""

from pathlib import Path
from typing import Any

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
    checkpoint = Path(path) / "checkpoints" / "best.ckpt"
    checkpoint_hparams(checkpoint)  # refuses what cannot be loaded, in one line
    module = SegmentationModule.load_from_checkpoint(checkpoint, weights_only=True, map_location="cpu")
    return data, module.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def checkpoint_hparams(checkpoint: Path) -> dict[str, Any]:
    """The arguments of the module in a checkpoint. Nothing in the file is run.

    Raises:
        ValueError: the file is damaged, holds code, or is no checkpoint of this project.
    """
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file makes torch, zipfile and pickle raise what they like
        reason = "it holds code, which is not run" if "Unsupported" in str(error) else "it is damaged"
        raise ValueError(f"{checkpoint} cannot be loaded: {reason}; give a checkpoint that run.py wrote") from error
    hparams = state.get("hyper_parameters") if isinstance(state, dict) else None
    if not isinstance(hparams, dict) or "head" not in hparams:
        raise ValueError(
            f"{checkpoint} holds no network of Graft (its hyper_parameters name no head); to start a run from plain "
            "weights, use run.py --weights"
        )
    return hparams
