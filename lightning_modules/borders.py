"""Pixels near the borders of objects, and the weights that losses give them."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

PEAK = 10.0
"""Largest border weight, w0 of U-Net's equation 2."""
WIDTH = 5.0
"""Standard deviation of the border weight in pixels, sigma of the same equation."""


def near_boundary(labels: Tensor, valid: Tensor, distance: int) -> Tensor:
    """bool `(B, H, W)`: pixels that have another valid label at most `distance` rows and columns away."""
    size, padding = 2 * distance + 1, distance
    values = labels.unsqueeze(1).float()
    ignored = ~valid.unsqueeze(1)
    highest = F.max_pool2d(values.masked_fill(ignored, -1), size, 1, padding)
    lowest = -F.max_pool2d(-values.masked_fill(ignored, 1e9), size, 1, padding)
    return (highest > lowest).squeeze(1) & valid


def border_weights(labels: Tensor) -> Tensor:
    """10 exp(-(d1 + d2)^2 / (2 * 5^2)) on background `(H, W)`, zero elsewhere; float32.

    d1 and d2 are the distances in pixels to the nearest and the second nearest object. Objects are connected regions
    of labels above 0. With fewer than two objects all weights are zero.
    """
    objects, count = ndimage.label(labels.cpu().numpy() > 0)
    weights = np.zeros(objects.shape, np.float32)
    if count > 1:
        nearest, second = distances_to_two_objects(objects, count)
        weights = PEAK * np.exp(-np.square(nearest + second) / (2 * WIDTH**2))
        weights[objects > 0] = 0
    return torch.from_numpy(weights).to(labels.device)


def distances_to_two_objects(objects: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances in pixels, float32 `(H, W)`, to the nearest and the second nearest of the objects 1 to `count`.

    One transform for each object would take too long in a training step. Two for each binary digit of the objects'
    numbers are enough: a digit divides the objects into two groups. The nearest object lies in the nearer group; and
    since any other object differs from it in some digit, the second nearest is the nearest of the farther group for
    that digit, and never farther away than the farther group of any other digit.
    """
    numbers = objects - 1
    second = np.full(objects.shape, np.inf, np.float32)
    nearest = second
    for digit in range((count - 1).bit_length()):
        one = (numbers >> digit) & 1
        groups = [
            cv2.distanceTransform(((objects == 0) | (one != side)).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            for side in (0, 1)
        ]
        nearest = np.minimum(*groups)
        second = np.minimum(second, np.maximum(*groups))
    return nearest, second
