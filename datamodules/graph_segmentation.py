"""Efficient Graph-Based Image Segmentation. Felzenszwalb, Huttenlocher 2004, IJCV 59(2).

Neighbouring pixels are joined in the order of their distance in colour, unless one of the two regions is more uniform
than that distance: a region of |C| pixels accepts edges up to Int(C) + k / |C|, where Int(C) is its largest edge so
far. Then regions that are too small are joined with their nearest neighbour.

A region that refuses an edge refuses all later ones too, as they are longer. So edges of such regions, and those within
a region, are dropped together from time to time, and Python's loop sees few edges more than it joins.
"""

import cv2
import numpy as np

SIGMA = 0.8
"""Standard deviation in pixels of the smoothing that comes first."""
NEIGHBOURS = (
    (np.s_[:, :-1], np.s_[:, 1:]),
    (np.s_[:-1], np.s_[1:]),
    (np.s_[:-1, :-1], np.s_[1:, 1:]),
    (np.s_[:-1, 1:], np.s_[1:, :-1]),
)
"""The pixels on both sides of the edges to the right, down, and along both diagonals."""
PARTS, LEAST_EDGES = 8, 10_000
"""Edges between two clearances: an eighth of those that are left, but no fewer than this."""


def graph_segmentation(image: np.ndarray, scale: float, least: int) -> np.ndarray:
    """The region of each pixel, int64 `(H, W)`, numbered from 0 without gaps.

    Args:
        image: `(H, W, C)` with values in 0..255, in any colour space.
        scale: k; larger values give larger regions.
        least: pixels of a region at least, unless the image has fewer.
    """
    height, width = image.shape[:2]
    first, second, weights = sorted_edges(cv2.GaussianBlur(image.astype(np.float32), (0, 0), SIGMA))
    parent = joined(first, second, weights, height * width, scale)
    roots = without_small(flattened(parent), first, second, least)
    return np.unique(roots, return_inverse=True)[1].reshape(height, width)


def sorted_edges(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both pixels of each edge, as positions in the flattened image, and its length, shortest first."""
    height, width = image.shape[:2]
    positions = np.arange(height * width).reshape(height, width)
    first = np.concatenate([positions[one].ravel() for one, _ in NEIGHBOURS])
    second = np.concatenate([positions[other].ravel() for _, other in NEIGHBOURS])
    weights = np.concatenate([np.square(image[one] - image[other]).sum(-1).ravel() for one, other in NEIGHBOURS])
    order = np.argsort(weights, kind="stable")
    return first[order], second[order], np.sqrt(weights[order])


def joined(first: np.ndarray, second: np.ndarray, weights: np.ndarray, count: int, scale: float) -> list[int]:
    """The forest of regions that the edges make of `count` pixels: the parent of each, a root being its own."""
    parent, size, limit = list(range(count)), [1] * count, [scale] * count
    while len(weights):
        part = max(LEAST_EDGES, len(weights) // PARTS)
        for one, other, weight in zip(
            first[:part].tolist(), second[:part].tolist(), weights[:part].tolist(), strict=True
        ):
            while parent[one] != one:
                parent[one] = one = parent[parent[one]]
            while parent[other] != other:
                parent[other] = other = parent[parent[other]]
            if one != other and weight <= limit[one] and weight <= limit[other]:
                if size[one] < size[other]:
                    one, other = other, one
                parent[other] = one
                size[one] += size[other]
                limit[one] = weight + scale / size[one]
        first, second, weights = first[part:], second[part:], weights[part:]
        if len(weights):
            roots, limits = flattened(parent), np.asarray(limit)
            first, second = roots[first], roots[second]
            open_still = (first != second) & (limits[first] >= weights[0]) & (limits[second] >= weights[0])
            first, second, weights = first[open_still], second[open_still], weights[open_still]
    return parent


def flattened(parent: list[int]) -> np.ndarray:
    """The root of each pixel."""
    roots = np.asarray(parent)
    while True:
        further = roots[roots]
        if np.array_equal(further, roots):
            return roots
        roots = further


def without_small(roots: np.ndarray, first: np.ndarray, second: np.ndarray, least: int) -> np.ndarray:
    """Join regions below `least` pixels along their shortest edges, which come sorted.

    Sizes only grow, so of the edges between two regions only the shortest can join them.
    """
    first, second = roots[first], roots[second]
    between = np.flatnonzero(first != second)
    pairs = np.minimum(first, second)[between] * len(roots) + np.maximum(first, second)[between]
    shortest = between[np.sort(np.unique(pairs, return_index=True)[1])]
    size = np.bincount(roots, minlength=len(roots)).tolist()
    parent = roots.tolist()
    for one, other in zip(first[shortest].tolist(), second[shortest].tolist(), strict=True):
        while parent[one] != one:
            one = parent[one]
        while parent[other] != other:
            other = parent[other]
        if one != other and min(size[one], size[other]) < least:
            parent[other] = one
            size[one] += size[other]
    return flattened(parent)
