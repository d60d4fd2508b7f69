"""High-dimensional Gaussian filtering (brute force for now; the permutohedral lattice takes this place)."""

import torch
from torch import Tensor


class Permutohedral:
    """The Gaussian filter exp(-|f_i - f_j|^2 / 2) of fixed feature vectors: built once, applied to any values.

    Args:
        features: (N, D), already divided by the kernel's standard deviations.
    """

    def __init__(self, features: Tensor) -> None:
        self.kernel = torch.exp(-0.5 * torch.cdist(features, features) ** 2)

    def filter(self, values: Tensor) -> Tensor:
        """Values (N, C) -> (N, C)."""
        return self.kernel.to(values.dtype) @ values
