"""The pictures that excite a unit most, as Zeiler and Fergus 2013 show them (arXiv:1311.2901, figure 2).

Of each picture the strongest place of the unit counts. The patches are cut to the unit's theoretical receptive field,
or show the whole picture if the field is larger; if the backbone is a plain chain, the deconvnet's projections stand
beside them.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from experiments.command_line.explain_flags import ExplainFlags
from experiments.explaining.deconvnet import check_units, projection, strongest_place
from experiments.explaining.drawing import panel, row, tiles
from experiments.explaining.examples import MANY, Example, Examples
from experiments.explaining.explanation import Explanation
from experiments.explaining.patches import GREY, PAPER, box_of, cut, projection_picture
from experiments.explaining.receptive_fields import Theory, theory_of
from experiments.explaining.recording import Recording, record
from experiments.explaining.room import prepared_to_record
from experiments.inference.trained import TrainedNetwork

BEST, UNITS = 9, 4
"""Patches of a unit, and units that are drawn if none is named."""
SIDE = 96
"""Pixels of a drawn patch."""


@dataclass(order=True)
class Hit:
    """The strongest value of a unit in one picture."""

    strength: float
    order: int
    """Minus the number of the picture: of equal values, the first counts."""
    place: tuple[int, int] = field(compare=False)
    example: Example = field(compare=False)


def strongest_hits(
    network: TrainedNetwork, examples: Examples, flags: ExplainFlags
) -> tuple[str, dict[int, list[Hit]], int]:
    """Name of the layer, the nine strongest hits of each unit, the strongest first, and the number of pictures.

    Units whose largest value is not above zero are left out.
    """
    best: dict[int, list[Hit]] = {}
    name, count = "", 0
    for example in examples.take(most=MANY):
        _, x = prepared_to_record(network, example.image)
        name, layer = record(network.module.network, x).layer(flags.layer)
        check_units(flags.unit, name, layer.shape[1])
        values, places = layer[0].flatten(1).max(1)
        count += 1
        for unit in range(layer.shape[1]) if flags.unit is None else dict.fromkeys(flags.unit):
            strength = float(values[unit])
            if strength <= 0:
                continue
            hits = best.setdefault(unit, [])
            hit = Hit(strength, -count, divmod(int(places[unit]), layer.shape[3]), example)
            if len(hits) < BEST:
                heapq.heappush(hits, hit)
            else:
                heapq.heappushpop(hits, hit)
    return name, {unit: sorted(hits, reverse=True) for unit, hits in best.items()}, count


@torch.no_grad()
def strongest_activations(network: TrainedNetwork, examples: Examples, flags: ExplainFlags) -> Iterator[Explanation]:
    """For each unit a picture of its nine strongest patches, beside their projections where there is a way back.

    Raises:
        ValueError: no unit responds, or the layer has no theoretical receptive field.
    """
    name, best, count = strongest_hits(network, examples, flags)
    if not best:
        raise ValueError(f"no unit of {name} that was asked for is above zero on any of {count} pictures")
    by_strength = sorted(best, key=lambda unit: -best[unit][0].strength)
    for unit in flags.unit or by_strength[:UNITS]:
        if unit not in best:
            examples.problems.append(f"unit {unit} of {name}: not above zero on any of {count} pictures")
            continue
        yield draw_unit(network, flags, name, unit, best[unit], count)


def draw_unit(
    network: TrainedNetwork, flags: ExplainFlags, name: str, unit: int, hits: list[Hit], count: int
) -> Explanation:
    patches, projections, entries = [], [], []
    theory: Theory | None = None
    for hit in hits:
        pixels, x = prepared_to_record(network, hit.example.image)
        recording = record(network.module.network, x)
        theory = theory or theory_of(network.module.network, x, flags.layer)
        box = box_of(theory, hit.place, pixels.shape)
        patches.append(cut(pixels, box, PAPER))
        if not recording.refusal:
            projections.append(cut(projected_patch(recording, flags.layer, unit), box, GREY))
        entries.append({"picture": hit.example.name, "activation": hit.strength, "box": box})
    panels = [panel(tiles(patches, 3, SIDE), f"{name}, unit {unit}: up to {hits[0].strength:.3g}")]
    if projections:
        panels.append(panel(tiles(projections, 3, SIDE), "deconvnet"))
    facts = {"layer": name, "unit": unit, "pictures": count, "deconvnet": bool(projections), "strongest": entries}
    return Explanation(Path(f"{name}-{unit}".replace("/", "-").replace(" ", "-")), row(panels), facts)


def projected_patch(recording: Recording, layer: str | None, unit: int) -> np.ndarray:
    """The deconvnet's picture uint8 `(H, W, 3)` of the strongest value of a unit."""
    out = recording.layer(layer)[1]
    return projection_picture(projection(recording, out, unit, strongest_place(out, unit))[0].cpu().numpy())
