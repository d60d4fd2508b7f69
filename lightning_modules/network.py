"""A network is one backbone and one head, by name."""

import inspect
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from backbones import BACKBONES, find_backbone
from backbones.backbone import Backbone
from backbones.cpu_conv import use_cpu_convolutions
from heads import HEADS, find_head
from heads.box_head import BoxHead, Detections, Objects, Size, Sums
from heads.deeplabv1 import DeepLabV1
from heads.fcn_head import FCNHead
from heads.head import Head, index_of_stride, missing_strides
from heads.placing import PLACEMENTS, Placement
from lightning_modules.mean_image import MeanImage
from lightning_modules.option_types import check_option_types


class Network(nn.Module):
    """Any backbone under any head: images `(B, C, H, W)` -> logits.

    Logits are `(B, num_classes)` for classification and `(B, num_classes, H, W)`, the image's own size, for
    segmentation. For detection, call `losses` or `detect` instead. Only what the head reads is built, so every
    parameter gets a gradient.

    Args:
        weights: "imagenet", a file, or None; see `Backbone.load`.
        output_stride: 8, 16 or 32; None takes the head's own, or 32 if the backbone cannot be dilated.
        backbone_options, head_options: constructor options beyond the common ones, by name.
        aux: whether there are auxiliary logits, which exist in training only (`forward_with_aux`). Segmentation heads
            get an FCN head on the map of native stride 16 (without one, the last but one). Classification heads use
            the backbone's auxiliary classifiers. None: those classifiers if the backbone has any, and no FCN head.
        placement: how a segmentation head joins maps and its logits reach the image; see `heads.placing.Placement`.
        mean_image: H and W of a mean image that is subtracted from each image; its values are set later, or loaded.

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
        aux: bool | None = None,
        placement: Placement = "placed",
        mean_image: Size | None = None,
    ) -> None:
        super().__init__()
        build, head_class = find_backbone(backbone), find_head(head)
        self.task = head_class.task
        options = backbone_settings(backbone, head, backbone_options or {}, num_classes, aux)
        self.mean_image = None if mean_image is None else MeanImage(in_channels, mean_image)
        self.output_stride = output_stride or default_output_stride(build, head_class)
        self.backbone = build(output_stride=self.output_stride, in_channels=in_channels, **options)
        self.head = self._head(backbone, head, num_classes, head_options or {})
        self.aux_level = auxiliary_level(self.backbone.reductions)
        self.aux_head = self._aux_head(backbone, num_classes) if aux and self.task == "segmentation" else None
        self.has_aux = bool(options.get("aux")) or self.aux_head is not None
        self._give_offsets()
        self.set_placement(placement)
        self.backbone.keep_levels([*self.head.levels, *([] if self.aux_head is None else [self.aux_level])])
        sampled = self._classifier_to_sample(backbone, weights) if isinstance(self.head, DeepLabV1) else None
        self.backbone.load(weights, sampled or self.published_classifier())
        if sampled is not None:
            cast("DeepLabV1", self.head).take_samples(*fully_connected_layers(sampled))
        use_cpu_convolutions(self)

    def published_classifier(self) -> nn.Module | None:
        """The layers of the backbone's published classifier that the head works with."""
        head = type(self.head)
        return getattr(self.head, "classifier", None) if head.takes_classifier or head.takes_region_layers else None

    def _head(self, backbone: str, head: str, num_classes: int, given: Mapping[str, Any]) -> Head:
        """Build the head on the maps that the backbone has."""
        reductions, head_class = self.backbone.reductions, find_head(head)
        if not fits(head_class, self.backbone):
            raise ValueError(refusal(backbone, head, self.backbone))
        options = accepted_options(head, head_class, given)
        if head_class.takes_classifier:
            options["classifier"] = self.backbone.classifier(num_classes)
        if head_class.takes_region_layers:
            options["classifier"] = self.backbone.region_layers()
        built = head_class(self.backbone.channels, reductions, num_classes, **options)
        if built.cropped_pixels not in (0, self.backbone.cropped_pixels):
            raise ValueError(
                f"{head} with these options needs maps from which unpadded convolutions have cropped "
                f"{built.cropped_pixels} pixels; {backbone} crops {self.backbone.cropped_pixels}. Use --backbone "
                f"unet_encoder --backbone-options '{{valid_convolutions: true}}', or leave valid out of --head-options"
            )
        return built

    def _classifier_to_sample(self, backbone: str, weights: str | None) -> nn.Module | None:
        """The classifier that DeepLab v1's fc6 and fc7 are sampled from, to be loaded; None if they are not.

        Raises:
            ValueError: the backbone has no fc6 and fc7.
        """
        if not cast("DeepLabV1", self.head).sampled:
            return None
        with torch.device("meta"):
            if len(fully_connected_layers(self.backbone.classifier(1))) != 2:
                raise ValueError(
                    f"deeplabv1's option sampled takes fc6 and fc7 of the backbone; {backbone} has none, vgg16 has"
                )
        if weights in (None, "none"):  # a checkpoint, which holds what was sampled
            return None
        classifier = self.backbone.classifier(1)
        for layer in fully_connected_layers(classifier):
            nn.init.constant_(layer.weight, math.nan)  # what the file does not fill is seen in the head
        return classifier

    def _aux_head(self, backbone: str, num_classes: int) -> FCNHead:
        channels, reductions, level = self.backbone.channels, self.backbone.reductions, self.aux_level
        if len(channels) < 2:
            raise ValueError(f"--aux-weight needs a map before the last; {backbone} has one map only")
        built = FCNHead(channels[: level + 1], reductions[: level + 1], num_classes)
        built.mirror_before = self.head.mirror_before  # both see the same image
        return built

    def _give_offsets(self) -> None:
        """Tell the heads where the backbone's maps begin."""
        centres, reductions = self.backbone.first_centres, self.backbone.reductions
        if centres is not None:
            self.head.offsets = tuple(c - (r - 1) / 2 for c, r in zip(centres, reductions, strict=True))
            if self.aux_head is not None:
                self.aux_head.offsets = self.head.offsets[: self.aux_level + 1]

    def set_placement(self, placement: Placement) -> None:
        """Choose how maps join and logits reach the image; trained weights fit all ways.

        Raises:
            ValueError: there is no such way, or the network cannot be placed so.
        """
        if placement not in PLACEMENTS:
            raise ValueError(f"--placement {placement}: there are {', '.join(PLACEMENTS)}")
        if placement != "placed":
            if self.task != "segmentation":
                raise ValueError(f"--placement {placement} is for segmentation heads; this head's task is {self.task}")
            if self.head.cropped_pixels:
                raise ValueError(f"--placement {placement}: unet's option valid crops maps by offsets; leave one out")
        if placement == "centred":
            self.backbone.pixels_between(0, -1, 1)  # which some backbones refuse
        for one in filter(None, (self.head, self.aux_head)):
            one.placement, one.pixels_between = placement, self.backbone.pixels_between

    def forward_with_aux(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and those of the auxiliary head or of the backbone's auxiliary classifiers, which only train."""
        features, aux = self.backbone.forward_with_aux(self._prepared(x))
        if self.aux_head is not None:
            aux = [self._at_image_size(self.aux_head([features[self.aux_level]]), x, self.aux_head)]
        return self._at_image_size(self.head(features), x, self.head), aux

    def forward(self, x: Tensor) -> Tensor:
        return self._at_image_size(self.head(self.backbone(self._prepared(x))), x, self.head)

    def losses(self, x: Tensor, targets: Sequence[Objects], sizes: Sequence[Size]) -> dict[str, Sums]:
        """The terms of a box head's loss; see `BoxHead.losses`."""
        head = cast("BoxHead", self.head)
        return head.losses(head(self.backbone(x)), targets, sizes)

    def detect(
        self, x: Tensor, sizes: Sequence[Size] | None = None, proposals: Sequence[Tensor] | None = None
    ) -> list[Detections]:
        """What a box head finds in each image.

        Args:
            sizes: H and W of each image within the batch; None: all of it.
            proposals: boxes `(P_i, 4)` of each image, for a head that needs some; None: it makes its own.
        """
        head = cast("BoxHead", self.head)
        outputs = head(self.backbone(x))
        if proposals is not None:
            outputs = head.with_proposals(outputs, proposals)
        return head.detections(outputs, sizes or [(x.shape[2], x.shape[3])] * len(x))

    def _prepared(self, x: Tensor) -> Tensor:
        """The image without the mean image, if there is one, and mirrored outwards if the head asks for it."""
        if self.mean_image is not None:
            x = self.mean_image(x)
        before = self.head.mirror_before
        if not before:
            return x
        for axis in (2, 3):
            size = x.shape[axis]
            x = x.index_select(axis, mirrored(size, before, self.head.mirror_after(size), x.device))
        return x

    def _at_image_size(self, logits: Tensor, x: Tensor, head: Head) -> Tensor:
        """Upsample logits to the image, without the mirrored border; in float32 or float64, whatever autocast does."""
        if self.task != "segmentation":
            return logits
        if logits.dtype != torch.float64:
            logits = logits.float()
        return head.at_image(logits, x.shape[2:])


def backbone_settings(
    backbone: str, head: str, given: Mapping[str, Any], num_classes: int, aux: bool | None
) -> dict[str, Any]:
    """The backbone's options: those given, those that the head asks for, and its auxiliary classifiers.

    Raises:
        ValueError: an unknown option, or auxiliary classifiers that do not fit the head.
    """
    build, head_class = find_backbone(backbone), find_head(head)
    known = inspect.signature(build).parameters
    options = accepted_options(backbone, build, given)
    options = {name: value for name, value in head_class.backbone_options.items() if name in known} | options
    if head_class.task == "classification":
        if "aux" in known:
            wanted = head_class.takes_classifier if aux is None else aux
            options = {"aux": num_classes if wanted else 0} | options
        elif aux:
            raise ValueError(
                f"--aux-weight needs a segmentation head, or a backbone with auxiliary classifiers (googlenet); "
                f"{head} on {backbone} has no auxiliary loss, leave the flag out"
            )
    elif "pad_as_even" in known:  # where a value lies must not depend on the image's size
        options = {"pad_as_even": True} | options
    scored = num_classes if head_class.task == "classification" else 0
    if "aux" in known and options.get("aux", 0) not in (0, scored):
        fix = f"use {{aux: {scored}}} or leave it out" if scored else f"leave it out, because {head} scores pixels"
        raise ValueError(
            f"--backbone-options has aux={options['aux']}: {backbone}'s auxiliary classifiers score images, {fix}"
        )
    return options


def default_output_stride(build: Any, head: type[Head]) -> int:
    """The head's own output stride, or the largest one if the backbone cannot be built at it."""
    supported = cast("type[Backbone]", cast("partial[Backbone]", build).func).output_strides
    return head.output_stride if head.output_stride in supported else max(supported)


def fully_connected_layers(classifier: nn.Module) -> list[nn.Linear]:
    """fc6 and fc7 of a classifier: its linear layers but the last."""
    return [layer for layer in classifier.modules() if isinstance(layer, nn.Linear)][:-1]


def auxiliary_level(reductions: tuple[int, ...]) -> int:
    """Index of the map that an auxiliary head reads: that of native stride 16, or the last but one."""
    found = index_of_stride(reductions[:-1], 16) if len(reductions) > 1 else None
    return len(reductions) - 2 if found is None else found


def mirrored(size: int, before: int, after: int, device: torch.device) -> Tensor:
    """Indices that reflect a row of `size` pixels at its ends, as often as needed; the edge is not repeated."""
    position = torch.arange(-before, size + after, device=device).abs()  # a reflection is the same on both sides
    period = cast("int", torch.sym_max(1, 2 * (size - 1)))
    position = position - position // period * period  # ONNX takes the remainder by fixed numbers only
    return torch.where(position < size, position, period - position)


def accepted_options(name: str, build: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the given options; raise a ValueError if `build` does not know one of them or takes another type."""
    known = [
        parameter.name
        for parameter in inspect.signature(build).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        and parameter.name not in ("weights", "output_stride", "in_channels", "classifier")
    ]
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option '{option}'; it has: {', '.join(known) or 'none'}")
    check_option_types(name, build, options)
    return dict(options)


def fits(head: type[Head], backbone: Backbone) -> bool:
    """Whether a backbone has the maps that a head needs."""
    return not missing_strides(head, backbone.reductions) and not (head.needs_padded_maps and backbone.cropped_pixels)


def refusal(backbone: str, head: str, built: Backbone) -> str:
    """Say why a pair cannot work, and which similar pairs do."""
    if missing_strides(HEADS[head], built.reductions):
        needs = ", ".join(map(str, HEADS[head].required_strides))
        reason = f"{head} needs maps at strides {needs}; {backbone} has {', '.join(map(str, built.reductions))}"
    else:
        reason = (
            f"{head} needs maps at multiples of their stride; {backbone}'s unpadded convolutions crop up to "
            f"{built.cropped_pixels} pixels"
        )
    works = [name for name, other in HEADS.items() if fits(other, built)]
    return (
        f"{reason}. Heads that work with {backbone}: {', '.join(works)}. "
        f"Nearest backbone that works with {head}: {nearest_backbone(backbone, head)}"
    )


def nearest_backbone(backbone: str, head: str) -> str:
    """The next backbone in `BACKBONES`, which is sorted by age, whose maps fit the head; it wraps around at the end."""
    names = list(BACKBONES)
    start = names.index(backbone) + 1 if backbone in names else 0
    for name in names[start:] + names[:start]:
        with torch.device("meta"):
            candidate = BACKBONES[name]()
        if fits(HEADS[head], candidate):
            return name
    return "none"
