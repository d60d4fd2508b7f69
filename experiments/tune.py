"""Search settings of run.py with Optuna: `python experiments/tune.py --search lr=log:1e-4:1e-1 optimizer=sgd,adamw`.

Arguments of run.py that all trials share follow after `--`. The same command again continues the study in `--out`.
"""

import importlib.util
import sys
from pathlib import Path

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.command_line.parser import dashed, parse_before_dashes, settings_from
from experiments.command_line.process import run_program
from experiments.command_line.run_checks import usage_problem
from experiments.command_line.run_config import build_parser
from experiments.command_line.run_flags import RunConfig
from experiments.many_runs.cells import own_flag
from experiments.many_runs.child_runs import slots
from experiments.many_runs.search_space import FIXED, Axis, TuneConfig, read_axis


def main(arguments: list[str] | None = None) -> int:
    """Parse, check the search space, then run trials. Returns the exit code: 1 if none finished."""
    what = "Search settings of run.py with Optuna; after --, flags of run.py."
    parser, config, common = parse_before_dashes("tune.py", what, TuneConfig, arguments)
    taken = own_flag(common, FIXED)
    if taken:
        parser.error(f"{taken} is set for each trial by tune.py; leave it out")
    try:
        axes = [read_axis(one) for one in config.search]
        shares = slots(config.jobs, config.gpus)
    except ValueError as error:
        parser.error(str(error))
    if config.gpus and own_flag([*common, *(f"--{axis.name}" for axis in axes)], ("devices",)):
        parser.error(f"--devices: --gpus {config.gpus} gives each job {shares[0].arguments[1]}; leave --devices out")
    if not axes:
        parser.error("--search: name at least one setting, such as --search lr=log:1e-4:1e-1")
    problem = space_problem(axes, common)
    if problem:
        parser.error(problem)
    if importlib.util.find_spec("optuna") is None:
        parser.error("Optuna is not installed; pip install 'graft[tune]'")

    def work() -> int:
        from experiments.many_runs.study import run_study

        return run_study(config, axes, common, shares)

    return run_program("tune.py", work, "the same command continues")


def space_problem(axes: list[Axis], common: list[str]) -> str | None:
    """Why run.py would refuse a setting or a value of an axis, or None; checks what can be checked without torch."""
    reader = build_parser("tune.py")
    for axis in axes:
        for value in axis.to_check():
            first = [f"{dashed(other.name)}={other.to_check()[0]}" for other in axes]
            parsed = reader.parse_args([*common, *first, f"{dashed(axis.name)}={value}"])
            problem = usage_problem(settings_from(parsed, RunConfig))
            if problem:
                return problem
    return None


if __name__ == "__main__":
    sys.exit(main())
