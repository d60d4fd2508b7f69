"""Where a CRF helps: `python experiments/trimap.py runs/NAME` scores bands around true boundaries without and with it.

Prints mIoU over the validation images by the width of the band, and draws the curve; see `lightning_modules.trimap`.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.config import Parser, add_settings, flag, positional, settings_from
from experiments.crf_settings import read_settings, settings_problem
from experiments.finished_run import load_segmentation, run_problem
from experiments.outcome import outcome

Curve = Mapping[int | None, float]
"""mIoU by the width of the band in pixels; None is the whole image."""


@dataclass
class TrimapConfig:
    """The order of the fields is the order of `--help`."""

    run: str = positional("folder of a finished run")
    crf_settings: str | None = flag(
        None, "preset or YAML file; default: the run's own learned CRF, or run.py's default"
    )
    out: str | None = flag(None, "PNG file to draw; default: trimap.png in the run folder")
    data_dir: str | None = flag(None, "folder of the data set; default: where the run had it")


def main(arguments: list[str] | None = None) -> int:
    """Parse first and import torch after. Returns the exit code."""
    parser = Parser(prog="trimap.py", description="Score bands around boundaries without and with a CRF.")
    add_settings(parser, TrimapConfig)
    config = settings_from(parser.parse_args(arguments), TrimapConfig)
    out = Path(config.out or Path(config.run) / "trimap.png")
    problem = run_problem(config.run, config.data_dir, out)
    if problem is None and config.crf_settings is not None:
        problem = settings_problem(config.crf_settings)
    if problem:
        parser.error(problem)

    def work() -> None:
        without, refined = curves(config)
        print_curves(without, refined)
        draw_curves(without, refined, out)
        print(out)

    return outcome("trimap.py", work, "nothing was written")


def curves(config: TrimapConfig) -> tuple[Curve, Curve]:
    """mIoU over all validation images, of the network alone and with the CRF."""
    import torch

    from experiments.progress import shown
    from lightning_modules.trimap import TrimapScores

    data, module = load_segmentation(config.run, config.data_dir)
    if module.crf is None or config.crf_settings is not None:
        module.add_crf(asdict(read_settings(config.crf_settings)), trainable=False)
    module.eval()
    without, refined = (TrimapScores(data.num_classes, data.ignore_index).to(module.device) for _ in range(2))
    loader = data.val_dataloader()
    for batch in shown(loader, len(loader), "batches"):
        images, target = batch["image"].to(module.device), batch["target"].to(module.device)
        with torch.inference_mode():
            logits = module.network(images)
            without.update(logits, target)
            refined.update(module.refine(logits, images), target)
    first, second = ({width: score.item() for width, score in one.compute().items()} for one in (without, refined))
    return first, second


def print_curves(without: Curve, refined: Curve) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("pixels from a boundary", title="mIoU")
    for title in ("without", "with CRF", "gain"):
        table.add_column(title, justify="right")
    for width, score in without.items():
        name = "all" if width is None else f"up to {width}"
        table.add_row(name, f"{score:.4f}", f"{refined[width]:.4f}", f"{refined[width] - score:+.4f}")
    Console().print(table)


def draw_curves(without: Curve, refined: Curve, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

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


if __name__ == "__main__":
    sys.exit(main())
