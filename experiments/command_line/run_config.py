"""run.py's command line: the settings, and what can be asked for instead of training. Imports no torch."""

import argparse
import dataclasses

import yaml

from experiments.command_line.parser import Parser, settings_from
from experiments.command_line.run_checks import usage_problem
from experiments.command_line.run_flags import RunConfig


def build_parser(program: str = "run.py", description: str = "Train any backbone under any head.") -> Parser:
    """The parser of run.py's flags; errors are reported as those of `program`."""
    parser = Parser(program, description)
    parser.add_argument(
        "--config", action="append", metavar="FILE", help="YAML file of settings; flags on the command line win"
    )
    parser.add_argument("--print-config", action="store_true", help="print the settings as YAML and stop")
    parser.add_argument("--list", action="store_true", help="list every backbone, head and data set and stop")
    parser.add_argument("--matrix", action="store_true", help="show which heads fit which backbones and stop")
    parser.add_argument("--check-data", action="store_true", help="report every fault of the data set and stop")
    parser.add_argument(
        "--find-lr", action="store_true", help="try learning rates on the first batches, suggest one and stop"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="train a reduced copy for at most five minutes, report its loss and stop"
    )
    parser.add_settings(RunConfig)
    return parser


def parse(arguments: list[str] | None = None, program: str = "run.py") -> tuple[RunConfig, argparse.Namespace]:
    """The settings, and a namespace with `print_config`, `list`, `matrix`, `check_data`, `find_lr` and `smoke`.

    Exits with 2 on a usage error.
    """
    parser = build_parser(program)
    namespace = parser.parse_args(arguments)
    config = settings_from(namespace, RunConfig)
    problem = usage_problem(config)
    if problem and not (namespace.list or namespace.matrix):
        parser.error(problem)
    return config, namespace


def to_yaml(config: RunConfig) -> str:
    """The settings as a file that `--config` takes."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)
