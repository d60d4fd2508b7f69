"""mIoU in bands around true boundaries, without and with a CRF."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from rich.table import Table

from experiments.command_line.console import make_console
from experiments.command_line.crf_settings import read_crf_settings
from experiments.command_line.progress import with_progress
from experiments.training.load_run import load_segmentation
from lightning_modules.own_size import at_own_sizes
from lightning_modules.trimap import TrimapScores

Curve = Mapping[int | None, float]
"""mIoU by the width of the band in pixels; None is the whole image."""


def boundary_curves(run: str, data_dir: str | None, crf_settings: str | None) -> tuple[Curve, Curve]:
    """mIoU over all validation images, of the network alone and with the CRF; the arguments are trimap.py's flags."""
    data, module = load_segmentation(run, data_dir)
    if module.crf is None or crf_settings is not None:
        module.add_crf(asdict(read_crf_settings(crf_settings)), trainable=False)
    module.eval()
    without, refined = (TrimapScores(data.num_classes, data.ignore_index).to(module.device) for _ in range(2))
    loader = data.val_dataloader()
    for batch in with_progress(loader, len(loader), "batches"):
        images, target = batch["image"].to(module.device), batch["target"].to(module.device)
        with torch.inference_mode():
            logits = module.network(images)
            for scores, output in ((without, logits), (refined, module.refine(logits, images))):
                for one, labels in at_own_sizes(output, target, batch.get("target_sizes")):
                    scores.update(one, labels)
    first, second = ({width: score.item() for width, score in one.compute().items()} for one in (without, refined))
    return first, second


def print_curves(without: Curve, refined: Curve) -> None:
    table = Table("pixels from a boundary", title="mIoU")
    for title in ("without", "with CRF", "gain"):
        table.add_column(title, justify="right")
    for width, score in without.items():
        name = "all" if width is None else f"up to {width}"
        table.add_row(name, f"{score:.4f}", f"{refined[width]:.4f}", f"{refined[width] - score:+.4f}")
    make_console().print(table)


def draw_curves(without: Curve, refined: Curve, out: Path) -> None:
    figure, ax = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    for curve, label, colour in ((without, "network", "tab:gray"), (refined, "network + CRF", "tab:blue")):
        widths = [width for width in curve if width is not None]
        ax.plot(widths, [100 * curve[width] for width in widths], marker="o", color=colour, label=label)
        ax.axhline(100 * curve[None], color=colour, linestyle=":", linewidth=1)
    ax.set_xscale("log", base=2)
    ax.set_xticks(widths, labels=map(str, widths))
    ax.set_xlabel("pixels from a true boundary (dotted: whole images)")
    ax.set_ylabel("mIoU, %")
    ax.legend(frameon=False, loc="lower right")
    ax.spines[["top", "right"]].set_visible(False)
    part = out.with_name(out.name + ".part")
    figure.savefig(part, dpi=130, format="png")
    part.replace(out)
    plt.close(figure)
