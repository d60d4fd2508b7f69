"""A network is one backbone and one head, by name."""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import BACKBONES, find_backbone
from backbones.backbone import Backbone
from heads import HEADS, find_head
from heads.fcn_head import FCNHead
from heads.head import level, missing_strides


class Network(nn.Module):
    """Any backbone under any head: images `(B, C, H, W)` -> logits.

    Logits are `(B, num_classes)` for classification and `(B, num_classes, H, W)`, the image's own size, for
    segmentation.

    Args:
        weights: "imagenet", a file, or None; see `Backbone.load`.
        output_stride: 8, 16 or 32; None takes the head's own, or 32 where the backbone cannot be dilated.
        backbone_options, head_options: constructor knobs beyond the common ones, by name.
        aux: an auxiliary FCN head on the map of native stride 16 (the last but one where there is none), which works
            in training only, through `forward_with_aux`. For segmentation heads.

    Raises:
        ValueError: unknown names or options, or a pair that cannot work; the message says what would.
    """

    def __init__(
        self,
        backbone: str,
        head: str,
        num_classes: int,
        *,
        weights: str | None = None,
        output_stride: int | None = None,
        in_channels: int = 3,
        backbone_options: Mapping[str, Any] | None = None,
        head_options: Mapping[str, Any] | None = None,
        aux: bool = False,
    ) -> None:
        super().__init__()
        build, head_class = find_backbone(backbone), find_head(head)
        knobs = accepted_options(backbone, build, backbone_options or {})
        known = inspect.signature(build).parameters
        knobs = {name: value for name, value in head_class.backbone_knobs.items() if name in known} | knobs
        supported = cast("type[Backbone]", cast("partial[Backbone]", build).func).output_strides
        own = head_class.output_stride if head_class.output_stride in supported else max(supported)
        self.output_stride = output_stride or own
        if head_class.takes_classifier and "aux" in known:
            knobs = {"aux": num_classes} | knobs
        if aux and head_class.task == "classification" and "aux" not in known:
            raise ValueError(f"--aux-weight adds a head to segmentation heads; {head} on {backbone} has no such thing")
        self.backbone = build(output_stride=self.output_stride, in_channels=in_channels, **knobs)
        channels, reductions = self.backbone.channels, self.backbone.reductions
        if missing_strides(head_class, reductions):
            raise ValueError(refusal(backbone, head, reductions))
        options = accepted_options(head, head_class, head_options or {})
        if head_class.takes_classifier:
            options["classifier"] = self.backbone.classifier(num_classes)
        self.head = head_class(channels, reductions, num_classes, **options)
        self.task = head_class.task
        self.aux_head: FCNHead | None = None
        self.aux_level = -2
        if aux and head_class.task == "segmentation":
            if len(channels) < 2:
                raise ValueError(f"--aux-weight needs a map before the last; {backbone} has one map only")
            found = level(reductions[:-1], 16)
            self.aux_level = len(channels) - 2 if found is None else found
            self.aux_head = FCNHead(channels[: self.aux_level + 1], reductions[: self.aux_level + 1], num_classes)
        self.has_aux = bool(knobs.get("aux")) or self.aux_head is not None
        self.backbone.load(weights, options.get("classifier"))

    def forward_with_aux(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and those of the auxiliary head or the backbone's auxiliary classifiers, which train only."""
        features, aux = self.backbone.forward_with_aux(self._with_margins(x))
        if self.aux_head is not None:
            aux = [self._at_image_size(self.aux_head([features[self.aux_level]]), x)]
        return self._at_image_size(self.head(features), x, self.head.cut), aux

    def forward(self, x: Tensor) -> Tensor:
        return self._at_image_size(self.head(self.backbone(self._with_margins(x))), x, self.head.cut)

    def _with_margins(self, x: Tensor) -> Tensor:
        """The image, mirrored outwards where the head asks for it."""
        h, w = x.shape[2:]
        rows, columns = self.head.margins(h), self.head.margins(w)
        if rows == columns == (0, 0):
            return x
        return x[:, :, mirrored(h, *rows, x.device)][:, :, :, mirrored(w, *columns, x.device)]

    def _at_image_size(self, logits: Tensor, x: Tensor, cut: int = 0) -> Tensor:
        """Enlarge logits to the pixels that they stand for, and leave the margins out."""
        if self.task == "classification":
            return logits
        h, w = x.shape[2:]
        (top, bottom), (left, right) = self.head.margins(h), self.head.margins(w)
        size = (h + top + bottom - 2 * cut, w + left + right - 2 * cut)
        if logits.shape[2:] != size:
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        return logits[:, :, top - cut : top - cut + h, left - cut : left - cut + w] if size != (h, w) else logits


def mirrored(size: int, before: int, after: int, device: torch.device) -> Tensor:
    """Indices of a row of `size` pixels reflected at its ends, as often as needed; the edge is not repeated."""
    position = torch.arange(-before, size + after, device=device)
    period = max(1, 2 * (size - 1))
    position = position % period
    return torch.where(position < size, position, period - position)


def accepted_options(name: str, build: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as given, all of which `build` must know."""
    known = [
        parameter.name
        for parameter in inspect.signature(build).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        and parameter.name not in ("weights", "output_stride", "in_channels", "classifier")
    ]
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option '{option}'; it has: {', '.join(known) or 'none'}")
    return dict(options)


def refusal(backbone: str, head: str, reductions: tuple[int, ...]) -> str:
    """Why a pair cannot work, from the numbers, and which pairs near it do."""
    needs = ", ".join(map(str, HEADS[head].needs))
    has = ", ".join(map(str, reductions))
    works = [name for name, other in HEADS.items() if not missing_strides(other, reductions)]
    return (
        f"{head} needs maps at strides {needs}; {backbone} has {has}. "
        f"Heads that work with {backbone}: {', '.join(works)}. "
        f"Nearest backbone that works with {head}: {nearest_backbone(backbone, head)}"
    )


def nearest_backbone(backbone: str, head: str) -> str:
    """The first backbone after this one in the list (they are sorted by age) whose maps fit the head."""
    names = list(BACKBONES)
    start = names.index(backbone) + 1 if backbone in names else 0
    for name in names[start:] + names[:start]:
        with torch.device("meta"):
            candidate = BACKBONES[name]()
        if not missing_strides(HEADS[head], candidate.reductions):
            return name
    return "none"
