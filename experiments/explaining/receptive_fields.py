"""Understanding the Effective Receptive Field in Deep Convolutional Neural Networks. Luo, Li, Urtasun, Zemel 2017.

arXiv:1701.04128. The effective field is the absolute derivative of the middle of a map, summed over its channels, with
respect to each pixel, averaged over pictures. Outside of the theoretical field it must be zero. As in the paper, the
side of the effective field is the square root of the number of pixels whose derivative exceeds 4.55 % (1 - 95.45 %) of
the largest one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from experiments.analysis.receptive_field import Field, FieldTracer
from experiments.command_line.explain_flags import ExplainFlags
from experiments.explaining.drawing import figure_picture
from experiments.explaining.examples import MANY, Examples
from experiments.explaining.explanation import Explanation
from experiments.explaining.recording import record
from experiments.explaining.room import prepared_to_record
from experiments.inference.trained import TrainedNetwork
from lightning_modules.shapes_only import ghost_of

SHARE = 1 - 0.9545
"""A pixel belongs to the effective field if its derivative is at least this fraction of the largest one, as within two
standard deviations of a Gaussian."""


class Theory(NamedTuple):
    """The theoretical field of a layer: that of its first value, and whether some layer averages over whole maps."""

    field: Field
    global_pooling: bool

    def box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """First and last row and column that a value depends on, not cut off at the picture's borders."""
        first, last, stride = self.field.first, self.field.last, self.field.stride
        top, bottom, left, right = (round(end + place * stride) for place in (row, column) for end in (first, last))
        return top, bottom, left, right


def theory_of(network: nn.Module, x: Tensor, layer: str | None) -> Theory:
    """The theoretical field of a layer, by the layers' arithmetic.

    Raises:
        ValueError: attention mixes the whole map, so there is no field.
    """
    ghost = ghost_of(network)
    with torch.no_grad(), FieldTracer() as tracer:
        picture = tracer.start(torch.empty_like(x, device="meta"))
        out = record(ghost, picture).layer(layer)[1]
    if tracer.attention:
        raise ValueError("attention lets each value depend on the whole picture, so there is no receptive field")
    return Theory(tracer.of(out), tracer.global_pooling)


def effective_field(network: nn.Module, x: Tensor, layer: str | None) -> tuple[str, tuple[int, int], np.ndarray]:
    """Name of the layer, row and column of its middle value, and the field `(H, W)` of one picture `(1, C, H, W)`."""
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        name, out = record(network, x).layer(layer)
        row, column = out.shape[2] // 2, out.shape[3] // 2
        (derivative,) = torch.autograd.grad(out[0, :, row, column].sum(), x)
    return name, (row, column), derivative[0].abs().sum(0).double().cpu().numpy()


def measures(field: np.ndarray, box: tuple[int, int, int, int]) -> dict[str, float]:
    """Numbers of an effective field `(H, W)`, in pixels; `box` is the theoretical one."""
    top, bottom, left, right = box
    inside = field[max(0, top) : bottom + 1, max(0, left) : right + 1].sum() / field.sum()
    rows, columns = field.sum(1) / field.sum(), field.sum(0) / field.sum()

    def deviation(weights: np.ndarray) -> float:
        places = np.arange(len(weights))
        mean = (places * weights).sum()
        return float(np.sqrt(((places - mean) ** 2 * weights).sum()))

    return {
        "effective_side": float(np.sqrt((field > SHARE * field.max()).sum())),
        "theoretical_side": float(bottom - top + 1),
        "deviation_of_rows": deviation(rows),
        "deviation_of_columns": deviation(columns),
        "share_inside_theoretical": float(inside),
    }


def receptive_field(network: TrainedNetwork, examples: Examples, flags: ExplainFlags) -> Iterator[Explanation]:
    """One picture: the mean effective field of the middle unit, and its profile, with the theoretical square.

    Raises:
        ValueError: the pictures have different sizes, the network has no field, or the layer does not depend on pixels.
    """
    total: np.ndarray | None = None
    count, theory, name, place = 0, None, "", (0, 0)
    for example in examples.take(most=MANY // 4):
        _, x = prepared_to_record(network, example.image)
        theory = theory or theory_of(network.module.network, x, flags.layer)
        name, place, field = effective_field(network.module.network, x, flags.layer)
        if total is not None and total.shape != field.shape:
            examples.problems.append(
                f"{example.name}: has {field.shape[0]} x {field.shape[1]} pixels, the first picture "
                f"{total.shape[0]} x {total.shape[1]}; a mean field needs one size"
            )
            continue
        total = field if total is None else total + field
        count += 1
    assert total is not None
    assert theory is not None
    if not total.any():
        raise ValueError(f"--layer {name}: no pixel changes the unit in its middle; its rectifier is zero everywhere")
    mean = total / count
    box = theory.box(*place)
    numbers = measures(mean, box)
    facts = {"layer": name, "pictures": count, "size": list(mean.shape), "row": place[0], "column": place[1]}
    facts |= {"theoretical_box": dict(zip(("top", "bottom", "left", "right"), box, strict=True)), **numbers}
    facts["sees_the_whole_picture"] = theory.global_pooling
    stem = Path(f"{network.module.hparams['backbone']}-{name}".replace("/", "-").replace(" ", "-"))
    yield Explanation(stem, figure_picture(draw(mean, box, numbers, name)), facts)


def draw(field: np.ndarray, box: tuple[int, int, int, int], numbers: dict[str, float], name: str) -> Figure:
    top, bottom, left, right = box
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    ax, profile = figure.subplots(1, 2, width_ratios=(1, 1.1))
    ax.imshow(np.sqrt(field / field.max()), cmap="magma")  # the square root shows the weak margin too
    corner, width, height = (left - 0.5, top - 0.5), right - left + 1, bottom - top + 1
    ax.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="white", linewidth=1.5, clip_on=True))
    ax.set_title(f"{name}: square root of the mean derivative", fontsize=9)
    inside = top > 0 or left > 0 or bottom < len(field) - 1 or right < field.shape[1] - 1
    ax.set_xlabel(
        "white: theoretical field, as far as it lies in the picture"
        if inside
        else f"the theoretical field, {width} x {height} pixels, is larger than the picture",
        fontsize=8,
    )
    columns = field.sum(0) / field.sum()
    places = np.arange(len(columns))
    middle, spread = (places * columns).sum(), numbers["deviation_of_columns"]
    profile.plot(places, columns, color="tab:blue", label="mean derivative by column")
    gauss = np.exp(-(((places - middle) / max(spread, 1e-6)) ** 2) / 2)
    profile.plot(places, gauss / gauss.sum(), color="black", linestyle=":", label=f"Gaussian, deviation {spread:.1f}")
    for end in (left - 0.5, right + 0.5):
        if -1 <= end <= len(columns):
            profile.axvline(end, color="tab:red", linewidth=1)
    profile.set_title(
        f"effective side {numbers['effective_side']:.0f} of {numbers['theoretical_side']:.0f} pixels", fontsize=9
    )
    profile.set_xlabel(f"column of the picture{'; red: theoretical field' if inside else ''}", fontsize=8)
    profile.legend(fontsize=8, frameon=False)
    profile.spines[["top", "right"]].set_visible(False)
    for one in (ax, profile):
        one.tick_params(labelsize=8)
    return figure
