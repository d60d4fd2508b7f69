"""Base class of all heads: a module that turns a backbone's feature maps into logits and declares its requirements.

Heads that detect objects derive from `BoxHead` in `box_head.py` and return other things than logits.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from heads.placing import Placement, place, sample, span, stretch

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
    sees_whole_image: ClassVar[bool] = False
    """Whether it detects by layers over the whole image, so that all images must have one size."""
    takes_classifier: ClassVar[bool] = False
    """Whether it is given the backbone's published classifier as `classifier=`."""
    takes_region_layers: ClassVar[bool] = False
    """Whether it is given `Backbone.region_layers()`, which may be None, as `classifier=`."""
    stages: ClassVar[tuple[dict[str, Any], ...]] = ()
    """Staged training as in the papers: for each stage, the settings of run.py that it changes. The last stage trains
    this head itself."""

    pretrained: tuple[str, ...] = ()
    """Modules that start from published weights, by their names below the head; they learn at the backbone's rate."""
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
        self.placement: Placement = "placed"
        """How maps are joined and logits upsampled; `Network` sets it."""
        self.pixels_between: Callable[[int, int, int], float] = self._between
        """`Backbone.pixels_between`, which `Network` sets: used by the placement "centred" only."""

    def _between(self, level: int, finer: int, side: int) -> float:
        """The same for maps whose values have their centres in the middle of their pixels."""
        return (self.reductions[level] - (self.reductions[finer] if finer >= 0 else 1)) / 2

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
        if self.placement == "stretched":
            return stretch(x, size, mode)
        stride = self.reductions[target]
        if self.placement == "centred":
            return self._sampled(x, stride if upsampled else self.reductions[source], source, target, size, mode)
        shift = round((self.offsets[source] - self.offsets[target]) / stride)
        return place(x, 1 if upsampled else self.reductions[source] // stride, size, shift, mode)

    def at_image(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Upsample logits `(B, C, h, w)` to an image of `size` pixels, without the mirrored border."""
        match self.placement:
            case "placed":
                return place(logits, self.stride, size, self.first_pixel - self.mirror_before)
            case "centred":
                return self._sampled(logits, self.stride, self.levels[0], -1, size, "bilinear")
            case "stretched":
                logits = stretch(logits, self._seen(size))
                for axis, side in enumerate(size, 2):
                    logits = span(logits, axis, self.mirror_before, side)
                return logits
            case other:
                raise ValueError(f"placement is {other!r}; give placed, stretched or centred")

    def _seen(self, size: Sequence[int]) -> list[int]:
        """H and W of what the backbone sees of an image: with the mirrored border."""
        if not self.mirror_before:
            return list(size)
        return [self.mirror_before + side + self.mirror_after(side) for side in size]

    def _sampled(
        self,
        x: Tensor,
        stride: int,
        source: int,
        target: int,
        size: Sequence[int],
        mode: Literal["bilinear", "nearest"],
    ) -> Tensor:
        """Values `stride` pixels apart that come from map `source`, at the values of map `target`; -1: the image."""
        step, before, sides = self.reductions[target], 0, size
        if target < 0:
            step, before, sides = 1, self.mirror_before, self._seen(size)
        # Values that were upsampled to a finer stride begin by half the difference before the one they came from.
        earlier = (self.reductions[source] - stride) / 2 + before
        first = [self.pixels_between(source, target, side) - earlier for side in sides]
        return sample(x, stride, size, step, first, mode)

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
