"""Selective Search for Object Recognition. Uijlings, van de Sande, Gevers, Smeulders 2013, IJCV 104(2).

The fast mode, as R-CNN and Fast R-CNN use it. A graph segmentation gives small regions; then the two most similar
neighbours are merged until one region is left, and the box of every region on the way is a proposal. The similarity is
a sum: how far the histograms of colour and of texture agree, how small both regions are, and how well they fill their
common box. This is done in two colour spaces, from two segmentations each, with and without colour in the sum. Boxes
are ordered by their place from the top of their hierarchy times a random number, so that the first of them come from
all hierarchies and sizes.

Differences from the authors' program: texture is the central difference of the image smoothed with a standard deviation
of 1, instead of a filter with the derivative of a Gaussian; and images are shrunk to 500 pixels but never enlarged, so
the least side of a box (20 pixels in R-CNN, whose images are 500 wide) is a part of the image's longer side.
"""

import heapq
from dataclasses import dataclass

import cv2
import numpy as np

from datamodules.graph_segmentation import NEIGHBOURS, graph_segmentation

COLOUR_BINS, TEXTURE_BINS, ORIENTATIONS = 25, 10, 8
LEAST_SIDE = 20 / 500
"""Boxes with a side below this part of the image's longer side are dropped."""
SPACES = (cv2.COLOR_RGB2HSV_FULL, cv2.COLOR_RGB2LAB)


@dataclass(frozen=True)
class SelectiveSearch:
    """The settings of a search."""

    scales: tuple[int, ...] = (50, 100)
    """k of the segmentations, which is also the least number of pixels of their regions."""
    longest: int = 500
    """Pixels of an image's longer side; larger images are shrunk."""
    seed: int = 0

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The proposals of an image uint8 `(H, W, 3)`: boxes float32 `(N, 4)` in its pixels, the most promising first.

        The same image and seed give the same boxes.
        """
        shrink = min(1.0, self.longest / max(image.shape[:2]))
        height, width = (max(1, round(side * shrink)) for side in image.shape[:2])
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) if shrink < 1 else image
        found = []
        for space in SPACES:
            colours = cv2.cvtColor(small, space)
            for scale in self.scales:
                regions = Regions(colours, graph_segmentation(colours, scale, scale))
                found += [regions.hierarchy(by_colour=by_colour) for by_colour in (True, False)]
        boxes = ranked(found, self.seed)
        large = (boxes[:, 2:] - boxes[:, :2]).min(1) >= LEAST_SIDE * max(height, width)
        return (boxes[large] * ([image.shape[1] / width, image.shape[0] / height] * 2)).astype(np.float32)


def ranked(hierarchies: list[np.ndarray], seed: int) -> np.ndarray:
    """The distinct boxes of several hierarchies, each of which ends with the whole image, in pseudo-random order."""
    boxes = np.concatenate(hierarchies)
    from_top = np.concatenate([np.arange(len(one), 0, -1) for one in hierarchies])
    ordered = boxes[np.argsort(np.random.default_rng(seed).random(len(boxes)) * from_top, kind="stable")]
    return ordered[np.sort(np.unique(ordered, axis=0, return_index=True)[1])]


class Regions:
    """The regions of a segmentation with what their similarity depends on.

    Args:
        colours: uint8 `(H, W, C)` in some colour space.
        labels: the region of each pixel, `(H, W)`.
    """

    def __init__(self, colours: np.ndarray, labels: np.ndarray) -> None:
        self.area = labels.size
        self.count = int(labels.max()) + 1
        self.sizes = np.bincount(labels.ravel(), minlength=self.count)
        self.boxes = boxes_of(labels, self.count)
        colour = histograms(labels, colours.astype(np.int64) * COLOUR_BINS // 256, self.count, COLOUR_BINS)
        texture = histograms(labels, texture_levels(colours), self.count, TEXTURE_BINS)
        self.features = np.concatenate([colour, texture], 1)
        self.without_colour = texture
        self.pairs = neighbours(labels, self.count)

    def hierarchy(self, *, by_colour: bool) -> np.ndarray:
        """The boxes of all regions, from the first to the last that is merged, int64 `(2 * regions - 1, 4)`."""
        total = 2 * self.count - 1
        features = with_room(self.features if by_colour else self.without_colour, total)
        sizes, boxes = with_room(self.sizes, total), with_room(self.boxes, total)
        around: list[set[int]] = [set() for _ in range(total)]
        for one, other in self.pairs.tolist():
            around[one].add(other)
            around[other].add(one)

        def similarity(one: np.ndarray | int, others: np.ndarray) -> list[float]:
            """Of a region and each of several, or of each pair from two arrays."""
            sides = np.maximum(boxes[one], boxes[others])[:, 2:] - np.minimum(boxes[one], boxes[others])[:, :2]
            # Size is 1 - both / area and fill 1 - (box - both) / area, so their sum is 2 - box / area.
            return (np.minimum(features[one], features[others]).sum(1) + 2 - sides.prod(1) / self.area).tolist()

        waiting = [
            (-value, one, other)
            for value, (one, other) in zip(similarity(*self.pairs.T), self.pairs.tolist(), strict=True)
        ]
        heapq.heapify(waiting)
        merged = [False] * total
        for new in range(self.count, total):
            _, one, other = next_pair(waiting, merged)
            merged[one] = merged[other] = True
            sizes[new] = sizes[one] + sizes[other]
            features[new] = (sizes[one] * features[one] + sizes[other] * features[other]) / sizes[new]
            boxes[new, :2] = np.minimum(boxes[one, :2], boxes[other, :2])
            boxes[new, 2:] = np.maximum(boxes[one, 2:], boxes[other, 2:])
            around[new] = (around[one] | around[other]) - {one, other}
            near = sorted(around[new])
            for region in near:
                around[region] -= {one, other}
                around[region].add(new)
            if near:
                for value, region in zip(similarity(new, np.array(near)), near, strict=True):
                    heapq.heappush(waiting, (-value, region, new))
        return boxes


def next_pair(waiting: list[tuple[float, int, int]], merged: list[bool]) -> tuple[float, int, int]:
    """The most similar pair of which neither region has been merged."""
    while True:
        pair = heapq.heappop(waiting)
        if not (merged[pair[1]] or merged[pair[2]]):
            return pair


def with_room(values: np.ndarray, total: int) -> np.ndarray:
    """A copy with rows of zeros up to `total`."""
    rows = np.zeros((total, *values.shape[1:]), values.dtype)
    rows[: len(values)] = values
    return rows


def boxes_of(labels: np.ndarray, count: int) -> np.ndarray:
    """The box around each region, int64 `(count, 4)`."""
    height, width = labels.shape
    flat = labels.ravel()
    boxes = np.empty((count, 4), np.int64)
    boxes[:, :2], boxes[:, 2:] = max(height, width), 0
    rows, columns = np.divmod(np.arange(labels.size), width)
    for axis, positions in enumerate((columns, rows)):
        np.minimum.at(boxes[:, axis], flat, positions)
        np.maximum.at(boxes[:, axis + 2], flat, positions + 1)
    return boxes


def histograms(labels: np.ndarray, levels: np.ndarray, count: int, bins: int) -> np.ndarray:
    """The histogram of each channel of levels int64 `(H, W, C)` in each region, float32 `(count, C * bins)`, sum 1."""
    places = labels.ravel() * bins
    found = [
        np.bincount(places + levels[..., channel].ravel(), minlength=count * bins).reshape(count, bins)
        for channel in range(levels.shape[2])
    ]
    together = np.concatenate(found, 1).astype(np.float32)
    return together / together.sum(1, keepdims=True)


def texture_levels(colours: np.ndarray) -> np.ndarray:
    """The slope of each channel in eight directions, in levels of its largest: int64 `(H, W, C * 8)`, 0 where it falls.

    Directions are 45 degrees apart, so both ends of an edge of any orientation count.
    """
    smooth = cv2.GaussianBlur(colours.astype(np.float32), (0, 0), 1.0)
    difference, one = np.array([-0.5, 0, 0.5], np.float32), np.ones(1, np.float32)
    across = cv2.sepFilter2D(smooth, cv2.CV_32F, difference, one, borderType=cv2.BORDER_REPLICATE)
    down = cv2.sepFilter2D(smooth, cv2.CV_32F, one, difference, borderType=cv2.BORDER_REPLICATE)
    slopes = []
    for angle in np.arange(ORIENTATIONS) * 2 * np.pi / ORIENTATIONS:
        slope = np.maximum(np.float32(np.cos(angle)) * across + np.float32(np.sin(angle)) * down, 0)
        steepest = np.maximum(slope.max((0, 1)), 1e-6)
        slopes.append(np.minimum((slope * (TEXTURE_BINS / steepest)).astype(np.int64), TEXTURE_BINS - 1))
    return np.concatenate(slopes, 2)


def neighbours(labels: np.ndarray, count: int) -> np.ndarray:
    """The pairs of regions that share an edge or a corner, int64 `(P, 2)`, the smaller number first."""
    codes = []
    for one, other in NEIGHBOURS:
        first, second = labels[one].ravel(), labels[other].ravel()
        codes.append(np.unique(np.minimum(first, second) * count + np.maximum(first, second)))
    pairs = np.stack(np.divmod(np.unique(np.concatenate(codes)), count), 1)
    return pairs[pairs[:, 0] != pairs[:, 1]]
