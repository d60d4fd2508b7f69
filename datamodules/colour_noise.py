"""AlexNet's colour noise. Krizhevsky, Sutskever, Hinton 2012, section 4.1.

One RGB offset is added to all pixels of an image: the sum of p_i alpha_i lambda_i, where p_i and lambda_i are the
principal components and their eigenvalues over the pixels of ImageNet's training images, and alpha_i is drawn once per
image from N(0, 0.1). `A.FancyPCA` is another operation: it takes the components of the single image and scales
deviations from its mean colour, so that the mean colour stays.
"""

from typing import Any

import albumentations as A
import cv2
import numpy as np

EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
"""Eigenvalues of the covariance of ImageNet's RGB values in [0, 1], from fb.resnet.torch (2016)."""
EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
"""Rows are R, G and B; column i belongs to eigenvalue i."""


class ImageNetColourNoise(A.ImageOnlyTransform):
    """Add a random colour, the same for all pixels of an image; `std` is the standard deviation of the alphas."""

    def __init__(self, std: float = 0.1, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.std = std

    def get_params(self) -> dict[str, Any]:
        """The offset of R, G and B, in levels of 0..255."""
        alphas = self.random_generator.normal(0, self.std, 3)
        return {"offset": 255 * EIGENVECTORS @ (alphas * EIGENVALUES)}

    def apply(self, img: np.ndarray, offset: np.ndarray, **params: Any) -> np.ndarray:
        """The uint8 image `(H, W, 3)` with the offset added, rounded and clipped."""
        levels = np.arange(256)[:, None] + offset
        return cv2.LUT(img, levels.round().clip(0, 255).astype(np.uint8)[:, None])
