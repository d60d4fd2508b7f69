"""Image classification by the backbone's own published classifier, on its last map."""

from collections.abc import Sequence

from torch import Tensor, nn

from heads.head import Head, last


class Classifier(Head):
    """Logits `(B, num_classes)` from the last map, pooled and classified as the backbone's paper does."""

    task = "classification"
    backbone_options = {"pyramid": False}
    takes_classifier = True

    def __init__(
        self, channels: Sequence[int], reductions: Sequence[int], num_classes: int, *, classifier: nn.Module
    ) -> None:
        super().__init__(reductions, [last(reductions)])
        self.classifier = classifier

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.classifier(features[-1])
