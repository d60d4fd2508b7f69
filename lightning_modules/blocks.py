"""Split a backbone into its sequence of blocks, for layer-wise learning-rate decay, checkpointing and sharding."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from backbones.frozen_statistics import frozen_batch_norm_statistics

CONTAINERS = (nn.Sequential, nn.ModuleList)


def units(backbone: nn.Module) -> dict[str, nn.Module]:
    """Return the network's units (residual blocks and the like, or single layers) in layer order, by name prefix.

    Containers (`nn.Sequential`, `nn.ModuleList`) and modules of a type that occurs only once are split recursively;
    what remains are the units.
    """
    kinds = Counter(type(module) for module in backbone.modules())

    def walk(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        unique = kinds[type(module)] == 1 and any(True for _ in module.children())
        if unique or isinstance(module, CONTAINERS):
            for name, child in module.named_children():
                yield from walk(f"{prefix}{name}.", child)
        elif any(True for _ in module.parameters()):
            yield prefix, module

    return dict(walk("", backbone))


def blocks(backbone: nn.Module) -> list[nn.Module]:
    """Return the units that consist of several layers.

    Raises:
        ValueError: there are none; VGG and older networks are sequences of single layers.
    """
    found = [unit for unit in units(backbone).values() if any(True for _ in unit.children())]
    if not found:
        raise ValueError(
            "--checkpoint-activations and --strategy fsdp2 work on blocks; this backbone has single layers only: "
            "leave the flag out, or choose a backbone with blocks, such as a ResNet"
        )
    return found


def depths(backbone: nn.Module) -> tuple[dict[str, int], int]:
    """Return how many layers precede each parameter, by name, and the number of layers.

    A normalisation layer counts as part of the layer before it; parameters outside all units, such as ViT's position
    embedding, count as part of the first layer.
    """
    layer, of_unit = -1, {}
    for prefix, unit in units(backbone).items():
        is_norm = all(parameter.ndim == 1 for parameter in unit.parameters())
        layer = max(0, layer + (not is_norm))
        of_unit[prefix] = layer
    by_name = {
        name: next((depth for prefix, depth in of_unit.items() if name.startswith(prefix)), 0)
        for name, _ in backbone.named_parameters()
    }
    return by_name, layer + 1


def recompute_activations(backbone: nn.Module) -> None:
    """Activation checkpointing: store only the input of each block and recompute the rest in the backward pass.

    Saves memory and takes about a third more time (Chen et al. 2016, arXiv:1604.06174).
    """
    for block in blocks(backbone):
        block.forward = partial(recomputed, block.forward, block)  # type: ignore[method-assign]


def recomputed(forward: Callable[..., Any], block: nn.Module, *inputs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    if torch.compiler.is_compiling():  # a compiled block updates its statistics once, whatever it recomputes
        return checkpoint(forward, *inputs, use_reentrant=False)
    contexts = partial(first_and_second_pass, block)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


def first_and_second_pass(block: nn.Module) -> tuple[Any, Any]:
    return nullcontext(), frozen_batch_norm_statistics(block)
