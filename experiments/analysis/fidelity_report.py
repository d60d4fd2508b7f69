"""The tables of `experiments/fidelity.py`: every architecture next to its published figures, and one layer by layer.

An asterisk marks figures that differ from the published ones.
"""

import sys
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from backbones import BACKBONES
from backbones.backbone import Backbone
from experiments.analysis.published_figures import FIELDS, SEGMENTERS, TAKEN_AT, published_figures
from experiments.analysis.receptive_field import Field, measured, traced
from experiments.training.network_cost import classifier_without_weights, network_cost
from lightning_modules.network import Network

GMACS_TOLERANCE = 0.02
"""Relative; publishers differ in whether they count norms, activations and pools."""


def params_cell(ours: int, published: float | None, digits: int) -> tuple[str, str]:
    """Our count and the published one, which may be rounded to `digits` decimals of a million."""
    if published is None:
        return f"{ours:,}", "-"
    if digits:
        same = round(ours / 1e6, digits) == published
        return f"{ours:,}{'' if same else ' *'}", f"{published} M"
    return f"{ours:,}{'' if ours == published else ' *'}", f"{published:,}"


def gmacs_cell(ours: float, published: float | None) -> tuple[str, str]:
    if published is None:
        return f"{ours:.3f}", "-"
    return f"{ours:.3f}{'' if abs(ours / published - 1) <= GMACS_TOLERANCE else ' *'}", f"{published:g}"


def field_cells(backbone: Backbone, name: str) -> tuple[str, str, str, str]:
    """Receptive field by arithmetic, as measured and as published, and the output stride by arithmetic and measured."""
    published, why = FIELDS.get(name, (None, ""))
    _, field = traced(backbone, (max(256, backbone.min_size), 256))
    if field is None:
        return "attention", "-", "-", f"{backbone.reductions[-1]}"
    found = measured(backbone, field, max(64, backbone.min_size))
    differs = " *" if published not in (None, field.size) else ""
    note = f" ({why})" if why and differs else ""
    strides = {int(field.stride), int(found.stride), backbone.reductions[-1]}
    return (
        f"{field.size}{differs}",
        f"{found.size}{'' if found.size == field.size else ' *'}",
        f"{published or '-'}{note}",
        " ".join(map(str, sorted(strides))) + ("" if len(strides) == 1 else " *"),
    )


def backbone_row(name: str) -> list[str]:
    published = published_figures(name)
    channels, classes = TAKEN_AT.get(name, (3, 1000))
    network = classifier_without_weights(name, classes, channels)
    size = network.backbone.input_size
    costs = network_cost(network, (size, size), channels)
    ours, theirs = params_cell(int(costs["params"]), published.params, published.digits)
    macs, their_macs = gmacs_cell(costs["gmacs"], published.gmacs)
    return [name, ours, theirs, macs, their_macs, *field_cells(BACKBONES[name](), name), published.source]


def segmenter_rows() -> list[list[str]]:
    rows = []
    for backbone, head, options, aux, published, source in SEGMENTERS:
        with torch.device("meta"):
            network = Network(backbone, head, 21, head_options=options, aux=aux)
        ours = sum(parameter.numel() for parameter in network.parameters())
        if head == "fcn32s":
            ours -= sum(p.numel() for name, p in network.named_parameters() if name.startswith("head.final."))
        rounded = "paper: " in source
        same = abs(ours - published) < 50_000 if rounded else ours == published
        name = f"{backbone} + {head}" + "".join(f" {key}={value}" for key, value in options.items())
        rows.append([name, f"{ours:,}{'' if same else ' *'}", f"{published:,}", str(network.output_stride), source])
    return rows


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]) -> Table:
    result = Table(title=title, title_justify="left", header_style="bold", show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        result.add_column(column, justify="left" if i in left else "right", no_wrap=i == 0)
    for row in rows:
        result.add_row(*row, style="yellow" if any(cell.endswith(" *") for cell in row) else None)
    return result


def layer_table(backbone: str, head: str, image_size: int) -> tuple[Table, str]:
    """Every convolution and pool of one network with its kernel, dilation, stride and field, and a summary."""
    with torch.device("meta"):
        network = Network(backbone, head, 21)
    tracer, field = traced(network, (image_size, image_size))
    rows = []
    for number, layer in enumerate(tracer.layers, 1):
        kind = layer.kind.removesuffix("_with_indices")
        size = f"{layer.kernel}x{layer.kernel}" + (f" rate {layer.dilation}" if layer.dilation > 1 else "")
        field_size = "whole map" if layer.field.whole else str(layer.field.size)
        shape = "x".join(map(str, layer.shape[1:]))
        rows.append([str(number), kind, size, shape, f"{layer.field.stride:g}", field_size])
    costs = network_cost(network, (image_size, image_size))
    columns = ("", "layer", "kernel", "channels x height x width", "stride", "field")
    title = f"{backbone} + {head} at {image_size}x{image_size}, 21 classes, output stride {network.output_stride}"
    ends = "attention mixes the whole map" if field is None else describe(field)
    summary = f"{int(costs['params']):,} parameters, {costs['gmacs']} GMACs; a score's field: {ends}"
    return table(title, columns, rows, (1, 2)), summary


def describe(field: Field) -> str:
    return "the whole image" if field.whole else f"{field.size} pixels"


def print_report(names: Sequence[str], console: Console) -> None:
    """The table of these backbones, or of all and of the segmenters; progress on standard error."""
    rows = []
    for number, name in enumerate(names or BACKBONES, 1):
        print(f"\r{number}/{len(names or BACKBONES)} {name:24}", end="", file=sys.stderr, flush=True)
        rows.append(backbone_row(name))
    print(file=sys.stderr)
    columns = (
        "backbone", "parameters", "published", "GMACs", "published",
        "field", "measured", "published", "stride", "source",
    )  # fmt: skip
    console.print(table("Backbones with their classifier", columns, rows, (0, 7, 9)))
    if not names:
        others = segmenter_rows()
        titles = ("network, 21 classes", "parameters", "published", "output stride", "source")
        console.print()
        console.print(table("Segmenters", titles, others, (0, 4)))
        rows += others
    marked = sum(any(cell.endswith(" *") for cell in row) for row in rows)
    console.print(f"\n{len(rows)} networks, {marked} with a figure that differs from the published one (*)")
