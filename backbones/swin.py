"""Swin Transformer: Hierarchical Vision Transformer using Shifted Windows. Liu et al. 2021, arXiv:2103.14030.

Version 2: Swin Transformer V2: Scaling Up Capacity and Resolution. Liu et al. 2021, arXiv:2111.09883.

Self-attention inside windows of 7x7 pixels of the map (8x8 in version 2), which every second block shifts by half a
window. Version 2 normalises after attention and MLP instead of before, compares queries and keys by cosine, and
computes position biases from log-spaced offsets. Maps whose sides are no multiple of the window are padded with pixels
that take part in attention, as in torchvision; maps of odd sides are padded by one pixel before they are merged.

Linear and patch layers and bias tables are drawn from a truncated normal of standard deviation 0.02, with zero biases;
residual branches are dropped in training at the published rates, growing linearly with depth. The scales of all norms
are initially 1, as in torchvision; the authors' code for version 2, and timm, start those after attention and MLP at 0,
so that each block is initially the identity. That matters for training from scratch only. The maps are the outputs of
the stages; the norm after the last belongs to the classifier. Loads torchvision's checkpoints.
"""

import math
from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Permute, StochasticDepth

from backbones.attention import attend
from backbones.backbone import Backbone
from backbones.transformer_init import init_truncated_normal
from backbones.windows import Size, from_windows, shifted_window_mask, to_windows

PAPERS = {
    "Swin Transformer V2: Scaling Up Capacity and Resolution. Liu et al. 2021, arXiv:2111.09883.": (
        "swin_v2_t",
        "swin_v2_s",
        "swin_v2_b",
    ),
}
"""Papers of the variants that are not from the paper in the first line above."""


class WindowAttention(nn.Module):
    """Multi-head self-attention in windows of `(B, H, W, C)`, with a learned bias per head and offset."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.register_buffer("relative_position_index", offset_index(window))
        self.make_bias_table()

    def make_bias_table(self) -> None:
        table = torch.empty((2 * self.window - 1) ** 2, self.heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))

    def bias_table(self) -> Tensor:
        """One row per offset between two pixels of a window, one column per head."""
        return self.relative_position_bias_table

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values, concatenated: `(..., C)` -> `(..., 3 C)`."""
        return self.qkv(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """`(windows, heads, N, C / heads)` each, bias broadcastable to `(windows, heads, N, N)` -> as `v`."""
        return attend(q, k, v, bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        side = self.window
        rows, columns = (height + side - 1) // side, (width + side - 1) // side
        padded = (rows * side, columns * side)
        # A side of one window is not shifted: that would only separate pixels that belong together.
        shifts = cast("Size", tuple(self.shift * torch.sym_min(1, count - 1) for count in (rows, columns)))

        x = to_windows(padded_to(x, padded), side, shifts)
        q, k, v = self.project(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.bias_table()[self.relative_position_index].view(side**2, side**2, -1).permute(2, 0, 1)[None]
        # An exported graph is to serve maps of one window and of several.
        if self.shift and (torch.compiler.is_exporting() or any(shifts)):
            bias = (bias + shifted_window_mask(padded, side, shifts, x)).repeat(batch, 1, 1, 1)
        x = self.proj(self.attend(q, k, v, bias).transpose(1, 2).flatten(2))
        return from_windows(x, batch, padded, (height, width), side, shifts)


def padded_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Add zeros below and to the right of `(B, H, W, C)`. Padding by nothing would copy the map."""
    rows, columns = size[0] - x.shape[1], size[1] - x.shape[2]
    # An exported graph is to serve sizes that need padding and sizes that need none.
    if torch.compiler.is_exporting() or rows or columns:
        return F.pad(x, (0, 0, 0, columns, 0, rows))
    return x


class CosineWindowAttention(WindowAttention):
    """Version 2: cosine similarity at a learned temperature; a small network computes the biases from the offsets."""

    relative_coords_table: Tensor

    def make_bias_table(self) -> None:
        self.logit_scale = nn.Parameter(torch.full((self.heads, 1, 1), math.log(10)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(inplace=True), nn.Linear(512, self.heads, bias=False))
        # Offsets from -8 to 8, log-spaced, so that another window size extrapolates little.
        offsets = torch.arange(1 - self.window, self.window) * (8 / (self.window - 1))
        offsets = offsets.sign() * (offsets.abs() + 1).log2() / 3
        table = torch.stack(torch.meshgrid(offsets, offsets, indexing="ij"), -1)
        self.register_buffer("relative_coords_table", table[None])

    def bias_table(self) -> Tensor:
        return 16 * self.cpb_mlp(self.relative_coords_table).view(-1, self.heads).sigmoid()

    def project(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv.bias.chunk(3)  # keys have no bias: the published one is not used
        return F.linear(x, self.qkv.weight, torch.cat((query, torch.zeros_like(key), value)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        q = F.normalize(q, dim=-1) * self.logit_scale.clamp(max=math.log(100)).exp()
        return attend(q, F.normalize(k, dim=-1), v, bias, scale=1.0)


def offset_index(window: int) -> Tensor:
    """For each pair of pixels of a window, the row of the bias table for their offset, flat `(N * N,)`."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy, dx = y[:, None] - y + window - 1, x[:, None] - x + window - 1
    return (dy * (2 * window - 1) + dx).flatten()


class Block(nn.Module):
    """Attention, then a two-layer MLP four times wider, each added to its input; `(B, H, W, C)` in and out."""

    def __init__(self, channels: int, heads: int, window: int, shift: int, drop_rate: float, version: int) -> None:
        super().__init__()
        self.post_norm = version == 2
        self.norm1 = nn.LayerNorm(channels)
        self.attn = (WindowAttention if version == 1 else CosineWindowAttention)(channels, heads, window, shift)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Identity(),  # where the published code has dropout, at rate 0
            nn.Linear(4 * channels, channels),
        )
        self.stochastic_depth = StochasticDepth(drop_rate, "row")

    def forward(self, x: Tensor) -> Tensor:
        if self.post_norm:
            x = x + self.stochastic_depth(self.norm1(self.attn(x)))
            return x + self.stochastic_depth(self.norm2(self.mlp(x)))
        x = x + self.stochastic_depth(self.attn(self.norm1(x)))
        return x + self.stochastic_depth(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """Merge 2x2 pixels into one with twice the channels: `(B, H, W, C)` -> `(B, H / 2, W / 2, 2 C)`, rounded up."""

    def __init__(self, channels: int, version: int) -> None:
        super().__init__()
        self.post_norm = version == 2
        self.norm = nn.LayerNorm((2 if version == 2 else 4) * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        rows, columns = (height + 1) // 2, (width + 1) // 2
        x = padded_to(x, (2 * rows, 2 * columns)).view(batch, rows, 2, columns, 2, channels)
        x = x.permute(0, 1, 3, 4, 2, 5).reshape(batch, rows, columns, 4 * channels)  # down before across, as published
        return self.norm(self.reduction(x)) if self.post_norm else self.reduction(self.norm(x))


class Variant(NamedTuple):
    version: int
    channels: int
    """Channels of the first stage; each later stage has twice as many."""
    depths: tuple[int, ...]
    heads: int
    """Heads of the first stage; each later stage has twice as many."""
    drop_rate: float
    """Probability with which the deepest block's branches are dropped for an image in training."""


VARIANTS = {
    "swin_t": Variant(1, 96, (2, 2, 6, 2), 3, 0.2),
    "swin_s": Variant(1, 96, (2, 2, 18, 2), 3, 0.3),
    "swin_b": Variant(1, 128, (2, 2, 18, 2), 4, 0.5),
    "swin_v2_t": Variant(2, 96, (2, 2, 6, 2), 3, 0.2),
    "swin_v2_s": Variant(2, 96, (2, 2, 18, 2), 3, 0.3),
    "swin_v2_b": Variant(2, 128, (2, 2, 18, 2), 4, 0.5),
}


class Swin(Backbone):
    """Swin T / S / B and Swin V2 T / S / B: windowed attention in four stages; maps at strides 4, 8, 16, 32.

    Raises:
        ValueError: `output_stride` is not 32. There is no exact dense form.
    """

    output_strides: ClassVar[tuple[int, ...]] = (32,)

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
    ) -> None:
        super().__init__(variant)
        if output_stride != 32:
            raise ValueError(
                f"output_stride is {output_stride}; {variant} has 32 only: over a denser map its windows would hold, "
                f"and attend to, other pixels than those it was trained with. Use output_stride 32, or convnext_*"
            )
        version, channels, depths, heads, drop_rate = VARIANTS[variant]
        window = {1: 7, 2: 8}[version]
        drop_rates = iter(torch.linspace(0, drop_rate, sum(depths), device="cpu").tolist())
        self.channels = tuple(channels * 2**i for i in range(4))
        patches = nn.Sequential(nn.Conv2d(in_channels, channels, 4, 4), Permute([0, 2, 3, 1]), nn.LayerNorm(channels))
        entries = (patches, *(PatchMerging(width, version) for width in self.channels[:-1]))
        self.features = nn.Sequential()
        for i, (entry, width, depth) in enumerate(zip(entries, self.channels, depths, strict=True)):
            shifts = (0, window // 2) * (depth // 2)
            blocks = (Block(width, heads * 2**i, window, shift, next(drop_rates), version) for shift in shifts)
            self.features.extend((entry, nn.Sequential(*blocks)))
        self.reductions = (4, 8, 16, 32)
        self.first_centres = tuple((r - 1) / 2 for r in self.reductions)
        self.min_size = 4
        self.input_size = {1: 224, 2: 256}[version]
        init_truncated_normal(self)
        self.load(weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for entry, stage in zip(self.features[::2], self.features[1::2], strict=True):
            x = stage(entry(x))
            maps.append(x.permute(0, 3, 1, 2))
        return maps

    def classifier(self, num_classes: int) -> nn.Module:
        return NormedLinear(self.channels[-1], num_classes)


class NormedLinear(nn.Module):
    """Layer norm of each pixel, global average pooling, one linear layer."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, num_classes)
        init_truncated_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x.permute(0, 2, 3, 1)).mean((1, 2)))
