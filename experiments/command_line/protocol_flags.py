"""Flags of the programs that run a trained network on pictures: which network, and how each picture is predicted."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.command_line.crf_settings import crf_settings_problem
from experiments.command_line.kinds import NonNegativeInt, PositiveFloat, PositiveInt
from experiments.command_line.parser import flag, positional


@dataclass(kw_only=True)
class ProtocolFlags:
    """What evaluate.py and predict.py have in common."""

    run: str = positional("run folder, a checkpoint of one, or a folder that share.py wrote", path=True)
    scales: list[PositiveFloat] = flag(
        (1.0,), "multiples of the image size whose probabilities are averaged", group="protocol"
    )
    flip: bool = flag(False, "average with the mirror image", group="protocol")
    window: list[PositiveInt] | None = flag(
        None, "cut larger images into windows of H W pixels, or one number for both", group="protocol"
    )
    overlap: NonNegativeInt | None = flag(
        None, "pixels that windows share; default: enough to equal the whole image, or a quarter", group="protocol"
    )
    crf_settings: str | None = flag(
        None, "refine by a fully connected CRF: a preset of heads/crf.py or a YAML file", path=True, group="protocol"
    )
    crops: Literal[1, 5, 10] = flag(
        1, "classifiers: average 5 crops (corners and centre), or 10 with their mirror images", group="protocol"
    )
    dense: bool = flag(
        False, "classifiers: see whole images, with fully connected layers as convolutions", group="protocol"
    )
    device: str = flag("auto", "where the network runs: auto, cpu, cuda, cuda:1, mps", group="hardware")


def run_problem(run: str) -> str | None:
    """Why a path cannot be a run folder or a checkpoint."""
    return None if os.path.exists(run) else f"{run}: no such run folder or checkpoint"


def out_problem(out: str | Path) -> str | None:
    """Why results cannot be written to a folder, which need not exist yet."""
    there = Path(out).absolute()
    while not os.path.exists(there):
        there = there.parent
    if not there.is_dir():
        return f"--out: {there} is a file; name a folder"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"--out: this user may not write to {there}; name another folder"
    return None


def protocol_problem(flags: ProtocolFlags) -> str | None:
    """What can be known to be wrong with these flags before torch is imported."""
    if flags.window is not None and len(flags.window) > 2:
        return "--window takes one number or two, H W"
    if flags.dense and flags.crops > 1:
        return "--dense sees whole images, --crops parts of them; give one of the two"
    crf_problem = crf_settings_problem(flags.crf_settings) if flags.crf_settings is not None else None
    return run_problem(flags.run) or crf_problem
