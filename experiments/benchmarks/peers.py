"""Training and inference beside segmentation_models.pytorch and torchvision: the same structure, alternated in one run.

    python experiments/benchmarks/peers.py --readme
    python experiments/benchmarks/peers.py --only resnet18+deeplab --compile

For each pair, a training step (forward, cross-entropy, backward, AdamW) and a forward pass without gradient, up to the
labels, are timed by turns on the same batch, ours and the peer's, in float32 and under bfloat16 autocast. Each side has
a process of its own, in which it runs as it does for its users: the peer in a plain loop, in the memory format that is
best for it (channels last); Graft as run.py trains and as evaluate.py and predict.py infer, with batch norms folded
into the convolutions ("folded"; "inference" is without that). A ratio above 1 means that Graft is faster. Where the
structures differ (smp's U-Net decoder has widths of its own, its DeepLabv3+ decoder one convolution fewer than the
paper's), the ratio of their operations is not 1.

The convolution rate is that of one 3x3 convolution of 256 channels, measured in the same run; the fraction is what a
training step's operations would take at that rate, divided by what the step took. Memory is what a process needs for
training in float32, beyond what it has after its imports.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.inference.benchmark_files import machine
from experiments.inference.worker import forget_peak, peak_memory
from experiments.run_files.atomic_file import write_atomically
from experiments.run_files.generated_part import replace_part
from lightning_modules.folding import fold_batch_norms
from lightning_modules.segmentation import SegmentationModule

CLASSES = 11
README = Path(__file__).resolve().parents[1] / "README.md"
PRECISIONS = {"float32": False, "bfloat16": True}
"""Whether autocast is on."""
TURNS = {"training": ("graft", "peer"), "inference": ("graft", "peer", "folded")}
"""What is timed by turns; "folded" is Graft's too."""
LEAST_REPETITIONS, SECONDS = 3, 30.0
"""What is timed by turns for longer than these seconds has so few repetitions."""
SAME = 0.005
"""Structures coincide if their operations differ by less than this fraction."""
Row = dict[str, Any]


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


class Job(NamedTuple):
    """What a process needs to build its side."""

    pair: str
    side: str
    batch: int
    size: int
    compile: bool = False
    device: str = "cpu"


class Side:
    """One of the two networks with what it is trained with, on one batch."""

    def __init__(self, job: Job) -> None:
        torch.manual_seed(0)
        pair = PAIRS[job.pair]
        self.device = torch.device(job.device)
        images = torch.randn(job.batch, 3, job.size, job.size, device=self.device)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(0, CLASSES, (job.batch, job.size, job.size), device=self.device)
        self.loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
        network: nn.Module
        if job.side == "graft":
            classes = [str(one) for one in range(CLASSES)]
            module = SegmentationModule(pair.backbone, pair.head, classes, output_stride=pair.output_stride)
            module = module.to(self.device)
            network, self.loss, self.optimizer = module.network, module.loss, module.new_optimizer()
        else:
            network = pair.peer().to(self.device)
            self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
        self.network: nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.folded: nn.Module | None = None
        if job.compile:
            self.network.compile()

    def scores(self, network: nn.Module, autocast: bool) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
            out = network(self.images)
            return out["out"] if isinstance(out, dict) else out

    def training(self, autocast: bool) -> None:
        self.network.train()
        loss = self.loss(self.scores(self.network, autocast).float(), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def inference(self, network: nn.Module, autocast: bool) -> None:
        with torch.inference_mode():
            self.scores(network.eval(), autocast).argmax(1)

    def fold(self) -> nn.Module:
        """A copy with folded batch norms."""
        if self.folded is None:
            self.folded = copy.deepcopy(self.network).eval()
            fold_batch_norms(self.folded, self.images[:1, :, :64, :64])
        return self.folded

    def operations(self) -> int:
        """Multiplications and additions of a forward and a backward pass."""
        ghost = copy.deepcopy(self.network).to("meta").train()
        with FlopCounterMode(display=False) as counter:
            out = ghost(self.images.to("meta"))
            (out["out"] if isinstance(out, dict) else out).sum().backward()
        return counter.get_total_flops()


SIDES: list[Side] = []
"""In a process of one side: that side."""


def start(job: Job, threads: int) -> None:
    """Build one side in its own process."""
    torch.set_num_threads(threads)
    forget_peak()
    SIDES.append(Side(job))


def seconds(what: str, precision: str) -> float:
    """Seconds that this process's side takes for "training", "inference" or "folded"."""
    side, autocast = SIDES[0], PRECISIONS[precision]
    network = side.fold() if what == "folded" else side.network
    started = time.perf_counter()
    if what == "training":
        side.training(autocast)
    else:
        side.inference(network, autocast)
    if side.device.type == "cuda":
        torch.cuda.synchronize(side.device)
    return time.perf_counter() - started


def about() -> dict[str, float]:
    """Parameters and operations of a training step of this process's side."""
    network = SIDES[0].network
    return {"parameters": sum(p.numel() for p in network.parameters()), "operations": SIDES[0].operations()}


@contextmanager
def sides(asked: argparse.Namespace, pair: str) -> Iterator[dict[str, ProcessPoolExecutor]]:
    """A process for each side, which waits without using the processor while the other works."""
    pools = {
        side: ProcessPoolExecutor(
            1,
            mp_context=get_context("spawn"),
            initializer=start,
            initargs=(Job(pair, side, asked.batch, asked.size, asked.compile, asked.device), torch.get_num_threads()),
        )
        for side in ("graft", "peer")
    }
    try:
        yield pools
    finally:
        for pool in pools.values():
            pool.shutdown()


def measure(asked: argparse.Namespace, pair: str) -> Row:
    """Ratios peer / Graft of training and inference in each precision, operations, memory, share of the rate."""
    with sides(asked, pair) as pools:
        before = {side: pool.submit(peak_memory).result() for side, pool in pools.items()}
        found: Row = {"pair": pair, "peak_memory_mb": {}}
        for precision in PRECISIONS:
            found[precision] = {"training": timed(pools, asked.repetitions, "training", precision)}
            if precision == "float32":
                for side, pool in pools.items():
                    found["peak_memory_mb"][side] = pool.submit(peak_memory).result() - before[side]
        for precision in PRECISIONS:
            found[precision] |= {"inference": timed(pools, asked.repetitions, "inference", precision)}
        found |= {side: pool.submit(about).result() for side, pool in pools.items()}
    for precision, autocast in PRECISIONS.items():
        at_rate = found["graft"]["operations"] / convolution_rate(asked.batch, asked.size, asked.device, autocast)
        found[precision]["of_rate"] = at_rate / found[precision]["training"]["graft"]["seconds"]
    return found


def timed(pools: dict[str, ProcessPoolExecutor], repetitions: int, what: str, precision: str) -> Row:
    """For each way of `TURNS`: median seconds, and the median and range of the peer's time over its own, by turns."""
    times: dict[str, list[float]] = {way: [] for way in TURNS[what]}
    started = time.monotonic()
    for repetition in range(repetitions + 1):  # the first for nothing: memory is allocated, kernels are chosen
        if repetition > LEAST_REPETITIONS and time.monotonic() - started > SECONDS:
            break
        for way in TURNS[what]:
            pool = pools["peer" if way == "peer" else "graft"]
            took = pool.submit(seconds, "folded" if way == "folded" else what, precision).result()
            if repetition:
                times[way].append(took)
    found = {}
    for way, values in times.items():
        ratios = [peer / own for peer, own in zip(times["peer"], values, strict=True)]
        found[way] = {
            "seconds": statistics.median(values),
            "ratio": statistics.median(ratios),
            "range": [min(ratios), max(ratios)],
        }
    return found


def convolution_rate(batch: int, size: int, device: str, autocast: bool) -> float:
    """Operations per second of a forward pass through a 3x3 convolution of 256 channels on a map of stride 4."""
    convolution = nn.Conv2d(256, 256, 3, padding=1, bias=False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(batch, 256, size // 4, size // 4, device=device).contiguous(memory_format=torch.channels_last)
    fastest = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        with torch.inference_mode(), torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            float(convolution(x)[0, 0, 0, 0])  # waits for a GPU
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * 256 * 256 * 9 * x[:, 0].numel() / fastest


def conditions(asked: argparse.Namespace) -> str:
    """The processor, the number of threads, the versions and the protocol, in one paragraph."""
    about = machine()
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, smp {smp.__version__}"
    card = f"{torch.cuda.get_device_name()}; " if asked.device == "cuda" else ""
    return (
        f"{card}{about['processor']} ({', '.join(about['extensions'])}), {torch.get_num_threads()} threads; "
        f"{versions}; {asked.batch} images of {asked.size}x{asked.size}, "
        f"{'compiled' if asked.compile else 'eager'}; medians of {asked.repetitions} alternated repetitions "
        f"({LEAST_REPETITIONS} where they take more than {SECONDS:.0f} s), and their range."
    )


COLUMNS = (("training", "graft", "training"), ("inference", "graft", "inference"), ("inference", "folded", "folded"))
"""What was timed by turns, the way of it, and its title."""


def as_markdown(rows: list[Row], asked: argparse.Namespace) -> str:
    """One table for each precision, with the medians of its columns; the first also has operations and memory."""
    lines = [conditions(asked)]
    for precision in PRECISIONS:
        first = precision == "float32"
        titles = [f"{title}, {precision}" for *_, title in COLUMNS] + ["of conv. rate"]
        titles += ["operations", "MB graft / peer"] if first else []
        lines += ["", f"| network | {' | '.join(titles)} |", f"|---|{'--:|' * len(titles)}"]
        for row in rows:
            cells = [ratio_cell(row[precision][what][way]) for what, way, _ in COLUMNS]
            cells.append(f"{row[precision]['of_rate']:.2f}")
            if first:
                memory = row["peak_memory_mb"]
                cells += [f"{operations(row):.2f}", f"{memory['graft']:.0f} / {memory['peer']:.0f}"]
            lines.append(f"| {row['pair'].replace('+', ' + ')}{'' if coincide(row) else ' †'} | {' | '.join(cells)} |")
        for title, chosen in (("median", rows), ("median of same structures", [row for row in rows if coincide(row)])):
            if chosen:
                cells = [f"{median(chosen, precision, what, way):.2f}" for what, way, _ in COLUMNS]
                lines.append(f"| {title} | {' | '.join(cells + [''] * (len(titles) - len(cells)))} |")
    return "\n".join(lines)


def ratio_cell(found: Row) -> str:
    low, high = found["range"]
    return f"**{found['ratio']:.2f}** ({low:.2f} to {high:.2f})"


def operations(row: Row) -> float:
    """The peer's operations divided by ours."""
    return row["peer"]["operations"] / row["graft"]["operations"]


def coincide(row: Row) -> bool:
    return abs(operations(row) - 1) < SAME


def median(rows: list[Row], precision: str, what: str, way: str) -> float:
    return statistics.median(row[precision][what][way]["ratio"] for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PAIRS), default=list(PAIRS), metavar="PAIR")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=256, help="height and width of the images")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile both networks; takes minutes a pair")
    parser.add_argument("--json", type=Path, help="also write the figures to this file, after every pair")
    parser.add_argument("--readme", action="store_true", help="write the tables into experiments/README.md")
    asked = parser.parse_args()
    rows: list[Row] = []
    for name in asked.only:
        print(f"{name} ({len(rows) + 1} of {len(asked.only)})", file=sys.stderr, flush=True)
        rows.append(measure(asked, name))
        if asked.json is not None:
            write_atomically(asked.json, json.dumps({"machine": conditions(asked), "rows": rows}, indent=2) + "\n")
    text = as_markdown(rows, asked)
    print(text)
    if asked.readme:
        replace_part(README, "peers.py", text)


if __name__ == "__main__":
    main()
