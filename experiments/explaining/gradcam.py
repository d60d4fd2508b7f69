"""Grad-CAM: Visual Explanations from Deep Networks. Selvaraju, Cogswell, Das, Vedantam, Parikh, Batra 2016.

arXiv:1610.02391. The channels of a layer, weighted by the mean derivative of a class's logit, summed and rectified. In
a segmentation the logit is averaged over pixels (Vinogradova, Dibrov, Myers 2020, arXiv:2002.11434). The layer is the
coarsest map that the head reads; if a pool gives that map, it is the pool's input, as in the paper.

Written out, because libraries ask for a module that returns one tensor, while the maps here are a list.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.command_line.explain_flags import ExplainFlags
from experiments.explaining.drawing import heat_over, panel, row
from experiments.explaining.examples import Examples
from experiments.explaining.explanation import Explanation
from experiments.explaining.randomise import SanityCheck
from experiments.explaining.recording import record
from experiments.explaining.room import prepared_to_record
from experiments.explaining.target import Target, choose_target
from experiments.inference.trained import TrainedNetwork


def class_activation(layer: Tensor, score: Tensor) -> Tensor:
    """The rectified, weighted sum `(h, w)` of the channels of a layer `(1, C, h, w)` for a score that depends on it."""
    (derivative,) = torch.autograd.grad(score, layer)
    weights = derivative.mean((2, 3), keepdim=True)
    return (weights * layer).sum(1).clamp(min=0)[0].detach()


def explain_class(
    network: TrainedNetwork, x: Tensor, flags: ExplainFlags, target: Target | None, image: np.ndarray
) -> tuple[Tensor, str, Target, Tensor]:
    """The map `(h, w)` of one picture, the name of its layer, the target, and the logits.

    Raises:
        ValueError: the layer is one value for the whole picture, or does not lead to the logits.
    """
    with torch.enable_grad():
        recording = record(network.module.network, x.clone().requires_grad_())
        chosen = target or choose_target(network, recording.logits, flags, image)
        name, layer = recording.layer(flags.layer, max(network.module.network.head.levels))
        if layer.shape[2:].numel() == 1:
            raise ValueError(
                f"{name} has one value for the whole picture, so Grad-CAM has no places to tell apart; use --method "
                "occlusion, larger pictures, or a finer --layer"
            )
        try:
            cam = class_activation(layer, chosen.of(recording.logits)[0])
        except RuntimeError as error:
            raise ValueError(f"--layer {name}: the logits do not depend on it; take another layer") from error
    return cam, name, chosen, recording.logits.detach()


def gradcam(network: TrainedNetwork, examples: Examples, flags: ExplainFlags) -> Iterator[Explanation]:
    """Each picture beside itself under the heat of its Grad-CAM."""
    check = SanityCheck(network) if flags.sanity_check else None
    for example in examples.take():
        pixels, x = prepared_to_record(network, example.image)
        cam, name, target, logits = explain_class(network, x, flags, None, example.image)
        facts = {
            "picture": example.name,
            "layer": name,
            **target.facts(network.module.probabilities(logits.detach().float())),
            "size": list(pixels.shape[:2]),
        }
        row_, column = divmod(int(cam.argmax()), cam.shape[1])
        facts |= {"map": list(cam.shape), "maximum": float(cam.max()), "maximum_at": {"row": row_, "column": column}}
        facts["values"] = [[float(f"{value:.4g}") for value in line] for line in cam.tolist()]
        if check is not None:

            def again(
                other: TrainedNetwork, x: Tensor = x, target: Target = target, image: np.ndarray = example.image
            ) -> np.ndarray:
                return explain_class(other, x, flags, target, image)[0].cpu().numpy()

            facts["sanity_check"] = check(cam.cpu().numpy(), again)
        heat = F.interpolate(cam[None, None], pixels.shape[:2], mode="bilinear", align_corners=False)[0, 0]
        caption = f"{target.name}, probability {facts['probability']:.2f}"
        if not cam.any():
            facts["note"] = (
                f"no place of {name} speaks for this class: the sum of its weighted channels is never above 0"
            )
            caption += ": no place speaks for it"
        yield Explanation(
            example.stem,
            row([panel(pixels, example.title, target), panel(heat_over(pixels, heat.cpu().numpy()), caption)]),
            facts,
        )
