"""Search a CRF's settings for a run, as DeepLab does: `python experiments/tune_crf.py runs/NAME`.

On about 100 validation images, w1, sigma_alpha and sigma_beta are searched coarse to fine, with w2 and sigma_gamma
fixed, at ten mean-field iterations (DeepLab v1 and v2, arXiv:1412.7062 and 1606.00915). `run.py --crf-settings`
takes the file that it writes.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.command_line.crf_settings import DEFAULT, crf_settings_problem
from experiments.command_line.kinds import PositiveInt
from experiments.command_line.parser import Parser, flag, positional, settings_from
from experiments.command_line.process import run_program
from experiments.run_files.run_folder import finished_run_problem


@dataclass
class CRFSearchConfig:
    """The order of the fields is the order of `--help`."""

    run: str = positional("folder of a finished run", path=True)
    images: PositiveInt = flag(100, "validation images to search on, evenly spaced; all if there are fewer")
    processes: PositiveInt | None = flag(None, "number of single-threaded worker processes; default: one per CPU core")
    out: str | None = flag(None, "YAML file to write; default: crf.yaml in the run folder", path=True)
    crf_settings: str = flag(
        DEFAULT, "preset, or YAML file, that sets w2, sigma_gamma, iterations and normalization", path=True
    )
    data_dir: str | None = flag(None, "folder of the data set; default: where the run had it", path=True)


def main(arguments: list[str] | None = None) -> int:
    """Parse first and import torch after. Returns the exit code."""
    parser = Parser("tune_crf.py", "Search the settings of a CRF for a finished run.")
    parser.add_settings(CRFSearchConfig)
    config = settings_from(parser.parse_args(arguments), CRFSearchConfig)
    out = Path(config.out or Path(config.run) / "crf.yaml")
    problem = finished_run_problem(config.run, config.data_dir, out) or crf_settings_problem(config.crf_settings)
    if problem:
        parser.error(problem)

    def work() -> None:
        from experiments.analysis.crf_search import tune

        tune(config.run, config.data_dir, config.crf_settings, config.images, config.processes, out)

    return run_program("tune_crf.py", work, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
