"""Very Deep Convolutional Networks for Large-Scale Image Recognition. Simonyan, Zisserman 2014, arXiv:1409.1556.

Configurations A, B, D and E, plain or with batch norm behind each convolution (`_bn`, not in the paper). Difference
from the paper: convolutions start as He et al. 2015 say (as in torchvision), the fully connected layers at N(0, 0.01);
with N(0, 0.01) throughout, as in the paper, only vgg11 learns without help. That help is here too, the staged
initialisation of section 3.1: given a vgg11 checkpoint file as its weights, a deeper network takes its first four
convolutions and its fully connected layers, and the rest stays as initialised. `remove_pools` takes out the pools that
would lose their stride to dilation, as Yu and Koltun 2015 do (arXiv:1511.07122): simpler, but the maps are then not
what the weights were trained with. Loads torchvision's checkpoints.
"""

import warnings
from itertools import accumulate

import torch
from torch import Tensor, nn

from backbones.atrous import atrous_steps
from backbones.fully_connected import FullyConnectedBackbone
from backbones.pooling import Pool2d
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
    """VGG-11 / 13 / 16 / 19: 3x3 convolutions in five stages; the five pools' maps at strides 2, 4, 8, 16, 32."""

    window = 7
    min_size = 32

    def __init__(
        self,
        variant: str,
        *,
        weights: str | None = None,
        output_stride: int = 32,
        in_channels: int = 3,
        fully_convolutional: bool = False,
        remove_pools: bool = False,
    ) -> None:
        super().__init__(variant)
        depths, batch_norm = VARIANTS[variant]
        steps = atrous_steps((2, 2, 2, 2, 2), output_stride)
        layers: list[nn.Module] = []
        for depth, width, step in zip(depths, CHANNELS, steps, strict=True):
            for _ in range(depth):
                layers.append(nn.Conv2d(in_channels, width, 3, padding=step.dilation, dilation=step.dilation))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU(inplace=True))
                in_channels = width
            # A window of one pixel passes the map on.
            layers.append(Pool2d("max", 1 if remove_pools and step.after > 1 else 2, step))
        self.features = nn.Sequential(*layers)
        self.channels = CHANNELS
        self.reductions = tuple(step.reduction for step in steps)
        windows = [layer.kernel_size for layer in layers if isinstance(layer, Pool2d)]
        centres = accumulate(2**i / 2 if window == 2 else 0 for i, window in enumerate(windows))
        self.first_centres = tuple(centres)
        self.init_weights()
        self.connect(fully_convolutional, steps[-1].after)
        self.load(weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, Pool2d):
                maps.append(x)
        return [*maps[:-1], self.fully_connected(maps[-1])]

    def convert_state_dict(self, state: StateDict) -> StateDict:
        """Linear layers become convolutions where asked; a vgg11 checkpoint becomes the start of a deeper network."""
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


def same_features(state: dict[str, Tensor], variant: str) -> bool:
    """Whether a checkpoint's convolutions and norms are named as this variant's, batch counters aside."""
    with torch.device("meta"):
        own = VGG(variant).state_dict()
    found, wanted = (
        {key for key in keys if key.startswith("features.") and not key.endswith("num_batches_tracked")}
        for keys in (state, own)
    )
    return found == wanted


def conv_positions(depths: tuple[int, ...], batch_norm: bool) -> dict[tuple[int, int], int]:
    """Where each convolution, as (stage, number in it), stands in `features`; its batch norm comes right behind it."""
    position, positions = 0, {}
    for stage, depth in enumerate(depths):
        for number in range(depth):
            positions[stage, number] = position
            position += 3 if batch_norm else 2
        position += 1  # the pool
    return positions
