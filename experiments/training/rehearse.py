"""A training step on PyTorch's meta device, which computes nothing, finds what cannot work before a folder is made."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.command_line.run_config import RunConfig
from lightning_modules.base import GraftModule
from lightning_modules.shapes_only import ShapesOnly, ghost_of

NO_DETERMINISTIC_KERNEL = {
    "_adaptive_avg_pool2d_backward": "adaptive average pooling",
    "adaptive_max_pool2d_backward": "adaptive max pooling",
    "avg_pool3d_backward": "local response normalisation",
    "fractional_max_pool2d_backward": "fractional max pooling",
    "max_unpool2d": "max unpooling",
    "upsample_bicubic2d_backward": "bicubic interpolation",
    "reflection_pad1d_backward": "reflection padding",
    "reflection_pad2d_backward": "reflection padding",
    "grid_sampler_2d_backward": "grid sampling",
    "_deform_conv2d_backward": "deformable convolution",
    "histc": "histograms",
}
"""Operations without a deterministic CUDA kernel that networks may use, by PyTorch's name, and what users call them.

From the documentation of `torch.use_deterministic_algorithms`. Bilinear interpolation and replication padding are not
among them, because PyTorch replaces those. Deformable convolution adds up its gradients with atomics.
"""


class Operations(TorchDispatchMode):
    """Collects the names of the operations that are called while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):  # type: ignore[no-untyped-def]
        self.names.add(function.overloadpacket.__name__)
        return function(*arguments, **(keywords or {}))


def check_shapes(config: RunConfig, module: GraftModule, image_size: tuple[int, int], batch_size: int) -> None:
    """Run the network in training mode on a batch of images without content.

    Raises:
        ValueError: the images are too small for it, or a batch norm has only one value per channel to normalise.
    """
    ghost = ghost_of(module.network).train()
    try:
        with ShapesOnly(), torch.no_grad():
            ghost.forward_with_aux(torch.empty(batch_size, config.in_channels, *image_size, device="meta"))
    except (ValueError, RuntimeError) as error:
        h, w = image_size
        if "more than 1 value per channel" in str(error):
            raise ValueError(
                f"--batch-size {batch_size} --image-size {h} {w}: a batch norm of {config.backbone} or "
                f"{config.head} has one value per channel and cannot normalise it; raise one of the two"
            ) from error
        raise ValueError(
            f"--image-size {h} {w}: {config.backbone} with {config.head} cannot process such images "
            f"({' '.join(str(error).split())}); raise it"
        ) from error


def check_deterministic(config: RunConfig, module: GraftModule, image_size: tuple[int, int], device: str) -> None:
    """Look for operations of a training step that PyTorch would refuse under `--deterministic`.

    Args:
        device: type of the device that will train, such as "cuda" or "cpu"; only CUDA lacks kernels.

    Raises:
        ValueError: there are some; the message names them.
    """
    if not config.deterministic or device != "cuda":
        return
    ghost = ghost_of(module.network).train()
    with Operations() as found:
        outputs, aux = ghost.forward_with_aux(torch.empty(2, config.in_channels, *image_size, device="meta"))
        # Of a box head, the outputs are several, and some are anchors.
        trained = [one for one in (*outputs, *aux) if isinstance(one, torch.Tensor) and one.requires_grad]
        torch.stack([one.sum() for one in trained]).sum().backward()
    lacking = sorted({said for name, said in NO_DETERMINISTIC_KERNEL.items() if name in found.names})
    if lacking:
        raise ValueError(
            f"--deterministic: PyTorch has no deterministic CUDA kernel for {' and '.join(lacking)}, which "
            f"{config.backbone} with {config.head} needs at --image-size {image_size[0]} {image_size[1]}; leave the "
            "flag out, or choose another pair or --accelerator cpu"
        )
