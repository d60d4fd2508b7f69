"""What a run left behind, as objects again: its settings, its data and the network of its best checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from experiments.config import RunConfig

if TYPE_CHECKING:
    from datamodules.base import GraftDataModule
    from lightning_modules.segmentation import SegmentationModule


def run_problem(path: str, data_dir: str | None, out: Path) -> str | None:
    """What can be known to be wrong with a run folder, or the file to write, before torch is imported, in one line."""
    if not (Path(path) / "config.yaml").is_file():
        return f"{path} is no run folder (it has no config.yaml); give one that run.py made"
    if not (Path(path) / "checkpoints" / "best.ckpt").is_file():
        return f"{path} has no checkpoints/best.ckpt; let the run finish"
    if data_dir is not None and not Path(data_dir).is_dir():
        return f"--data-dir {data_dir}: no such folder"
    if not out.parent.is_dir():
        return f"--out {out}: there is no folder {out.parent}"
    return None


def load_segmentation(path: str, data_dir: str | None) -> tuple[GraftDataModule, SegmentationModule]:
    """The data and the module of a run, ready to evaluate, on a GPU where there is one.

    Args:
        data_dir: where the data lie now; None for where the run had them.

    Raises:
        ValueError: the run is no segmentation, or its settings or data do not fit this version.
    """
    import torch

    from experiments.train import build_data
    from lightning_modules.segmentation import SegmentationModule

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
