"""Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials.

Krähenbühl and Koltun 2011, arXiv:1210.5644: mean-field inference where every pixel is joined to every other by a
Gaussian kernel of position and a bilateral kernel of position and colour. Differentiable through the iterations, as in
Conditional Random Fields as Recurrent Neural Networks (Zheng et al. 2015, arXiv:1502.03240).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from heads.gaussian import SpatialGaussian
from heads.permutohedral import Permutohedral

Normalization = Literal["symmetric", "before", "after"]
Spatial = Literal["exact", "lattice"]
CLIP = 1e-5  # least probability of the unary, as in DeepLab's scripts and pydensecrf


@dataclass(frozen=True)
class CRFSettings:
    """Kernels and iterations of a fully connected CRF, under the names of the DeepLab papers.

    Args:
        w1: weight of the bilateral kernel.
        sigma_alpha: its standard deviation in position, pixels.
        sigma_beta: its standard deviation in colour, in units of 0..255.
        w2: weight of the Gaussian kernel of position.
        sigma_gamma: its standard deviation, pixels.
        iterations: mean-field updates; 0 returns the unary's softmax.
        normalization: how the kernels are normalised: on both sides by the root, or before or after filtering.

    Raises:
        ValueError: a standard deviation that is not above 0, negative iterations, an unknown normalisation.
    """

    w1: float = 4.0
    sigma_alpha: float = 67.0
    sigma_beta: float = 3.0
    w2: float = 3.0
    sigma_gamma: float = 1.0
    iterations: int = 10
    normalization: Normalization = "symmetric"

    def __post_init__(self) -> None:
        for name in ("sigma_alpha", "sigma_beta", "sigma_gamma"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; a CRF's standard deviations are above 0")
        if self.iterations < 0:
            raise ValueError(f"iterations is {self.iterations}; a CRF takes 0 or more mean-field iterations")
        if self.normalization not in ("symmetric", "before", "after"):
            raise ValueError(f"normalization is {self.normalization!r}; choose symmetric, before or after")


PRESETS: dict[str, CRFSettings] = {
    # Each fixes w2 and sigma_gamma and searches the other three on 100 validation images of PASCAL VOC.
    "deeplabv1": CRFSettings(5, 50, 3, 3, 3),  # DeepLab v1 VGG, default of its script
    "deeplabv1_msc": CRFSettings(3, 95, 3, 3, 3),  # DeepLab v1, multi-scale features
    "deeplabv1_coco": CRFSettings(5, 67, 3, 3, 3),  # DeepLab v1, pretrained on COCO
    "deeplabv2_script": CRFSettings(4, 49, 5, 3, 3),  # DeepLab v2, run_densecrf.sh (a fork's copy)
    "deeplabv2_vgg16": CRFSettings(4, 65, 3, 3, 2),  # DeepLab v2 VGG16, community copies
    "deeplabv2_resnet101": CRFSettings(4, 67, 3, 3, 1),  # DeepLab v2 ResNet-101, as in kazuto1011's voc12.yaml
    "pydensecrf": CRFSettings(10, 80, 13, 3, 3),  # example of pydensecrf's README
}


class _Filter(torch.autograd.Function):
    """A kernel's filter, whose gradient is the transposed filter: nothing of its inside is kept for backward."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, kernel: Permutohedral | SpatialGaussian, reverse: bool) -> Tensor:
        ctx.kernel, ctx.reverse = kernel, reverse
        return kernel.filter(values, reverse)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Filter.apply(gradient.contiguous(), ctx.kernel, not ctx.reverse), None, None


class NormalizedKernel:
    """A kernel and the factors (N, 1) that normalise it before and after filtering."""

    def __init__(self, kernel: Permutohedral | SpatialGaussian, ones: Tensor, normalization: Normalization) -> None:
        self.kernel = kernel
        inverse = 1 / kernel.filter(ones)
        if normalization == "symmetric":
            inverse.sqrt_()
        self.before = None if normalization == "after" else inverse
        self.after = ones if normalization == "before" else inverse

    def filter(self, q: Tensor) -> Tensor:
        """(N, C) -> (N, C), not yet multiplied by `after`."""
        return _Filter.apply(q if self.before is None else q * self.before, self.kernel, False)


class ImageKernels:
    """Both kernels of one image (K, H, W) in 0..255: what depends on the image and the standard deviations alone."""

    def __init__(self, image: Tensor, settings: CRFSettings, spatial: Spatial) -> None:
        _, height, width = image.shape
        self.size = (height, width)
        y, x = torch.meshgrid(*(torch.arange(n, device=image.device) for n in (height, width)), indexing="ij")
        position = torch.stack((x, y), -1).flatten(0, 1).to(image.dtype)
        bilateral = torch.cat((position / settings.sigma_alpha, image.flatten(1).T / settings.sigma_beta), 1)
        ones = torch.ones_like(position[:, :1])
        self.bilateral = NormalizedKernel(Permutohedral(bilateral), ones, settings.normalization)
        near: Permutohedral | SpatialGaussian
        if spatial == "exact":
            near = SpatialGaussian(height, width, settings.sigma_gamma, ones)
        else:
            near = Permutohedral(position / settings.sigma_gamma)
        self.spatial = NormalizedKernel(near, ones, settings.normalization)


class DenseCRF(nn.Module):
    """Mean-field inference in the fully connected CRF; sharpens probabilities along an image's edges.

    Args:
        settings: kernels and iterations.
        num_classes: label count, needed only to learn the compatibility matrix.
        trainable: make w1 and w2 parameters, and with num_classes the compatibility too.
        compatibility: (C, C) penalty of label (row) for meeting label (column); None is Potts: 1 off the diagonal.
        memory_budget: bytes the filtering may take at a time; more labels than fit are filtered in turns.
    """

    def __init__(
        self,
        settings: CRFSettings = PRESETS["deeplabv2_resnet101"],
        *,
        num_classes: int | None = None,
        trainable: bool = False,
        compatibility: Tensor | None = None,
        spatial: Spatial = "exact",
        memory_budget: int | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.spatial = spatial
        self.memory_budget = memory_budget
        if trainable and num_classes is not None and compatibility is None:
            compatibility = 1 - torch.eye(num_classes)
        weights = torch.tensor([settings.w1, settings.w2], dtype=torch.float32)
        if trainable:
            self.weights = nn.Parameter(weights)
            self.compatibility = None if compatibility is None else nn.Parameter(compatibility.clone())
        else:
            self.register_buffer("weights", weights, persistent=False)
            self.register_buffer("compatibility", compatibility, persistent=False)

    def build(self, images: Tensor) -> list[ImageKernels]:
        """Kernels of images (B, K, H, W) in 0..255: reusable wherever the standard deviations are the same."""
        images = images if images.is_floating_point() else images.float()
        return [ImageKernels(image, self.settings, self.spatial) for image in images]

    def forward(self, scores: Tensor, images: Tensor | Sequence[ImageKernels], *, from_logits: bool = True) -> Tensor:
        """Scores (B, C, H, W), logits or probabilities, to refined probabilities (B, C, H, W).

        Args:
            images: (B, K, H, W) in 0..255, uint8 or float, of any channel count, or what `build` made of them.
        """
        kernels = self.build(images) if isinstance(images, Tensor) else images
        probabilities = scores.softmax(1) if from_logits else scores
        log_unary = probabilities.clamp(min=CLIP).log()
        return torch.stack([self._infer(one, k) for one, k in zip(log_unary, kernels, strict=True)])

    def _infer(self, log_unary: Tensor, kernels: ImageKernels) -> Tensor:
        unary = log_unary.flatten(1).T.contiguous()
        w1, w2 = self.weights.to(unary.dtype)
        q = unary.softmax(1)
        for _ in range(self.settings.iterations):
            message = w1 * kernels.bilateral.after * kernels.bilateral.filter(q)
            message = torch.addcmul(message, kernels.spatial.filter(q), w2 * kernels.spatial.after)
            if self.compatibility is not None:
                message = -message @ self.compatibility.to(unary.dtype).T
            q = (unary + message).softmax(1)
        return q.T.reshape(log_unary.shape)
