"""Base class of all backbones: turns images into feature maps, loads published weights, builds the classifier."""

from collections.abc import Collection, Iterable, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from backbones.atrous import OUTPUT_STRIDES
from backbones.state_dicts import (
    StateDict,
    adapt_input_channels,
    candidates,
    load_classifier,
    state_dict_mismatch,
)
from backbones.weights import read_weights

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)


def to_pixels(images: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """Undo the normalisation of images `(..., C, H, W)`: float -> uint8 in 0..255, exactly the original pixels."""
    offset, scale = (torch.as_tensor(values, device=images.device).view(-1, 1, 1) for values in (mean, std))
    return ((images * scale + offset) * 255).round().clamp(0, 255).byte()


class Fit(NamedTuple):
    """A file's tensors, sorted into those of a backbone and those of its classifier."""

    prefix: str
    """What was taken off the names."""
    size: int
    """Tensors below that prefix."""
    backbone: StateDict
    classifier: StateDict
    notes: list[str]
    problem: str
    """Why the backbone's tensors do not fit; empty if they do."""


class Backbone(nn.Module):
    """Base of all backbones. `forward((B, C, H, W)) -> [maps]`, finest first, never the image itself.

    Subclasses take `(variant, *, weights, output_stride, in_channels)`, set `channels` and `reductions`, end their
    constructor with `self.load(weights)` and write `forward` and `classifier`.
    """

    channels: tuple[int, ...]
    """Channels of each map."""
    reductions: tuple[int, ...]
    """Pixels of the image per pixel of each map, non-decreasing. Strictly increasing at output stride 32."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean per channel that is subtracted from images in [0, 1]."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation per channel that images are then divided by."""

    output_strides: ClassVar[tuple[int, ...]] = OUTPUT_STRIDES
    """The output strides this family can be built at; others are refused with the reason."""
    optional_modules: ClassVar[tuple[type[nn.Module], ...]] = ()
    """Module types that may be absent from a published checkpoint. If it has no tensor of such a type, these modules
    keep their initial values; if it has any, it must have all of them."""
    input_size: int = 224
    """Side in pixels of the square images that the published weights were scored on."""
    first_centres: tuple[float, ...] | None = None
    """Image pixel, counted from 0, at the centre of what each map's first value depends on. None: all layers are padded
    symmetrically, and the value i of a map at reduction r stands for the pixels from i * r to (i + 1) * r, as in
    torchvision's segmentation networks; odd kernels then displace all scores by up to r / 2, at every size alike."""
    min_size: int = 1
    """Side in pixels of the smallest image, square or not, that no layer shrinks to nothing."""
    cropped_pixels: int = 0
    """Upper bound on the image pixels that unpadded layers crop along one axis (both ends together): a map's height is
    between (H - cropped_pixels) // reduction and H // reduction, and likewise its width."""

    first_stages: ClassVar[dict[str, str]] = {}
    """Variants that their paper starts from a smaller trained network, and that network; `run.py --staged` does so."""

    changed_options: str = ""
    """Options under which the published weights do not fit, with their values; see `changes`."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.variant = variant

    def forward(self, x: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def pixels_between(self, level: int, finer: int, side: int) -> float:
        """Image pixels from the centre of the first value of map `finer` to that of map `level`.

        Args:
            finer: a map before `level`; -1 is the image.
            side: pixels of that map along the axis; only padding that depends on sizes needs it.

        Raises:
            ValueError: the backbone does not know.
        """
        centres = self.first_centres or (0.0,) * len(self.reductions)  # odd kernels, padded on both sides
        return centres[level] - (centres[finer] if finer >= 0 else 0.0)

    def forward_with_aux(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the maps of `forward` and a list of the auxiliary classifiers' logits `(B, num_classes)`.

        The list is empty outside training and for networks without such classifiers, which are most.
        """
        return self(x), []

    def classifier(self, num_classes: int) -> nn.Module:
        """The network's own published classifier: last map `(B, C, H, W)` -> logits `(B, num_classes)`.

        Its parameter names are those of the published checkpoint.
        """
        raise NotImplementedError

    def region_layers(self) -> nn.Module | None:
        """The layers of `classifier` before its output layer, which detectors apply to each region of the last map.

        Regions `(R, C, side, side)` -> features `(R, D)`; the module's attributes `side` and `channels` say `side` and
        D. None if the published classifier has only an output layer.
        """
        return None

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

    def convert_state_dict(self, state: StateDict) -> StateDict:
        """Convert the published names and shapes of tensors to ours. Most networks use the published ones."""
        return state

    def keep_levels(self, levels: Collection[int]) -> None:
        """Remove the layers that compute only maps other than these, so that every parameter left gets a gradient.

        Call it after construction and before `load`. `channels`, `reductions` and the length of the list of maps stay;
        the maps that lose their layers come out empty, `(B, C, 0, 0)`. In most networks every map lies on the way to
        the last one: there, nothing is removed and all maps are computed.

        Args:
            levels: indices of the maps to keep; negative ones count from the last.
        """

    def load(self, weights: str | None, classifier: nn.Module | None = None) -> None:
        """Load "imagenet" or a local .pth, .safetensors or run checkpoint into this backbone and its classifier.

        The backbone is loaded strictly: no tensor may be missing or left over, except those of `optional_modules`.
        `classifier`, which `self.classifier(num_classes)` built for any number of classes, or `self.region_layers()`,
        takes all of the file's classifier that it has; its output layer, the tensors whose shape depends on the number
        of classes, only if that number is the file's. A classifier stays as initialised if the file has none or one
        with other hidden layers; if `classifier` is None, the file's is ignored. One line is printed that says what was
        taken.

        Raises:
            ValueError: the file is missing, unreadable or of another architecture.
        """
        if weights is None or weights == "none":
            return
        if weights == "imagenet" and self.changed_options:
            raise ValueError(
                f"no ImageNet weights are published for {self.variant} with {self.changed_options}; leave that out, "
                "or use --weights FILE or none"
            )
        file = read_weights(self.published_url() if weights == "imagenet" else weights)
        fit = self._best_fit(file.state)
        if fit.problem:
            place = f"under the prefix '{fit.prefix}', " if fit.prefix else ""
            raise ValueError(f"--weights {weights} does not fit {self.variant}: {place}{fit.problem}")
        self.load_state_dict(fit.backbone, strict=True)
        try:
            classified = load_classifier(classifier, fit.classifier, self._classifier_names()[1])
        except ValueError as error:
            raise ValueError(f"--weights {weights} does not fit {self.variant}: {error}") from None
        outside = len(file.state) - fit.size
        notes = [
            f"from its entry {file.entry}" if file.entry else "",
            f"named there with the prefix '{fit.prefix}'" if fit.prefix else "",
            *fit.notes,
            classified,
            f"tensors left out, outside the prefix: {outside}" if outside else "",
        ]
        print_once(f"--weights {weights}: {'; '.join([f'loaded {len(fit.backbone)} tensors', *filter(None, notes)])}")

    def _best_fit(self, state: StateDict) -> Fit:
        """The first candidate without a problem, or else the one with the most names in common."""
        own, fits = self.state_dict(), []
        for prefix, tensors in candidates(state):
            fits.append(self._fit(prefix, tensors))
            if not fits[-1].problem:
                return fits[-1]
        return max(fits, key=lambda fit: len(fit.backbone.keys() & own.keys()))

    def _fit(self, prefix: str, state: StateDict) -> Fit:
        """Sort tensors into those of the backbone and those of its classifier."""
        own, names = self.state_dict(), self._classifier_names()[0]
        converted = self.convert_state_dict(state)
        body = {key: value for key, value in converted.items() if key not in names}
        notes = []
        for kind in self.optional_modules:
            start = self._state_of(kind)
            if start and body.keys().isdisjoint(start):
                body |= start
                notes.append(f"{len(start)} tensors of {kind.__name__} are not in it and stay as initialised")
        if prefix:  # self-supervised training puts another head in the classifier's place
            places = {name.partition(".")[0] for name in names}
            body = {key: value for key, value in body.items() if key in own or key.partition(".")[0] not in places}
        # Checkpoints older than PyTorch 0.4.1 lack the batch counters, which nothing here reads.
        counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
        body, adapted = adapt_input_channels(counters | body, own)
        notes += [adapted] if adapted else []
        classifier = {key: value for key, value in converted.items() if key in names}
        return Fit(prefix, len(state), body, classifier, notes, state_dict_mismatch(body, own))

    def _classifier_names(self) -> tuple[set[str], set[str]]:
        """Names of the classifier's tensors, and of its output layer: those whose shape depends on the classes."""
        with torch.device("meta"):
            one, other = self.classifier(1000).state_dict(), self.classifier(1001).state_dict()
        return set(one), {key for key in one if one[key].shape != other[key].shape}

    def _state_of(self, kind: type[nn.Module]) -> StateDict:
        modules = ((name, module) for name, module in self.named_modules() if isinstance(module, kind))
        return {f"{name}.{key}": value for name, module in modules for key, value in module.state_dict().items()}

    def init_weights(
        self, modules: Iterable[nn.Module] | None = None, mode: Literal["fan_in", "fan_out"] = "fan_out"
    ) -> None:
        """He et al. 2015 for convolutions, ones and zeros for norms: the default that most papers here share.

        Args:
            modules: what to initialise; None: all of the network.
        """
        for module in modules if modules is not None else self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)


def changes(**options: tuple[object, object]) -> str:
    """The options, given as (value, published value), that differ: "growth=12, compression=1.0"; empty if none does."""
    return ", ".join(f"{name}={value}" for name, (value, published) in options.items() if value != published)


def print_once(line: str) -> None:
    """Print a line on the process of rank 0 only."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only  # slow to import, and only needed here

    rank_zero_only(print)(line, flush=True)
