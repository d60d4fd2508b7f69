"""Hold every architecture against what is published of it; no data needed: `python experiments/fidelity.py [NAMES]`.

Parameters, GMACs, output stride and receptive field of the last map (the layers' arithmetic, and measured by gradient)
stand beside the published figures and their source; what differs is marked with an asterisk. `--pair BACKBONE HEAD`
shows one network layer by layer.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.command_line.known_names import names_of, nearest


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fidelity.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="backbones; default: all, and the segmenters")
    parser.add_argument("--pair", nargs=2, metavar=("BACKBONE", "HEAD"), help="one network, layer by layer")
    parser.add_argument("--image-size", type=int, default=513, metavar="PIXELS", help="of --pair; default 513")
    asked = parser.parse_args(arguments)
    for name in asked.names:
        if name not in names_of("backbones"):
            parser.error(f"no backbone '{name}'; nearest: {nearest(name, names_of('backbones'))}")
    if asked.image_size < 1:
        parser.error(f"--image-size is {asked.image_size}; it must be 1 or more")
    from rich.console import Console

    from experiments.analysis.fidelity_report import pair, print_report

    console = Console(width=None if sys.stdout.isatty() else 190)
    if not asked.pair:
        print_report(asked.names, console)
        return 0
    try:
        backbone, head = asked.pair
        layers, summary = pair(backbone, head, asked.image_size)
    except ValueError as error:
        parser.error(str(error))
    console.print(layers)
    console.print(summary, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
