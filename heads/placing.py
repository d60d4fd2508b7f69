"""Upsampling that places each value on the pixels it stands for, whatever the sizes of map and image.

Stretching a map to the image's size, as is usual, gives its values a stride of H / h instead of the stride they have:
scores then drift by up to a stride from one border to the other, and by another amount in images of another size. For
sizes that the stride divides, placing and stretching are the same. `Placement` names the ways; `place` is the default,
`stretch` the usual one, and `sample` puts every value at the centre of what it depends on.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Placement = Literal["placed", "stretched", "centred"]
"""How maps join finer ones and the image.

- placed: value i stands for the pixels from i to i + 1 strides, counted from where its map begins.
- stretched: a map is resized to the size of what it joins, as in torchvision and segmentation_models.pytorch.
- centred: each value lies at the centre of its receptive field, for odd kernels too, and maps join between values.
"""
PLACEMENTS: tuple[Placement, ...] = ("placed", "stretched", "centred")


def place(
    x: Tensor, stride: int, size: Sequence[int], shift: int = 0, mode: Literal["bilinear", "nearest"] = "bilinear"
) -> Tensor:
    """Upsample a map `(B, C, h, w)` by `stride`, then crop it, or repeat its border, to `(B, C, *size)`.

    Value i of a row stands for the `stride` pixels that begin at pixel `shift + i * stride`. The result has the dtype
    of `x`, although autocast interpolates in float32 on GPUs. All sizes may be symbolic, as in `torch.export`.

    Args:
        stride: pixels of the result per value of `x`.
        size: H and W of the result.
        shift: pixels of the result before the first value; negative if the map begins outside.
    """
    # The pixels before `shift` are covered by whole values, of which `start` pixels are cropped again. If the map does
    # not begin with the image, one more value on each side keeps the interpolation exact up to the border.
    before = -(-shift // stride) + (shift != 0)
    start = before * stride - shift
    for axis, length in enumerate(size, 2):
        # Not -(-n // stride): ONNX divides integers towards zero.
        x = _values(x, axis, before, (length + start + stride - 1) // stride + (shift != 0))
    if stride > 1:
        enlarged = [stride * side for side in x.shape[2:]]
        corners = None if mode == "nearest" else False
        x = F.interpolate(x, enlarged, mode=mode, align_corners=corners).to(x.dtype)
    for axis, length in enumerate(size, 2):
        x = span(x, axis, start, length)
    return x


def stretch(x: Tensor, size: Sequence[int], mode: Literal["bilinear", "nearest"] = "bilinear") -> Tensor:
    """Resize a map `(B, C, h, w)` to `(B, C, *size)`, whatever its values stand for; the dtype stays."""
    if not any(isinstance(side, torch.SymInt) for side in (*x.shape[2:], *size)) and tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, list(size), mode=mode, align_corners=None if mode == "nearest" else False).to(x.dtype)


def sample(
    x: Tensor,
    stride: int,
    size: Sequence[int],
    step: int,
    first: Sequence[float],
    mode: Literal["bilinear", "nearest"] = "bilinear",
) -> Tensor:
    """Interpolate a map `(B, C, h, w)` at every `step` pixels, to `(B, C, *size)`; its border is repeated.

    Unlike `place`, it takes any distance between the two grids. All sizes may be symbolic.

    Args:
        stride: pixels between neighbouring values of `x`.
        step: pixels between neighbouring values of the result.
        first: for rows and columns, the pixels from the first value of the result to the first of `x`.
    """
    for axis, (length, start) in enumerate(zip(size, first, strict=True), 2):
        last = x.shape[axis] - 1
        position = (torch.arange(length, device=x.device) * step - start) / stride
        if mode == "nearest":
            x = x.index_select(axis, (position + 0.5).floor().long().clamp(0, last))
            continue
        below = position.floor()
        weight = (position - below).to(x.dtype)
        low, high = (x.index_select(axis, (below + more).long().clamp(0, last)) for more in (0, 1))
        x = torch.lerp(low, high, weight[:, None] if axis == 2 else weight)
    return x


def _values(x: Tensor, axis: int, before: int, count: int) -> Tensor:
    """`count` values along an axis, beginning `before` values before the first; the border's values are repeated."""
    side = x.shape[axis]
    if before == 0 and not isinstance(side, torch.SymInt) and side == count:
        return x
    index = torch.arange(count, device=x.device) - before
    return x.index_select(axis, index.clamp(0, side - 1))


def span(x: Tensor, axis: int, first: int, length: int) -> Tensor:
    """`length` values along an axis from `first` on: a slice, or a gather while sizes are symbolic.

    For a slice, the exporter would have to prove that the map is large enough, which it cannot do for rounded sizes.
    """
    if isinstance(length, torch.SymInt):
        return x.index_select(axis, torch.arange(length, device=x.device) + first)
    return x.narrow(axis, first, length) if length != x.shape[axis] else x
