"""An Image is Worth 16x16 Words (Vision Transformer). Dosovitskiy et al. 2020, arXiv:2010.11929.

All layers of a ViT have the same stride, so dense heads get a simple feature pyramid (Li, Mao, Girshick, He 2022,
arXiv:2203.16527), the neck: transposed convolutions compute the finer maps and max pooling the coarser ones, all from
the last map. With `pyramid=False` there is no neck, and the only map is the class token, `(B, C, 1, 1)`, which the
published classifier reads.

Images may have any size: they are padded with zeros to whole patches at the right and bottom (the pyramid's maps are
cropped to the image again), and the position embeddings, learned at 224x224, are resized to the number of patches by
bicubic interpolation. Its gradient has no deterministic form on GPUs: with `--deterministic`, train at 224x224 there.
Differences from Li et al.: every block has global attention, the class token stays, and the neck follows the
transformer's last norm. Dropout is left out, as in the training of the published weights.

Initialised as in the authors' code: attention and MLP Xavier uniform, MLP biases N(0, 1e-6), position embeddings
N(0, 0.02), patches normal with standard deviation 1 / sqrt(fan in), class token and classifier zero; the neck's
convolutions by He et al. 2015. Loads torchvision's checkpoints; the neck, which they lack, keeps its initial values.
"""

import math
from collections import OrderedDict
from collections.abc import Collection
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.attention import attend
from backbones.backbone import Backbone
from backbones.layer_norm import LayerNorm2d
from backbones.state_dicts import StateDict
from backbones.transformer_init import uninitialised_linear


def xavier_linear(in_features: int, out_features: int, bias_std: float = 0.0) -> nn.Linear:
    linear = uninitialised_linear(in_features, out_features)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.normal_(linear.bias, std=bias_std)
    return linear


class SelfAttention(nn.Module):
    """Attention of every token to every token, `(B, N, C)` in and out. Named as in `nn.MultiheadAttention`."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = xavier_linear(channels, channels)
        for weight in self.in_proj_weight.chunk(3):
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor) -> Tensor:
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, N, C / heads)
        return self.out_proj(attend(q, k, v).transpose(1, 2).flatten(2))


class EncoderBlock(nn.Module):
    """Attention, then a two-layer MLP four times wider, each on normalised input and with a residual connection."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(channels, eps=1e-6)
        self.self_attention = SelfAttention(channels, heads)
        self.ln_2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = nn.Sequential(
            xavier_linear(channels, 4 * channels, bias_std=1e-6),
            nn.GELU(),
            nn.Identity(),  # where the published code has dropout
            xavier_linear(4 * channels, channels, bias_std=1e-6),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Encoder(nn.Module):
    """Adds position embeddings to the tokens of a `grid` of patches, class token first, and runs the blocks."""

    def __init__(self, channels: int, heads: int, depth: int, native_side: int) -> None:
        super().__init__()
        self.native_side = native_side
        self.pos_embedding = nn.Parameter(torch.empty(1, 1 + native_side**2, channels))
        nn.init.normal_(self.pos_embedding, std=0.02)
        self.layers = nn.Sequential()
        for i in range(depth):
            self.layers.add_module(f"encoder_layer_{i}", EncoderBlock(channels, heads))
        self.ln = nn.LayerNorm(channels, eps=1e-6)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Embeddings for `grid` rows and columns of patches, `(1, 1 + rows * columns, C)`."""
        side = self.native_side
        # Interpolation changes nothing at the native size; an exported graph is to serve other sizes, too.
        if not torch.compiler.is_exporting() and grid == (side, side):
            return self.pos_embedding
        token, patches = self.pos_embedding[:, :1], self.pos_embedding[:, 1:]
        patches = patches.transpose(1, 2).unflatten(2, (side, side))
        patches = F.interpolate(patches, grid, mode="bicubic", align_corners=False)
        return torch.cat((token, patches.flatten(2).transpose(1, 2)), 1)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.ln(self.layers(tokens + self.positions(grid)))


class SimplePyramid(nn.Module):
    """One map -> maps of `out_channels` at strides 4, 8, 16 and 32, or empty ones where the level was removed."""

    def __init__(self, channels: int, stride: int, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.levels = nn.ModuleList(scale(channels, stride, target, out_channels) for target in (4, 8, 16, 32))

    def keep(self, levels: set[int]) -> None:
        for i in range(len(self.levels)):
            if i not in levels:
                self.levels[i] = EmptyMap(self.out_channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [level(x) for level in self.levels]


class EmptyMap(nn.Module):
    """Takes the place of a level that no head reads: any `(B, C, H, W)` -> `(B, channels, 0, 0)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return x.new_empty(x.shape[0], self.channels, 0, 0)


def scale(channels: int, stride: int, target: int, out_channels: int) -> nn.Sequential:
    """From `stride` to `target`, then 1x1 and 3x3 convolutions; each transposed convolution halves the channels."""
    layers: list[nn.Module] = []
    while stride > target:
        if layers:
            layers += [LayerNorm2d(channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, 2))
        channels, stride = channels // 2, stride // 2
    if stride < target:
        layers.append(nn.MaxPool2d(target // stride, ceil_mode=True))
    layers += [nn.Conv2d(channels, out_channels, 1, bias=False), LayerNorm2d(out_channels)]
    layers += [nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False), LayerNorm2d(out_channels)]
    return nn.Sequential(*layers)


class Variant(NamedTuple):
    patch: int
    channels: int
    depth: int
    heads: int


VARIANTS = {
    "vit_b_16": Variant(16, 768, 12, 12),
    "vit_b_32": Variant(32, 768, 12, 12),
    "vit_l_16": Variant(16, 1024, 24, 16),
}


class ViT(Backbone):
    """ViT-B/16, B/32, L/16: one transformer over patches; maps of 256 channels at strides 4, 8, 16, 32.

    With `pyramid=False` the one map is the class token, a single pixel for the whole image, of reduction 224.

    Raises:
        ValueError: `output_stride` is not 32. There is no exact dense form.
    """

    output_strides: ClassVar[tuple[int, ...]] = (32,)
    optional_modules: ClassVar[tuple[type[nn.Module], ...]] = (SimplePyramid,)

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
        pyramid: bool = True,
    ) -> None:
        super().__init__(variant)
        self.patch, self.width, depth, heads = VARIANTS[variant]
        if output_stride != 32:
            raise ValueError(
                f"output_stride is {output_stride}; {variant} has 32 only: its patches are {self.patch} pixels wide, "
                f"and it was not trained with overlapping ones. Use output_stride 32 (its pyramid already has maps at "
                f"strides 4 and 8), or convnext_*"
            )
        self.conv_proj = nn.Conv2d(in_channels, self.width, self.patch, self.patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, self.width))
        self.encoder = Encoder(self.width, heads, depth, self.input_size // self.patch)
        weight, bias = self.conv_proj.parameters()
        nn.init.normal_(weight, std=1 / math.sqrt(in_channels * self.patch**2))
        nn.init.zeros_(bias)
        self.neck = SimplePyramid(self.width, self.patch, 256) if pyramid else None
        if self.neck is not None:
            self.init_weights(self.neck.modules())
        self.channels = (256,) * 4 if pyramid else (self.width,)
        self.reductions = (4, 8, 16, 32) if pyramid else (self.input_size,)
        self.first_centres = tuple((r - 1) / 2 for r in self.reductions)
        self.load(weights)

    def keep_levels(self, levels: Collection[int]) -> None:
        """Remove the pyramid's other levels, each of which has layers of its own.

        Raises:
            IndexError: the pyramid has no such level.
        """
        if self.neck is not None:
            self.neck.keep({range(len(self.channels))[level] for level in levels})

    def forward(self, x: Tensor) -> list[Tensor]:
        height, width = x.shape[2:]
        rows, columns = -height % self.patch, -width % self.patch
        # Padding by nothing would copy the image; an exported graph is to serve sizes that need padding, too.
        if torch.compiler.is_exporting() or rows or columns:
            x = F.pad(x, (0, columns, 0, rows))
        x = self.conv_proj(x)
        grid = x.shape[2], x.shape[3]
        tokens = torch.cat((self.class_token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)), 1)
        tokens = self.encoder(tokens, grid)
        if self.neck is None:
            return [tokens[:, 0, :, None, None]]
        maps = self.neck(tokens[:, 1:].transpose(1, 2).unflatten(2, grid))
        # Rounded up without negative numbers: ONNX divides integers towards zero.
        sizes = [((height + r - 1) // r, (width + r - 1) // r) for r in self.reductions]
        return [m[..., :h, :w] for m, (h, w) in zip(maps, sizes, strict=True)]

    def classifier(self, num_classes: int) -> nn.Module:
        """The published classifier, which reads the class token that `pyramid=False` gives."""
        return TokenClassifier(self.width, num_classes)

    def convert_state_dict(self, state: StateDict) -> StateDict:
        """The published files are older than torchvision's numbers for the two layers of an MLP.

        A run's own file has the levels of the pyramid that its head read: others are dropped, and those that it lacks
        stay as initialised.
        """
        state = {key.replace(".linear_1.", ".0.").replace(".linear_2.", ".3."): value for key, value in state.items()}
        theirs = {level_of(key) for key in state} - {""}
        if not theirs:
            return state
        own = {key: value for key, value in self.state_dict().items() if level_of(key)}
        lacking = {key: value for key, value in own.items() if level_of(key) not in theirs}
        return {key: value for key, value in state.items() if not level_of(key) or key in own} | lacking


def level_of(key: str) -> str:
    """The start of a tensor's name that tells which level of the pyramid it belongs to; empty outside the pyramid."""
    return ".".join(key.split(".")[:3]) if key.startswith("neck.levels.") else ""


class TokenClassifier(nn.Module):
    """One linear layer on the class token `(B, C, 1, 1)`."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.channels = channels
        self.heads = nn.Sequential(OrderedDict(head=nn.Linear(channels, num_classes)))
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Raises ValueError on a map of the pyramid, which no published classifier reads."""
        if x.shape[1:] != (self.channels, 1, 1):
            raise ValueError(f"ViT's classifier takes the class token, not a {tuple(x.shape)} map: use pyramid=False")
        return self.heads(x.flatten(1))
