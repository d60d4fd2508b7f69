"""SSD: Single Shot MultiBox Detector. Liu, Anguelov, Erhan, Szegedy, Reed, Fu, Berg 2015, arXiv:1512.02325.

Six maps, each of which scores four or six default boxes at every place. On vgg16 this is SSD300: conv4_3, normalised by
its L2 norm and scaled by 20; fc6 and fc7 as dilated convolutions behind a 3x3 pool of stride 1; and four pairs of extra
convolutions. Layers, initial values, loss and thresholds are torchvision's (`ssd300_vgg16`, 35,641,826 parameters at 90
classes), whose checkpoint fits after renaming.

Other backbones are read in the same way: the maps of stride 8 and coarser, the finest of them normalised; fc6 and fc7
on the last, which is dilated to stride 16 where the backbone can be; then extra convolutions up to six maps. These have
stride 2 until a map has five values or fewer, and no padding from there on: for 300 pixels, the maps have 38, 19, 10,
5, 3 and 1 values along a side.

Default boxes have fixed sizes in pixels, fractions of `side`, as in the authors' code; torchvision, which resizes all
images to 300x300, states them as fractions of the image. So `side` has to be about the size of the images. Behind
unpadded convolutions, boxes are spread evenly over `side` pixels (every 100 and 300 of 300), as in both. Differences:
fc6 and fc7 are not taken from VGG's (torchvision draws them at random too); maps smaller than a 3x3 kernel are padded,
so that images of any size work; an object's best default box is that of the later object if two share it, as in
torchvision. As in the paper, the loss takes three background boxes for each box with an object, those of the highest
loss, so images without objects teach nothing.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.ssd import SSDHead
from torchvision.ops import box_iou

from heads.anchors import BACKGROUND, anchors_at, decode, encode, match, places
from heads.box_head import BoxHead, Detections, Objects, Size, Sums, exact, last_of_each_stride, suppressed
from heads.regions import BOX_WEIGHTS

SCALES = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
"""Sides of the default boxes of each map, and of a seventh, as fractions of `side`: those for COCO."""
RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
"""Aspect ratios of each map's boxes besides 1; each stands for two boxes, upright and lying."""
SMALLEST = 5
"""Values along a map's side from which on the extra convolutions have no padding."""


class Outputs(NamedTuple):
    """What the layers compute. N is the number of default boxes, C + 1 that of the classes with background, first."""

    logits: Tensor
    """`(B, N, C + 1)`."""
    codes: Tensor
    """Boxes relative to the default boxes, `(B, N, 4)`."""
    anchors: Tensor
    """The default boxes, `(N, 4)`."""
    levels: tuple[int, ...]
    """Default boxes of each map."""


class SSD(BoxHead):
    """Classes and boxes for the default boxes of six maps.

    Args:
        side: pixels of the images that the default boxes are made for.
        scales: seven fractions of `side`: sides of the boxes of each map, and of one more. On PASCAL VOC the paper has
            0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05.
        width: channels of fc6 and fc7; the extra convolutions have a half or a quarter.
        score_threshold: detections below it are dropped.
        overlap: IoU above which the lower-scored of two detections of one class is dropped.
        most: detections per image at most.
    """

    loss_terms = ("classification", "boxes")
    output_stride = 16
    backbone_options = {"before_pools": True, "ceil_mode": True}
    NEGATIVES = 3
    """Background boxes that the loss takes for each box with an object."""
    CANDIDATES = 400
    """Boxes of each class that are decoded, those of the highest scores."""
    MATCHED = 0.5
    """IoU with an object from which on a default box stands for it."""

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        *,
        side: int = 300,
        scales: Sequence[float] = SCALES,
        width: int = 1024,
        score_threshold: float = 0.01,
        overlap: float = 0.45,
        most: int = 200,
    ) -> None:
        if side < 1 or len(scales) != len(SCALES) or min(scales) <= 0:
            raise ValueError(
                f"ssd has side={side} and scales={list(scales)}; it needs a side of 1 or more pixels and seven scales "
                "above 0"
            )
        if width < 8 or width % 8:
            raise ValueError(f"ssd's width is {width}; it must be a multiple of 8: some layers have an eighth of it")
        levels = last_of_each_stride(reductions, 8)[-len(RATIOS) :]
        super().__init__(reductions, levels)
        finer = [channels[i] for i in levels[:-1]]
        self.norm_scale = nn.Parameter(torch.full((finer[0],), 20.0)) if finer else None
        self.fc = fc6_fc7(channels[levels[-1]], width)
        self.extra, added, self.steps = extra_layers(width, [reductions[i] for i in levels], side)
        """Pixels between the boxes of neighbouring places of each map."""
        self.base = [default_boxes(*pair, ratios, side) for pair, ratios in zip(pairwise(scales), RATIOS, strict=True)]
        self.head = SSDHead([*finer, width, *added], [len(boxes) for boxes in self.base], num_classes + 1)
        self.score_threshold, self.overlap, self.most = score_threshold, overlap, most

    def forward(self, features: list[Tensor]) -> Outputs:
        maps = [features[i] for i in self.levels[:-1]]
        if self.norm_scale is not None:
            # In float32 at least, since squares of large values overflow half precision.
            maps[0] = (self.norm_scale[:, None, None] * F.normalize(exact(maps[0]))).to(maps[0].dtype)
        maps.append(self.fc(features[self.levels[-1]]))
        for layers in self.extra:
            maps.append(layers(maps[-1]))
        offsets = [self.offsets[i] for i in self.levels]
        offsets += [offsets[-1]] * len(self.extra)
        placed = [
            anchors_at(base, places(x, step, offset + step / 2))
            for base, x, step, offset in zip(self.base, maps, self.steps, offsets, strict=True)
        ]
        found = self.head(maps)
        levels = tuple(boxes.shape[0] for boxes in placed)
        return Outputs(found["cls_logits"], found["bbox_regression"], torch.cat(placed), levels)

    def assign(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """The object of each default box, int64 `(N,)`, or `BACKGROUND`; each object has its best box."""
        matched = match(boxes, anchors, self.MATCHED, self.MATCHED)
        if not len(boxes):
            return matched
        best = box_iou(boxes, anchors).max(1).indices
        own = torch.arange(len(boxes), device=boxes.device)
        # The greatest index, because plain indexing lets chance decide on a GPU if two objects share a box.
        forced = torch.full_like(matched, BACKGROUND).scatter_reduce(0, best, own, "amax")
        return forced.where(forced >= 0, matched)

    def losses(self, outputs: Outputs, targets: Sequence[Objects], sizes: Sequence[Size]) -> dict[str, Sums]:
        classes, errors, found = [], [], []
        for codes, objects in zip(exact(outputs.codes), targets, strict=True):
            matched = self.assign(outputs.anchors, objects["boxes"])
            near = (matched >= 0).nonzero().squeeze(1)
            wanted = encode(objects["boxes"][matched[near]], outputs.anchors[near], BOX_WEIGHTS)
            errors.append(F.smooth_l1_loss(codes[near], wanted, reduction="sum"))
            classes.append(torch.zeros_like(matched).index_copy(0, near, objects["labels"][matched[near]] + 1))
            found.append(len(near))
        truth = torch.stack(classes)
        crossed = F.cross_entropy(exact(outputs.logits).transpose(1, 2), truth, reduction="none")
        learned = (truth > 0) | hardest(crossed, truth > 0, self.NEGATIVES)
        count = torch.tensor(float(sum(found)), device=truth.device)
        return {"classification": (crossed[learned].sum(), count), "boxes": (torch.stack(errors).sum(), count)}

    def every_box(self, outputs: Outputs, size: Size) -> tuple[Tensor, Tensor]:
        scores = exact(outputs.logits).softmax(2)[..., 1:]
        return decode(exact(outputs.codes), outputs.anchors, BOX_WEIGHTS), scores

    def detections(self, outputs: Outputs, sizes: Sequence[Size]) -> list[Detections]:
        scores, codes = exact(outputs.logits).softmax(2)[..., 1:], exact(outputs.codes)
        found = []
        for image, size in enumerate(sizes):
            best, rows = scores[image].topk(min(self.CANDIDATES, scores.shape[1]), 0)  # (candidates, C)
            place, label = (best > self.score_threshold).nonzero(as_tuple=True)
            row = rows[place, label]
            boxes = decode(codes[image, row], outputs.anchors[row], BOX_WEIGHTS)
            found.append(suppressed(boxes, best[place, label], label, size, self.overlap, self.most))
        return found


def hardest(losses: Tensor, positive: Tensor, ratio: int) -> Tensor:
    """The background boxes of the highest losses, `ratio` for each positive box of the image: bool `(B, N)`."""
    order = losses.detach().masked_fill(positive, -torch.inf).argsort(1, descending=True)
    return (order.argsort(1) < ratio * positive.sum(1, keepdim=True)) & ~positive


def fc6_fc7(channels: int, width: int) -> nn.Sequential:
    """VGG's fc6 and fc7 as convolutions, the first one of 3x3 values at rate 6 behind a pool without stride."""
    layers = nn.Sequential(
        nn.MaxPool2d(3, 1, 1),
        nn.Conv2d(channels, width, 3, padding=6, dilation=6),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 1),
        nn.ReLU(inplace=True),
    )
    return initialised(layers)


class UnpaddedConv2d(nn.Conv2d):
    """A 3x3 convolution without padding, before which smaller maps are padded to 3x3 values."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        # Of a maximum of sizes, tracing for export would take minutes. Where there are three values, nothing is added.
        height, width = x.shape[2:]
        longer = F.pad(x, (0, 2, 0, 2))
        longer = torch.cat([longer[:, :, :3], longer[:, :, 3:height]], 2)
        return super().forward(torch.cat([longer[..., :3], longer[..., 3:width]], 3))


def extra_layers(width: int, strides: Sequence[int], side: int) -> tuple[nn.ModuleList, list[int], list[float]]:
    """The extra convolutions that make six maps.

    Args:
        width: channels of the last map that there is.
        strides: of the maps that there are.
        side: pixels of the image.

    Returns:
        The layers of each further map, their channels, and the pixels between neighbouring places of all six maps.
    """
    layers, widths, steps = nn.ModuleList(), [width], [float(stride) for stride in strides]
    values = math.ceil(side / strides[-1])
    for number in range(len(RATIOS) - len(strides)):
        out = width // 2 if number == 0 else width // 4
        if values > SMALLEST:
            last, values, step = nn.Conv2d(out // 2, out, 3, 2, 1), math.ceil(values / 2), 2 * steps[-1]
        else:
            last, values = UnpaddedConv2d(out // 2, out), max(1, values - 2)
            step = side / values
        reduce = nn.Conv2d(widths[-1], out // 2, 1)
        layers.append(initialised(nn.Sequential(reduce, nn.ReLU(inplace=True), last, nn.ReLU(inplace=True))))
        widths.append(out)
        steps.append(step)
    return layers, widths[1:], steps


def initialised(layers: nn.Sequential) -> nn.Sequential:
    """Glorot and Bengio 2010, with zero biases."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(cast("Tensor", layer.bias))
    return layers


def default_boxes(scale: float, larger: float, ratios: Sequence[float], side: int) -> Tensor:
    """The default boxes of a map around (0, 0), float32 `(2 + 2 * len(ratios), 4)`.

    Squares of `scale` and of its geometric mean with `larger`, the next map's, then boxes as large as the first in
    other shapes; none is wider or higher than the image.
    """
    between = math.sqrt(scale * larger)
    sides = [(scale, scale), (between, between)]
    for ratio in ratios:
        long, short = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
        sides += [(long, short), (short, long)]
    half = torch.tensor(sides, dtype=torch.float32).clamp(max=1) * side / 2
    return torch.cat([-half, half], 1)
