"""Folds batch norms into the convolutions before them: fewer layers to compute, for prediction only.

A batch norm in evaluation mode is a scale and a shift of each channel, so weights and bias of a convolution can take it
over. Which convolution feeds which norm is not in the list of modules; it is seen while an image passes through.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

TOLERANCE = 1e-4
"""Largest difference after folding, as a fraction of the largest output; float32 gives about 1e-6."""


@torch.no_grad()
def fold_batch_norms(network: nn.Module, image: Tensor) -> int:
    """Fold what can be folded, in place, and return how many norms that were.

    A norm is folded if its input is the output of a convolution that nothing else reads, and both run once. If the
    result is another than before, which an image can tell, the network is left as it was and 0 returned.

    Args:
        network: in evaluation mode.
        image: `(B, C, H, W)`, which the network takes.
    """
    expected = network(image)
    names = {module: name for name, module in network.named_modules()}
    before: dict[str, nn.Module] = {}
    for convolution, norm in foldable(network, image):
        fused = fuse_conv_bn_eval(convolution, norm)
        for old, new in ((convolution, fused), (norm, nn.Identity().eval())):
            before[names[old]] = old
            network.set_submodule(names[old], new)
    off = float((network(image) - expected).abs().max())
    if not off <= TOLERANCE * float(expected.abs().max()):
        for name, module in before.items():
            network.set_submodule(name, module)
        return 0
    return len(before) // 2


def foldable(network: nn.Module, image: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Each batch norm with the convolution whose output it reads, found by running the network."""
    made: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}
    runs: Counter[nn.Module] = Counter()
    readers: Counter[nn.Module] = Counter()
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def after(module: nn.Module, args: Any, out: Any) -> None:
        runs[module] += 1
        for one in args:
            if isinstance(one, Tensor) and id(one) in made:
                convolution, _, version = made[id(one)]
                readers[convolution] += 1
                unchanged = one._version == version  # no operation in place lies between the two
                if isinstance(module, nn.BatchNorm2d) and module.running_var is not None and unchanged:
                    pairs.append((convolution, module))
        if isinstance(module, nn.Conv2d):
            made[id(out)] = (module, out, out._version)  # kept, so that no other tensor gets its id

    leaves = [module for module in network.modules() if not any(True for _ in module.children())]
    hooks = [module.register_forward_hook(after) for module in leaves]
    try:
        network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return [(conv, norm) for conv, norm in pairs if runs[conv] == runs[norm] == readers[conv] == 1]
