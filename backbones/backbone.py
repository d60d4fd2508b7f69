"""What every backbone is: a module that turns images into maps, and knows its published weights and classifier."""

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
import torchvision
from torch import Tensor, nn

from backbones.atrous import OUTPUT_STRIDES
from backbones.weights import adapt_input_channels, read_weights, shapes_that_differ

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_pixels(images: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """Undo the normalisation of images `(..., C, H, W)`: float -> uint8 in 0..255, exactly the pixels there were."""
    offset, scale = (torch.as_tensor(values, device=images.device).view(-1, 1, 1) for values in (mean, std))
    return ((images * scale + offset) * 255).round().clamp(0, 255).byte()


class Backbone(nn.Module):
    """Base of all backbones. `forward((B, C, H, W)) -> [maps]`, finest first, never the image itself.

    Subclasses take `(variant, *, weights, output_stride, in_channels)`, set `channels` and `reductions`, end their
    constructor with `self.load(weights)` and write `forward` and `classifier`.
    """

    channels: tuple[int, ...]
    """Channels of each map."""
    reductions: tuple[int, ...]
    """Pixels of the image per pixel of each map, non-decreasing. Strictly increasing at output stride 32."""
    mean: ClassVar[tuple[float, ...]] = IMAGENET_MEAN
    """What the published weights expect subtracted from images in [0, 1]."""
    std: ClassVar[tuple[float, ...]] = IMAGENET_STD

    output_strides: ClassVar[tuple[int, ...]] = OUTPUT_STRIDES
    """The output strides this family can be built at; others are refused with the reason."""
    optional: ClassVar[tuple[type[nn.Module], ...]] = ()
    """Kinds of modules that a published checkpoint need not have. Where it has no tensor of one kind, those modules
    keep their initial values; where it has some, it must have all."""
    input_size: int = 224
    """Side in pixels of the square images that the published weights were scored on."""
    min_size: int = 1
    """Side in pixels of the smallest square image that every layer can work on."""
    valid_borders: int = 0
    """Pixels of the image per side, both ends together, that unpadded layers cut off at most: a map's side is at least
    (H - valid_borders) // reduction, and at most H // reduction."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.variant = variant

    def forward(self, x: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def forward_with_aux(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """`forward`, and the logits of auxiliary classifiers, which exist in training only; most networks have none."""
        return self(x), []

    def classifier(self, num_classes: int) -> nn.Module:
        """The network's own published classifier: last map `(B, C, H, W)` -> logits `(B, num_classes)`.

        Its parameter names are those of the published checkpoint.
        """
        raise NotImplementedError

    def published_url(self) -> str:
        """Address of the published ImageNet weights.

        Raises:
            ValueError: none are published for this variant.
        """
        try:
            return torchvision.models.get_model_weights(self.variant)["IMAGENET1K_V1"].url
        except (ValueError, KeyError):
            message = f"no ImageNet weights are published for {self.variant}; use --weights FILE or none"
            raise ValueError(message) from None

    def published_top1(self) -> float | None:
        """ImageNet top-1 accuracy in percent of the published weights, as their publisher states it."""
        try:
            weights = torchvision.models.get_model_weights(self.variant)["IMAGENET1K_V1"]
        except (ValueError, KeyError):
            return None
        return weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]

    def rename(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Published parameter names -> ours. Most networks use the published ones."""
        return state

    def load(self, weights: str | None, classifier: nn.Module | None = None) -> None:
        """Load "imagenet" or a local .pth, .safetensors or run checkpoint, strictly: every tensor must find its place.

        The checkpoint's classifier goes into `classifier`, or is left out where that is None. Only what is `optional`
        may be absent.

        Raises:
            ValueError: the file is missing, unreadable or of another architecture.
        """
        if weights is None or weights == "none":
            return
        state = self.rename(read_weights(self.published_url() if weights == "imagenet" else weights))
        for kind in self.optional:
            start = self._state_of(kind)
            if state.keys().isdisjoint(start):
                state = state | start
        with torch.device("meta"):
            classifier_keys = set(self.classifier(1000).state_dict())
        for module, keys in ((self, set(state) - classifier_keys), (classifier, set(state) & classifier_keys)):
            if module is not None:
                self._load_strictly(module, {key: state[key] for key in keys}, weights)

    def _state_of(self, kind: type[nn.Module]) -> dict[str, Tensor]:
        modules = ((name, module) for name, module in self.named_modules() if isinstance(module, kind))
        return {f"{name}.{key}": value for name, module in modules for key, value in module.state_dict().items()}

    def _load_strictly(self, module: nn.Module, state: dict[str, Tensor], weights: str) -> None:
        own = module.state_dict()
        # Checkpoints older than PyTorch 0.4.1 lack the batch counters, which nothing here reads.
        counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
        state = adapt_input_channels(counters | state, own)
        problem = shapes_that_differ(state, own)
        if problem:
            raise ValueError(f"--weights {weights} does not fit {self.variant}: {problem}")
        module.load_state_dict(state, strict=True)

    def init_weights(self, modules: Iterable[nn.Module] | None = None) -> None:
        """He et al. 2015 (fan out) for convolutions, ones and zeros for norms; the default most papers here share."""
        for module in modules if modules is not None else self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
