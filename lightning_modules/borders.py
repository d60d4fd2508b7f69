"""Pixels near the borders of objects, and the weights that losses give them."""

import functools
import itertools
import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PEAK = 10.0
"""Largest border weight, w0 of U-Net's equation 2."""
WIDTH = 5.0
"""Standard deviation of the border weight in pixels, sigma of the same equation."""

ROUNDING = 1e-3
"""Pixels by which OpenCV's distances to one point may differ; different distances below 500 pixels differ by more."""


def near_boundary(labels: Tensor, valid: Tensor, distance: int) -> Tensor:
    """bool `(B, H, W)`: pixels that have another valid label at most `distance` rows and columns away."""
    size, padding = 2 * distance + 1, distance
    values = labels.unsqueeze(1).float()
    ignored = ~valid.unsqueeze(1)
    highest = F.max_pool2d(values.masked_fill(ignored, -1), size, 1, padding)
    lowest = -F.max_pool2d(-values.masked_fill(ignored, 1e9), size, 1, padding)
    return (highest > lowest).squeeze(1) & valid


def border_weights(labels: np.ndarray) -> np.ndarray:
    """10 exp(-(d1 + d2)^2 / (2 * 5^2)) on background `(H, W)`, zero elsewhere; float32.

    d1 and d2 are the distances in pixels to the nearest and the second nearest object. Objects are connected regions
    of labels above 0. With fewer than two objects all weights are zero.
    """
    count, objects = cv2.connectedComponents((labels > 0).astype(np.uint8), connectivity=4)
    if count < 3:  # the background is counted, too
        return np.zeros(objects.shape, np.float32)
    nearest, second = distances_to_two_objects(objects, count - 1)
    weights = PEAK * np.exp(-np.square(nearest + second) / (2 * WIDTH**2))
    weights[objects > 0] = 0
    return weights


def border_weights_of(labels: Tensor) -> Tensor:
    """The same of each of a batch of labels `(B, H, W)`, which are fetched from their device."""
    return torch.from_numpy(np.stack([border_weights(one) for one in labels.cpu().numpy()])).to(labels.device)


def distances_to_two_objects(objects: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances in pixels, float32 `(H, W)`, to the nearest and the second nearest of the objects 1 to `count`.

    One transform for each object would take too long. Here each object belongs to half of a few groups, no two objects
    to the same ones (400 objects need 11 groups), and there is one transform for each group. The nearest object is as
    far as the nearest groups: half of all, or more if another object is equally far. The second nearest belongs to a
    group without the nearest one, so it is as far as the nearest of the groups that are farther than the nearest
    object.
    """
    groups = next(m for m in range(2, 64) if math.comb(m, m // 2) >= count)
    members = itertools.islice(itertools.combinations(range(groups), groups // 2), count)
    outside = np.ones((groups, count + 1), np.uint8)
    outside[np.array(list(members)).T, np.arange(1, count + 1)] = 0
    distances = [cv2.distanceTransform(one[objects], cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for one in outside]
    nearest = functools.reduce(cv2.min, distances)
    second, groups_at_nearest = np.full_like(nearest, np.inf), np.zeros(objects.shape, np.uint8)
    for distance in distances:
        near = distance <= nearest + ROUNDING
        groups_at_nearest += near
        np.minimum(second, distance, out=second, where=~near)
    return nearest, np.where(groups_at_nearest > groups // 2, nearest, second)
