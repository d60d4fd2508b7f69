"""The work of each process of tune_crf.py. Imports torch and the CRF only, so that a process starts in two seconds."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from heads.crf import CRFSettings, DenseCRF


@dataclass(frozen=True)
class Job:
    """One image under settings that differ in w1 only.

    `sample` is a file of `probabilities` float16 `(C, H, W)`, `pixels` uint8 `(3, H, W)` and `target`, uint8,
    `(H, W)` or another size, at which it is scored.
    """

    sample: Path
    settings: tuple[CRFSettings, ...]
    ignore_index: int


def count_labels(job: Job) -> dict[CRFSettings, Tensor]:
    """Confusion matrices [truth, prediction] `(C, C)`, int64, of the image for each of the settings."""
    with np.load(job.sample) as file:
        probabilities = torch.from_numpy(file["probabilities"])[None].float()
        pixels = torch.from_numpy(file["pixels"])[None]
        target = torch.from_numpy(file["target"])[None].long()
    classes = probabilities.shape[1]
    valid = target != job.ignore_index
    counts = {}
    with torch.inference_mode():
        # The lattice depends on the image and the two sigmas alone.
        kernels = DenseCRF(job.settings[0]).build(pixels)
        for settings in job.settings:
            refined = DenseCRF(settings)(probabilities, kernels, from_logits=False)
            if refined.shape[2:] != target.shape[1:]:  # masks are scored at their own size
                refined = F.interpolate(refined, target.shape[1:], mode="bilinear")
            refined = refined.argmax(1)
            cells = target[valid] * classes + refined[valid]
            counts[settings] = torch.bincount(cells, minlength=classes**2).view(classes, classes)
    return counts
