"""Compare every architecture with its published figures; no data needed: `python experiments/fidelity.py [NAMES]`.

Lists parameters, GMACs, output stride and receptive field of the last map (by the layers' arithmetic, and measured by
gradient) next to the published figures and their source. An asterisk marks differences. `--pair BACKBONE HEAD`
shows one network layer by layer.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.command_line.console import make_console
from experiments.command_line.kinds import PositiveInt
from experiments.command_line.known_names import names_of, nearest
from experiments.command_line.parser import Parser, flag, positional, settings_from

WIDTH_OF_FILES = 190


@dataclass
class FidelityConfig:
    """The order of the fields is the order of `--help`."""

    names: list[str] = positional("names of backbones; default: all of them, and the segmenters", many=True)
    pair: list[str] | None = flag(None, "a backbone and a head, to show that network layer by layer; default: none")
    image_size: PositiveInt = flag(513, "side of the square input of --pair, in pixels")


def main(arguments: list[str] | None = None) -> int:
    """Parse first and import torch after. Returns the exit code."""
    parser = Parser("fidelity.py", "Compare every architecture with the figures that are published about it.")
    parser.add_settings(FidelityConfig)
    config = settings_from(parser.parse_args(arguments), FidelityConfig)
    for name in config.names:
        if name not in names_of("backbones"):
            parser.error(f"no backbone '{name}'; nearest: {nearest(name, names_of('backbones'))}")
    if config.pair and len(config.pair) != 2:
        parser.error(f"--pair takes a backbone and a head, not {len(config.pair)} names")
    from experiments.analysis.fidelity_report import layer_table, print_report

    console = make_console(WIDTH_OF_FILES)
    if not config.pair:
        print_report(config.names, console)
        return 0
    try:
        backbone, head = config.pair
        layers, summary = layer_table(backbone, head, config.image_size)
    except ValueError as error:
        parser.error(str(error))
    console.print(layers)
    console.print(summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
