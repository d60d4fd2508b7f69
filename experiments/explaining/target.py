"""What is explained: a class, in a segmentation at some pixels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.command_line.explain_flags import ExplainFlags
from experiments.command_line.known_names import nearest
from experiments.inference.trained import TrainedNetwork

BACKGROUND = "background"
"""The class that is explained only if it is named, or if there is no other."""


@dataclass(frozen=True)
class Target:
    """A class, and in a segmentation the pixels bool `(h, w)` of the network's input whose scores are averaged."""

    label: int
    name: str
    pixels: Tensor | None
    where: str
    """The pixels in words."""

    def of(self, scores: Tensor) -> Tensor:
        """The scores `(B,)` of the class: of `(B, C)`, or of `(B, C, h, w)` averaged over the pixels."""
        one = scores[:, self.label]
        return one if self.pixels is None else one[:, self.pixels].mean(1)

    def facts(self, probabilities: Tensor) -> dict[str, Any]:
        """What the target is and its probability, as plain values."""
        facts: dict[str, Any] = {"class": self.name, "label": self.label}
        facts["probability"] = float(self.of(probabilities)[0])
        if self.pixels is not None:
            facts |= {"region": self.where, "pixels": int(self.pixels.sum())}
        return facts


def find_label(target: str | None, class_names: tuple[str, ...]) -> int | None:
    """The number of a class that is given by name or number; names come first.

    Raises:
        ValueError: there is no such class.
    """
    if target is None:
        return None
    if target in class_names:
        return class_names.index(target)
    if target.isdigit() and int(target) < len(class_names):
        return int(target)
    raise ValueError(
        f"--target: there is no class '{target}' among {len(class_names)}; nearest: {nearest(target, class_names)}"
    )


def choose_target(network: TrainedNetwork, logits: Tensor, flags: ExplainFlags, image: np.ndarray) -> Target:
    """The target that the flags name, completed by what the network predicts.

    Args:
        logits: of the picture, `(1, C)` or `(1, C, h, w)` at the size of the network's input.
        image: the picture as stored, `(H, W, 3)`, which `--region` counts pixels of.

    Raises:
        ValueError: no such class, a region outside of the picture or for a classifier, a class that is not predicted.
    """
    names = network.class_names
    label = find_label(flags.target, names)
    if logits.ndim == 2:
        if flags.region is not None:
            raise ValueError("--region is for segmentations; this network classifies whole pictures")
        label = int(logits.argmax()) if label is None else label
        return Target(label, names[label], None, "")
    labels = logits[0].argmax(0)
    if flags.region is not None:
        region = region_of(network, flags.region, image, labels.shape)
        label = main_class(labels[region], names) if label is None else label
        return Target(label, names[label], region, " ".join(map(str, flags.region)))
    label = main_class(labels.flatten(), names) if label is None else label
    region = labels == label
    if not region.any():
        raise ValueError(f"the network labels no pixel {names[label]}; name the pixels with --region")
    return Target(label, names[label], region, "all pixels that the network gives this class")


def main_class(labels: Tensor, names: tuple[str, ...]) -> int:
    """The most frequent label, of those that are not called background if there are any."""
    counts = torch.bincount(labels, minlength=len(names))
    others = counts.clone()
    if BACKGROUND in names:
        others[names.index(BACKGROUND)] = 0
    return int((others if others.any() else counts).argmax())


def region_of(network: TrainedNetwork, region: list[int], image: np.ndarray, size: torch.Size) -> Tensor:
    """Pixels bool `(h, w)` of the network's input that a pixel or a box of the stored picture covers.

    Raises:
        ValueError: the region is empty or not inside the picture, or the network does not see the whole picture.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = region if len(region) == 4 else (*region, region[0] + 1, region[1] + 1)
    if not (left < right <= width and top < bottom <= height):
        raise ValueError(
            f"--region {' '.join(map(str, region))} is empty or outside of the picture, "
            f"which has {width} columns and {height} rows"
        )
    if network.size_rule.kind == "centre_crop":
        raise ValueError("--region: this network sees a centre crop only; leave the flag out")
    chosen = torch.zeros(size, dtype=torch.bool)
    x, y = size[1] / width, size[0] / height
    rows = slice(int(top * y), max(int(top * y) + 1, round(bottom * y)))
    chosen[rows, int(left * x) : max(int(left * x) + 1, round(right * x))] = True
    return chosen
