"""Box regression by ridge regression, one a class. Girshick et al. 2013, arXiv:1311.2524, appendix C.

From proposals that overlap an object by more than 0.6, their features predict the object's box relative to them.
Targets are centred and whitened first.
"""

import numpy as np
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from heads.anchors import decode, encode

LAMBDA = 1000.0
LEAST_OVERLAP = 0.6
"""IoU with an object above which a proposal is learned from."""
LEAST_VARIANCE = 1e-3
"""Added to the variances that targets are divided by."""


class ClassRegression:
    """Corrects the boxes of one class.

    Args:
        features: float32 `(N, E)` of proposals near an object.
        proposals, objects: `(N, 4)` each.
    """

    def __init__(self, features: Tensor, proposals: Tensor, objects: Tensor) -> None:
        targets = encode(objects.double(), proposals.double()).numpy()
        self.mean = targets.mean(0)
        centred = targets - self.mean
        values, vectors = np.linalg.eigh(centred.T @ centred / len(targets))
        roots = np.sqrt(np.maximum(values, 0) + LEAST_VARIANCE)
        whitening = vectors / roots @ vectors.T
        self.colouring = vectors * roots @ vectors.T
        self.ridge = Ridge(alpha=LAMBDA).fit(features.numpy(), centred @ whitening)

    def __call__(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Better boxes `(N, 4)`, from features `(N, E)` and proposals `(N, 4)`."""
        if not len(boxes):
            return boxes
        codes = self.ridge.predict(features.numpy()) @ self.colouring + self.mean
        return decode(torch.from_numpy(codes).to(boxes), boxes)
