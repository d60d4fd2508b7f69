"""Chooses the precision of `--precision auto`: bfloat16 if the hardware has units for it, otherwise float32."""

from pathlib import Path
from typing import Literal

import torch

from experiments.command_line.run_config import RunConfig
from experiments.training.resume import PRECISION, read_checkpoint

Precision = Literal["auto", "32-true", "16-mixed", "bf16-mixed"]
FLOAT32: Precision = "32-true"
BFLOAT16: Precision = "bf16-mixed"
CPU_UNITS = ("amx_bf16", "avx512_bf16")
"""Instructions that multiply bfloat16. Without them a CPU converts every number to float32 first, which is slower."""


def choose_precision(config: RunConfig, device: torch.device, checkpoint: Path | None = None) -> tuple[Precision, str]:
    """Return the precision, as Lightning names it, and the reason in one line if `--precision auto` chose it.

    Args:
        checkpoint: last.ckpt of a run that is continued. It goes on in the precision that it began with, also on
            another machine, so that its whole curve is of one precision.
    """
    if config.precision != "auto":
        return config.precision, ""
    if checkpoint is not None:
        began = read_checkpoint(checkpoint).get(PRECISION, FLOAT32)  # older runs trained in float32 by default
        return began, f"--precision auto: {began}, as this run began"
    if has_bfloat16_units(device):
        return BFLOAT16, f"--precision auto: {BFLOAT16}, which this {device.type} multiplies faster; or give {FLOAT32}"
    return FLOAT32, ""


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(unit, False) for unit in CPU_UNITS)
    return False
