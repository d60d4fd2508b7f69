"""What every head is: a module that turns a backbone's maps into logits, and says as data what it needs."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

Task = Literal["classification", "segmentation"]


class Head(nn.Module):
    """Base of all heads. `forward([maps]) -> logits`, at whatever resolution it computes; never sees a backbone's name.

    Subclasses take `(channels, reductions, num_classes, **own options)`.
    """

    task: ClassVar[Task] = "segmentation"
    needs: ClassVar[tuple[int, ...]] = ()
    """Native strides of the maps it reads besides the last; a backbone without one of them is refused."""
    output_stride: ClassVar[int] = 32
    """The output stride its paper trains at; used unless the user names another."""
    backbone_knobs: ClassVar[dict[str, Any]] = {}
    """Set on backbones that have these constructor knobs, such as fully-connected layers as convolutions."""
    takes_classifier: ClassVar[bool] = False
    """Whether it is given the backbone's published classifier as `classifier=`."""

    cut: int = 0
    """Pixels of the image on each side that its logits lack, as unpadded convolutions leave them."""
    stages: ClassVar[tuple[dict[str, Any], ...]] = ()
    """The papers' staged training: settings of run.py that differ in each run, the last being its own."""

    def margins(self, size: int) -> tuple[int, int]:
        """Pixels by which a side of `size` pixels is to be mirrored outwards before the backbone sees the image."""
        return 0, 0

    def forward(self, features: list[Tensor]) -> Tensor:
        raise NotImplementedError


def level(reductions: Sequence[int], stride: int) -> int | None:
    """Index of the map that has native stride `stride`, or None.

    Where dilation holds the deeper maps at the output stride, they keep their order: with reductions (2, 4, 8, 8, 8)
    the map of native stride 32 is the last.
    """
    if stride in reductions[:-1]:
        return list(reductions).index(stride)
    coarsest = max(reductions)
    index = list(reductions).index(coarsest)
    while coarsest < stride:
        coarsest, index = coarsest * 2, index + 1
    return index if coarsest == stride and index < len(reductions) else None


def missing_strides(head: type[Head], reductions: Sequence[int]) -> list[int]:
    """The strides a head needs that a backbone does not have."""
    return [stride for stride in head.needs if level(reductions, stride) is None]
