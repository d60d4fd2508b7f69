"""A fully connected CRF after a network, applied at test time or learned with the network.

The learned CRF is Conditional Random Fields as Recurrent Neural Networks (Zheng, Jayasumana et al. 2015,
arXiv:1502.03240): the kernels' weights and the compatibility of labels are parameters. Training unrolls five mean-field
iterations; evaluation runs `CRFSettings.iterations`. Differences from the paper: each kernel has one weight, not one
for each label; the CRF is trained with the network from the start, at the network's learning rate, not afterwards at
1e-13.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from backbones.backbone import to_pixels
from heads.crf import CRFSettings, DenseCRF

TRAINING_ITERATIONS = 5


class CRFRefinement(nn.Module):
    """Logits `(B, C, H, W)` and the network's input images, normalised by `mean` and `std` -> log-probabilities.

    Log-probabilities are logits: their softmax is the CRF's result, so every loss and score accepts them unchanged.
    `mean` and `std` are buffers, so a checkpoint contains the normalisation that its CRF must undo to get pixel values.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        settings: CRFSettings,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.crf = DenseCRF(settings, num_classes=num_classes, trainable=trainable)
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, logits: Tensor, images: Tensor) -> Tensor:
        iterations = self.settings.iterations
        if self.training:
            iterations = min(iterations, TRAINING_ITERATIONS)
        self.crf.settings = dataclasses.replace(self.settings, iterations=iterations)
        with torch.autocast(images.device.type, enabled=False):  # half precision rounds small probabilities to zero
            pixels = to_pixels(images.float(), self.mean, self.std)
            refined = self.crf(logits.float(), pixels, log=True)
        return refined.contiguous()  # no view: FSDP2 hangs a hook on the output, which a change in place would drop
