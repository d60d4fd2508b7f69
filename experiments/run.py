"""Train any backbone under any head: `python experiments/run.py --backbone resnet101 --head deeplab`."""

import os
import sys
from pathlib import Path

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])


def main(arguments: list[str] | None = None) -> int:
    """Parse first and import torch after: help and usage errors answer at once. Returns the exit code."""
    from experiments.command_line.run_config import parse, to_yaml

    config, asked = parse(arguments)
    if asked.print_config:
        print(to_yaml(config), end="")
        return 0
    if asked.list:
        from experiments.command_line.listing import print_listing

        print_listing()
        return 0
    if asked.matrix:
        from experiments.command_line.listing import print_matrix

        print_matrix()
        return 0
    from experiments.command_line.process import run_program
    from experiments.command_line.quick_imports import quick_imports

    def work() -> int | None:
        if asked.check_data:
            with quick_imports():
                from experiments.training.check_data import check_data

            return check_data(config)
        if asked.find_lr:
            with quick_imports():
                from experiments.training.find_lr import find_lr

            return find_lr(config)
        if asked.smoke:
            with quick_imports():
                from experiments.training.smoke import smoke

            return smoke(config)
        if config.staged:
            with quick_imports():
                from experiments.training.stages import run_stages

            return run_stages(config)
        with quick_imports():
            from experiments.training.train import train

        train(config)
        return None

    try:
        return run_program("run.py", work, "the same command continues")
    finally:
        os.environ.pop("GRAFT_RUN_FOLDER", None)


if __name__ == "__main__":
    sys.exit(main())
