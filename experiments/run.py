"""Train any backbone under any head: `python experiments/run.py --backbone resnet101 --head deeplab`."""

import os
import sys


def main(arguments: list[str] | None = None) -> int:
    """Parse first and import torch after: help and usage errors answer at once. Returns the exit code."""
    from experiments.config import USAGE_ERROR, parse, to_yaml

    config, asked = parse(arguments)
    if asked.print_config:
        print(to_yaml(config), end="")
        return 0
    if asked.list:
        from experiments.listing import print_listing

        print_listing()
        return 0
    if asked.matrix:
        from experiments.listing import print_matrix

        print_matrix()
        return 0
    # Threads that spin while they wait steal the processor from the loader: several-fold slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        if config.staged:
            from experiments.stages import run_stages

            return run_stages(config)
        if asked.check_data:
            from experiments.check_data import check_data

            return check_data(config)
        from experiments.train import train

        train(config)
    except ValueError as error:
        print(f"run.py: error: {str(error).splitlines()[-1]}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("run.py: stopped; the same command with --resume continues", file=sys.stderr)
        return 130
    finally:
        os.environ.pop("GRAFT_RUN_FOLDER", None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
