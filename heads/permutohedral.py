"""Fast High-Dimensional Filtering Using the Permutohedral Lattice.

Adams, Baek and Davis 2010 (Computer Graphics Forum 29(2); no arXiv id): a Gaussian filter over N points of D features
in O(N D^2): spread the points' values over the corners of the lattice's simplices, blur along its D + 1 directions,
gather again. As in the authors' code, only corners that a point touches exist. Differences: corners are found by
sorting integer keys instead of in a hash table, and each step is a weighted sum of rows with contiguous labels, in one
call of `embedding_bag`, which is multi-threaded and runs on any device.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ALL = slice(None)
Normalization = Literal["symmetric", "before", "after"]


class Permutohedral:
    """The normalised Gaussian filter exp(-|f_i - f_j|^2 / 2) over fixed points: built once, applied to any values.

    Args:
        features: (N, D) float, already divided by the kernel's standard deviations.
        normalization: divide by the sum of a point's weights before or after filtering, or by its root on both sides.
    """

    def __init__(self, features: Tensor, normalization: Normalization = "symmetric") -> None:
        codes, weights, steps = _simplices(features)  # (D + 1, N)
        ordered, order = codes.flatten().sort(stable=True)
        first = torch.ones_like(ordered, dtype=torch.bool)
        torch.ne(ordered[1:], ordered[:-1], out=first[1:])
        corners = ordered[first]
        self.num_rows = len(corners)
        """Number of the lattice's corners, which is the number of rows that `spread` returns."""
        corner = first.cumsum(0, dtype=torch.int32).sub_(1)
        self.slice_index = torch.empty_like(corner).scatter_(0, order, corner).view_as(codes).T.contiguous()
        self.splat_index = (order % len(features)).int()
        self.splat_start = first.nonzero().flatten().int()
        self.blurs = [_blur(corners, step, weights.dtype) for step in steps]
        splat, slice_ = weights.flatten().index_select(0, order), weights.T.contiguous()
        # one for the filter, one for its transpose
        self.splat_weights, self.slice_weights = (splat, splat), (slice_, slice_)
        before, after = normalizers(self.filter(torch.ones_like(features[:, :1])), normalization)
        self.splat_weights = pair(lambda factor: splat * factor[:, 0][self.splat_index], before, after)
        self.slice_weights = pair(lambda factor: slice_ * factor, after, before)

    def spread(self, values: Tensor, reverse: bool = False) -> Tensor:
        """Values of the points (N, C) to blurred values of the corners (M, C)."""
        x = sum_rows(values, self.splat_index, self.splat_weights[reverse], self.splat_start)
        for blur in reversed(self.blurs) if reverse else self.blurs:
            x = sum_rows(x, *blur)
        return x

    def gather(self, corners: Tensor, points: slice = ALL, reverse: bool = False) -> Tensor:
        """Values of the corners (M, C) to those of the points."""
        return sum_rows(corners, self.slice_index[points], self.slice_weights[reverse][points])

    def filter(self, values: Tensor, reverse: bool = False) -> Tensor:
        """Values (N, C) -> (N, C); `reverse` is the transpose: blurring along the directions in reverse order."""
        return self.gather(self.spread(values, reverse), reverse=reverse)


def normalizers(sums: Tensor, normalization: Normalization) -> tuple[Tensor, Tensor]:
    """Factors (before, after) by which to multiply values around a filter whose weights have these sums."""
    if normalization == "symmetric":
        root = sums.rsqrt()
        return root, root
    one, inverse = torch.ones_like(sums), 1 / sums
    return (inverse, one) if normalization == "before" else (one, inverse)


def pair(function: Callable[[Tensor], Tensor], one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The function's results of two tensors, computed once if they are the same."""
    first = function(one)
    return first, first if one is other else function(other)


def sum_rows(table: Tensor, index: Tensor, weight: Tensor, start: Tensor | None = None) -> Tensor:
    """Weighted sums of rows of `table` (R, C).

    One sum per row of a 2-D `index`, or one per segment of a flat `index` whose segments begin at `start`.
    """
    return F.embedding_bag(index, table, start, mode="sum", per_sample_weights=weight)


def _simplices(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the simplex in which each point lies.

    Returns:
        Integer keys of the corners of each point's simplex (D + 1, N); the point's barycentric weights (D + 1, N); and,
        for each direction (D + 1), the number that turns a corner's key into its neighbour's when added.
    """
    size = features.shape[1] + 1
    # The lattice lies in the plane where `size` coordinates sum to 0, scaled so that all steps together deviate by 1
    scales = [math.sqrt(2 / 3) * size / math.sqrt((i + 1) * (i + 2)) for i in range(size - 1)]
    basis = [[s if row <= i else -row * s if row == i + 1 else 0 for i, s in enumerate(scales)] for row in range(size)]
    elevated = features.new_tensor(basis) @ features.T
    # The nearest point whose coordinates are multiples of size; where their sum is not 0, those rounded furthest move
    nearest = (elevated / size).round_()
    rest = elevated.sub_(nearest, alpha=size)
    rank = torch.zeros_like(rest, dtype=torch.int16)  # 0 for the largest rest
    for i in range(size):
        for j in range(i + 1, size):
            less = rest[i] < rest[j]
            rank[i] += less
            rank[j] += ~less
    rank += nearest.sum(0).to(rank.dtype)
    wrap = (rank < 0).to(rank.dtype) - (rank >= size).to(rank.dtype)
    rank += size * wrap
    nearest += wrap
    rest = rest.div_(size).sub_(wrap)
    slot = rank.long()
    ordered = torch.empty_like(rest).scatter_(0, slot, rest)
    weights = torch.cat(((1 + ordered[-1:] - ordered[:1]), (ordered[:-1] - ordered[1:]).flip(0)))
    # A corner's key: all coordinates but the last as digits of a mixed radix, with room for neighbours. Beyond 64 bits
    # (7 colour channels or more) it wraps around; with odd radices it is still a hash that almost never collides.
    low, high = nearest[:-1].aminmax(dim=1)
    radices = [int(n) * size | 1 for n in (high - low + 4).tolist()]  # waits for the GPU, once per image
    places = [math.prod(radices[:i]) for i in range(size - 1)] + [0]
    place = torch.tensor([(p + 2**63) % 2**64 - 2**63 for p in places], device=features.device)
    place_at = torch.empty_like(slot).scatter_(0, slot, place[:, None].expand_as(slot))
    codes = torch.empty_like(slot)
    codes[0] = (nearest.long() * (size * place)[:, None]).sum(0)
    for r in range(1, size):
        codes[r] = codes[r - 1] + place.sum() - size * place_at[size - r]
    return codes, weights, place.sum() - size * place


def _blur(corners: Tensor, step: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, weights and starts of 1/2 1 1/2 along one direction: a segment for each corner and its neighbours."""
    wanted = corners + step
    found = torch.searchsorted(corners, wanted).clamp_(max=len(corners) - 1)
    here = (corners.index_select(0, found) == wanted).nonzero().flatten()
    there = found.index_select(0, here)
    length = torch.ones(len(corners), dtype=torch.int32, device=corners.device)
    for one in (here, there):
        length[one] += 1
    end = length.cumsum(0)
    start = end - length
    index = length.new_empty(len(corners) + 2 * len(here))
    weight = torch.full(index.shape, 0.5, dtype=dtype, device=corners.device)
    index[start] = torch.arange(len(corners), dtype=index.dtype, device=corners.device)
    weight[start] = 1
    index[start[here] + 1] = there.to(index.dtype)
    index[end[there] - 1] = here.to(index.dtype)
    return index, weight, start.to(index.dtype)
