"""Run every backbone under every head: `python experiments/grid.py --backbones resnet50,vgg16 --heads unet,fcn8s`.

Arguments of run.py that all runs share follow after `--`. The same command again skips finished runs and continues the
others.
"""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.command_line.kinds import PositiveInt
from experiments.command_line.known_names import RUN
from experiments.command_line.parser import Parser, flag, parse_before_dashes, settings_from
from experiments.command_line.process import run_program
from experiments.command_line.run_flags import RunConfig
from experiments.many_runs.cells import Cell, cells, own_flag, refused
from experiments.many_runs.child_runs import GPUS_HELP, slots
from experiments.many_runs.grid_run import run_grid
from experiments.many_runs.slurm import SubmitConfig, lines_of, queue
from experiments.run_files.atomic_file import write_atomically
from experiments.run_files.read_run import is_finished


@dataclass
class GridConfig:
    """The order of the fields is the order of `--help`."""

    backbones: str = flag("resnet50", "names of backbones, separated by commas")
    heads: str = flag("deeplab", "names of heads, separated by commas")
    seeds: str = flag("0", "random seeds, separated by commas")
    vary: list[str] = flag((), "further settings and their values, such as lr=0.1,0.01 optimizer=sgd,adamw")
    out: str = flag(
        "runs", "folder that run folders are made in: BACKBONE-HEAD-sSEED, each with its .log next to it", path=True
    )
    jobs: PositiveInt = flag(1, "number of runs at a time; they share the CPU cores")
    gpus: str = flag("", GPUS_HELP)
    skip_refused: bool = flag(False, "leave out pairs that cannot be built, instead of refusing the grid")
    print: bool = flag(False, "print the command of each run that is not finished, and stop")
    slurm: str | None = flag(
        None,
        "queue the runs as a SLURM array job; the value holds flags for submit.py, such as '--time 4:00:00', or '' for "
        "none",
    )


def main(arguments: list[str] | None = None) -> int:
    """Parse, check every cell, then run those that are not finished. Returns the exit code: 1 if any cell failed."""
    what = "Run every backbone under every head; after --, flags of run.py."
    parser, config, common = parse_before_dashes("grid.py", what, GridConfig, arguments)
    if own_flag(common):
        parser.error(f"{own_flag(common)} is the grid's own; before --, give --backbones, --heads, --seeds or --out")
    if config.slurm is not None and config.gpus:
        parser.error("--gpus divides the GPUs of this machine; with --slurm, give --gpus-per-node there")
    try:
        shares = slots(config.jobs, config.gpus)
    except ValueError as error:
        parser.error(str(error))
    if config.gpus and own_flag([*common, *(f"--{one}" for one in config.vary)], ("devices",)):
        parser.error(f"--devices: --gpus {config.gpus} gives each job {shares[0].arguments[1]}; leave --devices out")
    grid = cells(config.backbones, config.heads, config.seeds, list(config.vary), config.out, common, parser)
    problems = refused(grid, parser)
    for reason in dict.fromkeys(problems.values()):
        print(f"grid.py: {reason}", file=sys.stderr)
    if problems and (not config.skip_refused or len(problems) == len(grid)):
        hint = "" if len(problems) == len(grid) else "; --skip-refused runs the others"
        parser.error(f"{len(problems)} of {len(grid)} runs would be refused{hint}")
    grid = [cell for cell in grid if cell not in problems]
    left = [command(cell) for cell in grid if not is_finished(cell.folder)]
    if config.print:
        print("\n".join(left))
        return 0
    if config.slurm is not None:
        return queue_left(left, Path(config.out) / "grid.txt", shlex.split(config.slurm))
    return run_program("grid.py", lambda: run_grid(grid, shares), "the same command continues")


def command(cell: Cell) -> str:
    """The command of a cell, quoted for a shell."""
    return shlex.join(["python", os.path.relpath(RUN), *cell.arguments])


def queue_left(commands: list[str], file: Path, flags: list[str]) -> int:
    """Write the commands to a file and queue them as one array job."""
    if not commands:
        print("all runs are finished")
        return 0
    parser = Parser("submit.py", "")
    parser.add_settings(SubmitConfig)
    config = settings_from(parser.parse_args([*flags, "--array", str(file)]), SubmitConfig)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, "\n".join(commands) + "\n")
    return queue(config, lines_of(str(file), parser), parser, fetch)


def fetch(runs: list[RunConfig]) -> None:
    from experiments.training.fetch import fetch as download

    download(runs)


if __name__ == "__main__":
    sys.exit(main())
