"""Graft's detectors beside torchvision's: the same networks on the same images and objects, by turns.

`python experiments/benchmarks/detector_peers.py --readme` times a training step (forward, losses, backward, AdamW) and
detection, in float32 and under bfloat16 autocast, and writes the table into experiments/README.md. Both sides have
random weights, with which they find few objects or none, and channels-last memory; torchvision's resize nothing. A
ratio above 1 means that Graft is faster.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
import torchvision
from torch import nn

from experiments.inference.benchmark_files import machine
from experiments.run_files.generated_part import replace_part
from lightning_modules.detection import DetectionModule, stacked

README = Path(__file__).resolve().parents[1] / "README.md"
CLASSES, OBJECTS = 20, 6
"""Classes of the data, and objects of each image."""
PRECISIONS = {"float32": False, "bfloat16": True}
"""Whether autocast is on."""
STEPS = ("detection", "training")
"""What is timed, in this order: after training, the two sides would find different numbers of objects."""


class Pair(NamedTuple):
    """The backbone under a head, and torchvision's function for the same network."""

    backbone: str
    peer: str
    side: int = 320
    """Rows and columns of the images."""
    background: int = 0
    """The class of the first object there."""


PAIRS = {
    "fasterrcnn": Pair("resnet50", "fasterrcnn_resnet50_fpn", background=1),
    "maskrcnn": Pair("resnet50", "maskrcnn_resnet50_fpn", background=1),
    "retinanet": Pair("resnet50", "retinanet_resnet50_fpn"),
    "fcos": Pair("resnet50", "fcos_resnet50_fpn"),
    "ssd": Pair("vgg16", "ssd300_vgg16", 300, background=1),
}
"""By the name of the head."""


def targets_of(images: int, side: int, first_class: int) -> list[dict[str, Any]]:
    """Boxes of 30 to 150 pixels with masks that fill them."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(images):
        start = torch.rand(OBJECTS, 2, generator=generator) * (side - 151)
        boxes = torch.cat([start, start + 30 + 120 * torch.rand(OBJECTS, 2, generator=generator)], 1)
        masks = torch.zeros(OBJECTS, side, side, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        found.append({"boxes": boxes, "labels": torch.arange(OBJECTS) + first_class, "masks": masks})
    return found


def graft(head: str, images: torch.Tensor) -> tuple[nn.Module, Callable[[], None], Callable[[], object]]:
    """The network, a training step and detection."""
    pair = PAIRS[head]
    module = DetectionModule(pair.backbone, head, [str(number) for number in range(CLASSES)])
    network, optimizer = module.network.to(memory_format=torch.channels_last), module.new_optimizer()  # type: ignore[call-overload]
    targets: Any = [one | {"masks": one["masks"].bool()} for one in targets_of(len(images), pair.side, 0)]
    sizes = [(pair.side, pair.side)] * len(images)

    def train() -> None:
        totals, weights = stacked(network.losses(images, targets, sizes))
        optimizer.zero_grad()
        (totals / weights.clamp(min=1)).sum().backward()
        optimizer.step()

    return network, train, lambda: network.detect(images)


def of_torchvision(head: str, images: torch.Tensor) -> tuple[nn.Module, Callable[[], None], Callable[[], object]]:
    """The same of torchvision's network."""
    pair = PAIRS[head]
    # SSD's images have a fixed size; the others are told theirs.
    unresized = {} if head == "ssd" else {"min_size": pair.side, "max_size": pair.side}
    network = getattr(torchvision.models.detection, pair.peer)(
        weights=None, weights_backbone=None, num_classes=CLASSES + pair.background, image_mean=[0.0] * 3,
        image_std=[1.0] * 3, **unresized,
    )  # fmt: skip
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    targets, listed = targets_of(len(images), pair.side, pair.background), list(images)

    def train() -> None:
        loss = torch.stack(list(network(listed, targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return network, train, lambda: network(listed)


def row(asked: argparse.Namespace, head: str) -> str:
    """For each step and precision: torchvision's seconds by ours, and how many they are."""
    side = PAIRS[head].side
    cells = []
    for autocast in PRECISIONS.values():
        torch.manual_seed(0)
        images = torch.randn(asked.batch, 3, side, side).contiguous(memory_format=torch.channels_last)
        networks = [build(head, images) for build in (graft, of_torchvision)]
        for step in STEPS:
            times: list[list[float]] = [[], []]
            for repetition in range(asked.repetitions + 1):  # the first for nothing
                for seconds, (network, train, detect) in zip(times, networks, strict=True):
                    network.train(step == "training")
                    run = train if step == "training" else detect
                    started = time.perf_counter()
                    with (
                        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
                        torch.set_grad_enabled(step == "training"),
                    ):
                        run()
                    if repetition:
                        seconds.append(time.perf_counter() - started)
            ours, theirs = map(statistics.median, times)
            ratios = [peer / own for own, peer in zip(*times, strict=True)]
            cells.append(f"**{statistics.median(ratios):.2f}** ({ours:.2f} / {theirs:.2f} s)")
    return f"| {PAIRS[head].backbone} + {head} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PAIRS), default=list(PAIRS), metavar="HEAD")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--readme", action="store_true", help="write the table into experiments/README.md")
    asked = parser.parse_args()
    lines = [
        f"{machine()['processor']}, {torch.get_num_threads()} threads, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}; {asked.batch} images of 320x320 (SSD 300x300) with {OBJECTS} objects; medians of "
        f"{asked.repetitions} alternated repetitions, torchvision / Graft, and the seconds of Graft / torchvision.",
        "",
        f"| network | {' | '.join(f'{step}, {name}' for name in PRECISIONS for step in STEPS)} |",
        f"|---|{'--:|' * 2 * len(PRECISIONS)}",
    ]
    for head in asked.only:
        lines.append(row(asked, head))
        print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join(lines)
    print(text)
    if asked.readme:
        replace_part(README, "detector_peers.py", text)


if __name__ == "__main__":
    main()
