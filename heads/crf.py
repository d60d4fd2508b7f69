"""Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials.

Krähenbühl and Koltun 2011, arXiv:1210.5644: mean-field inference in which every pixel is connected to every other by a
bilateral kernel (position and colour) and a Gaussian kernel of position. Gradients flow through the iterations to the
scores, the kernels' weights and the label compatibility, as in Conditional Random Fields as Recurrent Neural Networks
(Zheng et al. 2015, arXiv:1502.03240). Deliberate differences: the kernel of position is computed exactly
(`spatial="lattice"` gives the authors' approximation), and each kernel has one weight, as in the first paper, while
CRF-RNN has one per label. As in the authors' code, a pixel's message includes its own belief.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from heads.gaussian import SpatialGaussian
from heads.permutohedral import Normalization, Permutohedral

Spatial = Literal["exact", "lattice"]
Kernel = Permutohedral | SpatialGaussian
CLIP = 1e-5  # lower bound of the unary's probabilities, as in DeepLab's scripts and pydensecrf
BLOCK = 2**20  # values updated at a time: few enough for the cache, and enough for threads to be worth waking


@dataclass(frozen=True)
class CRFSettings:
    """Kernels and iterations of a fully connected CRF, under the names of the DeepLab papers.

    Args:
        w1: weight of the bilateral kernel.
        sigma_alpha: its standard deviation in position, pixels.
        sigma_beta: its standard deviation in colour, in units of 0..255.
        w2: weight of the Gaussian kernel of position.
        sigma_gamma: its standard deviation, pixels.
        iterations: number of mean-field updates; 0 returns the clipped scores.
        normalization: where each kernel is divided by the sum of its weights: "symmetric" (by the square root, before
            and after filtering), "before" or "after" filtering.

    Raises:
        ValueError: a standard deviation not above 0, an infinite weight, negative iterations, unknown normalisation.
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
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; a CRF's standard deviations are above 0 and finite")
        if not (math.isfinite(self.w1) and math.isfinite(self.w2)):
            raise ValueError(f"w1 is {self.w1} and w2 is {self.w2}; a CRF's weights are finite")
        if self.iterations < 0:
            raise ValueError(f"iterations is {self.iterations}; a CRF takes 0 or more")
        if self.normalization not in ("symmetric", "before", "after"):
            raise ValueError(f"normalization is {self.normalization!r}; choose symmetric, before or after")


PRESETS: dict[str, CRFSettings] = {
    # DeepLab fixes w2 and sigma_gamma and searches the others on 100 validation images of PASCAL VOC
    "deeplabv1": CRFSettings(5, 50, 3, 3, 3),  # v1 VGG, default of its script
    "deeplabv1_msc": CRFSettings(3, 95, 3, 3, 3),  # v1 with multi-scale features
    "deeplabv1_coco": CRFSettings(5, 67, 3, 3, 3),  # v1 pretrained on COCO
    "deeplabv2_script": CRFSettings(4, 49, 5, 3, 3),  # v2, run_densecrf.sh (a fork's copy)
    "deeplabv2_vgg16": CRFSettings(4, 65, 3, 3, 2),  # v2 VGG16, community copies
    "deeplabv2_resnet101": CRFSettings(
        4, 67, 3, 3, 1
    ),  # v2 ResNet-101, as in voc12.yaml of kazuto1011's deeplab-pytorch
    "pydensecrf": CRFSettings(10, 80, 13, 3, 3),  # example in pydensecrf's README
}


class _Filter(torch.autograd.Function):
    """Apply a kernel's filter. Its gradient is the transposed filter, so no intermediate results are saved for it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, kernel: Kernel, reverse: bool) -> Tensor:
        ctx.kernel, ctx.reverse = kernel, reverse
        return kernel.filter(values.contiguous(), reverse)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Filter.apply(gradient, ctx.kernel, not ctx.reverse), None, None


class ImageKernels:
    """Both kernels of one image (K, H, W) in 0..255.

    They depend only on the image, the standard deviations and the normalisation, so CRFs that agree in these can share
    them.
    """

    def __init__(self, image: Tensor, settings: CRFSettings, spatial: Spatial) -> None:
        _, height, width = image.shape
        self.settings = settings
        self.size = (height, width)
        y, x = torch.meshgrid(*(torch.arange(n, device=image.device) for n in (height, width)), indexing="ij")
        position = torch.stack((x, y), -1).flatten(0, 1).to(image.dtype)
        features = torch.cat((position / settings.sigma_alpha, image.flatten(1).T / settings.sigma_beta), 1)
        self.bilateral = Permutohedral(features, settings.normalization)
        self.spatial: Kernel
        if spatial == "exact":
            self.spatial = SpatialGaussian(height, width, settings.sigma_gamma, settings.normalization, like=position)
        else:
            self.spatial = Permutohedral(position / settings.sigma_gamma, settings.normalization)


class DenseCRF(nn.Module):
    """Mean-field inference in the fully connected CRF; moves a segmentation's boundaries to edges of the image.

    Args:
        settings: kernels and iterations.
        num_classes: number of labels; needed only to learn the compatibility.
        trainable: make the weights (w1, w2) a parameter, and with `num_classes` or `compatibility` that matrix too.
        compatibility: (C, C) penalty of label (row) for meeting label (column); None is Potts: 1 off the diagonal.
        spatial: the kernel of position, exact or by the lattice as in the authors' code.
        memory_budget: bytes of temporary memory for filtering, in addition to the lattice and three arrays of the
            scores' size. If not all labels fit, they are filtered in groups of at least one. Ignored while learning,
            where memory for the backward pass dominates.
    """

    weights: Tensor
    compatibility: Tensor | None

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
        if spatial not in ("exact", "lattice"):
            raise ValueError(f"spatial is {spatial!r}; choose exact or lattice")
        self.settings = settings
        self.spatial = spatial
        self.memory_budget = memory_budget
        weights = torch.tensor([settings.w1, settings.w2], dtype=torch.float32)
        if trainable and num_classes is not None and compatibility is None:
            compatibility = 1 - torch.eye(num_classes)
        if trainable:
            self.weights = nn.Parameter(weights)
            self.compatibility = None if compatibility is None else nn.Parameter(compatibility.clone())
        else:
            self.register_buffer("weights", weights, persistent=False)
            self.register_buffer("compatibility", compatibility, persistent=False)

    @torch.no_grad()
    def build(self, images: Tensor, dtype: torch.dtype = torch.float32) -> list[ImageKernels]:
        """Kernels of images (B, K, H, W) in 0..255, for any CRF with the same standard deviations and normalisation.

        Raises:
            ValueError: images of another shape, or that hold NaN or infinity.
        """
        if images.dim() != 4 or images.numel() == 0:
            raise ValueError(f"images have the shape {tuple(images.shape)}; a CRF takes (B, K, H, W) with pixels")
        if images.is_floating_point() and not images.isfinite().all():
            raise ValueError("the images hold NaN or infinity; a CRF takes values in 0..255")
        with full_precision(images.device):
            return [ImageKernels(image, self.settings, self.spatial) for image in images.to(dtype)]

    def forward(
        self,
        scores: Tensor,
        images: Tensor | Sequence[ImageKernels],
        *,
        from_logits: bool = True,
        log: bool = False,
    ) -> Tensor:
        """Refine scores (B, C, H, W) to probabilities (B, C, H, W) in float32 or float64.

        Probabilities are clipped at `CLIP` first, except logits that need a gradient: clipping would stop
        the gradient at pixels where the network is confident and wrong.

        Args:
            scores: logits, or probabilities if `from_logits` is False.
            images: (B, K, H, W) in 0..255, uint8 or float, any number of channels; or the kernels from `build`.
            log: return logarithms of the probabilities, which are finite and keep their gradient where the
                probabilities underflow.

        Raises:
            ValueError: NaN in the scores, values that are not probabilities, sizes that do not match.
        """
        with full_precision(scores.device):
            scores = scores if scores.dtype == torch.float64 else scores.float()
            kernels = self.build(images, scores.dtype) if isinstance(images, Tensor) else images
            self._check(scores, kernels, from_logits)
            if from_logits and scores.requires_grad and torch.is_grad_enabled():
                unary = scores.log_softmax(1).movedim(1, 3)
            else:
                probabilities = scores.softmax(1) if from_logits else scores
                unary = probabilities.clamp(min=CLIP).log().movedim(1, 3)
            q = [self._infer(one.reshape(-1, scores.shape[1]), k, log) for one, k in zip(unary, kernels, strict=True)]
            return torch.stack(q).view_as(unary).movedim(3, 1)

    def _check(self, scores: Tensor, kernels: Sequence[ImageKernels], from_logits: bool) -> None:
        """Raise a ValueError for what cannot be refined."""
        if scores.dim() != 4 or scores.numel() == 0:
            raise ValueError(f"scores have the shape {tuple(scores.shape)}; a CRF takes (B, C, H, W) with pixels")
        count, labels, *size = scores.shape
        if [k.size for k in kernels] != [tuple(size)] * count:
            sizes = ", ".join(f"{k.size[0]} x {k.size[1]}" for k in kernels)
            raise ValueError(f"{count} score maps of {size[0]} x {size[1]} pixels do not match the images, {sizes}")
        if any(_features(k.settings) != _features(self.settings) for k in kernels):
            raise ValueError("the kernels were built with other standard deviations or normalisation; build them again")
        if self.compatibility is not None and self.compatibility.shape != (labels, labels):
            shape = " x ".join(map(str, self.compatibility.shape))
            raise ValueError(f"the compatibility is {shape}, but the scores have {labels} labels")
        low, high = torch.stack(scores.detach().aminmax()).tolist()  # waits for the GPU, once per call
        if math.isnan(low) or high == math.inf:
            raise ValueError("the scores hold NaN or infinity; a CRF needs finite logits or probabilities")
        if not from_logits and (low < 0 or high > 1.001):
            raise ValueError(
                f"the scores range from {low:.3g} to {high:.3g}, so they are not probabilities; for logits, pass "
                f"from_logits=True"
            )

    def _infer(self, unary: Tensor, kernels: ImageKernels, log: bool) -> Tensor:
        """Beliefs (N, C), or their logarithms, from the log unary (N, C)."""
        if torch.is_grad_enabled() and (unary.requires_grad or self.weights.requires_grad):
            return self._infer_with_gradient(unary, kernels, log)
        q = self._infer_in_place(unary, kernels)
        return q.clamp_(min=torch.finfo(q.dtype).tiny).log_() if log else q

    def _infer_with_gradient(self, unary: Tensor, kernels: ImageKernels, log: bool) -> Tensor:
        logits = unary
        for _ in range(self.settings.iterations):
            q = _softmax(logits)
            message = self._message(
                _Filter.apply(q, kernels.bilateral, False), _Filter.apply(q, kernels.spatial, False)
            )
            logits = self._logits(unary, message)
        return logits.log_softmax(1) if log else _softmax(logits)

    def _infer_in_place(self, unary: Tensor, kernels: ImageKernels) -> Tensor:
        bilateral, spatial = kernels.bilateral, kernels.spatial
        unary = unary.contiguous()  # the labels of a pixel side by side, as in the messages
        q = _softmax(unary)
        tiles = list(self._tiles(q, kernels))
        weights = self.weights.tolist()
        for _ in range(self.settings.iterations):
            if len(tiles) == 1:
                corners, columns = bilateral.spread(q), spatial.spread(q)
                for pixels in _blocks(q, kernels.size[1]):
                    message = _weighted(bilateral.gather(corners, pixels), spatial.gather(columns, pixels), weights)
                    _softmax(self._logits(unary[pixels], message), out=q[pixels])
                continue
            messages = torch.empty_like(q)
            for tile in tiles:
                part = q[:, tile].contiguous()
                messages[:, tile] = _weighted(bilateral.filter(part), spatial.filter(part), weights)
            for pixels in _blocks(q, kernels.size[1]):
                _softmax(self._logits(unary[pixels], messages[pixels]), out=q[pixels])
        return q

    def _message(self, bilateral: Tensor, spatial: Tensor) -> Tensor:
        """Filtered beliefs (N, C) of both kernels, weighted."""
        w1, w2 = self.weights.to(bilateral.dtype)
        return torch.addcmul(w1 * bilateral, spatial, w2)

    def _logits(self, unary: Tensor, message: Tensor) -> Tensor:
        """Logits (N, C) of the updated beliefs.

        For the Potts model, the penalty of all other labels equals, up to a constant, the negated message of the label
        itself, so the message is simply added to the unary.
        """
        if self.compatibility is None:
            return unary + message
        return torch.addmm(unary, message, self.compatibility.to(unary.dtype).T, alpha=-1)

    def _tiles(self, q: Tensor, kernels: ImageKernels) -> Iterator[slice]:
        """Slices of labels (C) whose filtering fits into the budget."""
        count, labels = q.shape
        rows = max(k.num_rows for k in (kernels.bilateral, kernels.spatial))
        need = q.element_size() * (count + max(2 * rows, 4 * count))
        step = labels if self.memory_budget is None else max(1, self.memory_budget // need)
        return (slice(first, first + step) for first in range(0, labels, step))


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in float32 as it is: without autocast, and without the faster, less exact matrix products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _features(settings: CRFSettings) -> tuple[Any, ...]:
    """The settings that the kernels depend on."""
    return settings.sigma_alpha, settings.sigma_beta, settings.sigma_gamma, settings.normalization


def _weighted(bilateral: Tensor, spatial: Tensor, weights: Sequence[float]) -> Tensor:
    """The message of both kernels' filtered beliefs (N, C), written over those of the bilateral kernel."""
    return bilateral.mul_(weights[0]).add_(spatial, alpha=weights[1])


def _softmax(logits: Tensor, out: Tensor | None = None) -> Tensor:
    """Softmax over the labels of (N, C).

    torch.softmax takes three times as long on rows this short, because it first subtracts the maximum, which is needed
    only if exp overflows or underflows.
    """
    if logits.is_cpu and not logits.requires_grad:
        belief = logits.exp()
        total = belief @ belief.new_ones(belief.shape[1], 1)  # twice as fast as sum(1)
        low, high = total.aminmax()
        if low > 1e-30 and high < 1e30:
            return torch.div(belief, total, out=out)
    return torch.softmax(logits, 1, out=out)


def _blocks(q: Tensor, width: int) -> Iterator[slice]:
    """Slices of pixels (N) that hold whole image rows and about BLOCK values."""
    step = max(1, BLOCK // (width * q.shape[1])) * width
    return (slice(first, first + step) for first in range(0, len(q), step))
