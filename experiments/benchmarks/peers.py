"""Training and inference beside segmentation_models.pytorch and torchvision: the same structure, alternated in one run.

    python experiments/benchmarks/peers.py
    python experiments/benchmarks/peers.py --only resnet18+deeplab --autocast

For each pair, a training step (forward, cross-entropy, backward, AdamW) and a forward pass without gradient are timed
by turns, ours and the peer's, on the same batch in the same memory format. A ratio above 1 means that Graft is faster.
Where the networks differ (smp's U-Net decoder has widths of its own, its DeepLabv3+ decoder one convolution fewer than
the paper's), the ratio of their operations says how much of the time is the network's.

The convolution rate is that of one 3x3 convolution of 256 channels, measured in the same run; the fraction is what a
training step's operations would take at that rate, divided by what the step took.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import torchvision
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.command_line.console import make_console
from experiments.inference.benchmark_files import machine
from lightning_modules.segmentation import SegmentationModule

CLASSES = 11


class Pair(NamedTuple):
    """Our backbone and head, and the peer's network."""

    backbone: str
    head: str
    peer: Callable[[], nn.Module]
    output_stride: int | None = None
    """None: the head's own."""


def smp_unet(encoder: str) -> Callable[[], nn.Module]:
    return lambda: smp.Unet(encoder, encoder_weights=None, classes=CLASSES)


def smp_deeplab(encoder: str) -> Callable[[], nn.Module]:
    return lambda: smp.DeepLabV3Plus(encoder, encoder_weights=None, classes=CLASSES)


def of_torchvision(name: str) -> Callable[[], nn.Module]:
    build = getattr(torchvision.models.segmentation, name)
    return lambda: build(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=False)


PAIRS = {
    "resnet18+unet": Pair("resnet18", "unet", smp_unet("resnet18")),
    "resnet50+unet": Pair("resnet50", "unet", smp_unet("resnet50")),
    "vgg16_bn+unet": Pair("vgg16_bn", "unet", smp_unet("vgg16_bn")),
    "mobilenet_v2+unet": Pair("mobilenet_v2", "unet", smp_unet("mobilenet_v2")),
    "efficientnet_b0+unet": Pair("efficientnet_b0", "unet", smp_unet("efficientnet-b0")),
    "resnet18+deeplab": Pair("resnet18", "deeplab", smp_deeplab("resnet18")),
    "resnet50+deeplab": Pair("resnet50", "deeplab", smp_deeplab("resnet50")),
    "resnet101+deeplab": Pair("resnet101", "deeplab", smp_deeplab("resnet101")),
    "mobilenet_v2+deeplab": Pair("mobilenet_v2", "deeplab", smp_deeplab("mobilenet_v2")),
    "resnet50+fcn": Pair("resnet50", "fcn", of_torchvision("fcn_resnet50"), 8),
    "resnet50+deeplabv3": Pair("resnet50", "deeplabv3", of_torchvision("deeplabv3_resnet50"), 8),
}


class Side:
    """One of the two networks with what it is trained with."""

    def __init__(self, network: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], optimizer: Any) -> None:
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss, self.optimizer = loss, optimizer

    def scores(self, images: Tensor, autocast: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = self.network(images)
            return out["out"] if isinstance(out, dict) else out

    def train(self, images: Tensor, labels: Tensor, autocast: bool) -> None:
        loss = self.loss(self.scores(images, autocast).float(), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def infer(self, images: Tensor, labels: Tensor, autocast: bool) -> None:
        with torch.inference_mode():
            self.scores(images, autocast).argmax(1)


def ours(pair: Pair) -> Side:
    """Our network, with the loss and the optimiser that the module trains it with."""
    classes = [str(one) for one in range(CLASSES)]
    module = SegmentationModule(pair.backbone, pair.head, classes, output_stride=pair.output_stride)
    return Side(module.network, module.loss, module.new_optimizer())


def theirs(pair: Pair) -> Side:
    network = pair.peer()
    return Side(network, F.cross_entropy, torch.optim.AdamW(network.parameters(), lr=1e-3))


SIDES = {"graft": ours, "peer": theirs}


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(name: str, batch: int, size: int, repetitions: int, autocast: bool) -> dict[str, Any]:
    """Ratios peer / graft of a training step and of a forward pass, and our step's fraction of the convolution rate."""
    torch.manual_seed(0)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (batch, size, size))
    sides = {side: build(PAIRS[name]) for side, build in SIDES.items()}
    found: dict[str, Any] = {
        "network": name,
        "parameters": {side: sum(p.numel() for p in one.network.parameters()) for side, one in sides.items()},
        "operations": {side: operations(one, images, labels) for side, one in sides.items()},
    }
    for what in ("training", "inference"):
        times: dict[str, list[float]] = {side: [] for side in sides}
        for one in sides.values():
            one.network.train(what == "training")
        for repetition in range(repetitions + 1):  # the first for nothing: memory is allocated, kernels are chosen
            for side, one in sides.items():
                work = one.train if what == "training" else one.infer
                took = seconds(lambda work=work: work(images, labels, autocast))  # type: ignore[misc]
                if repetition:
                    times[side].append(took)
        ratios = [peer / graft for graft, peer in zip(times["graft"], times["peer"], strict=True)]
        found[what] = {
            "ratio": statistics.median(ratios),
            "range": [min(ratios), max(ratios)],
            "seconds": {side: statistics.median(values) for side, values in times.items()},
        }
    at_rate = found["operations"]["graft"] / convolution_rate(batch, size, autocast)
    found["fraction_of_convolution_rate"] = at_rate / found["training"]["seconds"]["graft"]
    return found


def operations(side: Side, images: Tensor, labels: Tensor) -> int:
    """Multiplications and additions of a training step."""
    with FlopCounterMode(display=False) as counter:
        side.train(images, labels, False)
    return counter.get_total_flops()


def convolution_rate(batch: int, size: int, autocast: bool) -> float:
    """Operations per second of a forward pass through a 3x3 convolution of 256 channels on a map of stride 4."""
    convolution = nn.Conv2d(256, 256, 3, padding=1, bias=False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(batch, 256, size // 4, size // 4).contiguous(memory_format=torch.channels_last)

    def work() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            convolution(x)

    return 2 * 256 * 256 * 9 * x[:, 0].numel() / min(seconds(work) for _ in range(5))


def peak_memory(name: str, side: str, batch: int, size: int) -> int:
    """MiB by which two training steps raise the peak memory of this process, which must be a fresh one."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (batch, size, size))
    one = SIDES[side](PAIRS[name])
    one.network.train()
    for _ in range(2):
        one.train(images, labels, False)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024


def in_fresh_process(name: str, side: str, batch: int, size: int) -> int:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(peak_memory, name, side, batch, size).result()


def conditions() -> str:
    """The processor, the number of threads and the versions, on one line."""
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, smp {smp.__version__}"
    return f"{machine()['processor']}, {torch.get_num_threads()} threads; {versions}"


def print_table(rows: list[dict[str, Any]], title: str, caption: str) -> None:
    table = Table(title=title, caption=caption)
    columns = ("network", "operations", "training", "range", "inference", "range", "of conv. rate", "MiB graft / peer")
    for column in columns:
        table.add_column(column, justify="left" if column == "network" else "right")
    for row in rows:
        cells = [f"{row['operations']['peer'] / row['operations']['graft']:.2f}"]
        for what in ("training", "inference"):
            low, high = row[what]["range"]
            cells += [f"{row[what]['ratio']:.2f}", f"{low:.2f} to {high:.2f}"]
        memory = row["peak_memory_mib"]
        share = f"{row['fraction_of_convolution_rate']:.2f}"
        table.add_row(row["network"], *cells, share, f"{memory['graft']} / {memory['peer']}")
    make_console(width_of_files=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PAIRS), default=list(PAIRS), metavar="PAIR")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=256, help="height and width of the images")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--autocast", action="store_true", help="bfloat16 autocast on both sides")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in asked.only:
        print(f"{name} ({len(rows) + 1} of {len(asked.only)})", file=sys.stderr, flush=True)
        row = measure(name, asked.batch, asked.size, asked.repetitions, asked.autocast)
        row["peak_memory_mib"] = {side: in_fresh_process(name, side, asked.batch, asked.size) for side in SIDES}
        rows.append(row)
    precision = "bfloat16 autocast" if asked.autocast else "float32"
    title = f"peer's / Graft's, {precision}, {asked.batch} images of {asked.size}x{asked.size}"
    print_table(rows, title, f"{conditions()}; median of {asked.repetitions} pairs")
    if asked.json is not None:
        asked.json.write_text(
            json.dumps({"machine": conditions(), "precision": precision, "rows": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
