"""How one picture is predicted: whole, in windows or as crops, at several scales, mirrored, with a CRF."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.command_line.crf_settings import read_crf_settings
from experiments.command_line.protocol_flags import ProtocolFlags
from experiments.inference.dense import densely_applied
from experiments.inference.trained import TrainedNetwork, load
from experiments.inference.views import MARGIN, views_of
from experiments.inference.windows import reach_of, windowed_logits
from experiments.training.fit import out_of_memory
from heads.crf import CRFSettings, DenseCRF
from lightning_modules.folding import fold_batch_norms

FOLDING_SIDE = 64
"""Side in pixels of the image that shows which batch norms can be folded."""


@dataclass(frozen=True)
class Protocol:
    """What `predict` does with each picture.

    Args:
        scales: the image is also predicted at these multiples of its size, and the probabilities are averaged.
        flip: the mirror image too.
        window: (H, W) in pixels of windows that larger images are cut into; None predicts whole images.
        overlap: pixels that neighbouring windows share; None takes what makes them exact, or a quarter of the window.
        crf: settings of a fully connected CRF that refines the probabilities; None for none.
        crops: of a classifier's image: 1, 5 or 10; see `views.views_of`.
        dense: a classifier sees whole images, and averages its class scores over them; see `dense.py`.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, int] | None = None
    overlap: int | None = None
    crf: CRFSettings | None = None
    crops: int = 1
    dense: bool = False


class Predictor:
    """A trained network under a protocol.

    Raises:
        ValueError: the protocol does not fit the network; one line says why.
    """

    def __init__(self, network: TrainedNetwork, protocol: Protocol) -> None:
        if network.task == "classification" and (protocol.window or protocol.crf):
            raise ValueError("--window and --crf are for segmentation networks; this one classifies whole images")
        if network.in_channels != 3 and protocol.crf:
            raise ValueError(f"--crf compares colours, which needs RGB; the network takes {network.in_channels} bands")
        if network.task == "segmentation" and (protocol.crops > 1 or protocol.dense):
            raise ValueError("--crops and --dense are for classifiers; this network labels every pixel")
        if protocol.crops > 1 and min(protocol.scales) < MARGIN:
            raise ValueError(
                f"--scales {min(protocol.scales):g} leaves less than a crop; --crops needs {MARGIN} or more"
            )
        self.network = densely_applied(network) if protocol.dense else network
        self.protocol = protocol
        self.radius, self.overlap, self.note = 0, 0, ""
        if protocol.window is not None:
            self._plan(min(protocol.window))

    @property
    def stride(self) -> int:
        """The network's largest stride."""
        return max(self.network.module.network.backbone.reductions)

    def _plan(self, side: int) -> None:
        """Choose overlap and radius, and say whether windows give what whole images would.

        Raises:
            ValueError: windows of this side are too small for the network, or for their overlap.
        """
        reach = reach_of(self.network.module.network, self.network.in_channels)
        chosen = self.protocol.overlap
        exact = None if reach.radius is None else 2 * reach.radius
        if exact is not None and (exact <= chosen if chosen is not None else exact <= side - self.stride):
            self.radius, self.overlap = reach.radius or 0, exact if chosen is None else chosen
            self.note = f"windows overlap by {self.overlap} pixels: equal to predicting whole images"
        else:
            self.overlap = max(0, min(side // 4, side - self.stride)) if chosen is None else chosen
            why = (
                reach.why or f"the network sees {reach.radius} pixels in each direction: an overlap of {exact} is exact"
            )
            self.note = f"windows overlap by {self.overlap} pixels and are blended: not equal to whole images ({why})"
        least = max(self.network.module.network.backbone.min_size, self.overlap + self.stride)
        if side < least:
            raise ValueError(
                f"--window {side}: with an overlap of {self.overlap} pixels, this network needs windows of at least "
                f"{least}"
            )

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Class probabilities float32 of an image uint8 `(H, W, 3)`: `(C, H, W)` at its size, or `(C,)`."""
        return self.both(image)[0]

    def both(self, image: np.ndarray, *, uncalibrated: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
        """Class probabilities as `__call__` gives them and, with `uncalibrated`, those at temperature 1.

        The latter are None if they are the same, and with a CRF, whose second run would take as long as the first.

        Raises:
            ValueError: the image has fewer pixels than the network takes, or more than the memory does.
        """
        try:
            return self._both(image, uncalibrated)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise ValueError(
                f"{image.shape[1]}x{image.shape[0]} pixels need more memory than there is; cut them by --window, or "
                "reduce the picture"
            ) from error

    def _both(self, image: np.ndarray, uncalibrated: bool) -> tuple[np.ndarray, np.ndarray | None]:
        protocol, network = self.protocol, self.network
        wanted = uncalibrated and protocol.crf is None and network.temperature != 1
        views = views_of(image, network.size_rule, protocol.scales, protocol.flip, protocol.crops, protocol.dense)
        total: Tensor | None = None
        raw: Tensor | None = None
        count = 0
        for view in views:
            logits = self._logits(view.image)
            if view.mirrored and network.task == "segmentation":
                logits = logits.flip(3)
            total = plus(total, network.probabilities_of(logits, image.shape[:2]))
            if wanted:
                raw = plus(raw, network.probabilities_of(logits * network.temperature, image.shape[:2]))
            count += 1
        assert total is not None
        mean = total / count
        if protocol.crf is not None:
            pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
            with torch.inference_mode():
                mean = DenseCRF(protocol.crf)(mean, pixels, from_logits=False)
        return mean[0].numpy(), None if raw is None else (raw / count)[0].numpy()

    def _logits(self, image: np.ndarray) -> Tensor:
        window = self.protocol.window
        if window is None or (image.shape[0] <= window[0] and image.shape[1] <= window[1]):
            return self.network.logits(image)
        return windowed_logits(self.network.logits, image, window, self.overlap, self.radius, self.stride)

    def describe(self) -> dict[str, Any]:
        """The protocol as plain values, for JSON."""
        protocol = self.protocol
        return {
            "scales": list(protocol.scales),
            "flip": protocol.flip,
            "window": list(protocol.window) if protocol.window else None,
            "overlap": self.overlap if protocol.window else None,
            "windows_exact": bool(self.radius) if protocol.window else None,
            "crf": None if protocol.crf is None else protocol.crf.__dict__,
            "crops": protocol.crops,
            "dense": protocol.dense,
            "temperature": self.network.temperature,
            "size_rule": self.network.size_rule.kind,
            "size": list(self.network.size_rule.size),
        }


def predictor_of(run: str, flags: ProtocolFlags) -> Predictor:
    """A run's network under the protocol that flags ask for; `run` may be another one than theirs."""
    window = (flags.window[0], flags.window[-1]) if flags.window else None
    crf = None if flags.crf_settings is None else read_crf_settings(flags.crf_settings)
    protocol = Protocol(tuple(flags.scales), flags.flip, window, flags.overlap, crf, int(flags.crops), flags.dense)
    predictor = Predictor(load(run, device_of(flags.device)), protocol)
    fold_norms(predictor.network)  # after the plan, which builds or traces the network as it was trained
    return predictor


def device_of(name: str) -> torch.device | None:
    """The device that `--device` means; None leaves the choice to `load`.

    Raises:
        ValueError: PyTorch does not know it, or cannot use it here.
    """
    if name == "auto":
        return None
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or ["unknown"])[0][:120]
        raise ValueError(f"--device {name}: PyTorch cannot use it here ({reason}); give auto or cpu") from error


def fold_norms(network: TrainedNetwork) -> int:
    """Fold the batch norms of a network, which is changed; its labels are not. Returns how many were folded."""
    inner, parameter = network.module.network, next(network.module.parameters())
    side = max(FOLDING_SIDE, inner.backbone.min_size)
    channels = network.module.hparams["in_channels"]
    image = torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(0))
    return fold_batch_norms(inner, image.to(parameter.device, parameter.dtype))


def plus(total: Tensor | None, one: Tensor) -> Tensor:
    return one if total is None else total + one
