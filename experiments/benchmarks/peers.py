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
training in float32, beyond what it has after its imports. A last table divides one step of each side into convolutions,
norms, optimiser, copies and the rest, which shows why a row falls short.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import segmentation_models_pytorch as smp
import torch
import torchvision
from torch import nn

from experiments.benchmarks.peer_networks import KERNELS, PAIRS, REST, Job, Side
from experiments.command_line.process import keep_freed_memory
from experiments.inference.benchmark_files import machine
from experiments.inference.worker import forget_peak, peak_memory
from experiments.run_files.atomic_file import write_atomically
from experiments.run_files.generated_part import replace_part

README = Path(__file__).resolve().parents[1] / "README.md"
PRECISIONS = {"float32": False, "bfloat16": True}
"""Whether autocast is on."""
TURNS = {"training": ("graft", "peer"), "inference": ("graft", "peer", "folded")}
"""What is timed by turns; "folded" is Graft's too."""
LEAST_REPETITIONS, SECONDS = 3, 30.0
"""What is timed by turns for longer than these seconds has so few repetitions."""
SAME = 0.005
"""Structures coincide if their operations differ by less than this fraction."""
PROFILED = {"training": (*KERNELS, REST), "inference": tuple(part for part in (*KERNELS, REST) if part != "optimiser")}
"""Steps whose time is divided into parts, and the parts that the table shows."""
Row = dict[str, Any]

SIDES: list[Side] = []
"""In a process of one side: that side."""


def start(job: Job, threads: int) -> None:
    """Build one side in its own process."""
    torch.set_num_threads(threads)
    if job.side == "graft":  # as its programs do
        keep_freed_memory()
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


def profile(what: str) -> dict[str, float]:
    """Milliseconds of each part of a float32 step of this process's side."""
    return SIDES[0].profile(what)


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
        found: Row = {"pair": pair, "peak_memory_mb": {}, "profile": {}}
        for precision in PRECISIONS:
            found[precision] = {"training": timed(pools, asked.repetitions, "training", precision)}
            if precision == "float32":
                for side, pool in pools.items():
                    found["peak_memory_mb"][side] = pool.submit(peak_memory).result() - before[side]
        for precision in PRECISIONS:
            found[precision] |= {"inference": timed(pools, asked.repetitions, "inference", precision)}
        for side, pool in pools.items():
            found["profile"][side] = {what: pool.submit(profile, what).result() for what in PROFILED}
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
    return "\n".join([*lines, "", *profile_table(rows)])


def profile_table(rows: list[Row]) -> list[str]:
    """Where the milliseconds of float32 go, on both sides."""
    titles = [f"{what}: {part}" for what, parts in PROFILED.items() for part in parts]
    lines = [
        "Milliseconds of the parts of one step in float32, Graft / peer; Graft's inference is the folded one:",
        "",
        f"| network | {' | '.join(titles)} |",
        f"|---|{'--:|' * len(titles)}",
    ]
    for row in rows:
        spent = [
            " / ".join(f"{row['profile'][side][what][part]:.0f}" for side in ("graft", "peer"))
            for what, parts in PROFILED.items()
            for part in parts
        ]
        lines.append(f"| {row['pair'].replace('+', ' + ')} | {' | '.join(spent)} |")
    return lines


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
