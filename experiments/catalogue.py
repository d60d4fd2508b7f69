"""Count what every backbone costs, and write catalogue.json and the README's table: `python experiments/catalogue.py`.

`--check` only compares, and exits with 1 where either is out of date.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from backbones import BACKBONES
from experiments.command_line.known_names import CATALOGUE, ROOT, catalogue
from experiments.command_line.listing import figures, first_lines
from experiments.training.network_cost import classifier_without_weights, network_cost
from heads import HEADS
from heads.head import missing_strides
from lightning_modules.network import refusal

README = ROOT / "README.md"
BEGIN, END = "<!-- backbones: python experiments/catalogue.py -->", "<!-- end of backbones -->"


def entry(name: str) -> dict[str, Any]:
    """Costs with the 1000-class classifier at `input_size`, top1 of the published weights, what can be built."""
    with torch.device("meta"):
        backbone = BACKBONES[name]()
    return {
        **network_cost(classifier_without_weights(name), (backbone.input_size, backbone.input_size)),
        "top1": backbone.published_top1(),
        "output_strides": list(backbone.output_strides),
        "input_size": backbone.input_size,
        "refused": {
            head: refusal(name, head, backbone.reductions)
            for head in HEADS
            if missing_strides(HEADS[head], backbone.reductions)
        },
    }


def markdown(entries: dict[str, dict[str, Any]]) -> str:
    lines = ["| backbone | params | GMACs | top-1 | output strides | input | paper |", "|---|--:|--:|--:|--:|--:|---|"]
    papers = first_lines("backbones")
    lines += [f"| {name} | {' | '.join(figures(one))} | {papers[name]} |" for name, one in entries.items()]
    return "\n".join(lines)


def updated_readme(entries: dict[str, dict[str, Any]]) -> str:
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}\n{markdown(entries)}\n{END}{rest.split(END)[1]}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="catalogue.py", description="Count what every backbone costs.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the files are out of date")
    check = parser.parse_args(arguments).check
    entries = {}
    for number, name in enumerate(BACKBONES, 1):
        print(f"\r{number}/{len(BACKBONES)} {name:24}", end="", file=sys.stderr, flush=True)
        entries[name] = entry(name)
    print(file=sys.stderr)
    if check:
        fresh = catalogue() == entries and updated_readme(entries) == README.read_text(encoding="utf-8")
        print("up to date" if fresh else "out of date: run python experiments/catalogue.py")
        return 0 if fresh else 1
    CATALOGUE.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    README.write_text(updated_readme(entries), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
