"""Scaling and cropping in one step: only the part of the image that the crop will keep is resized."""

from typing import Any

import albumentations as A
import cv2
import numpy as np
from albumentations.core.type_definitions import Targets

from datamodules.collate import IGNORE_INDEX


class ScaleCrop(A.DualTransform):
    """Scale image and mask by a random factor, then crop `size` (H, W) at a random place, padded where too small.

    The distribution is that of `A.RandomScale` before `A.RandomCrop(pad_if_needed=True)`, but for rounding: here the
    crop begins at a whole pixel of the original, there of the scaled image. Images are interpolated linearly, and
    averaged over areas below one half; a mask takes the nearest pixel, and 255 = ignore as padding.
    """

    _targets = (Targets.IMAGE, Targets.MASK)

    def __init__(
        self,
        size: tuple[int, int],
        scale: tuple[float, float] = (0.5, 2.0),
        fill: tuple[float, ...] = (0.0, 0.0, 0.0),
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.size = (size[0], size[1])
        self.scale = (scale[0], scale[1])
        self.fill = tuple(fill)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """The part of the original to take, as slices, and its size in the output, which is never above `size`."""
        factor = self.py_random.uniform(*self.scale)
        part, shape = [], []
        for original, wanted in zip(params["shape"][:2], self.size, strict=True):
            scaled = max(1, int(original * factor))
            taken = original if scaled <= wanted else max(1, round(original * wanted / scaled))
            start = self.py_random.randint(0, original - taken)
            part.append(slice(start, start + taken))
            shape.append(min(scaled, wanted))
        return {"part": tuple(part), "scaled_shape": tuple(shape), "factor": factor}

    def apply(
        self, img: np.ndarray, part: tuple[slice, slice], scaled_shape: tuple[int, int], factor: float, **params: Any
    ) -> np.ndarray:
        """The image `(*size, C)`, padded with `fill`."""
        # Down to one half, linear weights reach every pixel of the original; below, some would be passed over.
        method = cv2.INTER_AREA if factor < 0.5 else cv2.INTER_LINEAR
        return self._padded(cv2.resize(img[part], scaled_shape[::-1], interpolation=method), self.fill)

    def apply_to_mask(
        self, mask: np.ndarray, part: tuple[slice, slice], scaled_shape: tuple[int, int], **params: Any
    ) -> np.ndarray:
        """The mask of that size."""
        scaled = cv2.resize(mask[part], scaled_shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        return self._padded(scaled, (IGNORE_INDEX,))

    def _padded(self, image: np.ndarray, fill: tuple[float, ...]) -> np.ndarray:
        """In the middle of `size`."""
        missing = [wanted - there for wanted, there in zip(self.size, image.shape[:2], strict=True)]
        if not any(missing):
            return image
        (top, bottom), (left, right) = ((part // 2, part - part // 2) for part in missing)
        return cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=fill)
