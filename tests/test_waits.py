"""A training step never makes the program wait for the device: nothing in it reads a number off a tensor."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from datamodules.digits import Digits
from experiments.callbacks import finite_loss, progress
from experiments.run import main

READS = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique", "_unique2", "equal", "is_nonzero"}
"""Operations whose result, or its size, the program needs; on a GPU it waits for all queued work."""


class Reads(TorchDispatchMode):
    """Counts such operations, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = function.overloadpacket.__name__
        self.counts.update([name] if name in READS else [])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("head", "more"),
    [
        ("unet", ["--optimizer", "adamw", "--clip-gradient", "1"]),
        ("hypercolumn", ["--optimizer", "sgd", "--loss", "ohem+dice+lovasz", "--accumulate", "2"]),
        ("classifier", ["--optimizer", "rmsprop", "--label-smoothing", "0.1"]),
    ],
)
def test_no_step_reads_a_number(
    head: str, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None
) -> None:
    """A run of eight steps reads no more than one of four. (On a GPU, the loss is read every ten steps.)

    Not so with --ema, whose count of averages PyTorch reads twice a step; --mixup and --cutmix draw on the CPU.
    """
    monkeypatch.setattr(Digits, "SCENES", {"train": 64, "val": 2, "test": 2})
    monkeypatch.setitem(finite_loss.STEPS_BETWEEN_CHECKS, "cpu", 100)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 1000)
    counts = []
    for steps in (4, 8):
        flags = ["--backbone", "lenet5", "--head", head, "--image-size", "32", "--batch-size", "2", "--workers", "0"]
        flags += ["--accelerator", "cpu", "--max-steps", str(steps), "--out", str(tmp_path), "--name", str(steps)]
        monkeypatch.delenv("GRAFT_RUN_FOLDER", raising=False)
        with Reads() as reads:
            assert main([*flags, *more]) == 0
        counts.append(reads.counts)
    assert counts[0], "the end of a run reads its scores"
    assert counts[0] == counts[1]
