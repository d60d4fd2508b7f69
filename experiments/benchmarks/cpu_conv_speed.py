"""Convolutions on a CPU, as PyTorch and as Graft compute them; see backbones/cpu_conv.py.

`python experiments/benchmarks/cpu_conv_speed.py --readme` times layers forward and backward, and forward alone, by
turns, and writes the table into experiments/README.md: one dilated kernel for each channel, as in DeepLabv3+'s pyramid,
and 1x1 convolutions.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch import Tensor, nn

from backbones.cpu_conv import CPUConv2d
from experiments.inference.benchmark_files import machine
from experiments.run_files.generated_part import replace_part

README = Path(__file__).resolve().parents[1] / "README.md"
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Step = Callable[[nn.Module, Tensor], None]


class Layer(NamedTuple):
    """A layer and its input."""

    channels: int
    out: int
    side: int
    """Rows and columns of the map."""
    rate: int = 0
    """Dilation of a 3x3 kernel for each channel; 0 for a 1x1 convolution."""


LAYERS = {
    **{f"3x3 at rate {rate}": Layer(2048, 2048, 32, rate) for rate in (1, 2, 6, 12, 18, 36)},
    "1x1": Layer(1024, 256, 32),
    "1x1 on a map of 4x4": Layer(1024, 256, 4),
}


def forward(convolution: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        convolution(x)


def both_ways(convolution: nn.Module, x: Tensor) -> None:
    x = x.requires_grad_()
    y = convolution(x)
    y.backward(torch.ones_like(y))


def ratio(asked: argparse.Namespace, layer: Layer, precision: torch.dtype, step: Step) -> str:
    """Milliseconds of both, and how much longer PyTorch's takes."""
    shape = (asked.batch, layer.channels, layer.side, layer.side)
    x = torch.randn(shape, dtype=precision).contiguous(memory_format=torch.channels_last)
    settings = {"padding": layer.rate, "dilation": layer.rate, "groups": layer.channels} if layer.rate else {}
    times: dict[type, list[float]] = {nn.Conv2d: [], CPUConv2d: []}
    layers = {
        kind: kind(layer.channels, layer.out, 3 if layer.rate else 1, **settings, dtype=precision).to(  # type: ignore[arg-type]
            memory_format=torch.channels_last
        )
        for kind in times
    }
    for repetition in range(asked.repetitions + 1):  # the first for nothing
        for kind, convolution in layers.items():
            run = partial(step, convolution, x.clone())
            started = time.perf_counter()
            run()
            if repetition:
                times[kind].append(1000 * (time.perf_counter() - started))
    theirs, ours = (statistics.median(found) for found in times.values())
    return f"{theirs:.1f} / {ours:.1f}, {theirs / ours:.1f}x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--readme", action="store_true", help="write the table into experiments/README.md")
    asked = parser.parse_args()
    steps = {"training": both_ways, "inference": forward}
    lines = [
        f"{machine()['processor']}, {torch.get_num_threads()} threads, torch {torch.__version__}; milliseconds of "
        f"nn.Conv2d / CPUConv2d, {asked.batch} maps of 32x32; 3x3 with 2048 channels, 1x1 from 1024 to 256.",
        "",
        f"| layer | {' | '.join(f'{step}, {name}' for name in PRECISIONS for step in steps)} |",
        f"|---|{'--:|' * len(steps) * len(PRECISIONS)}",
    ]
    for name, layer in LAYERS.items():
        cells = [ratio(asked, layer, dtype, step) for dtype in PRECISIONS.values() for step in steps.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join(lines)
    print(text)
    if asked.readme:
        replace_part(README, "cpu_conv_speed.py", text)


if __name__ == "__main__":
    main()
