"""The networks that `peers.py` compares, and what each side does with its own: train, infer, fold, count, profile."""

import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.folding import fold_batch_norms
from lightning_modules.segmentation import SegmentationModule
from lightning_modules.shapes_only import ghost_of

CLASSES = 11
KERNELS = {
    "convolutions": ("convolution",),
    "norms": ("batch_norm",),
    "optimiser": ("adam",),
    "copies": ("copy_", "aten::cat", "zero_", "fill_"),
}
"""Parts of a step, each with what the names of its kernels contain. What is in none of them is the rest."""
REST = "rest"


class Pair(NamedTuple):
    """Our backbone and head, and the peer's network."""

    backbone: str
    head: str
    peer: Callable[[], nn.Module]
    output_stride: int | None = None
    """None: the head's own."""


def of_smp(name: str, encoder: str) -> Callable[[], nn.Module]:
    build = getattr(smp, name)
    return lambda: build(encoder, encoder_weights=None, classes=CLASSES)


def of_torchvision(name: str) -> Callable[[], nn.Module]:
    build = getattr(torchvision.models.segmentation, name)
    return lambda: build(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=False)


PAIRS = {
    "resnet18+unet": Pair("resnet18", "unet", of_smp("Unet", "resnet18")),
    "resnet50+unet": Pair("resnet50", "unet", of_smp("Unet", "resnet50")),
    "vgg16_bn+unet": Pair("vgg16_bn", "unet", of_smp("Unet", "vgg16_bn")),
    "mobilenet_v2+unet": Pair("mobilenet_v2", "unet", of_smp("Unet", "mobilenet_v2")),
    "efficientnet_b0+unet": Pair("efficientnet_b0", "unet", of_smp("Unet", "efficientnet-b0")),
    "resnet18+deeplab": Pair("resnet18", "deeplab", of_smp("DeepLabV3Plus", "resnet18")),
    "resnet50+deeplab": Pair("resnet50", "deeplab", of_smp("DeepLabV3Plus", "resnet50")),
    "resnet101+deeplab": Pair("resnet101", "deeplab", of_smp("DeepLabV3Plus", "resnet101")),
    "mobilenet_v2+deeplab": Pair("mobilenet_v2", "deeplab", of_smp("DeepLabV3Plus", "mobilenet_v2")),
    "resnet50+fcn": Pair("resnet50", "fcn", of_torchvision("fcn_resnet50"), 8),
    "resnet50+deeplabv3": Pair("resnet50", "deeplabv3", of_torchvision("deeplabv3_resnet50"), 8),
}


class Job(NamedTuple):
    """What a process needs to build its side."""

    pair: str
    side: str
    batch: int
    size: int
    compile: bool = False
    device: str = "cpu"


class Side:
    """One of the two networks with what it is trained with, on one batch."""

    def __init__(self, job: Job) -> None:
        torch.manual_seed(0)
        pair = PAIRS[job.pair]
        self.device = torch.device(job.device)
        images = torch.randn(job.batch, 3, job.size, job.size, device=self.device)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(0, CLASSES, (job.batch, job.size, job.size), device=self.device)
        self.loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
        network: nn.Module
        if job.side == "graft":
            classes = [str(one) for one in range(CLASSES)]
            module = SegmentationModule(pair.backbone, pair.head, classes, output_stride=pair.output_stride)
            module = module.to(self.device)
            network, self.loss, self.optimizer = module.network, module.loss, module.new_optimizer()
        else:
            network = pair.peer().to(self.device)
            self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
        self.peer = job.side == "peer"
        self.network: nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.folded: nn.Module | None = None
        if job.compile:
            self.network.compile()

    def scores(self, network: nn.Module, autocast: bool) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
            out = network(self.images)
            return out["out"] if isinstance(out, dict) else out

    def training(self, autocast: bool) -> None:
        self.network.train()
        loss = self.loss(self.scores(self.network, autocast).float(), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def inference(self, network: nn.Module, autocast: bool) -> None:
        with torch.inference_mode():
            self.scores(network.eval(), autocast).argmax(1)

    def fold(self) -> nn.Module:
        """A copy with folded batch norms."""
        if self.folded is None:
            self.folded = copy.deepcopy(self.network).eval()
            fold_batch_norms(self.folded, self.images[:1, :, :64, :64])
        return self.folded

    def operations(self) -> int:
        """Multiplications and additions of a forward and a backward pass."""
        ghost = ghost_of(self.network).train()
        with FlopCounterMode(display=False) as counter:
            out = ghost(self.images.to("meta"))
            (out["out"] if isinstance(out, dict) else out).sum().backward()
        return counter.get_total_flops()

    def profile(self, what: str) -> dict[str, float]:
        """Milliseconds of each part of `KERNELS` and of the rest, in one float32 "training" step or "inference".

        Graft's inference is that of the folded network, which is how its programs infer.
        """
        network = self.network if self.peer else self.fold()
        run = partial(self.training, False) if what == "training" else partial(self.inference, network, False)
        run()
        with torch.profiler.profile(acc_events=True) as seen:
            run()
        kind = "device" if self.device.type == "cuda" else "cpu"
        found = dict.fromkeys((*KERNELS, REST), 0.0)
        for kernel in seen.key_averages():
            name = kernel.key.lower()
            part = next((part for part, words in KERNELS.items() if any(word in name for word in words)), REST)
            found[part] += getattr(kernel, f"self_{kind}_time_total") / 1000
        return found
