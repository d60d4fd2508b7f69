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
from heads.head import missing_strides


class Network(nn.Module):
    """Any backbone under any head: images `(B, C, H, W)` -> logits.

    Logits are `(B, num_classes)` for classification and `(B, num_classes, H, W)`, the image's own size, for
    segmentation.

    Args:
        weights: "imagenet", a file, or None; see `Backbone.load`.
        output_stride: 8, 16 or 32; None takes the head's own, or 32 where the backbone cannot be dilated.
        backbone_options, head_options: constructor knobs beyond the common ones, by name.

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
        self.has_aux = bool(knobs.get("aux"))
        self.backbone = build(output_stride=self.output_stride, in_channels=in_channels, **knobs)
        channels, reductions = self.backbone.channels, self.backbone.reductions
        if missing_strides(head_class, reductions):
            raise ValueError(refusal(backbone, head, reductions))
        options = accepted_options(head, head_class, head_options or {})
        if head_class.takes_classifier:
            options["classifier"] = self.backbone.classifier(num_classes)
        self.head = head_class(channels, reductions, num_classes, **options)
        self.task = head_class.task
        published = options.get("classifier") if num_classes == 1000 else None
        self.backbone.load(weights, published)

    def forward_with_aux(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and those of the backbone's auxiliary classifiers, which there are in training only."""
        features, aux = self.backbone.forward_with_aux(x)
        return self._upsampled(self.head(features), x), aux

    def forward(self, x: Tensor) -> Tensor:
        return self._upsampled(self.head(self.backbone(x)), x)

    def _upsampled(self, logits: Tensor, x: Tensor) -> Tensor:
        if self.task == "segmentation" and logits.shape[2:] != x.shape[2:]:
            logits = F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=False)
        return logits


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
