"""Exact output stride: trade strides for dilation (the algorithme à trous of Holschneider et al. 1989).

When a layer's stride is replaced by 1, its output is denser by that factor, so every *later* layer needs a dilation
larger by that factor to cover the same pixels. The layer itself reads an unchanged map and keeps the dilation
accumulated so far. Then the dense map, subsampled at the original stride, equals the map of the strided network with
the same weights (Chen et al. 2018, arXiv:1606.00915, section 3.1).
"""

from collections.abc import Sequence
from typing import NamedTuple

OUTPUT_STRIDES = (8, 16, 32)


class Step(NamedTuple):
    """Stride and dilation of one layer, or of one block with a single striding layer, at some output stride."""

    stride: int
    """The stride that is left: the native one, or 1 if it was replaced by dilation."""
    dilation: int
    """Dilation of the layer that strides, and of the layers before it in the block."""
    dilation_after: int
    """Dilation of the layers after it."""
    reduction: int
    """Cumulative stride: input pixels per pixel of this step's output."""

    @property
    def native_stride(self) -> int:
        """The stride in the undilated network, whether or not it was replaced by dilation."""
        return self.stride * self.dilation_after // self.dilation

    @property
    def rest(self) -> "Step":
        """The step of the layers that follow at the same reduction: they do not stride."""
        return Step(1, self.dilation_after, self.dilation_after, self.reduction)


def atrous_steps(strides: Sequence[int], output_stride: int) -> list[Step]:
    """Turn a network's native strides, first to last, into steps that keep the map at `output_stride` or finer.

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
