"""Exact output stride: trade strides for dilation (the algorithme à trous of Holschneider et al. 1989).

When a layer gives up its stride, the map it makes is denser by that factor, so every *later* layer must reach that
many times further to see what it saw before. The layer that gave up the stride itself reads an unchanged map: it keeps
the dilation paid for so far. Then the dense map, sampled at every skipped pixel, equals the map of the strided network
with the same weights (Chen et al. 2018, arXiv:1606.00915, section 3.1).
"""

from collections.abc import Sequence
from typing import NamedTuple

OUTPUT_STRIDES = (8, 16, 32)


class Step(NamedTuple):
    """What one layer, or one block with a single striding layer, is built with."""

    stride: int
    """The stride that is left: the native one, or 1 where it was traded for dilation."""
    dilation: int
    """Dilation of the layer that strides, and of layers before it in the block."""
    after: int
    """Dilation of the layers behind it."""
    reduction: int
    """Pixels of the input per pixel of the map behind this step."""


def atrous_steps(strides: Sequence[int], output_stride: int) -> list[Step]:
    """Follow a network's native strides, front to back, keeping the map at `output_stride` or finer.

    A padding of `dilation * (kernel_size - 1) // 2` keeps odd kernels aligned with the strided network.

    Raises:
        ValueError: `output_stride` is not 8, 16 or 32.
    """
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"output_stride is {output_stride}; it must be 8, 16 or 32")
    steps, reduction, dilation = [], 1, 1
    for stride in strides:
        before = dilation
        if reduction * stride <= output_stride:
            reduction *= stride
        else:
            dilation, stride = dilation * stride, 1
        steps.append(Step(stride, before, dilation, reduction))
    return steps
