"""Runs that signals end, and what their end is compared with."""

from pathlib import Path

import cv2
import numpy as np
import torch

SMALL = ("--backbone", "resnet20", "--backbone-options", "{depth: 8, width: 8}", "--head", "fcn")
STEPS = 6
"""Steps of an epoch in one process."""


def make_data(root: Path) -> Path:
    """Images and masks of two classes: two for each training step, and four to validate on."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 2 * STEPS), ("val", 4)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros((16, 16), np.uint8)
            mask[:, 2 + i :] = 1
            image = generator.integers(0, 100, (16, 16, 3), np.uint8) + 120 * mask[..., None]
            cv2.imwrite(str(root / split / "images" / f"{i:02d}.png"), image.astype(np.uint8))
            cv2.imwrite(str(root / split / "masks" / f"{i:02d}.png"), mask)
    return root


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    """A run of two epochs that takes half a second, of a network with batch norms that draws dropout masks."""
    return [
        *SMALL, "--data", "folders", "--data-dir", str(data),
        "--out", str(out), "--image-size", "16", "--batch-size", "2", "--epochs", "2", "--workers", "0",
        "--accelerator", "cpu", "--precision", "32-true", *more,
    ]  # fmt: skip


def same_end(run: Path, other: Path) -> None:
    """Both finished, with the same weights, optimiser and curves to the last bit."""
    assert (run / "results.json").is_file()
    one, two = (torch.load(path / "checkpoints" / "last.ckpt", weights_only=True) for path in (run, other))
    assert (one["global_step"], one["epoch"]) == (two["global_step"], two["epoch"])
    torch.testing.assert_close(one["state_dict"], two["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(one["optimizer_states"], two["optimizer_states"], rtol=0, atol=0)
    assert (run / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
