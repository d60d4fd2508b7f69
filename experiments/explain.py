"""Explain a trained network: `python experiments/explain.py runs/a photos/ --method gradcam --out explanations`.

Grad-CAM, occlusion, ZFNet's deconvnet, the pictures that excite a unit most, first-layer filters,
squeeze-and-excitation gates by class, effective receptive fields, and the beliefs of a CRF after each iteration. Every
picture has a JSON file of its numbers beside it. Without pictures, the run's own validation data are used.
"""

import sys
from pathlib import Path

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.command_line.explain_flags import ExplainFlags, explain_problem
from experiments.command_line.parser import Parser, settings_from
from experiments.command_line.process import run_program
from experiments.command_line.quick_imports import quick_imports


def main(arguments: list[str] | None = None) -> int:
    """Parse first and import torch after. Returns the exit code: 1 if a picture could not be explained."""
    parser = Parser("explain.py", "Draw what a trained network sees.")
    parser.add_settings(ExplainFlags)
    flags = settings_from(parser.parse_args(arguments), ExplainFlags)
    problem = explain_problem(flags)
    if problem:
        parser.error(problem)
    return run_program("explain.py", lambda: explain(flags), "what was written is complete")


def explain(flags: ExplainFlags) -> int:
    with quick_imports():
        from experiments.explaining.examples import Examples
        from experiments.explaining.explanation import write
        from experiments.explaining.methods import METHODS
        from experiments.inference.protocol import device_of
        from experiments.inference.trained import load

    network = load(flags.run, device_of(flags.device))
    examples = Examples(network, flags)
    out, written = Path(flags.out), 0
    for explanation in METHODS[flags.method](network, examples, flags):
        print(write(explanation, out, flags), flush=True)
        written += 1
    for line in examples.problems:
        print(f"not explained: {line}", file=sys.stderr)
    print(f"{out}/: {written} pictures, each with its numbers in a JSON file of the same name", flush=True)
    return int(bool(examples.problems))


if __name__ == "__main__":
    sys.exit(main())
