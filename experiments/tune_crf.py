"""Search a CRF's settings for a run, as DeepLab does: `python experiments/tune_crf.py runs/NAME`.

On about 100 validation images, w1, sigma_alpha and sigma_beta are searched coarse to fine, with w2 and sigma_gamma
fixed, at ten mean-field iterations (DeepLab v1 and v2, arXiv:1412.7062 and 1606.00915). The file it leaves goes to
`run.py --crf-settings`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from jsonargparse.typing import PositiveInt

from experiments.config import Parser, add_settings, flag, positional, settings_from
from experiments.crf_settings import DEFAULT, settings_problem
from experiments.finished_run import run_problem
from experiments.outcome import outcome


@dataclass
class TuneConfig:
    """The order of the fields is the order of `--help`."""

    run: str = positional("folder of a finished run")
    images: PositiveInt = flag(100, "validation images to search on, evenly spaced; all if there are fewer")
    processes: PositiveInt | None = flag(None, "processes, of one thread each; default: the cores there are")
    out: str | None = flag(None, "YAML file to write; default: crf.yaml in the run folder")
    crf_settings: str = flag(DEFAULT, "preset or YAML file with w2, sigma_gamma, iterations and normalization")
    data_dir: str | None = flag(None, "folder of the data set; default: where the run had it")


def main(arguments: list[str] | None = None) -> int:
    """Parse first and import torch after. Returns the exit code."""
    parser = Parser(prog="tune_crf.py", description="Search the settings of a CRF for a finished run.")
    add_settings(parser, TuneConfig)
    config = settings_from(parser.parse_args(arguments), TuneConfig)
    out = Path(config.out or Path(config.run) / "crf.yaml")
    problem = run_problem(config.run, config.data_dir, out) or settings_problem(config.crf_settings)
    if problem:
        parser.error(problem)

    def work() -> None:
        from experiments.crf_search import tune

        tune(config, out)

    return outcome("tune_crf.py", work, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
