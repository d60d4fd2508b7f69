"""What only a GPU shows: memory formats, synchronisations, compilation, precisions, determinism, the CRF, NCCL.

    python experiments/benchmarks/accelerator.py --readme
    python experiments/benchmarks/peers.py --device cuda --batch 16 --size 512

It measures training steps of Graft's networks on one CUDA device; the second command compares them with other
libraries there. With two devices or more, it also measures DDP through NCCL. `--device cpu --quick` runs every part on
a processor with small images, to show that it works; its figures mean nothing.
"""

import argparse
import contextlib
import os
import socket
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch import Tensor, nn

from experiments.command_line.progress import with_progress
from experiments.run_files.generated_part import replace_part
from heads.crf import CRFSettings, DenseCRF
from lightning_modules.metrics import SegmentationScores
from lightning_modules.segmentation import SegmentationModule

README = Path(__file__).resolve().parents[1] / "README.md"
CLASSES = 21
FAMILIES = (
    "resnet50", "resnext50_32x4d", "senet154", "vgg16_bn", "densenet121", "googlenet", "mobilenet_v2",
    "efficientnet_b0", "xception65", "convnext_tiny", "swin_t", "vit_b_16",
)  # fmt: skip
"""One backbone of each kind of convolution; grouped ones were slow in channels-last maps in older versions of cuDNN."""
QUICK_FAMILIES = ("resnet18",)
Table = list[list[str]]
Asked = argparse.Namespace


class Training:
    """A network with its loss, its optimiser and one batch."""

    def __init__(self, asked: Asked, backbone: str, head: str = "deeplab", **options: Any) -> None:
        torch.manual_seed(0)
        self.device = torch.device(asked.device)
        names = [str(one) for one in range(CLASSES)]
        self.module = SegmentationModule(backbone, head, names, **options).to(self.device).train()
        self.optimizer = self.module.new_optimizer()
        self.images = torch.randn(asked.batch, 3, asked.size, asked.size, device=self.device)
        self.labels = torch.randint(CLASSES, (asked.batch, asked.size, asked.size), device=self.device)
        self.last(asked.layout)

    def last(self, layout: torch.memory_format) -> None:
        self.module.to(memory_format=layout)  # type: ignore[call-overload]
        self.images = self.images.contiguous(memory_format=layout)

    def in_bfloat16(self) -> Tensor:
        return self.step(torch.bfloat16)

    def step(self, dtype: torch.dtype | None = None, scaler: torch.amp.GradScaler | None = None) -> Tensor:
        """One training step under autocast of `dtype`, if given; the loss."""
        network = self.module.network
        with torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            if network.has_aux:
                logits, aux = (self.module.compiled_with_aux or network.forward_with_aux)(self.images)
            else:
                logits, aux = network(self.images), []
        loss = self.module.loss(logits, self.labels)
        for one in aux:
            loss = loss + self.module.aux_weight * self.module.loss(one, self.labels)
        self.optimizer.zero_grad()
        if scaler is None:
            loss.backward()
            self.optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(self.optimizer)
            scaler.update()
        return loss.detach()


def milliseconds(asked: Asked, work: Callable[[], Any]) -> float:
    """Median of the repetitions, after as many that do not count; waits for the device."""
    times = []
    for repetition in range(2 * asked.repetitions):
        started = time.perf_counter()
        work()
        wait(asked)
        if repetition >= asked.repetitions:
            times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def wait(asked: Asked) -> None:
    if asked.device == "cuda":
        torch.cuda.synchronize()


def memory_formats(asked: Asked) -> Table:
    """A training step of each family with NCHW maps and with channels-last maps."""
    rows = [["network", "NCHW, ms", "channels last, ms", "ratio"]]
    for backbone in QUICK_FAMILIES if asked.quick else FAMILIES:
        for head in ("unet", "deeplab"):
            if backbone in ("swin_t", "vit_b_16") and head == "deeplab":
                continue  # DeepLab's output stride of 16 is not theirs
            training = Training(asked, backbone, head)
            times = []
            for layout in (torch.contiguous_format, torch.channels_last):
                training.last(layout)
                times.append(milliseconds(asked, training.in_bfloat16))
            rows.append([f"{backbone} + {head}", *(f"{one:.1f}" for one in times), f"{times[0] / times[1]:.2f}"])
    return rows


def precisions(asked: Asked) -> Table:
    """A training step in float32 without and with TensorFloat-32, in bfloat16 and in float16 with scaled losses."""
    training = Training(asked, asked.backbone)
    rows = [["precision", "ms", "loss"]]
    for name, matmul, dtype in (
        ("float32", "highest", None),
        ("float32, TensorFloat-32", "high", None),
        ("bfloat16", "high", torch.bfloat16),
        ("float16", "high", torch.float16),
    ):
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = matmul == "high"
        scaler = torch.amp.GradScaler(asked.device) if dtype == torch.float16 and asked.device == "cuda" else None
        taken = milliseconds(asked, lambda dtype=dtype, scaler=scaler: training.step(dtype, scaler))  # type: ignore[misc]
        rows.append([name, f"{taken:.1f}", f"{float(training.step(dtype, scaler)):.3f}"])
    return rows


def compilation(asked: Asked) -> Table:
    """A training step as it is and compiled, without and with an auxiliary head, and the seconds of compiling."""
    rows = [["network", "eager, ms", "compiled, ms", "ratio", "compiling, s"]]
    for title, weight in (("without auxiliary head", None), ("with auxiliary head", 0.4)):
        training = Training(asked, asked.backbone, aux_weight=weight)
        eager = milliseconds(asked, training.step)
        training.module.compile_network("eager" if asked.quick else "inductor")
        started = time.perf_counter()
        training.step()
        wait(asked)
        compiling = time.perf_counter() - started
        compiled = milliseconds(asked, training.step)
        rows.append([title, f"{eager:.1f}", f"{compiled:.1f}", f"{eager / compiled:.2f}", f"{compiling:.1f}"])
    return rows


def synchronisations(asked: Asked) -> Table:
    """How often a training step and a metric's update make the processor wait for the device, as PyTorch counts it."""
    training = Training(asked, asked.backbone)
    training.step()
    scores = cast("SegmentationScores", training.module.split_scores("val"))
    logits = torch.randn(asked.batch, CLASSES, asked.size, asked.size, device=asked.device)
    rows = [["part", "synchronisations"]]
    for name, work in (
        ("training step", training.step),
        ("update of the metric", lambda: scores.update(logits, training.labels)),
    ):
        with synchronisation_warnings(asked) as caught:
            work()
        rows.append([name, str(sum("synchroniz" in str(one.message) for one in caught))])
    return rows


@contextlib.contextmanager
def synchronisation_warnings(asked: Asked) -> Iterator[list[warnings.WarningMessage]]:
    """Have CUDA warn of every synchronisation."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if asked.device == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield caught
        finally:
            if asked.device == "cuda":
                torch.cuda.set_sync_debug_mode("default")


def determinism(asked: Asked) -> Table:
    """What `--deterministic` costs, and whether two trainings of three steps end with the same bits."""
    rows = [["", "ms", "same bits twice"]]
    for name, on in (("as usual", False), ("deterministic", True)):
        torch.use_deterministic_algorithms(on)
        torch.backends.cudnn.benchmark = not on
        ends = []
        for _ in range(2):
            training = Training(asked, asked.backbone)
            for _ in range(3):
                training.step()
            ends.append(torch.cat([p.detach().flatten() for p in training.module.parameters()]))
        rows.append([name, f"{milliseconds(asked, training.step):.1f}", "yes" if ends[0].equal(ends[1]) else "no"])
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    return rows


@torch.no_grad()
def crf(asked: Asked) -> Table:
    """The CRF on the device and on the processor: milliseconds and the largest difference of a probability."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (1, 3, asked.size, asked.size), generator=generator, dtype=torch.uint8)
    logits = torch.randn(1, CLASSES, asked.size, asked.size, generator=generator)
    found, times = [], []
    for device in ("cpu", asked.device):
        refine = DenseCRF(CRFSettings(iterations=5)).to(device)
        inputs = logits.to(device), image.to(device)
        times.append(milliseconds(asked, lambda refine=refine, inputs=inputs: refine(*inputs)))  # type: ignore[misc]
        found.append(refine(*inputs).cpu())
    off = float((found[0] - found[1]).abs().max())
    return [["cpu, ms", f"{asked.device}, ms", "difference"], [*(f"{one:.1f}" for one in times), f"{off:.1e}"]]


def several(asked: Asked) -> Table:
    """A training step of one process and of one on each device, which exchange gradients."""
    count = 2 if asked.device == "cpu" else torch.cuda.device_count()
    if count < 2:
        return [["NCCL"], ["not measured: there is one device"]]
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    torch.multiprocessing.spawn(one_of_several, (count, port, asked, queue), count)
    taken = queue.get()
    alone = milliseconds(asked, Training(asked, asked.backbone).step)
    return [["processes", "ms"], ["1", f"{alone:.1f}"], [str(count), f"{taken:.1f}"]]


def one_of_several(rank: int, count: int, port: int, asked: Asked, queue: Any) -> None:
    """One process of DDP; the first puts its milliseconds into the queue."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if asked.device == "cuda":
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl" if asked.device == "cuda" else "gloo", rank=rank, world_size=count)
    training = Training(asked, asked.backbone)
    network = nn.parallel.DistributedDataParallel(training.module.network)
    network.has_aux = False  # type: ignore[assignment]
    training.module.network = network  # type: ignore[assignment]
    taken = milliseconds(asked, training.step)
    if rank == 0:
        queue.put(taken)
    torch.distributed.destroy_process_group()


PARTS: dict[str, tuple[str, Callable[[Asked], Table]]] = {
    "formats": ("Memory formats, bfloat16", memory_formats),
    "precisions": ("Precisions", precisions),
    "compilation": ("torch.compile", compilation),
    "synchronisations": ("Synchronisations", synchronisations),
    "determinism": ("Determinism", determinism),
    "crf": ("CRF", crf),
    "several": ("Several devices", several),
}


def as_markdown(asked: Asked, tables: dict[str, Table]) -> str:
    card = torch.cuda.get_device_name() if asked.device == "cuda" else "a processor, which shows only that it runs"
    lines = [
        f"{card}; torch {torch.__version__}; {asked.backbone} + deeplab, {asked.batch} images of "
        f"{asked.size}x{asked.size}, where nothing else is said; medians of {asked.repetitions}."
    ]
    for title, (header, *rows) in tables.items():
        lines += ["", f"**{title}**", "", f"| {' | '.join(header)} |", f"|---|{'--:|' * (len(header) - 1)}"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=512, help="height and width of the images")
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="one small network, nothing compiled by Inductor")
    parser.add_argument("--readme", action="store_true", help="write the tables into experiments/README.md")
    asked = parser.parse_args(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu --quick only shows that the program runs")
    asked.layout = torch.channels_last
    tables = {}
    for name in with_progress(asked.only, len(asked.only), "parts"):
        title, measure = PARTS[name]
        tables[title] = measure(asked)
    text = as_markdown(asked, tables)
    print(text)
    if asked.readme:
        replace_part(README, "accelerator.py", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
