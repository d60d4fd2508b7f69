"""Very Deep Convolutional Networks for Large-Scale Image Recognition. Simonyan, Zisserman 2014, arXiv:1409.1556.

Configurations A, B, D and E, plain or with batch norm after each convolution (`_bn`, not in the paper). Difference from
the paper: convolutions are initialised by He et al. 2015 (as in torchvision) and the fully connected layers from N(0,
0.01); with N(0, 0.01) for all layers, as in the paper, only vgg11 trains from scratch. The paper's remedy, the staged
initialisation of section 3.1, is supported: given a vgg11 checkpoint as its weights, a deeper network copies the
checkpoint's first four convolutions and its fully connected layers; the other layers keep their initial values. The
checkpoint may be a published file or that of a run of one's own; `--staged` makes that run first. `init` is "he", or
"normal" for N(0, 0.01) and zero biases in all layers, as in the paper.

`se_reduction` puts a squeeze-and-excitation gate after each ReLU (`backbones.squeeze_excitation`); `deformable` = n
makes the convolutions of the last n stages deformable (`backbones.deformable`). `pools` = "3x3" has padded windows of
3x3 pixels, as DeepLab v1's VGG (arXiv:1412.7062; its last two pools are not dilated, here all are, exactly). Published
weights load under all three. `width` multiplies the channels of all convolutions. `single_kernels` puts one convolution
of the same receptive field in the place of each stage's several 3x3, such as 7x7 for three (compared in section 2.3).
`before_pools` gives the maps before the pools, at strides 1, 2, 4, 8 and 16, which SSD and Faster R-CNN read; the last
pool then belongs to the classifier. `ceil_mode` rounds the sizes of pooled maps up, as Caffe does: SSD's map of 300
pixels has 38 values at stride 8. Published weights load under both.
`remove_pools` removes the pools that would lose their stride to dilation, as in Yu and Koltun 2015 (arXiv:1511.07122):
this is simpler, but the weights were trained with those pools. Loads torchvision's checkpoints.
"""

import warnings
from itertools import accumulate
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from backbones.atrous import atrous_steps
from backbones.backbone import changes
from backbones.deformable import DeformableConv2d, Offsets, check_deformable
from backbones.fully_connected import FullyConnected, FullyConnectedBackbone, init_normal
from backbones.inverted_residual import check_width
from backbones.pooling import Pool2d
from backbones.squeeze_excitation import SqueezeExcitation, make_relu
from backbones.state_dicts import StateDict

CHANNELS = (64, 128, 256, 512, 512)

# Convolutions in each of the five stages, and whether batch norms follow them.
VARIANTS: dict[str, tuple[tuple[int, ...], bool]] = {
    "vgg11": ((1, 1, 2, 2, 2), False),
    "vgg13": ((2, 2, 2, 2, 2), False),
    "vgg16": ((2, 2, 3, 3, 3), False),
    "vgg19": ((2, 2, 4, 4, 4), False),
    "vgg11_bn": ((1, 1, 2, 2, 2), True),
    "vgg13_bn": ((2, 2, 2, 2, 2), True),
    "vgg16_bn": ((2, 2, 3, 3, 3), True),
    "vgg19_bn": ((2, 2, 4, 4, 4), True),
}

# conv1_1, conv2_1, conv3_1 and conv3_2: vgg11's first four, as (stage, number in it) from zero.
STAGED = ((0, 0), (1, 0), (2, 0), (2, 1))


class VGG(FullyConnectedBackbone):
    """VGG-11 / 13 / 16 / 19: 3x3 convolutions in five stages; maps: the pools' outputs at strides 2, 4, 8, 16, 32.

    Raises:
        ValueError: an option has a value that is not described above, or single kernels are to be deformable.
    """

    window = 7
    optional_modules = (SqueezeExcitation, Offsets)
    first_stages: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("vgg13", "vgg16", "vgg19"), "vgg11"),
        **dict.fromkeys(("vgg13_bn", "vgg16_bn", "vgg19_bn"), "vgg11_bn"),
    }

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
        fully_convolutional: bool = False,
        remove_pools: bool = False,
        pools: Literal["2x2", "3x3"] = "2x2",
        before_pools: bool = False,
        ceil_mode: bool = False,
        init: Literal["he", "normal"] = "he",
        se_reduction: int = 0,
        deformable: int = 0,
        deformable_version: Literal[1, 2] = 2,
        width: float = 1.0,
        single_kernels: bool = False,
    ) -> None:
        super().__init__(variant)
        check_deformable(deformable, deformable_version, number=5)
        check_width(width, least=1 / 64)
        if single_kernels and deformable:
            raise ValueError(f"single_kernels is true, but deformable = {deformable} needs 3x3 kernels; leave one out")
        self.changed_options = changes(width=(width, 1.0), single_kernels=(single_kernels, False))
        if pools not in ("2x2", "3x3"):
            raise ValueError(f"pools is {pools!r}; give 2x2 or 3x3")
        if before_pools and fully_convolutional:
            raise ValueError("before_pools leaves out the pool that fully_convolutional needs; use one of them")
        self.before_pools, self.ceil_mode, self.pool_window = before_pools, ceil_mode, int(pools[0])
        versions: list[Literal[0, 1, 2]] = [deformable_version if i >= 5 - deformable else 0 for i in range(5)]
        depths, batch_norm = VARIANTS[variant]
        steps = atrous_steps((2, 2, 2, 2, 2), output_stride)
        layers: list[nn.Module] = []
        self.channels = tuple(round(channels * width) for channels in CHANNELS)
        for depth, after, step, version in zip(depths, self.channels, steps, versions, strict=True):
            kernels = [2 * depth + 1] if single_kernels else depth * [3]
            for kernel in kernels:
                layers.append(conv(in_channels, after, kernel, step.dilation, version))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(after))
                layers.append(make_relu(after, se_reduction))
                in_channels = after
            if remove_pools and step.dilation_after > 1:
                layers.append(Pool2d("max", 1, step))  # a window of one pixel changes nothing
            elif pools == "3x3":
                layers.append(Pool2d("max", 3, step, padding=1, ceil_mode=ceil_mode))
            else:
                layers.append(Pool2d("max", 2, step, ceil_mode=ceil_mode))
        if before_pools:
            layers.pop()
        self.features = nn.Sequential(*layers)
        self.reductions = tuple(step.reduction for step in steps)
        windows = [layer.kernel_size for layer in layers if isinstance(layer, Pool2d)]
        self.first_centres = tuple(accumulate(2**i / 2 if window == 2 else 0.0 for i, window in enumerate(windows)))
        if before_pools:
            self.reductions, self.first_centres = (1, *self.reductions[:-1]), (0.0, *self.first_centres)
        self.min_size = 1 if pools == "3x3" or ceil_mode else self.reductions[-1]
        self.initialise(init)
        self.add_fully_connected(fully_convolutional, steps[-1].dilation_after)
        self.load(weights)

    def initialise(self, init: str) -> None:
        """Initialise the convolutional layers; the fully connected ones are drawn from N(0, 0.01) either way."""
        if init not in ("he", "normal"):
            raise ValueError(f"init is {init!r}; give he (He et al. 2015) or normal (the paper's N(0, 0.01))")
        self.init_weights()
        for module in self.modules():
            if isinstance(module, Offsets):
                module.initialise()
            elif isinstance(module, nn.Conv2d) and init == "normal":
                init_normal(module)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for layer in self.features:
            before, x = x, layer(x)
            if isinstance(layer, Pool2d):
                maps.append(before if self.before_pools else x)
        return [*maps, x] if self.before_pools else [*maps[:-1], self.fully_connected(x)]

    def classifier(self, num_classes: int) -> nn.Module:
        layers = super().classifier(num_classes)
        if self.before_pools and isinstance(layers, FullyConnected):
            layers.pool = nn.MaxPool2d(self.pool_window, 2, self.pool_window // 2 if self.pool_window == 3 else 0)
        return layers

    def convert_state_dict(self, state: StateDict) -> StateDict:
        """Reshape fc6 and fc7 as needed here; turn a vgg11 checkpoint into initial weights of a deeper network."""
        return super().convert_state_dict(self._staged(state))

    def _staged(self, state: StateDict) -> StateDict:
        depths, batch_norm = VARIANTS[self.variant]
        start = "vgg11_bn" if batch_norm else "vgg11"
        if self.variant == start or not same_features(state, start):
            return state
        theirs = conv_positions(VARIANTS[start][0], batch_norm)
        ours = conv_positions(depths, batch_norm)
        kept = {key: value for key, value in self.state_dict().items() if key.startswith("features.")}
        for place in STAGED:
            for offset in (0, 1) if batch_norm else (0,):
                source, target = f"features.{theirs[place] + offset}.", f"features.{ours[place] + offset}."
                kept |= {target + key.removeprefix(source): state[key] for key in state if key.startswith(source)}
        warnings.warn(
            f"{self.variant} starts from a {start} checkpoint: conv1_1, conv2_1, conv3_1, conv3_2 and the fully "
            f"connected layers are taken from it, its other {len(ours) - len(STAGED)} convolutions stay as initialised",
            stacklevel=2,
        )
        return kept | {key: value for key, value in state.items() if not key.startswith("features.")}


def conv(in_channels: int, out_channels: int, kernel: int, dilation: int, deformable: Literal[0, 1, 2]) -> nn.Conv2d:
    if deformable:
        return DeformableConv2d(in_channels, out_channels, 1, dilation, 1, deformable, bias=True)
    return nn.Conv2d(in_channels, out_channels, kernel, padding=dilation * (kernel // 2), dilation=dilation)


def same_features(state: dict[str, Tensor], variant: str) -> bool:
    """Whether a checkpoint's convolutions and norms have the names of this variant's, ignoring batch counters."""
    with torch.device("meta"):
        own = VGG(variant).state_dict()
    found, wanted = (
        {key for key in keys if key.startswith("features.") and not key.endswith("num_batches_tracked")}
        for keys in (state, own)
    )
    return found == wanted


def conv_positions(depths: tuple[int, ...], batch_norm: bool) -> dict[tuple[int, int], int]:
    """Position in `features` of each convolution, given as (stage, number in it); its batch norm follows directly."""
    position, positions = 0, {}
    for stage, depth in enumerate(depths):
        for number in range(depth):
            positions[stage, number] = position
            position += 3 if batch_norm else 2
        position += 1  # the pool
    return positions
