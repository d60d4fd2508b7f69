"""Sanity Checks for Saliency Maps. Adebayo, Gilmer, Muelly, Goodfellow, Hardt, Kim 2018, arXiv:1810.03292.

Model parameter randomisation: if an explanation of a network with random weights looks like that of the trained
network, it shows the picture, not what the network has learned. Deliberate difference: all weights are shuffled at
once, within each tensor, so that their distribution stays; the paper draws new ones, layer after layer from the last.
"""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from experiments.inference.trained import TrainedNetwork

REPETITIONS = 3
SURVIVES = 0.5
"""Mean rank correlation from which an explanation counts as the same."""


def shuffled(network: TrainedNetwork, seed: int) -> TrainedNetwork:
    """A copy whose weights are shuffled within each tensor; the statistics of batch norms stay."""
    module = copy.deepcopy(network.module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view(parameter.shape))
    return dataclasses.replace(network, module=module)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's correlation of two maps of the same shape; 0 if one of them is constant, and so shows nothing."""
    a, b = (rankdata(one.ravel()) for one in (first, second))
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


class SanityCheck:
    """Compares explanations with those of copies of the network with random weights."""

    def __init__(self, network: TrainedNetwork) -> None:
        self.copies = [shuffled(network, seed) for seed in range(REPETITIONS)]

    def __call__(self, ours: np.ndarray, explain: Callable[[TrainedNetwork], np.ndarray]) -> dict[str, Any]:
        """Rank correlations of an explanation `(h, w)` with what `explain` gives for each copy, as plain values."""
        each = [rank_correlation(ours, explain(one)) for one in self.copies]
        mean = float(np.mean(each))
        return {
            "rank_correlation_with_random_weights": [round(value, 4) for value in each],
            "mean": round(mean, 4),
            "limit": SURVIVES,
            "depends_on_the_weights": abs(mean) < SURVIVES,
        }
