"""Scores at the size of the masks, where the network sees images that were resized."""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor


def at_own_sizes(
    logits: Tensor, target: Tensor, sizes: list[tuple[int, int]] | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and labels of equal size, `(B, C, h, w)` and `(B, h, w)`.

    Args:
        logits: `(B, C, H, W)` at the size of the resized images.
        target: labels `(B, H', W')`, each padded at the right and bottom beyond its own size.
        sizes: of each mask, (h, w); None if images were not resized, then the whole batch is yielded as it is.
            Otherwise images are yielded one by one, with logits interpolated bilinearly to the size of their mask.
    """
    if sizes is None:
        yield logits, target
        return
    for one, labels, (height, width) in zip(logits, target, sizes, strict=True):
        yield F.interpolate(one[None], (height, width), mode="bilinear"), labels[None, :height, :width]
