"""U-Net: Convolutional Networks for Biomedical Image Segmentation. Ronneberger, Fischer, Brox 2015, arXiv:1505.04597.

The expanding path: the coarsest map is upsampled, concatenated with the next finer map of the backbone and passed
through two 3x3 convolutions, and so on up to the finest map. Each level has as many channels as the map it joins, but
at most the original's 64, 128, 256, 512, and at least half of these: the maps of mobile networks are thin (16, 24, 40
and 112 channels of EfficientNet-Lite0), and levels as thin learn slowly.

Differences from the paper: maps are upsampled by interpolation unless `up` is "transpose", because that learns faster
on pretrained backbones (experiments/README.md, "Each head"); convolutions are padded, so that nothing is cropped,
unless `valid` is set, and followed by batch norm unless `norm` is off. On `unet_encoder` with `valid_convolutions`, the
options `up="transpose"`, `valid=True` and `norm=False` give the original.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from heads.head import Head

VALID_REDUCTIONS = (1, 2, 4, 8, 16)
UNSCORED = 92  # image pixels on each side: 572 -> 388 in the paper's figure 1
CROPPED = 124  # of them, what the encoder crops of its coarsest map, both sides together


class UNet(Head):
    """The expanding path over all maps of the backbone; logits at the finest map's resolution.

    Args:
        up: "interpolate" is bilinear upsampling; "transpose" is the paper's up-convolution, which also reduces the
            channels to those of the level.
        norm: batch norm after each 3x3 convolution.
        join: "concatenate" as in the paper, or "sum", which adds a 1x1 projection of the backbone's map, and projects
            the coarser map too if `up` is "interpolate".
        width: maximum number of channels of the finest level and twice the minimum; doubled with each coarser level.
        valid: convolutions without padding, on cropped maps, as in the paper. Needs `up="transpose"` and unet_encoder
            with `valid_convolutions`. The image is mirrored outwards, so that every pixel still gets a score.

    Raises:
        ValueError: `up` or `join` is none of those, or `valid` does not fit the maps.
    """

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        *,
        up: Literal["interpolate", "transpose"] = "interpolate",
        norm: bool = True,
        join: Literal["concatenate", "sum"] = "concatenate",
        width: int = 64,
        valid: bool = False,
    ) -> None:
        super().__init__(reductions, range(len(reductions)))
        if up not in ("interpolate", "transpose"):
            raise ValueError(f"unet has up=interpolate or up=transpose, not up={up}")
        if join not in ("concatenate", "sum"):
            raise ValueError(f"unet has join=concatenate or join=sum, not join={join}")
        if valid and up != "transpose":
            raise ValueError("unet has valid=true with up=transpose only; set both in --head-options")
        if valid and tuple(reductions) != VALID_REDUCTIONS:
            raise ValueError(
                "unet has valid=true for maps at strides 1, 2, 4, 8, 16 only: --backbone unet_encoder "
                "--backbone-options '{valid_convolutions: true}' at --output-stride 16 or 32"
            )
        self.up, self.join, self.valid = up, join, valid
        if valid:
            self.cropped_pixels, self.mirror_before = CROPPED, UNSCORED
        most = [width * 2**i for i in range(len(channels) - 1)]
        widths = [min(max(skip, limit // 2), limit) for skip, limit in zip(channels[:-1], most, strict=True)]
        coarser = [*widths[1:], channels[-1]]
        self.ups, self.joins = nn.ModuleList(), nn.ModuleList()
        self.projections = nn.ModuleList()
        for i in reversed(range(len(widths))):  # coarse to fine
            factor = reductions[i + 1] // reductions[i]
            joined = widths[i]
            if up == "transpose":
                self.ups.append(nn.ConvTranspose2d(coarser[i], widths[i], factor, factor))
            elif join == "sum":
                self.ups.append(nn.Conv2d(coarser[i], widths[i], 1))
            else:
                self.ups.append(nn.Identity())
                joined = coarser[i]
            if join == "sum":
                self.projections.append(nn.Conv2d(channels[i], widths[i], 1))
            else:
                joined += channels[i]
            self.joins.append(double_conv(joined, widths[i], norm, valid))
        self.score = nn.Conv2d(widths[0] if widths else channels[-1], num_classes, 1)
        self.apply(init_he)

    @property
    def first_pixel(self) -> int:
        return UNSCORED if self.valid else super().first_pixel

    def mirror_after(self, size: int) -> int:
        """What unpadded convolutions crop, plus what makes every side even before each pool."""
        return UNSCORED + (12 - size - 2 * UNSCORED) % 16 if self.valid else 0

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[-1]
        for i, (up, join) in enumerate(zip(self.ups, self.joins, strict=True)):
            level = self.levels[-2 - i]
            x, skip = up(x), features[level]
            if self.valid:
                skip = cropped(skip, x.shape[2:])
            else:
                x = self.fit(x, level + 1, level, skip.shape[2:], upsampled=self.up == "transpose")
            x = join(torch.cat((skip, x), 1) if self.join == "concatenate" else self.projections[i](skip) + x)
        return self.score(x)


def cropped(x: Tensor, size: torch.Size) -> Tensor:
    """The middle `size` of a map."""
    top, left = ((a - b) // 2 for a, b in zip(x.shape[2:], size, strict=True))
    return x[:, :, top : top + size[0], left : left + size[1]]


def double_conv(in_channels: int, out_channels: int, norm: bool, valid: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers.append(nn.Conv2d(channels, out_channels, 3, padding=0 if valid else 1, bias=not norm))
        if norm:
            layers.append(nn.BatchNorm2d(out_channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def init_he(module: nn.Module) -> None:
    """Initialise 3x3 and up-convolutions with standard deviation sqrt(2 / N), N incoming nodes (the paper's section 3).

    PyTorch's own would make what an up-convolution adds to a level a third as large.
    """
    if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    elif isinstance(module, nn.ConvTranspose2d):  # kernel = stride: an output sees one pixel of each input channel
        nn.init.normal_(module.weight, std=math.sqrt(2 / module.in_channels))
