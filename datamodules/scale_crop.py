"""Resizing by a random factor: alone, or together with the crop, so that only the part that stays is resized."""

from typing import Any

import albumentations as A
import cv2
import numpy as np
from albumentations.core.type_definitions import Targets

from datamodules.collate import IGNORE_INDEX


class ResizeToCover(A.DualTransform):
    """Resize image and mask, in proportion, until they just cover `size` (H, W) times a factor drawn from a range."""

    _targets = (Targets.IMAGE, Targets.MASK, Targets.BBOXES)

    def __init__(self, size: tuple[int, int], factors: tuple[float, float], p: float = 1.0) -> None:
        super().__init__(p=p)
        self.size = (size[0], size[1])
        self.factors = (factors[0], factors[1])

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """The new (H, W)."""
        factor = self.py_random.uniform(*self.factors)
        original = params["shape"][:2]
        wanted = [round(side * factor) for side in self.size]
        scale = max(side / before for side, before in zip(wanted, original, strict=True))
        shape = tuple(max(side, round(before * scale)) for side, before in zip(wanted, original, strict=True))
        return {"shape_after": shape, "enlarges": scale > 1}

    def apply(self, img: np.ndarray, shape_after: tuple[int, int], enlarges: bool, **params: Any) -> np.ndarray:
        """The image, averaged over areas where it becomes smaller."""
        return resized(img, shape_after, cv2.INTER_LINEAR if enlarges else cv2.INTER_AREA)

    def apply_to_mask(self, mask: np.ndarray, shape_after: tuple[int, int], **params: Any) -> np.ndarray:
        """The mask, by its nearest pixels."""
        return cv2.resize(mask, shape_after[::-1], interpolation=cv2.INTER_NEAREST_EXACT)

    def apply_to_bboxes(self, bboxes: np.ndarray, **params: Any) -> np.ndarray:
        """Boxes `(N, 4 + fields)` are fractions of the image, which resizing does not change."""
        return bboxes


class ResizeWithin(A.DualTransform):
    """Resize image and mask, in proportion, as far as the sides stay within bounds: Faster R-CNN's sizes.

    Args:
        shorter: largest number of pixels of the shorter side.
        longer: that of the longer side.
    """

    _targets = (Targets.IMAGE, Targets.MASK, Targets.BBOXES)

    def __init__(self, shorter: int, longer: int, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.shorter, self.longer = shorter, longer

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """The new (H, W)."""
        height, width = params["shape"][:2]
        scale = min(self.shorter / min(height, width), self.longer / max(height, width))
        shape = tuple(max(1, round(side * scale)) for side in (height, width))
        return {"shape_after": shape, "enlarges": scale > 1}

    def apply(self, img: np.ndarray, shape_after: tuple[int, int], enlarges: bool, **params: Any) -> np.ndarray:
        """The image, averaged over areas where it becomes smaller."""
        return resized(img, shape_after, cv2.INTER_LINEAR if enlarges else cv2.INTER_AREA)

    def apply_to_mask(self, mask: np.ndarray, shape_after: tuple[int, int], **params: Any) -> np.ndarray:
        """The mask, by its nearest pixels."""
        return cv2.resize(mask, shape_after[::-1], interpolation=cv2.INTER_NEAREST_EXACT)

    def apply_to_bboxes(self, bboxes: np.ndarray, **params: Any) -> np.ndarray:
        """Boxes `(N, 4 + fields)` are fractions of the image, which resizing does not change."""
        return bboxes


class ScaleCrop(A.DualTransform):
    """Scale image, mask and boxes by a random factor, then crop `size` (H, W) at a random place, padded if too small.

    The distribution is that of `A.RandomScale` before `A.RandomCrop(pad_if_needed=True)`, except for rounding: here the
    crop begins at a whole pixel of the original, there at one of the scaled image. Images are interpolated linearly, or
    averaged over areas below a factor of one half. Masks take the nearest pixel, and 255 = ignore as padding.
    """

    _targets = (Targets.IMAGE, Targets.MASK, Targets.BBOXES)

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
        # Down to one half, linear interpolation uses every pixel of the original; below, it would leave some out.
        method = cv2.INTER_AREA if factor < 0.5 else cv2.INTER_LINEAR
        return self._padded(resized(img[part], scaled_shape, method), self.fill)

    def apply_to_mask(
        self, mask: np.ndarray, part: tuple[slice, slice], scaled_shape: tuple[int, int], **params: Any
    ) -> np.ndarray:
        """The mask `size`, padded with 255 = ignore."""
        scaled = cv2.resize(mask[part], scaled_shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        return self._padded(scaled, (IGNORE_INDEX,))

    def apply_to_bboxes(
        self,
        bboxes: np.ndarray,
        part: tuple[slice, slice],
        scaled_shape: tuple[int, int],
        shape: tuple[int, ...],
        **params: Any,
    ) -> np.ndarray:
        """Boxes `(N, 4 + fields)` in fractions of the image, in fractions of the crop."""
        moved = bboxes.copy()
        for axis, (span, scaled, wanted) in enumerate(zip(part, scaled_shape, self.size, strict=True)):
            columns = [1 - axis, 3 - axis]  # x for the width, y for the height
            pixels = (bboxes[:, columns] * shape[axis] - span.start) * scaled / (span.stop - span.start)
            moved[:, columns] = (pixels + (wanted - scaled) // 2) / wanted
        return moved

    def _padded(self, image: np.ndarray, fill: tuple[float, ...]) -> np.ndarray:
        """The image in the middle of `size`, with borders of the colour `fill`."""
        missing = [wanted - there for wanted, there in zip(self.size, image.shape[:2], strict=True)]
        if not any(missing):
            return image
        (top, bottom), (left, right) = ((part // 2, part - part // 2) for part in missing)
        if image.ndim == 3 and image.shape[2] not in (3, 4):  # OpenCV fills up to four channels, and drops a single one
            padded = np.empty((*self.size, image.shape[2]), image.dtype)
            padded[:] = np.rint(fill)
            padded[top : self.size[0] - bottom, left : self.size[1] - right] = image
            return padded
        return cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=fill)


def resized(image: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    """An image `(H, W, C)` at `size` (H, W); OpenCV drops a single channel."""
    return cv2.resize(image, size[::-1], interpolation=interpolation).reshape(*size, image.shape[2])
