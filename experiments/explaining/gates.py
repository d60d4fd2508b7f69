"""Squeeze-and-Excitation Networks. Hu, Shen, Albanie, Sun, Wu 2017, arXiv:1709.01507, section 7.2 (figure 6).

The mean value of each gate over the pictures of a class, block by block. In the paper's network, early gates hardly
differ between classes, late ones do, and the very last are nearly constant again.
"""

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from backbones.squeeze_excitation import SqueezeExcitation
from experiments.command_line.explain_flags import ExplainFlags
from experiments.explaining.drawing import figure_picture
from experiments.explaining.examples import MANY, Examples, prepared
from experiments.explaining.explanation import Explanation
from experiments.inference.trained import TrainedNetwork

BLOCKS, CLASSES = 6, 5
"""Blocks and classes that are drawn; the JSON file has all."""


def gates_of(backbone: nn.Module) -> dict[str, SqueezeExcitation]:
    """The squeeze-and-excitation modules by name, in the order of the network."""
    return {name: module for name, module in backbone.named_modules() if isinstance(module, SqueezeExcitation)}


@torch.no_grad()
def gate_values(network: TrainedNetwork, examples: Examples) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, int]]:
    """Mean gates `(C,)` in [0, 1] by block and class, and the number of pictures of each class.

    Raises:
        ValueError: the network has no gates, or the pictures have no classes.
    """
    found = gates_of(network.module.network.backbone)
    if not found:
        name = network.module.hparams["backbone"]
        raise ValueError(
            f"--method se_gates needs squeeze-and-excitation gates; {name} has none. Backbones that have: se_resnet50, "
            "senet154, mobilenet_v3_small, efficientnet_b0, or resnet50 with --backbone-options '{se: true}'"
        )
    if network.task != "classification":
        raise ValueError("--method se_gates compares the classes of pictures; this network labels pixels")
    current: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, args: Any, out: Tensor) -> None:
        current[name] = out

    handles = [module.gate_activation.register_forward_hook(partial(keep, name)) for name, module in found.items()]
    totals: dict[str, dict[str, np.ndarray]] = {name: {} for name in found}
    counts: dict[str, int] = defaultdict(int)
    try:
        for example in examples.take(most=MANY):
            network.module.network(prepared(network, example.image)[1])
            counts[example.group] += 1
            for name, gate in current.items():
                value = gate.flatten().double().cpu().numpy()
                totals[name][example.group] = totals[name].get(example.group, 0) + value
    finally:
        for handle in handles:
            handle.remove()
    ordered = {name: totals[name] for name in current}  # in the order in which they ran
    return {name: {group: total / counts[group] for group, total in of.items()} for name, of in ordered.items()}, dict(
        counts
    )


def gates_by_class(network: TrainedNetwork, examples: Examples, flags: ExplainFlags) -> Iterator[Explanation]:
    """One picture: gates over channels in a few blocks, a line for each class; and all blocks by depth."""
    values, counts = gate_values(network, examples)
    blocks = []
    for name, by_class in values.items():
        stacked = np.stack(list(by_class.values()))
        blocks.append(
            {
                "block": name,
                "channels": stacked.shape[1],
                "mean": float(stacked.mean()),
                "deviation_over_channels": float(stacked.mean(0).std()),
                "deviation_over_classes": float(stacked.std(0).mean()),
                "mean_by_class": {group: float(gate.mean()) for group, gate in by_class.items()},
                "gates_by_class": {group: np.round(gate, 4).tolist() for group, gate in by_class.items()},
            }
        )
    facts = {"pictures": dict(sorted(counts.items())), "blocks": blocks}
    stem = Path(str(network.module.hparams["backbone"]).replace("/", "-"))
    yield Explanation(stem, figure_picture(draw(values, blocks)), facts)


def draw(values: dict[str, dict[str, np.ndarray]], blocks: list[dict[str, Any]]) -> Figure:
    names = list(values)
    chosen = [names[round(i)] for i in np.linspace(0, len(names) - 1, min(BLOCKS, len(names)))]
    figure = Figure(figsize=(11, 7.2), layout="constrained")
    rows = [chosen[:3], chosen[3:]] if len(chosen) == BLOCKS else [chosen]
    axes = figure.subplot_mosaic([*rows, ["depth"] * len(rows[0])])
    shown = sorted(values[names[0]])[:CLASSES]
    for name in chosen:
        ax = axes[name]
        for group in shown:
            ax.plot(values[name][group], linewidth=0.8, label=group)
        ax.plot(np.mean(list(values[name].values()), 0), color="black", linewidth=0.8, linestyle=":", label="all")
        ax.set_title(f"{name} (gate {names.index(name) + 1} of {len(names)})", fontsize=9)
        ax.set_ylim(0, 1)
        ax.tick_params(labelsize=8)
    axes[chosen[0]].legend(fontsize=7, ncols=2, title="class", title_fontsize=7)
    axes[chosen[0]].set_ylabel("mean gate, by channel", fontsize=8)
    ax = axes["depth"]
    depth = np.arange(1, len(blocks) + 1)
    means = np.array([block["mean"] for block in blocks])
    ax.plot(depth, means, marker="o", color="tab:blue", label="mean gate")
    for key, colour, label in (
        ("deviation_over_channels", "tab:orange", "standard deviation over channels"),
        ("deviation_over_classes", "tab:green", "standard deviation over classes, mean of the channels"),
    ):
        ax.plot(depth, [block[key] for block in blocks], marker="o", color=colour, label=label)
    ax.set_xlabel("gate, from the first to the last", fontsize=8)
    ax.set_ylim(0, 1)
    ax.legend(fontsize=8, frameon=False)
    for ax in axes.values():
        ax.spines[["top", "right"]].set_visible(False)
    return figure
