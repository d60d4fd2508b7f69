"""Let each head that detects learn one image on each of several backbones, until its mAP is 1.

`PYTHONPATH=. python tests/overfit_detection.py [BACKBONE ...] [--heads HEAD ...]` prints a line a pair and exits with 1
if a pair has not come to mAP 1. A test does the same for one backbone.

The image has 64x64 pixels, and all pairs learn it by the same rules:

- Batch norms take a tenth of each batch. MobileNet's hundredth would leave much of the first statistics.
- After two fifths of the steps, batch norms keep their statistics, as detectors do in the papers. The coarsest maps
  have four values: what norms compute from these in training is not what they apply afterwards.
- Regions are told apart. RoI max pooling rounds boxes to 16 pixels, half an object here, and regions that it rounds to
  the same values get one score and one correction. So fasterrcnn_c4 pools by RoIAlign, and fastrcnn gets windows of
  which no two are rounded to the same, and none to the same as an object, from which it learns as well.
- fastrcnn gets only windows that its loss may take: as in the paper, regions that overlap no object by an IoU of 0.1
  are neither objects nor background, and may get any score.
- The loss takes 32 regions of each image: the layers behind them are the same for any number.
"""

import argparse
import sys
import time
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from datamodules.digits import Digits
from heads import HEADS
from heads.box_head import BoxHead, Detections
from heads.fastrcnn import FastRCNN
from heads.maskrcnn import paste_masks
from heads.sliding_windows import sliding_windows
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
    "fasterrcnn_c4": {"anchor_scales": [1, 2, 4], "hidden": 128, "pooling": "align"},
    "fasterrcnn_dc5": {"anchor_scales": [1, 2, 4], "hidden": 128},
    "maskrcnn": {"width": 64, "hidden": 128},
    "yolov1": {"width": 32, "hidden": 64, "grid": 4, "stride": 1, "dropout": 0.0},
}
"""Options under which a head is the same network, only narrower, and has boxes for images of 64 pixels."""


SIDE = 64
"""Pixels of the image."""
MOMENTUM, FIXED = 0.1, 0.4
"""Share of a batch in the statistics of batch norms, and the part of the steps after which these stay."""
REGIONS = 32
"""Regions of an image that the loss takes."""


class Learned(NamedTuple):
    """What came of a pair."""

    steps: int
    map: float
    map50: float
    found: Detections
    truth: dict[str, Tensor]


def scene(head: BoxHead) -> tuple[Tensor, dict[str, Tensor]]:
    """A scene of digits `(3, 64, 64)` and its objects, with masks or proposals if the head needs some."""
    data = Digits("detection", workers=0, batch_size=2, object_masks=head.needs_masks)
    data.setup()
    sample = data.train[3]
    if head.needs_proposals:
        truth, windows = sample["target"]["boxes"], torch.from_numpy(sliding_windows(SIDE, SIDE))
        overlaps, order = box_iou(windows, truth).amax(1).sort(descending=True, stable=True)
        windows = windows[order[overlaps >= FastRCNN.LEAST_OVERLAP]]
        apart = told_apart(torch.cat([truth, windows]), head.stride, head.offsets[-1])
        sample["target"]["proposals"] = apart[len(truth) :]
    return sample["image"], sample["target"]


def told_apart(boxes: Tensor, stride: int, offset: float) -> Tensor:
    """Of the boxes `(N, 4)` that RoI max pooling rounds to the same values of a map, the first.

    Args:
        stride, offset: of the map, in pixels.
    """
    seen: dict[tuple[int, ...], Tensor] = {}
    for box in boxes:
        places = (box - offset) / stride
        halves_away_from_zero = places.sign() * (places.abs() + 0.5).floor()  # C's rounding, not PyTorch's
        seen.setdefault(tuple(halves_away_from_zero.int().tolist()), box)
    return torch.stack(list(seen.values()))


def overfit(
    backbone: str, head: str, *, most: int, every: int = 10, rate: float = 1e-3, enough: float = 1.0, copies: int = 2
) -> Learned:  # fmt: skip
    """Learn one image until its mAP, by COCO's rule, is `enough`, or for `most` steps; it is scored `every` few steps.

    Args:
        copies: of the image in a batch. Batch norms need two where a map has one value a channel.
        rate: learning rate of AdamW.
    """
    network = Network(backbone, head, 10, head_options=NARROW.get(head))
    image, target = scene(cast("BoxHead", network.head))
    images, targets = image.expand(copies, -1, -1, -1), [target] * copies
    if hasattr(network.head, "regions"):
        network.head.regions = REGIONS
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = MOMENTUM
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    for step in range(1, most + 1):
        network.train()
        for norm in norms:
            norm.train(step <= FIXED * most)
        terms = network.losses(images, targets, [(SIDE, SIDE)] * copies)
        optimizer.zero_grad()
        torch.stack([value / weight.clamp(min=1) for value, weight in terms.values()]).sum().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        for group in optimizer.param_groups:  # a falling rate lets boxes settle
            group["lr"] = rate * (1 - step / (most + 1))
        optimizer.step()
        if step % every and step < most:
            continue
        learned = Learned(step, *scored(network, images[:1], target), target)
        if learned.map >= enough - 1e-6:
            break
    return learned


def scored(network: Network, image: Tensor, target: dict[str, Tensor]) -> tuple[float, float, Detections]:
    """mAP, mAP at IoU 0.5, and what was found."""
    network.eval()
    with torch.inference_mode():
        (found,) = network.detect(image, proposals=[target["proposals"]] if "proposals" in target else None)
    scores = DetectionScores()
    scores.update(["one"], [found], [{name: target[name] for name in ("boxes", "labels")}])  # type: ignore[list-item]
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
    parser.add_argument("--steps", type=int, default=200)
    settings = parser.parse_args(arguments)
    short = 0
    for backbone in settings.backbones:
        for head in settings.heads:
            torch.manual_seed(0)
            began = time.process_time()
            learned = overfit(backbone, head, most=settings.steps, every=20)
            short += learned.map < 1 - 1e-6
            print(
                f"{backbone:20} {head:16} mAP {learned.map:.3f}, mAP50 {learned.map50:.3f} "
                f"after {learned.steps} steps, {time.process_time() - began:.0f} CPU s",
                flush=True,
            )
    return int(bool(short))


if __name__ == "__main__":
    sys.exit(main())
