"""Passes on PyTorch's meta device, which computes shapes only: a copy of a network there, and half the time."""

import copy
from collections.abc import Callable, Sequence
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


ACTIVATIONS: set[Callable[..., Any]] = {
    F.relu, F.relu6, F.leaky_relu, F.hardtanh, F.hardswish, F.hardsigmoid, F.gelu, F.silu, F.sigmoid,
    torch.relu, torch.sigmoid, torch.clamp, Tensor.relu, Tensor.sigmoid, Tensor.clamp,
}  # fmt: skip
"""Functions of one tensor whose result has its shape."""
SUMS_AND_PRODUCTS: set[Callable[..., Any]] = {
    torch.add, torch.mul, Tensor.add, Tensor.mul, Tensor.__add__, Tensor.__mul__, Tensor.__iadd__, Tensor.__imul__,
    Tensor.add_, Tensor.mul_, torch.sub, Tensor.sub, Tensor.__sub__,
}  # fmt: skip


class ShapesOnly(TorchFunctionMode):
    """While it is entered, the functions that networks call most answer at once for tensors on the meta device.

    PyTorch finds the shapes of batch norms, interpolation, activations, sums and products by decomposing them into
    dozens of operations in Python, although most change no shape and interpolation is told it. What they refuse is
    refused here too. All else is left to PyTorch.
    """

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        if arguments and isinstance(arguments[0], Tensor) and arguments[0].is_meta:
            if function is F.batch_norm:
                return normalised(*arguments, **keywords)
            if function is F.interpolate:
                return interpolated(*arguments, **keywords)
            if function is F.group_norm and keeps_groups(*arguments, **keywords):
                return arguments[0].detach()
            if function in ACTIVATIONS and arguments[0].is_floating_point():
                return arguments[0] if keywords.get("inplace") else arguments[0].detach()
            if function is F.layer_norm and keeps_shape(*arguments, **keywords):
                return arguments[0].detach()
            if function in SUMS_AND_PRODUCTS and not keywords and fit(*arguments):
                return arguments[0].detach()
            if function is Tensor.clamp and keep_type(arguments[0], *arguments[1:], *keywords.values()):
                return arguments[0].detach()
        return function(*arguments, **keywords)


def keep_type(x: Tensor, *others: Any) -> bool:
    """Whether the others are numbers with which a tensor keeps its type."""
    kinds = (int, float) if x.is_floating_point() else () if x.dtype == torch.bool else (int,)
    return all(type(other) in kinds for other in others)


def fit(*arguments: Any) -> bool:
    """Whether the second is a number that leaves the first its type, or a meta tensor of its type that is of its shape
    or stretched to it.
    """
    if len(arguments) != 2 or not isinstance(arguments[1], Tensor):
        return len(arguments) == 2 and keep_type(*arguments)
    one, other = arguments
    if not other.is_meta or one.dtype != other.dtype or one.ndim != other.ndim:
        return False
    return all(b in (a, 1) for a, b in zip(one.shape, other.shape, strict=True))


def keeps_shape(x: Tensor, shape: Sequence[int], weight: Tensor | None = None, *more: Any, **__: Any) -> bool:
    """Whether the arguments are those of a layer norm that PyTorch takes."""
    given = (one for one in (weight, *more) if isinstance(one, Tensor))
    return tuple(x.shape[-len(shape) :]) == tuple(shape) and all(one.shape == tuple(shape) for one in given)


def keeps_groups(x: Tensor, groups: int, *more: Any, **__: Any) -> bool:
    """Whether the arguments are those of a group norm that PyTorch takes, over maps of more than one value."""
    sizes = {tuple(one.shape) for one in more if isinstance(one, Tensor)}
    several = x.ndim > 2 and x.numel() > x.shape[0] * x.shape[1]
    return several and x.shape[1] % groups == 0 and sizes <= {(x.shape[1],)}


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
    return x.detach()


def interpolated(x: Tensor, size: Any = None, *more: Any, **options: Any) -> Tensor:
    """The result of `F.interpolate`, without content; its arguments."""
    shape = x.shape[:2] + torch.Size([size] * (x.ndim - 2) if isinstance(size, int) else size or ())
    if len(shape) != x.ndim or 0 in x.shape + shape:  # by a factor, or a mistake
        return F.interpolate(x, size, *more, **options)
    return x.new_empty(shape)
