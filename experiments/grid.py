"""Run every backbone under every head: `python experiments/grid.py --backbones resnet50,vgg16 --heads unet,fcn8s`.

Arguments of run.py that all runs share follow after `--`. The same command again skips what is finished and goes on
with what is not.
"""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jsonargparse.typing import PositiveInt

from experiments.command_line.known_names import RUN
from experiments.command_line.parser import Parser, add_settings, flag, parse_before_dashes, settings_from
from experiments.command_line.process import run_program
from experiments.command_line.run_config import RunConfig
from experiments.many_runs.cells import Cell, cells, own_flag, refused
from experiments.many_runs.grid_run import run_grid
from experiments.many_runs.slurm import SubmitConfig, lines_of, queue
from experiments.run_files.atomic_file import write_atomically
from experiments.run_files.read_run import is_finished


@dataclass
class GridConfig:
    """The order of the fields is the order of `--help`."""

    backbones: str = flag("resnet50", "names, separated by commas")
    heads: str = flag("deeplab", "names, separated by commas")
    seeds: str = flag("0", "numbers, separated by commas")
    vary: str = flag((), "further settings and their values, such as lr=0.1,0.01 optimizer=sgd,adamw", nargs="+")
    out: str = flag("runs", "folder that run folders are made in: BACKBONE-HEAD-sSEED, and its .log beside it")
    jobs: PositiveInt = flag(1, "runs at a time, which share the cores")
    gpus: str = flag("", "numbers of GPUs to share out among the jobs, such as 0,1,2,3; default: each run sees all")
    skip_refused: bool = flag(False, "leave out pairs that cannot be built, instead of stopping")
    print: bool = flag(False, "print the command of each run that is not finished, and stop")
    slurm: str | None = flag(None, "queue them as an array job; flags of submit.py, such as '--time 4:00:00', or ''")


def main(arguments: list[str] | None = None) -> int:
    """Parse, check every cell, then run those that are left. Returns the exit code: 1 if any cell failed."""
    what = "Run every backbone under every head; after --, flags of run.py."
    parser, config, common = parse_before_dashes("grid.py", what, GridConfig, arguments)
    if own_flag(common):
        parser.error(f"{own_flag(common)} is the grid's own; before --, give --backbones, --heads, --seeds or --out")
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
    gpus = [number for number in config.gpus.split(",") if number]
    return run_program("grid.py", lambda: run_grid(grid, config.jobs, gpus), "the same command continues")


def command(cell: Cell) -> str:
    """What a shell takes."""
    return shlex.join(["python", os.path.relpath(RUN), *cell.arguments])


def queue_left(commands: list[str], file: Path, flags: list[str]) -> int:
    """Write the commands that are left to a file and queue them as one array job."""
    if not commands:
        print("all runs are finished")
        return 0
    parser = Parser(prog="submit.py", description="")
    add_settings(parser, SubmitConfig)
    config = settings_from(parser.parse_args([*flags, "--array", str(file)]), SubmitConfig)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, "\n".join(commands) + "\n")
    return queue(config, lines_of(str(file), parser), parser, fetch)


def fetch(runs: list[RunConfig]) -> None:
    from experiments.training.fetch import fetch as download

    download(runs)


if __name__ == "__main__":
    sys.exit(main())
