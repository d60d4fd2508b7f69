"""How time and memory of training grow with image size, batch, depth, classes and processes.

    python experiments/benchmarks/scale.py --readme

Each point is a process of its own: it trains two steps for nothing and times the next ones. Time is the fastest of
them; memory is the most that the process had beyond its imports. One thing is varied at a time, on log-log axes, and
the exponent is the slope of a straight line through its points: 1 means that twice as much costs twice as much.
Processes (DDP through Gloo) each have the whole batch, so that an exponent of 0 in time means that they do not slow
each other down. It also measures which part of a validation step the metric takes at 150 classes.
"""

import argparse
import json
import os
import socket
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, cast

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import torch
from torch import Tensor, nn

from experiments.command_line.process import keep_freed_memory
from experiments.command_line.progress import with_progress
from experiments.inference.benchmark_files import machine
from experiments.inference.worker import forget_peak, peak_memory
from experiments.run_files.atomic_file import write_atomically
from experiments.run_files.generated_part import replace_part
from lightning_modules.metrics import SegmentationScores
from lightning_modules.segmentation import SegmentationModule

README = Path(__file__).resolve().parents[1] / "README.md"
PLOT = Path(__file__).resolve().parents[1] / "images" / "scale.png"
LAYERS = {"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101}


class Point(NamedTuple):
    """What is trained."""

    size: int = 160
    batch: int = 4
    backbone: str = "resnet18"
    classes: int = 20
    processes: int = 1


AXES: dict[str, list[tuple[int, Point]]] = {
    "side of the image, pixels": [(size, Point(size=size)) for size in (80, 160, 320, 640)],
    "images in a batch": [(batch, Point(batch=batch)) for batch in (1, 2, 4, 8, 16)],
    "layers (ResNets)": [(layers, Point(backbone=name)) for name, layers in LAYERS.items()],
    "classes": [(classes, Point(classes=classes)) for classes in (2, 10, 50, 150, 1000)],
    "processes": [(processes, Point(processes=processes)) for processes in (1, 2)],
}
"""What is varied, with the points of its line."""
Measured = dict[str, float]


def batch_of(point: Point, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images and labels."""
    generator = torch.Generator().manual_seed(seed)
    shape = (point.batch, 3, point.size, point.size)
    images = torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(point.classes, (shape[0], *shape[2:]), generator=generator)


def module_of(point: Point) -> SegmentationModule:
    names = [str(one) for one in range(point.classes)]
    return SegmentationModule(point.backbone, "unet", names).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def train(point: Point, steps: int, threads: int, rank: int = 0, port: int = 0) -> Measured:
    """Seconds of a training step and MB beyond the imports, in a fresh process; one of several if there is a port."""
    torch.set_num_threads(threads)
    keep_freed_memory()  # as run.py does
    forget_peak()
    before = peak_memory()
    module = module_of(point).train()
    network: nn.Module = module.network
    if port:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        torch.distributed.init_process_group("gloo", rank=rank, world_size=point.processes)
        network = nn.parallel.DistributedDataParallel(network)
    optimizer = module.new_optimizer()
    images, labels = batch_of(point, rank)
    times = []
    for _ in range(2 + steps):
        started = time.perf_counter()
        optimizer.zero_grad()
        module.loss(network(images), labels).backward()
        optimizer.step()
        times.append(time.perf_counter() - started)
    if port:
        torch.distributed.destroy_process_group()
    return {"seconds": min(times[2:]), "mb": peak_memory() - before}


def measure(point: Point, steps: int, threads: int) -> Measured:
    """What the slowest of the point's processes takes, and what all of them need together."""
    port = free_port() if point.processes > 1 else 0
    each = max(1, threads // point.processes)
    with ProcessPoolExecutor(point.processes, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(train, point, steps, each, rank, port) for rank in range(point.processes)]
        found = [job.result() for job in jobs]
    return {"seconds": max(one["seconds"] for one in found), "mb": sum(one["mb"] for one in found)}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def metric_cost(point: Point, steps: int, threads: int) -> Measured:
    """Fraction of a validation step (network, loss, metric) that the metric takes, and bytes per further pixel.

    The point has two images or more. Matrices of the square of the classes are there once, whatever the pixels.
    """
    torch.set_num_threads(threads)
    module, (images, labels) = module_of(point).eval(), batch_of(point)
    scores = cast("SegmentationScores", module.split_scores("val"))
    times: list[tuple[float, float]] = []
    with torch.inference_mode():
        for _ in range(1 + steps):
            started = time.perf_counter()
            logits = module.network(images)
            module.loss.sums(logits, labels)  # type: ignore[operator]
            counted = time.perf_counter()
            scores.update(logits, labels)
            times.append((time.perf_counter() - counted, time.perf_counter() - started))
        one, two = (extra_bytes(lambda n=n: scores.update(logits[:n], labels[:n])) for n in (1, 2))  # type: ignore[misc]
    metric, whole = min(times[1:], key=lambda pair: pair[0] / pair[1])
    return {"share": metric / whole, "bytes_per_pixel": (two - one) / labels[0].numel()}


def extra_bytes(work: Any) -> int:
    """The most bytes that all tensors made by `work` had at one time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    now = most = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def exponent(points: list[tuple[int, Measured]], what: str) -> float:
    """The slope of a straight line through the logarithms."""
    x, y = (np.log([one for one, _ in points]), np.log([max(found[what], 1e-9) for _, found in points]))
    return float(np.polyfit(x, y, 1)[0])


def draw(results: dict[str, list[tuple[int, Measured]]], path: Path) -> None:
    """Time above memory for each thing that was varied, with the exponents in the legends."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        2, len(results), figsize=(3.4 * len(results), 5.6), layout="constrained", squeeze=False
    )
    for column, (axis, points) in enumerate(results.items()):
        for panel, what, colour in zip(panels[:, column], ("seconds", "mb"), ("tab:blue", "tab:orange"), strict=True):
            x, y = [one for one, _ in points], [found[what] for _, found in points]
            panel.loglog(x, y, "o-", color=colour, label=f"exponent {exponent(points, what):.2f}")
            panel.set_xticks(x, [f"{one:,}" for one in x])
            panel.minorticks_off()
            panel.set_xlabel(axis)
            panel.legend(frameon=False)
            panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("seconds of a training step")
    panels[1, 0].set_ylabel("MB of memory")
    part = path.with_name(path.name + ".part")
    figure.savefig(part, dpi=80, format="png")
    plt.close(figure)
    part.replace(path)


def as_markdown(results: dict[str, list[tuple[int, Measured]]], metric: dict[str, Measured]) -> str:
    about, base = machine(), Point()
    lines = [
        f"{about['processor']}, {about['cores']} cores, torch {torch.__version__}; {base.backbone} + unet, "
        f"{base.batch} images of {base.size}x{base.size}, {base.classes} classes, float32, where nothing else is said.",
        "",
        "| varied | from, to | seconds of a step | exponent | MB | exponent |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for axis, points in results.items():
        (low, first), (high, last) = points[0], points[-1]
        lines.append(
            f"| {axis} | {low:,} to {high:,} | {first['seconds']:.2f} to {last['seconds']:.2f} | "
            f"{exponent(points, 'seconds'):.2f} | {first['mb']:.0f} to {last['mb']:.0f} | "
            f"{exponent(points, 'mb'):.2f} |"
        )
    for classes, found in metric.items():
        lines += [
            "",
            f"The metric takes {found['share']:.1%} of a validation step of {classes} classes, and "
            f"{found['bytes_per_pixel']:.0f} bytes for each pixel besides the logits.",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each point")
    parser.add_argument("--threads", type=int, default=machine()["cores"], help="of all processes together")
    parser.add_argument("--only", nargs="+", type=int, choices=range(len(AXES)), help="some of: " + "; ".join(AXES))
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--picture", type=Path, default=PLOT, help="PNG file to draw")
    parser.add_argument("--readme", action="store_true", help="write the table into experiments/README.md")
    asked = parser.parse_args()
    chosen = {
        axis: points for place, (axis, points) in enumerate(AXES.items()) if place in (asked.only or range(len(AXES)))
    }
    measured: dict[Point, Measured] = {}
    points = list(dict.fromkeys(point for line in chosen.values() for _, point in line))
    for point in with_progress(points, len(points), "points"):
        measured[point] = measure(point, asked.steps, asked.threads)
    results = {axis: [(x, measured[point]) for x, point in line] for axis, line in chosen.items()}
    metric = {}
    for classes in (150, 1000):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            job = pool.submit(metric_cost, Point(classes=classes, batch=2), asked.steps, asked.threads)
            metric[str(classes)] = job.result()
    if asked.json is not None:
        write_atomically(asked.json, json.dumps({"lines": results, "metric": metric}, indent=2) + "\n")
    draw(results, asked.picture)
    text = as_markdown(results, metric)
    print(text)
    if asked.readme:
        picture = "![seconds and memory of a training step](images/scale.png)"
        replace_part(README, "scale.py", f"{text}\n\n{picture}")


if __name__ == "__main__":
    main()
