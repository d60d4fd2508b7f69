"""Visualizing and Understanding Convolutional Networks. Zeiler, Fergus 2013, arXiv:1311.2901, section 4.2.

A grey patch slides over the picture; where it takes probability from the class, the network looked. The patch has the
mean colour of the data, which is zero for the network.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from experiments.command_line.explain_flags import ExplainFlags
from experiments.command_line.progress import with_progress
from experiments.explaining.drawing import heat_over, panel, row
from experiments.explaining.examples import Examples, prepared
from experiments.explaining.explanation import Explanation
from experiments.explaining.randomise import SanityCheck
from experiments.explaining.room import batch_that_fits
from experiments.explaining.target import Target, choose_target
from experiments.inference.trained import TrainedNetwork

LEAST_SCALE = 0.25
"""Share of the probability whose loss is drawn red even if no patch takes as much: small changes stay pale."""


@dataclass(frozen=True)
class Patches:
    """Where the corners of the patches lie, so that every pixel is covered: rows `tops`, columns `lefts`."""

    side: int
    tops: list[int]
    lefts: list[int]

    @property
    def corners(self) -> list[tuple[int, int]]:
        return [(top, left) for top in self.tops for left in self.lefts]


def plan(size: tuple[int, int], side: int | None, step: int | None) -> Patches:
    """The patches for a picture of `size` (H, W).

    Raises:
        ValueError: the patch covers the picture, or the step leaves pixels out.
    """
    side = side or max(1, min(size) // 4)
    step = step or max(1, side // 4)
    if side >= min(size):
        raise ValueError(f"--patch {side} covers the picture, which has {size[1]} columns and {size[0]} rows")
    if step > side:
        raise ValueError(f"--step {step} leaves pixels out between patches of {side} pixels; give at most {side}")
    tops, lefts = (sorted({*range(0, length - side, step), length - side}) for length in size)
    return Patches(side, tops, lefts)


@torch.no_grad()
def probabilities_under(
    network: TrainedNetwork, x: Tensor, patches: Patches, target: Target, batch_size: int, title: str
) -> np.ndarray:
    """The target's probability, float64 `(rows, columns)`, with each patch on the picture `(1, C, H, W)`."""
    corners, found = patches.corners, []
    starts = range(0, len(corners), batch_size)
    for start in with_progress(starts, len(starts), title):
        part = corners[start : start + batch_size]
        batch = x.repeat(len(part), 1, 1, 1)
        for one, (top, left) in zip(batch, part, strict=True):
            one[:, top : top + patches.side, left : left + patches.side] = 0
        found += target.of(network.module.probabilities(network.module.network(batch).float())).tolist()
    return np.array(found).reshape(len(patches.tops), len(patches.lefts))


def spread_over(drops: np.ndarray, patches: Patches, size: tuple[int, int]) -> np.ndarray:
    """The mean drop `(H, W)` of the patches that cover each pixel, from that of each patch `(rows, columns)`."""
    total, count = np.zeros(size), np.zeros(size)
    for (top, left), drop in zip(patches.corners, drops.ravel(), strict=True):
        box = np.s_[top : top + patches.side, left : left + patches.side]
        total[box] += drop
        count[box] += 1
    return total / count


def occlusion(network: TrainedNetwork, examples: Examples, flags: ExplainFlags) -> Iterator[Explanation]:
    """Each picture beside itself under the probability that a patch takes from its class."""
    check = SanityCheck(network) if flags.sanity_check else None
    for example in examples.take():
        pixels, x = prepared(network, example.image)
        size = (pixels.shape[0], pixels.shape[1])
        with torch.no_grad():
            logits = network.module.network(x)
        target = choose_target(network, logits, flags, example.image)
        patches = plan(size, flags.patch, flags.step)
        batch_size = batch_that_fits(network, x, flags.batch_size)

        def drops_of(
            other: TrainedNetwork,
            x: Tensor = x,
            target: Target = target,
            patches: Patches = patches,
            batch_size: int = batch_size,
        ) -> np.ndarray:
            with torch.no_grad():
                before = float(target.of(other.module.probabilities(other.module.network(x).float()))[0])
            return before - probabilities_under(other, x, patches, target, batch_size, "batches")

        drops = drops_of(network)
        heat = spread_over(drops, patches, size)
        y, x_ = (int(value) for value in np.unravel_index(int(heat.argmax()), size))
        facts = {
            "picture": example.name,
            **target.facts(network.module.probabilities(logits.float())),
            "size": list(size),
            "patch": patches.side,
        }
        facts |= {"tops": patches.tops, "lefts": patches.lefts, "drops": np.round(drops, 5).tolist()}
        facts |= {"largest_drop": float(drops.max()), "most_needed_pixel": {"row": y, "column": x_}}
        if check is not None:
            facts["sanity_check"] = check(drops, drops_of)
        caption = f"{target.name}: {facts['probability']:.2f}, under the patch {facts['probability'] - drops.max():.2f}"
        overlay = heat_over(pixels, heat.clip(min=0), LEAST_SCALE * facts["probability"])
        yield Explanation(example.stem, row([panel(pixels, example.title, target), panel(overlay, caption)]), facts)
