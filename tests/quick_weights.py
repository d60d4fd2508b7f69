"""Random weights in a tenth of the time, for tests of networks whose weights only have to be of the usual size.

Building a large network takes seconds, almost all of it spent on drawing random numbers.
"""

import functools

import pytest
import torch
from torch import Generator, Tensor

LENGTH = 1_000_003
"""Length of the row of numbers that is repeated. It is prime, so that no two rows of a weight are equal."""
SMALL = 20_000
"""Values up to which a tensor is drawn as usual."""


@functools.cache
def normal_row() -> Tensor:
    return torch.empty(LENGTH, device="cpu").normal_(generator=Generator().manual_seed(0))


@functools.cache
def uniform_row() -> Tensor:
    return torch.empty(LENGTH, device="cpu").uniform_(generator=Generator().manual_seed(0))


@functools.cache
def truncated_row(low: float, high: float) -> Tensor:
    row = normal_row()
    return row[(row >= low) & (row <= high)]


def fill(tensor: Tensor, row: Tensor, scale: float, shift: float) -> Tensor:
    """Fill a tensor with `shift + scale * row`, repeated, from a place that torch's seed decides."""
    with torch.no_grad():
        flat = tensor.view(-1)
        position, start = 0, int(torch.randint(len(row), (), device="cpu"))
        while position < len(flat):
            part = row[start : start + len(flat) - position]
            torch.mul(part, scale, out=flat[position : position + len(part)])
            position, start = position + len(part), 0
        if shift:
            flat.add_(shift)
    return tensor


def is_large(tensor: Tensor) -> bool:
    return (
        tensor.numel() > SMALL
        and tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.is_contiguous()
    )


def make_weights_quick(patch: pytest.MonkeyPatch) -> None:
    """Let what torch.nn.init calls repeat one row of numbers in large tensors, and do nothing on the meta device."""
    normal, uniform = Tensor.normal_, Tensor.uniform_
    truncated = torch.nn.init._no_grad_trunc_normal_

    def normal_(self: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Generator | None = None) -> Tensor:
        if self.is_meta:
            return self
        if generator is not None or not is_large(self):
            return normal(self, mean, std, generator=generator)
        return fill(self, normal_row(), std, mean)

    def uniform_(self: Tensor, low: float = 0.0, high: float = 1.0, *, generator: Generator | None = None) -> Tensor:
        if self.is_meta:
            return self
        if generator is not None or not is_large(self):
            return uniform(self, low, high, generator=generator)
        return fill(self, uniform_row(), high - low, low)

    def trunc_normal_(
        tensor: Tensor, mean: float, std: float, a: float, b: float, generator: Generator | None = None
    ) -> Tensor:
        if generator is not None or not is_large(tensor):
            return truncated(tensor, mean, std, a, b, generator=generator)
        return fill(tensor, truncated_row((a - mean) / std, (b - mean) / std), std, mean)

    patch.setattr(Tensor, "normal_", normal_, raising=False)
    patch.setattr(Tensor, "uniform_", uniform_, raising=False)
    patch.setattr(torch.nn.init, "_no_grad_trunc_normal_", trunc_normal_)
