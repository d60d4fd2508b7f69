"""Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials.

Krähenbühl and Koltun 2011, arXiv:1210.5644: mean-field inference where every pixel is joined to every other by a
Gaussian kernel of position and a bilateral kernel of position and colour. Differentiable through the iterations, as in
Conditional Random Fields as Recurrent Neural Networks (Zheng et al. 2015, arXiv:1502.03240).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from heads.permutohedral import Permutohedral

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
    normalization: Literal["symmetric", "before", "after"] = "symmetric"

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


class Kernels:
    """Both kernels of one image (K, H, W): what depends on the image and the standard deviations alone."""

    def __init__(self, image: Tensor, settings: CRFSettings) -> None:
        _, height, width = image.shape
        y, x = torch.meshgrid(*(torch.arange(n, device=image.device) for n in (height, width)), indexing="ij")
        position = torch.stack((x, y), -1).reshape(-1, 2).to(image.dtype)
        colour = image.flatten(1).T
        self.size = (height, width)
        self.bilateral = Permutohedral(torch.cat((position / settings.sigma_alpha, colour / settings.sigma_beta), 1))
        self.spatial = Permutohedral(position / settings.sigma_gamma)
        self.normalization = settings.normalization

    def filter(self, kernel: Permutohedral, q: Tensor) -> Tensor:
        """The normalised kernel times q (N, C)."""
        norm = kernel.filter(q.new_ones(len(q), 1)) + 1e-20
        if self.normalization == "symmetric":
            return kernel.filter(q * norm.rsqrt()) * norm.rsqrt()
        return kernel.filter(q / norm) if self.normalization == "before" else kernel.filter(q) / norm


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
        memory_budget: int | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
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

    def build(self, images: Tensor) -> list[Kernels]:
        """Kernels of images (B, K, H, W) in 0..255: reusable wherever the standard deviations are the same."""
        images = images if images.is_floating_point() else images.float()
        return [Kernels(image, self.settings) for image in images]

    def forward(self, scores: Tensor, images: Tensor | Sequence[Kernels], *, from_logits: bool = True) -> Tensor:
        """Scores (B, C, H, W), logits or probabilities, to refined probabilities (B, C, H, W).

        Args:
            images: (B, K, H, W) in 0..255, uint8 or float, of any channel count, or what `build` made of them.
        """
        kernels = self.build(images) if isinstance(images, Tensor) else images
        probabilities = scores.softmax(1) if from_logits else scores
        log_unary = probabilities.clamp(min=CLIP).log()
        return torch.stack([self._infer(one, k) for one, k in zip(log_unary, kernels, strict=True)])

    def _infer(self, log_unary: Tensor, kernels: Kernels) -> Tensor:
        flat = log_unary.flatten(1).T
        w1, w2 = self.weights.to(flat.dtype)
        q = flat.softmax(1)
        for _ in range(self.settings.iterations):
            message = w1 * kernels.filter(kernels.bilateral, q) + w2 * kernels.filter(kernels.spatial, q)
            if self.compatibility is not None:
                message = -message @ self.compatibility.to(flat.dtype).T
            q = (flat + message).softmax(1)
        return q.T.reshape(log_unary.shape)
