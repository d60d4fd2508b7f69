"""R-CNN and SPP-net on any backbone: `python experiments/rcnn.py --run runs/a --out rcnn`.

Proposals are described by a network that stays as it is, classified by support vector machines and corrected by ridge
regression, as detection was done before it was trained end to end (Girshick et al. 2013, arXiv:1311.2524; He et al.
2014, arXiv:1406.4729). `--pooling warp` is R-CNN, `--pooling spp` is SPP-net. Differences from the papers: the network
is not fine-tuned on proposals here, so take one that was trained for these classes; SPP-net's features go to the
machines without fc6 and fc7, at one scale.
"""

import sys
from pathlib import Path

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.command_line.parser import Parser, settings_from
from experiments.command_line.process import run_program
from experiments.command_line.rcnn_flags import RCNNConfig, rcnn_problem


def main(arguments: list[str] | None = None) -> int:
    """Parse first and import torch after. Returns the exit code."""
    parser = Parser("rcnn.py", "R-CNN and SPP-net: proposals, a network that stays as it is, support vector machines.")
    parser.add_settings(RCNNConfig)
    config = settings_from(parser.parse_args(arguments), RCNNConfig)
    problem = rcnn_problem(config)
    if problem:
        parser.error(problem)

    def work() -> None:
        from experiments.region_svms.fit_and_score import fit_and_score

        fit_and_score(config)

    return run_program("rcnn.py", work, "the same command goes on with the features that it has")


if __name__ == "__main__":
    sys.exit(main())
