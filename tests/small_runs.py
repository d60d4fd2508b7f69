"""Small runs of run.py."""

from pathlib import Path

import cv2
import numpy as np


def make_pairs(root: Path) -> Path:
    """Eight training and seven validation images with masks of two classes."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 7)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros((32, 32), np.uint8)
            mask[8 + i : 24, 8:24] = 1
            image = generator.integers(0, 100, (32, 32, 3), np.uint8) + 120 * mask[..., None]
            cv2.imwrite(str(root / split / "images" / f"{i}.png"), image.astype(np.uint8))
            cv2.imwrite(str(root / split / "masks" / f"{i}.png"), mask)
    return root


def small(folder: Path, out: Path, *more: str) -> list[str]:
    return [
        "--backbone", "resnet20", "--head", "unet", "--data", "folders", "--data-dir", str(folder), "--out", str(out),
        "--image-size", "32", "--batch-size", "2", "--epochs", "2", "--workers", "0", "--accelerator", "cpu", *more,
    ]  # fmt: skip
