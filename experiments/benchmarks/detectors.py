"""Every head that detects on several backbones, on digit scenes: `python experiments/benchmarks/detectors.py --readme`.

Trains each pair as an ordinary run of grid.py, so the same command goes on where it was stopped, and prints a table of
test scores and minutes. The heads differ from their defaults as far as digits of 20 to 40 pixels need, and in width, so
that two CPU cores train each within ten minutes. fasterrcnn_c4 is not among them: it sends each region through the last
stage of the network, which takes an hour on a ResNet.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from experiments.command_line.known_names import RUN
from experiments.run_files.generated_part import replace_part

README = RUN.with_name("README.md")
HEADS = {
    "fcos": ["--head-options", "{width: 128, scale: 0.5, score_threshold: 0.05}"],
    "retinanet": ["--head-options", "{width: 128, anchor_scale: 3, norm: true}"],
    "ssd": ["--head-options", "{width: 128, side: 64, scales: [0.3, 0.45, 0.6, 0.7, 0.8, 0.9, 1.05]}"],
    "yolov1": ["--output-stride", "8", "--head-options", "{grid: 4, stride: 1, width: 128, hidden: 512}"],
    "fastrcnn": ["--output-stride", "8", "--head-options", "{hidden: 256}"],
    "fasterrcnn": ["--head-options", "{width: 128, hidden: 256, anchor_scale: 6, regions: 64}"],
    "fasterrcnn_dc5": ["--head-options", "{anchor_scales: [1.5, 2], hidden: 256, regions: 32}"],
    "maskrcnn": ["--head-options", "{width: 128, hidden: 256, anchor_scale: 6, regions: 32}"],
}
"""The heads, each with its flags."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", default="resnet18,googlenet,mobilenet_v2")
    parser.add_argument("--heads", default=",".join(HEADS))
    parser.add_argument("--epochs", default="10")
    parser.add_argument("--jobs", default="1", help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/detectors"), help="folder of the runs")
    parser.add_argument("--readme", action="store_true", help="write the table into experiments/README.md")
    asked = parser.parse_args()
    heads, backbones = asked.heads.split(","), asked.backbones.split(",")
    for head in heads:
        grid = [sys.executable, str(RUN.with_name("grid.py")), "--backbones", asked.backbones, "--heads", head]
        grid += ["--jobs", asked.jobs, "--out", str(asked.out)]
        subprocess.run([*grid, "--", "--epochs", asked.epochs, *HEADS[head]], check=True)
    text = table(asked.out, heads, backbones)
    print(text)
    if asked.readme:
        replace_part(README, "detectors.py", text)


def table(out: Path, heads: list[str], backbones: list[str]) -> str:
    """A row for each head; a cell holds mAP at IoU 0.5, mAP by COCO's rule and the minutes of a run."""
    lines = ["| head | " + " | ".join(backbones) + " |", "|---|" + "--:|" * len(backbones)]
    for head in heads:
        cells = [cell(out / f"{backbone}-{head}-s0" / "results.json") for backbone in backbones]
        lines.append(f"| {head} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(results: Path) -> str:
    found = json.loads(results.read_text(encoding="utf-8"))
    scores = found["scores"]["test"]
    return f"**{scores['map50']:.3f}** / {scores['map']:.3f}, {found['wall_time_s'] / 60:.1f} min"


if __name__ == "__main__":
    main()
