"""How one picture is predicted: whole or in windows, at several scales, mirrored, with a CRF."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from experiments.command_line.crf_settings import read_crf_settings
from experiments.command_line.protocol_flags import ProtocolFlags
from experiments.inference.trained import TrainedNetwork, load, probabilities_of
from experiments.inference.windows import reach_of, windowed_logits
from heads.crf import CRFSettings, DenseCRF


@dataclass(frozen=True)
class Protocol:
    """What `predict` does with each picture.

    Args:
        scales: the image is also predicted at these multiples of its size, and the probabilities are averaged.
        flip: the mirror image too.
        window: (H, W) in pixels of windows that larger images are cut into; None predicts whole images.
        overlap: pixels that neighbouring windows share; None takes what makes them exact, or a quarter of the window.
        crf: settings of a fully connected CRF that refines the probabilities; None for none.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, int] | None = None
    overlap: int | None = None
    crf: CRFSettings | None = None


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
        self.network = network
        self.protocol = protocol
        self.radius, self.overlap, self.note = 0, 0, ""
        if protocol.window is not None:
            self._plan(min(protocol.window))

    @property
    def stride(self) -> int:
        """The network's largest stride."""
        return max(self.network.module.network.backbone.reductions)

    def _plan(self, side: int) -> None:
        """Choose overlap and radius, and say whether windows give what whole images would."""
        reach = reach_of(self.network.module.network, self.network.in_channels)
        chosen = self.protocol.overlap
        exact = None if reach.radius is None else 2 * reach.radius
        if exact is not None and (exact <= chosen if chosen is not None else exact <= side - self.stride):
            self.radius, self.overlap = reach.radius or 0, exact if chosen is None else chosen
            self.note = f"windows overlap by {self.overlap} pixels: equal to predicting whole images"
            return
        self.overlap = side // 4 if chosen is None else chosen
        why = reach.why or f"the network sees {reach.radius} pixels in each direction: an overlap of {exact} is exact"
        self.note = f"windows overlap by {self.overlap} pixels and are blended: not equal to whole images ({why})"

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Class probabilities float32 of an image uint8 `(H, W, 3)`: `(C, H, W)` at its size, or `(C,)`."""
        prepared = self.network.size_rule.apply(image)
        total: Tensor | None = None
        views = [
            (scale, mirrored) for scale in self.protocol.scales for mirrored in (False, True)[: 1 + self.protocol.flip]
        ]
        for scale, mirrored in views:
            view = resized(prepared, scale)
            logits = self._logits(np.ascontiguousarray(view[:, ::-1]) if mirrored else view)
            if mirrored and self.network.task == "segmentation":
                logits = logits.flip(3)
            probabilities = probabilities_of(logits, image.shape[:2])
            total = probabilities if total is None else total + probabilities
        assert total is not None
        mean = total / len(views)
        if self.protocol.crf is not None:
            pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
            with torch.inference_mode():
                mean = DenseCRF(self.protocol.crf)(mean, pixels, from_logits=False)
        return mean[0].numpy()

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
            "size_rule": self.network.size_rule.kind,
            "size": list(self.network.size_rule.size),
        }


def predictor_of(run: str, flags: ProtocolFlags) -> Predictor:
    """A run's network under the protocol that flags ask for; `run` may be another one than theirs."""
    window = (flags.window[0], flags.window[-1]) if flags.window else None
    crf = None if flags.crf_settings is None else read_crf_settings(flags.crf_settings)
    protocol = Protocol(tuple(flags.scales), flags.flip, window, flags.overlap, crf)
    return Predictor(load(run, None if flags.device == "auto" else flags.device), protocol)


def resized(image: np.ndarray, scale: float) -> np.ndarray:
    """An image uint8 `(H, W, C)` at `scale` times its size."""
    if scale == 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    view = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return view.reshape(*size[::-1], image.shape[2])  # OpenCV drops a single channel
