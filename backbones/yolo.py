"""You Only Look Once: Unified, Real-Time Object Detection. Redmon, Divvala, Girshick, Farhadi 2015, arXiv:1506.02640.

The 20 convolutions that the paper trains on ImageNet, with average pooling and a linear layer, before it adds four more
and two linear layers for detection, which are the head `yolov1`. Together they have the 271,703,550 parameters of the
authors' configuration of 2015 (darknet, cfg/yolo.cfg): no batch norms, leaky ReLUs of slope 0.1. Convolutions are
initialised by He et al. 2015. No ImageNet weights are published in a format that loads here.
"""

from torch import Tensor, nn

from backbones.atrous import Step, atrous_steps
from backbones.backbone import Backbone
from backbones.classifiers import PooledClassifier
from backbones.pooling import Pool2d

SLOPE = 0.1
"""Of the leaky ReLUs, below zero."""
Layers = tuple[tuple[int, int], ...]
"""Channels and kernel size of convolutions."""
BOTTLENECKS: Layers = ((256, 1), (512, 3)) * 4
STAGES: tuple[Layers, ...] = (
    ((64, 7),),
    ((192, 3),),
    ((128, 1), (256, 3), (256, 1), (512, 3)),
    (*BOTTLENECKS, (512, 1), (1024, 3)),
    ((512, 1), (1024, 3), (512, 1), (1024, 3)),
)
"""The first convolution strides; a pool precedes every other stage."""


class YOLO(Backbone):
    """Twenty convolutions in five stages; maps: the stages' outputs at strides 2, 4, 8, 16, 32."""

    input_size = 224

    def __init__(
        self, variant: str, *, weights: str | None = None, output_stride: int = 32, in_channels: int = 3
    ) -> None:
        super().__init__(variant)
        steps = atrous_steps((2, 2, 2, 2, 2), output_stride)
        self.stages = nn.ModuleList()
        for number, (layers, step) in enumerate(zip(STAGES, steps, strict=True)):
            parts: list[nn.Module] = [Pool2d("max", 2, step)] if number else []
            for channels, kernel_size in layers:
                parts += [convolution(in_channels, channels, kernel_size, step.rest if number else step), leaky()]
                in_channels = channels
            self.stages.append(nn.Sequential(*parts))
        self.channels = tuple(layers[-1][0] for layers in STAGES)
        self.reductions = tuple(step.reduction for step in steps)
        # Each 2x2 pool moves the centres of its map by half a pixel of the map before it.
        self.first_centres = tuple(2**i - 1.0 for i in range(5))
        self.min_size = self.reductions[-1] - 1  # the first convolution is padded, the pools are not
        self.init_weights(mode="fan_in")
        self.load(weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def classifier(self, num_classes: int) -> nn.Module:
        return PooledClassifier("fc", nn.Linear(self.channels[-1], num_classes))


def convolution(in_channels: int, channels: int, kernel_size: int, step: Step) -> nn.Conv2d:
    dilation = step.dilation
    padding = kernel_size // 2 * dilation
    return nn.Conv2d(in_channels, channels, kernel_size, step.stride, padding, dilation)


def leaky() -> nn.LeakyReLU:
    """The network's nonlinearity."""
    return nn.LeakyReLU(SLOPE, inplace=True)
