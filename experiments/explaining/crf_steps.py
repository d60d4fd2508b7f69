"""The beliefs of a fully connected CRF after each of a few mean-field iterations; see `heads/crf.py`."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from experiments.command_line.crf_settings import read_crf_settings
from experiments.command_line.explain_flags import ExplainFlags
from experiments.explaining.drawing import colours, panel, table
from experiments.explaining.examples import Examples, prepared
from experiments.explaining.explanation import Explanation
from experiments.explaining.target import find_label, main_class
from experiments.inference.results import overlay
from experiments.inference.trained import TrainedNetwork
from heads.crf import DenseCRF
from lightning_modules.metrics import SegmentationScores
from lightning_modules.refinement import CRFRefinement

SHOWN = (0, 1, 2, 3, 5)
"""Iterations that are drawn, besides the last."""


def crf_of(network: TrainedNetwork, named: str | None) -> DenseCRF:
    """The CRF that the flag names, or that the network has learned, or the default one."""
    learned = network.module.crf
    if named is None and isinstance(learned, CRFRefinement):
        learned.crf.settings = learned.settings
        return learned.crf
    return DenseCRF(read_crf_settings(named)).to(next(network.module.parameters()).device)


@torch.no_grad()
def beliefs(crf: DenseCRF, probabilities: Tensor, image: np.ndarray, iterations: list[int]) -> list[Tensor]:
    """Beliefs `(1, C, H, W)` after each number of iterations, from probabilities of the same shape."""
    settings = crf.settings
    kernels = crf.build(torch.from_numpy(image).permute(2, 0, 1)[None].to(probabilities.device))
    found = []
    try:
        for number in iterations:
            crf.settings = dataclasses.replace(settings, iterations=number)
            found.append(crf(probabilities, kernels, from_logits=False))
    finally:
        crf.settings = settings
    return found


def crf_steps(network: TrainedNetwork, examples: Examples, flags: ExplainFlags) -> Iterator[Explanation]:
    """Each picture with its labels, and the belief in one class, after some iterations.

    Raises:
        ValueError: the network labels no pixels.
    """
    if network.task != "segmentation":
        raise ValueError("--method crf is for segmentations; this network classifies whole pictures")
    crf = crf_of(network, flags.crf_settings)
    last = crf.settings.iterations
    iterations = sorted({number for number in SHOWN if number < last} | {last})
    names = network.class_names
    named = find_label(flags.target, names)
    for example in examples.take():
        with torch.no_grad():
            logits = network.module.network(prepared(network, example.image)[1])
        steps = beliefs(crf, network.probabilities_of(logits, example.image.shape[:2]), example.image, iterations)
        label = main_class(steps[0].argmax(1).flatten(), names) if named is None else named
        above, below, entries = [panel(example.image, example.name)], [], []
        for number, belief in zip(iterations, steps, strict=True):
            labels = belief[0].argmax(0)
            entry: dict[str, float | int] = {"iteration": number, "mean_belief": float(belief[0, label].mean())}
            entry["changed_pixels"] = int((labels != steps[0][0].argmax(0)).sum())
            if example.mask is not None:
                scores = SegmentationScores(len(names), examples.ignore_index)
                scores.update(belief.cpu(), torch.from_numpy(example.mask.astype(np.int64))[None])
                entry["miou"] = float(scores.scores(names)["miou"])
            entries.append(entry)
            score = f", mIoU {entry['miou']:.3f}" if "miou" in entry else ""
            title = f"{'network' if number == 0 else f'iteration {number}'}{score}"
            drawn = overlay(example.image, labels.cpu().numpy(), names, network.colours, legend=False)
            above.append(panel(np.array(drawn), title))
            below.append(panel(colours(belief[0, label].cpu().numpy()), f"belief in {names[label]}"))
        if example.mask is not None:
            truth = np.where(example.mask == examples.ignore_index, -1, example.mask.astype(int))
            truth_picture = overlay(example.image, truth, names, network.colours, legend=False)
            below.insert(0, panel(np.array(truth_picture), "truth"))
        else:
            below.insert(0, panel(np.full_like(example.image, 255), ""))
        facts = {"picture": example.name, "class": names[label], "label": label, "iterations": entries}
        facts["settings"] = dataclasses.asdict(crf.settings)
        yield Explanation(example.stem, table([above, below]), facts)
