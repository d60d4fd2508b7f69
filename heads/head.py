"""Base class of all heads: a module that turns a backbone's feature maps into logits and declares its requirements.

Heads that detect objects derive from `BoxHead` in `box_head.py` and return other things than logits.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from heads.placing import place

Task = Literal["classification", "segmentation", "detection"]


class Head(nn.Module):
    """Base of all heads. `forward([maps]) -> logits`, at the head's own resolution; `Network` upsamples them.

    Subclasses take `(channels, reductions, num_classes, **own options)`. A head never depends on a backbone's name.

    Args:
        reductions: image pixels per value of each map of the backbone, finest map first.
        levels: indices of the maps that the head reads, finest first. Its logits lie on the first of them.
        stride: image pixels per logit; None: the reduction of that map.
    """

    task: ClassVar[Task] = "segmentation"
    required_strides: ClassVar[tuple[int, ...]] = ()
    """Native strides of maps that it reads besides the last; a backbone that lacks one of them is refused."""
    output_stride: ClassVar[int] = 32
    """The output stride its paper trains at; used unless the user names another."""
    backbone_options: ClassVar[dict[str, Any]] = {}
    """Options that are passed to backbones whose constructor accepts them, such as `fully_convolutional`."""
    needs_padded_maps: ClassVar[bool] = False
    """Whether it is refused on backbones whose unpadded layers crop the image (see `Backbone.cropped_pixels`)."""
    takes_classifier: ClassVar[bool] = False
    """Whether it is given the backbone's published classifier as `classifier=`."""
    takes_region_layers: ClassVar[bool] = False
    """Whether it is given `Backbone.region_layers()`, which may be None, as `classifier=`."""
    stages: ClassVar[tuple[dict[str, Any], ...]] = ()
    """Staged training as in the papers: for each stage, the settings of run.py that it changes. The last stage trains
    this head itself."""

    cropped_pixels: int = 0
    """Image pixels that the backbone's unpadded layers must crop (see `Backbone.cropped_pixels`); 0: any number."""
    mirror_before: int = 0
    """Image pixels by which the image is mirrored outwards at the top and at the left before the backbone sees it."""

    def __init__(self, reductions: Sequence[int], levels: Sequence[int], stride: int | None = None) -> None:
        super().__init__()
        self.reductions = tuple(reductions)
        self.levels = tuple(levels)
        self.stride = reductions[self.levels[0]] if stride is None else stride
        self.offsets: tuple[float, ...] = (0.0,) * len(self.reductions)
        """Image pixels by which unpadded layers displace each map; `Network` sets what the backbone declares."""

    @property
    def first_pixel(self) -> int:
        """Image pixel (of the mirrored image) at which the first logit begins."""
        return round(self.offsets[self.levels[0]])

    def mirror_after(self, size: int) -> int:
        """Pixels by which a side of `size` pixels is mirrored outwards at the bottom or the right."""
        return self.mirror_before

    def fit(
        self,
        x: Tensor,
        source: int,
        target: int,
        size: Sequence[int],
        *,
        upsampled: bool = False,
        mode: Literal["bilinear", "nearest"] = "bilinear",
    ) -> Tensor:
        """Place values that lie on map `source` on the finer map `target`, whose H and W are `size`.

        Args:
            upsampled: whether `x` already has the stride of `target`.
        """
        stride = self.reductions[target]
        shift = round((self.offsets[source] - self.offsets[target]) / stride)
        return place(x, 1 if upsampled else self.reductions[source] // stride, size, shift, mode)

    def forward(self, features: list[Tensor]) -> Any:
        raise NotImplementedError


def index_of_stride(reductions: Sequence[int], stride: int) -> int | None:
    """Index of the map that has native stride `stride`, or None.

    If dilation keeps the deeper maps at the output stride, their native strides follow from their order: with
    reductions (2, 4, 8, 8, 8), the last map has native stride 32.
    """
    if stride in reductions[:-1]:
        return list(reductions).index(stride)
    coarsest = max(reductions)
    index = list(reductions).index(coarsest)
    while coarsest < stride:
        coarsest, index = coarsest * 2, index + 1
    return index if coarsest == stride and index < len(reductions) else None


def level_at(reductions: Sequence[int], stride: int) -> int:
    """Index of the map that has native stride `stride`.

    Raises:
        ValueError: there is no such map.
    """
    index = index_of_stride(reductions, stride)
    if index is None:
        raise ValueError(f"the head needs a map at stride {stride}; there are {', '.join(map(str, reductions))}")
    return index


def last(reductions: Sequence[int]) -> int:
    """Index of the last map."""
    return len(reductions) - 1


def missing_strides(head: type[Head], reductions: Sequence[int]) -> list[int]:
    """The strides a head needs that a backbone does not have."""
    return [stride for stride in head.required_strides if index_of_stride(reductions, stride) is None]
