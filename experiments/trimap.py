"""Score bands around true boundaries without and with a CRF: `python experiments/trimap.py runs/NAME`.

Prints mIoU over the validation images by the width of the band, and draws the curve; see `lightning_modules.trimap`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.command_line.crf_settings import crf_settings_problem
from experiments.command_line.parser import Parser, flag, positional, settings_from
from experiments.command_line.process import run_program
from experiments.run_files.run_folder import finished_run_problem


@dataclass
class TrimapConfig:
    """The order of the fields is the order of `--help`."""

    run: str = positional("folder of a finished run", path=True)
    crf_settings: str | None = flag(
        None,
        "settings of the CRF: a preset, or a YAML file; default: the run's own learned CRF, or deeplabv2_resnet101",
        path=True,
    )
    out: str | None = flag(None, "PNG file to draw; default: trimap.png in the run folder", path=True)
    data_dir: str | None = flag(None, "folder of the data set; default: where the run had it", path=True)


def main(arguments: list[str] | None = None) -> int:
    """Parse first and import torch after. Returns the exit code."""
    parser = Parser("trimap.py", "Score bands around boundaries without and with a CRF.")
    parser.add_settings(TrimapConfig)
    config = settings_from(parser.parse_args(arguments), TrimapConfig)
    out = Path(config.out or Path(config.run) / "trimap.png")
    problem = finished_run_problem(config.run, config.data_dir, out)
    if problem is None and config.crf_settings is not None:
        problem = crf_settings_problem(config.crf_settings)
    if problem:
        parser.error(problem)

    def work() -> None:
        from experiments.analysis.boundary_curve import boundary_curves, draw_curves, print_curves

        without, refined = boundary_curves(config.run, config.data_dir, config.crf_settings)
        print_curves(without, refined)
        draw_curves(without, refined, out)
        print(out)

    return run_program("trimap.py", work, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
