"""Anchors: boxes of fixed sizes at every place of a map, matching them with objects, and coding boxes relative to them.

Anchors and the boxes' code are those of torchvision, whose published detectors load here: anchors are centred on
`i * stride`, not on the middle of the place's pixels, their corners are rounded to pixels, and a size is width times
height, w / h = 1 / ratio. Differently from torchvision, strides are the backbone's and are never derived from the sizes
of maps, which drift where a stride does not divide an image.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

RATIOS = (0.5, 1.0, 2.0)
"""Height / width of the anchors of one size."""
LARGEST_LOG = math.log(1000 / 16)
"""Largest logarithm by which a decoded box may exceed its anchor; above, exp could overflow."""
BACKGROUND, IGNORED = -1, -2
"""What `match` gives to anchors without an object, and to those that are neither near nor far from one."""


def base_anchors(sizes: Sequence[float], ratios: Sequence[float] = RATIOS) -> Tensor:
    """Anchors around (0, 0), float32 `(len(ratios) * len(sizes), 4)`."""
    roots = torch.tensor(ratios, dtype=torch.float32).sqrt()
    lengths = torch.tensor(sizes, dtype=torch.float32)
    heights, widths = (roots[:, None] * lengths).flatten(), (1 / roots[:, None] * lengths).flatten()
    return (torch.stack([-widths, -heights, widths, heights], 1) / 2).round()


def centred_anchors(stride: int, scales: Sequence[float], ratios: Sequence[float] = RATIOS) -> Tensor:
    """Anchors around the middle of a place of `stride` pixels, float32 `(len(ratios) * len(scales), 4)`.

    Those of the authors' code of Faster R-CNN (generate_anchors): the sides of the unscaled anchors are rounded.

    Args:
        scales: sides of the anchors in strides.
    """
    widths = (stride**2 / torch.tensor(ratios, dtype=torch.float32)).sqrt().round()
    heights = (widths * torch.tensor(ratios)).round()
    half = torch.stack([widths, heights], 1)[:, None] * torch.tensor(scales, dtype=torch.float32)[:, None] / 2
    return torch.cat([stride / 2 - half, stride / 2 + half], 2).flatten(0, 1)


def places(values: Tensor, stride: float, offset: float) -> Tensor:
    """The pixels (x, y) at the values of a map `(..., h, w)`, row by row, float32 `(h * w, 2)`."""
    device = values.device
    y, x = (torch.arange(n, device=device, dtype=torch.float32) * stride + offset for n in values.shape[-2:])
    return torch.cartesian_prod(y, x).flip(1)


def anchors_at(base: Tensor, centres: Tensor) -> Tensor:
    """`base` `(A, 4)` at every centre `(N, 2)`: `(N * A, 4)`, the anchors of a place one after the other."""
    return (centres.repeat(1, 2)[:, None] + base.to(centres)).flatten(0, 1)


def match(objects: Tensor, boxes: Tensor, near: float, far: float, *, best_of_each: bool = False) -> Tensor:
    """The index of the object that each box stands for, int64 `(N,)`, or `BACKGROUND` or `IGNORED`.

    Args:
        objects: `(M, 4)`; there may be none.
        boxes: `(N, 4)`.
        near: IoU from which on a box stands for the object it overlaps most.
        far: IoU below which it is background.
        best_of_each: whether the boxes with an object's highest IoU stand for the object they overlap most, however
            little.
    """
    if not len(objects):
        return torch.full((len(boxes),), BACKGROUND, dtype=torch.int64, device=boxes.device)
    overlaps = box_iou(objects, boxes)
    highest, nearest = overlaps.max(0)
    matched = nearest.where(highest >= near, IGNORED).where(highest >= far, BACKGROUND)
    if best_of_each:
        best = ((overlaps == overlaps.max(1, keepdim=True).values) & (overlaps > 0)).any(0)
        matched = torch.where(best, nearest, matched)
    return matched


def encode(boxes: Tensor, anchors: Tensor, weights: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """Boxes `(N, 4)` relative to anchors: shifts of the centre in sides of the anchor, logarithms of the sides."""
    sides, centres = boxes[:, 2:] - boxes[:, :2], (boxes[:, :2] + boxes[:, 2:]) / 2
    own_sides, own_centres = anchors[:, 2:] - anchors[:, :2], (anchors[:, :2] + anchors[:, 2:]) / 2
    code = torch.cat([(centres - own_centres) / own_sides, (sides / own_sides).log()], 1)
    return code * code.new_tensor(weights)


def decode(code: Tensor, anchors: Tensor, weights: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """The inverse of `encode`, for code `(..., 4)` and anchors that broadcast with it."""
    shifts, logarithms = (code / code.new_tensor(weights)).split(2, -1)
    own_sides = anchors[..., 2:] - anchors[..., :2]
    centres = shifts * own_sides + anchors[..., :2] + own_sides / 2
    half = logarithms.clamp(max=LARGEST_LOG).exp() * own_sides / 2
    return torch.cat([centres - half, centres + half], -1)
