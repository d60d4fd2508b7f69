"""Passes on PyTorch's meta device, which computes shapes only: a copy of a network there, and half the time."""

import copy
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

M = TypeVar("M", bound=nn.Module)


def ghost_of(network: M) -> M:
    """Copy a network to the meta device without copying its weights on the way."""
    memo: dict[int, Any] = {id(one): torch.empty_like(one, device="meta") for one in network.buffers()}
    for one in network.parameters():
        memo[id(one)] = nn.Parameter(torch.empty_like(one, device="meta"), one.requires_grad)
    return copy.deepcopy(network, memo)


class ShapesOnly(TorchFunctionMode):
    """While it is entered, batch norm and interpolation answer at once for tensors on the meta device.

    PyTorch finds their shapes by decomposing them into dozens of operations in Python, although the one changes no
    shape and the other is told the shape. What they refuse is refused here too. All else is left to PyTorch.
    """

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        if arguments and isinstance(arguments[0], Tensor) and arguments[0].is_meta:
            if function is F.batch_norm:
                return normalised(*arguments, **keywords)
            if function is F.interpolate:
                return interpolated(*arguments, **keywords)
        return function(*arguments, **keywords)


def normalised(
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    *_: Any,
    **__: Any,
) -> Tensor:
    """The result of `F.batch_norm`, without content; its arguments.

    Raises:
        ValueError: there is one value per channel to normalise in training, in PyTorch's words.
        RuntimeError: the statistics or the parameters are those of another number of channels.
    """
    if training and x.numel() == x.shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")
    for given in (mean, variance, weight, bias):
        if given is not None and len(given) != x.shape[1]:
            raise RuntimeError(f"a batch norm of {len(given)} channels cannot normalise {x.shape[1]} channels")
    return torch.empty_like(x)


def interpolated(x: Tensor, size: Any = None, *more: Any, **options: Any) -> Tensor:
    """The result of `F.interpolate`, without content; its arguments."""
    shape = x.shape[:2] + torch.Size([size] * (x.ndim - 2) if isinstance(size, int) else size or ())
    if len(shape) != x.ndim or 0 in x.shape + shape:  # by a factor, or a mistake
        return F.interpolate(x, size, *more, **options)
    return x.new_empty(shape)
