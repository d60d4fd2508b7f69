"""Dilated convolutions on a CPU, as PyTorch and as Graft compute them.

`python experiments/benchmarks/dilation_speed.py --readme` times one kernel for each of the channels (as in DeepLabv3+'s
pyramid), forward and backward and forward alone, by turns, and writes the table into experiments/README.md.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch import Tensor, nn

from backbones.dilated_conv import DilatedConv2d
from experiments.inference.benchmark_files import machine
from experiments.run_files.generated_part import replace_part

README = Path(__file__).resolve().parents[1] / "README.md"
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def forward(convolution: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        convolution(x)


def both_ways(convolution: nn.Module, x: Tensor) -> None:
    x = x.requires_grad_()
    y = convolution(x)
    y.backward(torch.ones_like(y))


def ratio(
    asked: argparse.Namespace, rate: int, precision: torch.dtype, step: Callable[[nn.Module, Tensor], None]
) -> str:
    """Milliseconds of both, and how much longer PyTorch's takes."""
    shape = (asked.batch, asked.channels, asked.side, asked.side)
    x = torch.randn(shape, dtype=precision).contiguous(memory_format=torch.channels_last)
    times: dict[type, list[float]] = {nn.Conv2d: [], DilatedConv2d: []}
    layers = {
        kind: kind(
            asked.channels, asked.channels, 3, padding=rate, dilation=rate, groups=asked.channels, dtype=precision
        ).to(memory_format=torch.channels_last)
        for kind in times
    }
    for repetition in range(asked.repetitions + 1):  # the first for nothing
        for kind, layer in layers.items():
            run = partial(step, layer, x.clone())
            started = time.perf_counter()
            run()
            if repetition:
                times[kind].append(1000 * (time.perf_counter() - started))
    theirs, ours = (statistics.median(found) for found in times.values())
    return f"{theirs:.1f} / {ours:.1f}, {theirs / ours:.1f}x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--channels", type=int, default=2048)
    parser.add_argument("--side", type=int, default=32, help="rows and columns of the map")
    parser.add_argument("--rates", default="1,2,6,12,18,36")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--readme", action="store_true", help="write the table into experiments/README.md")
    asked = parser.parse_args()
    steps = {"training": both_ways, "inference": forward}
    lines = [
        f"{machine()['processor']}, {torch.get_num_threads()} threads, torch {torch.__version__}; milliseconds of "
        f"nn.Conv2d / DilatedConv2d, {asked.batch} maps of {asked.side}x{asked.side}, {asked.channels} channels with "
        "a kernel each.",
        "",
        f"| rate | {' | '.join(f'{step}, {name}' for name in PRECISIONS for step in steps)} |",
        f"|---|{'--:|' * len(steps) * len(PRECISIONS)}",
    ]
    for rate in map(int, asked.rates.split(",")):
        cells = [ratio(asked, rate, dtype, step) for dtype in PRECISIONS.values() for step in steps.values()]
        lines.append(f"| {rate} | {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join(lines)
    print(text)
    if asked.readme:
        replace_part(README, "dilation_speed.py", text)


if __name__ == "__main__":
    main()
