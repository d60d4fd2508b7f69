"""Queue a run under SLURM: `python experiments/submit.py --nodes 2 --gpus-per-node 4 -- --backbone resnet101 --name a`.

Flags of run.py follow after `--`. Shortly before its time is up, the job saves, queues itself again and later
continues. Weights and data that runs would download are downloaded here, because compute nodes often have no network.
`--array FILE` queues one run for each line of a file such as `grid.py --print` writes.
"""

import sys
from pathlib import Path

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.command_line.parser import parse_before_dashes
from experiments.command_line.run_flags import RunConfig
from experiments.many_runs.slurm import SubmitConfig, lines_of, queue


def main(arguments: list[str] | None = None) -> int:
    """Parse and check everything that can be checked here, then fetch and submit. Returns the exit code."""
    what = "Queue a run under SLURM; after --, flags of run.py."
    parser, config, flags = parse_before_dashes("submit.py", what, SubmitConfig, arguments)
    lines = [flags] if config.array is None else lines_of(config.array, parser)
    if config.array is not None and flags:
        parser.error("--array: its lines are the runs; give no flags of run.py after --")
    if config.array is None and config.at_once is not None:
        parser.error("--at-once is for --array")
    return queue(config, lines, parser, fetch)


def fetch(runs: list[RunConfig]) -> None:
    from experiments.training.fetch import fetch as download

    download(runs)


if __name__ == "__main__":
    sys.exit(main())
