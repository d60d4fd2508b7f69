"""Count what every backbone costs, and write catalogue.json and the table of backbones: `experiments/catalogue.py`.

READMEs hold two generated parts between comments: the table, and how many pairs of a backbone and a head work.
`--check` only compares, and exits with 1 if a file is out of date.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.command_line.known_names import CATALOGUE, ROOT, names_of
from experiments.command_line.listing import descriptions, table_cells
from experiments.command_line.parser import Parser, flag, settings_from

READMES = ("README.md", "backbones/README.md", "heads/README.md", "experiments/README.md")
"""Files that may hold generated parts."""
TABLE = ("<!-- backbones: python experiments/catalogue.py -->\n", "\n<!-- end of backbones -->")
PAIRS = ("<!-- pairs -->", "<!-- end of pairs -->")
Entries = dict[str, dict[str, Any]]
"""Costs and other figures of each backbone, by name."""


@dataclass
class CatalogueConfig:
    check: bool = flag(False, "write nothing; exit with 1 if a file is out of date")


def main(arguments: list[str] | None = None) -> int:
    """Parse first and import torch after. Returns the exit code."""
    parser = Parser("catalogue.py", "Count what every backbone costs.")
    parser.add_settings(CatalogueConfig)
    check = settings_from(parser.parse_args(arguments), CatalogueConfig).check
    fresh = contents(count_all())
    outdated = [path for path, text in fresh.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if check:
        names = ", ".join(str(path.relative_to(ROOT)) for path in outdated)
        print(f"out of date: {names}; run python experiments/catalogue.py" if outdated else "up to date")
        return int(bool(outdated))
    for path in outdated:
        path.write_text(fresh[path], encoding="utf-8")
    return 0


def count_all() -> Entries:
    from backbones import BACKBONES

    entries = {}
    for number, name in enumerate(BACKBONES, 1):
        print(f"\r{number}/{len(BACKBONES)} {name:24}", end="", file=sys.stderr, flush=True)
        entries[name] = entry(name)
    print(file=sys.stderr)
    return entries


def entry(name: str) -> dict[str, Any]:
    """Count one backbone.

    Parameters and GMACs with a 1000-class classifier at `input_size`, top-1 of the published weights, the supported
    output strides, and why heads that do not fit are refused.
    """
    import torch

    from backbones import BACKBONES
    from experiments.training.network_cost import classifier_without_weights, network_cost
    from heads import HEADS
    from lightning_modules.network import fits, refusal

    with torch.device("meta"):
        backbone = BACKBONES[name]()
    return {
        **network_cost(classifier_without_weights(name), (backbone.input_size, backbone.input_size)),
        "top1": backbone.published_top1(),
        "output_strides": list(backbone.output_strides),
        "input_size": backbone.input_size,
        "refused": {head: refusal(name, head, backbone) for head in HEADS if not fits(HEADS[head], backbone)},
    }


def contents(entries: Entries) -> dict[Path, str]:
    """The contents that each generated file should have."""
    pairs = len(entries) * len(names_of("heads"))
    working = pairs - sum(len(one["refused"]) for one in entries.values())
    texts = {CATALOGUE: json.dumps(entries, indent=1) + "\n"}
    for path in (ROOT / name for name in READMES):
        if path.is_file():
            text = replaced(path.read_text(encoding="utf-8"), TABLE, table(entries))
            texts[path] = replaced(text, PAIRS, f"{working:,} of {pairs:,}")
    return texts


def table(entries: Entries) -> str:
    lines = ["| backbone | params | GMACs | top-1 | output strides | input | paper |", "|---|--:|--:|--:|--:|--:|---|"]
    papers = descriptions("backbones")
    lines += [f"| {name} | {' | '.join(table_cells(one))} | {papers[name]} |" for name, one in entries.items()]
    return "\n".join(lines)


def replaced(text: str, marks: tuple[str, str], part: str) -> str:
    """The text with another part between the marks, if it has them."""
    before, begin, rest = text.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    return f"{before}{begin}{part}{end}{after}" if begin and end else text


if __name__ == "__main__":
    sys.exit(main())
