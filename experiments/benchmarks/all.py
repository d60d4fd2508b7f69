"""The speed of the CRF, of the loader and of the Trainer, measured again, and their tables in the READMEs rewritten.

    python experiments/benchmarks/all.py --camvid DIR
    python experiments/benchmarks/all.py --camvid DIR --peers

One benchmark after the other, each in a process of its own. Run it with nothing else running. It takes about ten
minutes; networks beside those of other libraries (`--peers`) take fifteen more.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from experiments.command_line.progress import duration

FOLDER = Path(__file__).resolve().parent
NEEDS = {"pydensecrf": "crf_speed.py", "segmentation_models_pytorch": "peers.py"}
"""Packages of the extra `bench`, and what needs them."""


def commands(asked: argparse.Namespace) -> list[list[str]]:
    """The benchmarks, each with its flags."""
    pictures = ["--image", *asked.image, "--annotation", *asked.annotation] if asked.image else []
    found = [
        ["crf_speed.py", "--quick", *pictures],
        ["loader_speed.py", "--camvid", str(asked.camvid)],
        ["trainer_overhead.py"],
    ]
    return [*found, ["peers.py"]] if asked.peers else found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", type=Path, required=True, help="folder of CamVid")
    parser.add_argument("--image", nargs="+", help="photographs for the CRF, besides scikit-learn's")
    parser.add_argument("--annotation", nargs="+", help="their label maps")
    parser.add_argument("--peers", action="store_true", help="also peers.py")
    asked = parser.parse_args()
    if len(asked.image or ()) != len(asked.annotation or ()):
        parser.error("--image and --annotation go together")
    if not (asked.camvid / "train.txt").is_file():
        parser.error(f"--camvid {asked.camvid}: there is no train.txt")
    chosen = commands(asked)
    for package, program in NEEDS.items():
        if program in (command[0] for command in chosen) and importlib.util.find_spec(package) is None:
            parser.error(f"{program} needs {package}; pip install -e '.[bench]'")
    if os.getloadavg()[0] > 0.5:
        print(f"something else is running (load {os.getloadavg()[0]:.1f}); the figures will be worse", file=sys.stderr)
    failed = []
    for number, (program, *flags) in enumerate(chosen, 1):
        print(f"\n{number}/{len(chosen)} {program}", flush=True)
        started = time.monotonic()
        done = subprocess.run([sys.executable, str(FOLDER / program), *flags, "--readme"])
        print(f"{program} took {duration(time.monotonic() - started)}", flush=True)
        failed += [program] * (done.returncode != 0)
    if failed:
        print(f"failed: {', '.join(failed)}; their tables are as before", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
