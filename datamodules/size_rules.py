"""How a data set brings images to the network: as they are, stretched, within bounds, or as a centre crop."""

from dataclasses import dataclass
from typing import Literal

import albumentations as A
import cv2
import numpy as np

from datamodules.augmentation import compose
from datamodules.crops import centre_crop
from datamodules.scale_crop import ResizeWithin

Fit = Literal["own", "stretch", "within"]
"""Rules for heads that detect."""
SizeKind = Literal["own", "stretch", "within", "centre_crop"]


@dataclass(frozen=True)
class SizeRule:
    """What happens to the size of an image before the network sees it.

    Args:
        kind: "own" keeps the image's size, "stretch" resizes it to `size` and ignores its aspect ratio, "within"
            keeps the aspect ratio and makes it as large as possible with a shorter side of at most the smaller number
            of `size` and a longer side of at most the larger one, "centre_crop" resizes its shorter side to 8/7 of
            `size` and takes the centre (see `datamodules/crops.py`).
        size: (H, W) in pixels; the size of training crops if `kind` is "own".
    """

    kind: SizeKind
    size: tuple[int, int]

    def transforms(self) -> list[A.BasicTransform]:
        """The albumentations transforms of this rule.

        Raises:
            ValueError: there is no such kind.
        """
        match self.kind:
            case "own":
                return []
            case "stretch":
                return [A.Resize(*self.size, area_for_downscale="image")]
            case "within":
                return [ResizeWithin(min(self.size), max(self.size))]
            case "centre_crop":
                return centre_crop(self.size)
            case _:
                raise ValueError(f"no size rule '{self.kind}'; there are own, stretch, within, centre_crop")

    def apply(self, image: np.ndarray) -> np.ndarray:
        """An image uint8 `(H, W, 3)` at the size that the network takes."""
        transforms = self.transforms()
        return compose(transforms)(image=image)["image"] if transforms else image

    def undo(self, values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Per-pixel values float32 `(H, W, C)` of a network's output, at the image's own `size` (H, W).

        Raises:
            ValueError: the rule has cut parts of the image off.
        """
        if self.kind == "centre_crop":
            raise ValueError("a centre crop leaves no values for the pixels outside it")
        if values.shape[:2] == size:
            return values
        resized = cv2.resize(values, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        return resized.reshape(*size, values.shape[2])  # OpenCV drops a single channel
