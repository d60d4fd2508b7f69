"""Fits the temperature of a network that was trained without one, and writes it into its checkpoint."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from datamodules.base import GraftDataModule
from experiments.callbacks.checkpoints import AtomicCheckpointIO
from experiments.command_line.progress import with_progress
from experiments.inference.evaluate_all import pictures
from experiments.inference.trained import TrainedNetwork
from lightning_modules.calibration import TemperatureFit

MOST = 1000
"""Pictures that a temperature is fitted on, evenly spaced over the split."""


def fit_temperature(network: TrainedNetwork, data: GraftDataModule, split: str = "val") -> float:
    """The temperature that a validation pass of training would give, on up to `MOST` pictures of a split.

    Raises:
        ValueError: the data set has no such split, or none of its pictures can be read.
    """
    if split not in data.splits:
        raise ValueError(f"--fit-temperature needs the {split} split; the data set has {', '.join(data.splits)}")
    uncalibrated = replace(network, temperature=1.0)
    total = len(getattr(data, split).source)
    picked = np.unique(np.linspace(0, total - 1, min(total, MOST)).astype(int)).tolist()
    fit = TemperatureFit(network.module.hparams["ignore_index"])
    read = 0
    for one in with_progress(pictures(data, split, picked), len(picked), "calibration"):
        if not isinstance(one, tuple):
            continue
        _, image, truth, _ = one
        logits = uncalibrated.logits(network.size_rule.apply(image))
        if logits.dim() == 4 and logits.shape[2:] != truth.shape:
            logits = F.interpolate(logits, truth.shape, mode="bilinear", align_corners=False)
        fit.update(logits, torch.as_tensor(np.asarray(truth, np.int64))[None])
        read += 1
    if not read:
        raise ValueError(f"no picture of the {split} split can be read, so no temperature can be fitted")
    return fit.temperature()


def save_temperature(checkpoint: Path, temperature: float) -> None:
    """Write a temperature into a checkpoint, which is replaced as a whole or not at all."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    state["temperature"] = temperature
    AtomicCheckpointIO().save_checkpoint(state, checkpoint)
