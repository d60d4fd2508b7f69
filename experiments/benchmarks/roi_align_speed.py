"""RoIAlign on a CPU, as torchvision and as Graft compute it; see heads/roi_pooling.py.

`python experiments/benchmarks/roi_align_speed.py --readme` times 7x7 bins of random boxes forward and backward, and
forward alone, by turns, and writes the table into experiments/README.md.
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
from torch import Tensor
from torchvision.ops import roi_align

from experiments.inference.benchmark_files import machine
from experiments.run_files.generated_part import replace_part
from heads.roi_pooling import align_on_cpu

README = Path(__file__).resolve().parents[1] / "README.md"
Pool = Callable[[Tensor, Tensor, int, float], Tensor]
SCALE = 0.25
"""Values of the map per pixel."""


class Case(NamedTuple):
    """The maps of a batch, and boxes in them."""

    images: int
    channels: int
    side: int
    """Rows and columns of a map."""
    regions: int


CASES = [Case(2, 256, 200, 1024), Case(2, 256, 50, 1024), Case(8, 128, 16, 4096), Case(8, 512, 4, 1024)]


def times(case: Case, repetitions: int, *, training: bool) -> str:
    """Milliseconds of both, and how much longer torchvision's takes."""
    maps = torch.randn(case.images, case.channels, case.side, case.side).contiguous(memory_format=torch.channels_last)
    pixels = case.side / SCALE
    start, size = torch.rand(case.regions, 2) * 0.6 * pixels, torch.rand(case.regions, 2) * 0.4 * pixels
    image = torch.randint(0, case.images, (case.regions, 1))
    regions = torch.cat([image, start, start + size], 1)
    pools: list[Pool] = [partial(roi_align, sampling_ratio=2), align_on_cpu]
    found: list[list[float]] = [[], []]
    for repetition in range(repetitions + 1):  # the first for nothing
        for seconds, pool in zip(found, pools, strict=True):
            x = maps.clone().requires_grad_(training)
            started = time.perf_counter()
            pooled = pool(x, regions, 7, SCALE)
            if training:
                pooled.backward(torch.ones_like(pooled))
            if repetition:
                seconds.append(1000 * (time.perf_counter() - started))
    theirs, ours = map(statistics.median, found)
    return f"{theirs:.0f} / {ours:.0f}, {theirs / ours:.1f}x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--readme", action="store_true", help="write the table into experiments/README.md")
    asked = parser.parse_args()
    lines = [
        f"{machine()['processor']}, {torch.get_num_threads()} threads, torch {torch.__version__}; milliseconds of "
        "torchvision / Graft.",
        "",
        "| images | maps | boxes | training | inference |",
        "|--:|---|--:|--:|--:|",
    ]
    for case in CASES:
        cells = [times(case, asked.repetitions, training=training) for training in (True, False)]
        maps = f"{case.channels} channels, {case.side}x{case.side}"
        lines.append(f"| {case.images} | {maps} | {case.regions} | {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join(lines)
    print(text)
    if asked.readme:
        replace_part(README, "roi_align_speed.py", text)


if __name__ == "__main__":
    main()
