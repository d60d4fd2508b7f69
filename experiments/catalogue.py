"""Count what every backbone costs, and write catalogue.json and the README's table: `python experiments/catalogue.py`.

`--check` only compares, and exits with 1 where either is out of date.
"""

import json
import sys
from typing import Any

import torch
from torch import nn

from backbones import BACKBONES
from backbones.backbone import Backbone
from experiments.cost import cost
from experiments.listing import CATALOGUE, ROOT, catalogue, figures, first_lines

README = ROOT / "README.md"
BEGIN, END = "<!-- backbones: python experiments/catalogue.py -->", "<!-- end of backbones -->"


class Classified(nn.Module):
    """A backbone with its published classifier, as its paper counts parameters."""

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = backbone.classifier(num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.backbone(x)[-1])


def entry(name: str) -> dict[str, Any]:
    """params with the 1000-class classifier, gmacs at `input_size`, top1 of the published weights, output_strides."""
    build = BACKBONES[name]
    with torch.device("meta"):
        backbone = build()
        network = Classified(backbone, 1000)
    size = (backbone.input_size, backbone.input_size)
    return {
        **cost(network, size),
        "top1": backbone.published_top1(),
        "output_strides": list(backbone.output_strides),
        "input_size": backbone.input_size,
        "reductions": list(backbone.reductions),
    }


def markdown(entries: dict[str, dict[str, Any]]) -> str:
    lines = ["| backbone | params | GMACs | top-1 | output strides | input | paper |", "|---|--:|--:|--:|--:|--:|---|"]
    papers = first_lines("backbones")
    lines += [f"| {name} | {' | '.join(figures(one))} | {papers[name]} |" for name, one in entries.items()]
    return "\n".join(lines)


def updated_readme(entries: dict[str, dict[str, Any]]) -> str:
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}\n{markdown(entries)}\n{END}{rest.split(END)[1]}"


def main(arguments: list[str]) -> int:
    entries = {}
    for number, name in enumerate(BACKBONES, 1):
        print(f"\r{number}/{len(BACKBONES)} {name:24}", end="", file=sys.stderr, flush=True)
        entries[name] = entry(name)
    print(file=sys.stderr)
    if "--check" in arguments:
        fresh = catalogue() == entries and updated_readme(entries) == README.read_text(encoding="utf-8")
        print("up to date" if fresh else "out of date: run python experiments/catalogue.py")
        return 0 if fresh else 1
    CATALOGUE.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    README.write_text(updated_readme(entries), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
