"""Visualizing and Understanding Convolutional Networks. Zeiler, Fergus 2013, arXiv:1311.2901, section 2.1.

A deconvnet takes the strongest value of one unit back to the pixels: through the transposed filters, through max pools
to the places where each maximum was (the switches), and through a rectifier wherever the network has one. A rectifier
keeps what is positive on the way back, whatever was positive on the way forward; that is the difference to a gradient.

Differences from the paper: values that overlapping windows send to the same place are added, and batch norms, which the
paper's network has not, go back by their scale. Response normalisation, dropout and tanh are passed unchanged.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from experiments.command_line.explain_flags import ExplainFlags
from experiments.explaining.drawing import outlined, panel, row
from experiments.explaining.examples import Examples
from experiments.explaining.explanation import Explanation
from experiments.explaining.patches import GREY, PAPER, box_of, cut, projection_picture
from experiments.explaining.randomise import SanityCheck
from experiments.explaining.receptive_fields import Theory, theory_of
from experiments.explaining.recording import Recording, Step, record
from experiments.explaining.room import prepared_to_record
from experiments.inference.trained import TrainedNetwork


def back(step: Step, values: Tensor) -> Tensor:
    """Values `(B, C', h', w')` after a step, taken back to what comes before it, `(B, C, h, w)`."""
    match step.kind:
        case "rectifier":
            return values.clamp(min=0)
        case "same":
            return values
        case "linear" | "pool":
            # The derivative of a linear operation is the transposed one; that of a max pool follows its switches.
            return torch.func.vjp(step.function, step.before)[1](values)[0]
    raise ValueError(f"no way back through {step.operation}")


def projection(recording: Recording, layer: Tensor, unit: int, place: tuple[int, int]) -> Tensor:
    """One value of a layer, taken back to the picture: `(1, C, H, W)`; all other values count as zero."""
    last = recording.place_of(layer)
    if last is None:
        raise ValueError("the layer is not on the way to the backbone's last map")
    values = torch.zeros_like(layer)
    values[:, unit, place[0], place[1]] = layer[:, unit, place[0], place[1]]
    for step in reversed(recording.steps[: last + 1]):
        values = back(step, values)
    return values


def strongest_place(layer: Tensor, unit: int) -> tuple[int, int]:
    """Row and column of the largest value of a unit in a map `(1, C, h, w)`."""
    row_, column = np.unravel_index(int(layer[0, unit].argmax()), layer.shape[2:])
    return int(row_), int(column)


def strongest_unit(layer: Tensor) -> int:
    return int(layer[0].flatten(1).amax(1).argmax())


def check_units(units: list[int] | None, layer: str, channels: int) -> None:
    """Raise a ValueError if a unit is no channel of the layer."""
    for unit in units or ():
        if unit >= channels:
            raise ValueError(f"--unit {unit}: {layer} has {channels} channels, 0 to {channels - 1}")


def check_chain(network: TrainedNetwork, recording: Recording) -> None:
    """Raise a ValueError if a backbone is no plain chain."""
    if recording.refusal:
        name = network.module.hparams["backbone"]
        raise ValueError(
            f"--method deconvnet needs a plain chain of layers, as in VGG, AlexNet, ZFNet, LeNet-5 or U-Net's encoder; "
            f"in {name}, {recording.refusal}. Use --method gradcam or occlusion"
        )


@torch.no_grad()
def deconvnet(network: TrainedNetwork, examples: Examples, flags: ExplainFlags) -> Iterator[Explanation]:
    """Each picture, with the place of a unit's strongest value, beside that part and what is projected there."""
    check = SanityCheck(network) if flags.sanity_check else None
    theory: Theory | None = None
    for example in examples.take():
        pixels, x = prepared_to_record(network, example.image)
        recording = record(network.module.network, x)
        check_chain(network, recording)
        name, layer = recording.layer(flags.layer)
        check_units(flags.unit, name, layer.shape[1])
        for unit in flags.unit or [strongest_unit(layer)]:
            place = strongest_place(layer, unit)
            strength = float(layer[0, unit, place[0], place[1]])
            facts = {"picture": example.name, "layer": name, "unit": unit, "activation": strength}
            facts |= {"place_in_map": {"row": place[0], "column": place[1]}, "map": list(layer.shape[2:])}
            facts |= {"size": list(pixels.shape[:2])}
            if strength == 0:  # a rectified unit that sees nothing of what it looks for
                examples.problems.append(f"{example.name}: unit {unit} of {name} is zero everywhere")
                continue
            back_projected = projection(recording, layer, unit, place)[0].cpu().numpy()
            if check is not None:

                def again(other: TrainedNetwork, x: Tensor = x, unit: int = unit) -> np.ndarray:
                    repeated = record(other.module.network, x)
                    there = repeated.layer(flags.layer)[1]
                    return projection(repeated, there, unit, strongest_place(there, unit))[0].abs().sum(0).cpu().numpy()

                facts["sanity_check"] = check(np.abs(back_projected).sum(0), again)
            theory = theory or theory_of(network.module.network, x, flags.layer)
            box = box_of(theory, place, pixels.shape)
            facts["box"] = box
            panels = [panel(pixels, example.title)]
            if (box["bottom"], box["right"]) != (pixels.shape[0] - 1, pixels.shape[1] - 1) or box["top"] or box["left"]:
                panels = [
                    panel(outlined(pixels, box), example.title),
                    panel(cut(pixels, box, PAPER), "the outlined part"),
                ]
            caption = f"{name}, unit {unit}: {strength:.3g}"
            panels.append(panel(cut(projection_picture(back_projected), box, GREY), caption))
            stem = example.stem if len(flags.unit or ()) < 2 else example.stem.with_name(f"{example.stem.name}.{unit}")
            yield Explanation(stem, row(panels), facts)
