"""Let each head that detects learn one image on each of several backbones, until its mAP is 1.

`PYTHONPATH=. python tests/overfit_detection.py [BACKBONE ...] [--heads HEAD ...]` prints a line a pair and exits with 1
if a pair has not come to mAP 1. A test does the same for one backbone.
"""

import argparse
import sys
import time
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from datamodules.digits import Digits
from heads import HEADS
from heads.box_head import BoxHead, Detections
from heads.maskrcnn import paste_masks
from lightning_modules.detection_scores import DetectionScores
from lightning_modules.network import Network

BACKBONES = ("resnet18", "vgg11", "densenet121", "mobilenet_v3_small", "googlenet", "convnext_tiny")
DETECTORS = [name for name, head in HEADS.items() if head.task == "detection"]
NARROW: dict[str, dict[str, Any]] = {
    "retinanet": {"width": 64},
    "fcos": {"width": 64},
    "ssd": {"width": 128, "side": 64},
    "fasterrcnn": {"width": 64, "hidden": 128},
    "fastrcnn": {"hidden": 128},
    "fasterrcnn_c4": {"anchor_scales": [1, 2, 4], "hidden": 128},
    "fasterrcnn_dc5": {"anchor_scales": [1, 2, 4], "hidden": 128},
    "maskrcnn": {"width": 64, "hidden": 128},
    "yolov1": {"width": 32, "hidden": 64, "grid": 4, "stride": 1, "dropout": 0.0},
}
"""Options under which a head is the same network, only narrower, and has boxes for images of 64 pixels."""


class Learned(NamedTuple):
    """What came of a pair."""

    steps: int
    map: float
    map50: float
    found: Detections


def scene(head: str) -> tuple[Tensor, dict[str, Tensor]]:
    """A scene of digits `(3, 64, 64)` and its objects, with masks if the head learns them."""
    data = Digits("detection", workers=0, batch_size=2, object_masks=cast("type[BoxHead]", HEADS[head]).needs_masks)
    data.setup()
    sample = data.train[3]
    return sample["image"], sample["target"]


def overfit(
    backbone: str, head: str, *, most: int, every: int = 10, rate: float = 1e-3, momentum: float | None = None,
    enough: float = 1.0, copies: int = 2,
) -> Learned:  # fmt: skip
    """Learn one image until its mAP, by COCO's rule, is `enough`, or for `most` steps; it is scored `every` few steps.

    Args:
        copies: of the image in a batch. Batch norms need two where a map has one value a channel.
        rate: learning rate of AdamW.
        momentum: share of a batch in the running statistics of batch norms; None: the network's own.
    """
    image, target = scene(head)
    images, targets = image.expand(copies, -1, -1, -1), [target] * copies
    network = Network(backbone, head, 10, head_options=NARROW.get(head))
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d) and momentum is not None:
            part.momentum = momentum
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    for step in range(1, most + 1):
        network.train()
        terms = network.losses(images, targets, [(64, 64)] * copies)
        optimizer.zero_grad()
        torch.stack([value / weight.clamp(min=1) for value, weight in terms.values()]).sum().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        for group in optimizer.param_groups:  # a falling rate lets boxes settle
            group["lr"] = rate * (1 - step / (most + 1))
        optimizer.step()
        if step % every and step < most:
            continue
        learned = Learned(step, *scored(network, images[:1], target))
        if learned.map >= enough - 1e-6:
            break
    return learned


def scored(network: Network, image: Tensor, target: dict[str, Tensor]) -> tuple[float, float, Detections]:
    """mAP, mAP at IoU 0.5, and what was found."""
    network.eval()
    with torch.inference_mode():
        (found,) = network.detect(image)
    scores = DetectionScores()
    scores.update(["one"], [found], [target])  # type: ignore[list-item]
    values = scores.scores([str(digit) for digit in range(10)])
    return float(values["map"]), float(values["map50"]), found


def mask_overlap(found: Detections, target: dict[str, Tensor]) -> float:
    """The least IoU of an object's mask with that of the detection of its class with the highest score."""
    overlaps = []
    masks = paste_masks(found, target["masks"].shape[1:]) >= 0.5
    for mask, label in zip(target["masks"], target["labels"], strict=True):
        best = masks[(found["labels"] == label).nonzero()[0, 0]]
        overlaps.append(float((mask & best).sum() / (mask | best).sum()))
    return min(overlaps)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbones", nargs="*", default=list(BACKBONES))
    parser.add_argument("--heads", nargs="*", default=DETECTORS)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--norm-momentum", type=float)
    settings = parser.parse_args(arguments)
    short = 0
    for backbone in settings.backbones:
        for head in settings.heads:
            torch.manual_seed(0)
            began = time.process_time()
            learned = overfit(backbone, head, most=settings.steps, momentum=settings.norm_momentum)
            short += learned.map < 1 - 1e-6
            print(
                f"{backbone:20} {head:16} mAP {learned.map:.3f}, mAP50 {learned.map50:.3f} "
                f"after {learned.steps} steps, {time.process_time() - began:.0f} CPU s",
                flush=True,
            )
    return int(bool(short))


if __name__ == "__main__":
    sys.exit(main())
