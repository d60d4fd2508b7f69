"""Room in memory: how much a picture needs while every layer's map is held, and what to do where there is less.

The maps grow with the picture: all those of VGG-16 and a photograph of 1,500 x 1,500 pixels take gigabytes.
"""

import math
import resource
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from datamodules.memory_limit import memory_limit
from experiments.explaining.examples import normalised, prepared
from experiments.inference.trained import TrainedNetwork
from lightning_modules.shapes_only import ghost_of

SHARE = 0.7
"""Of the free memory, so much is used."""
AT_ONCE = 4
"""Maps as large as the largest that exist at once beside those that are held: input, output and work space."""
SMALL = 512 * 512
"""Pixels of a picture that is not looked at closer: it needs a third of a gigabyte in VGG-16."""


class Need(NamedTuple):
    """Bytes of one picture: of all maps that a pass computes, and of the largest."""

    total: int
    largest: int


class Sizes(TorchDispatchMode):
    """Notes the bytes of all tensors that are computed while it is entered; views of known ones do not count."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.storages: dict[int, Any] = {}  # held, so that their addresses stay their own
        for one in known:
            self.is_new(one)
        self.sizes: list[int] = []

    def is_new(self, one: Tensor) -> bool:
        storage = one.untyped_storage()
        new = storage._cdata not in self.storages
        self.storages[storage._cdata] = storage
        return new

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):  # type: ignore[no-untyped-def]
        out = function(*arguments, **(keywords or {}))
        new = [one for one in tree_leaves(out) if isinstance(one, Tensor) and self.is_new(one)]
        self.sizes += [one.untyped_storage().nbytes() for one in new]
        return out


def need_of(network: nn.Module, shape: tuple[int, ...]) -> Need:
    """The bytes that a pass of a picture `(1, C, H, W)` needs, from its shape alone."""
    ghost = ghost_of(network)
    weights = [*ghost.parameters(), *ghost.buffers()]
    with torch.no_grad(), Sizes(weights) as found:
        ghost(torch.empty(shape, device="meta"))
    return Need(sum(found.sizes), max(found.sizes))


@cache
def usable_memory(device: torch.device) -> int:
    """Bytes that pictures may take on the network's device, asked for once, so that equal pictures stay equal."""
    if device.type == "cuda":
        return int(SHARE * torch.cuda.mem_get_info(device)[0])
    free = memory_limit() - resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    known = Path("/proc/meminfo")
    if known.is_file():
        (line,) = (line for line in known.read_text(encoding="ascii").splitlines() if line.startswith("MemAvailable:"))
        free = min(free, int(line.split()[1]) * 1024)
    return max(0, int(SHARE * free))


def prepared_to_record(network: TrainedNetwork, image: np.ndarray) -> tuple[np.ndarray, Tensor]:
    """As `prepared`, but smaller, with one line, if all maps of the picture do not fit into memory at once."""
    pixels, x = prepared(network, image)
    height, width = pixels.shape[:2]
    if height * width <= SMALL:
        return pixels, x
    need = need_of(network.module.network, tuple(x.shape))
    bytes_, room = need.total + AT_ONCE * need.largest, usable_memory(x.device)
    if bytes_ <= room:
        return pixels, x
    scale = max(math.sqrt(room / bytes_), math.sqrt(SMALL / (height * width)))
    size = (max(1, int(height * scale)), max(1, int(width * scale)))
    needs, has = (f"{one / 2**30:.1f} GiB" for one in (bytes_, room))
    say(
        f"all maps of a picture of {height} x {width} pixels need {needs} at once, and there is room for {has}: it is "
        f"explained at {size[0]} x {size[1]}"
    )
    pixels = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA)
    return pixels, normalised(network, pixels)


@cache
def say(line: str) -> None:
    """Print a line once, however many pictures it holds for."""
    print(line, flush=True)


def batch_that_fits(network: TrainedNetwork, x: Tensor, batch_size: int) -> int:
    """As many pictures as x `(1, C, H, W)` at once as memory has room for, at most `batch_size`; says so if fewer."""
    height, width = x.shape[2:]
    if batch_size * height * width <= SMALL:
        return batch_size
    most = usable_memory(x.device) // (AT_ONCE * need_of(network.module.network, tuple(x.shape)).largest)
    if most < batch_size:
        most = max(1, most)
        say(f"--batch-size {batch_size}: there is room for {most} pictures of {height} x {width} pixels at once")
    return min(batch_size, most)
