"""Find boxes that may hold an object, without a network: `python experiments/propose.py --data coco --data-dir DIR`.

run.py does so by itself under a head that classifies such boxes, and keeps the result in the cache folder. This program
writes a file that can be copied to another machine (`run.py --proposals FILE`), and says how many of the objects some
box of the file covers.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.command_line.kinds import NonNegativeInt, PositiveInt
from experiments.command_line.known_names import names_of, nearest
from experiments.command_line.parser import Parser, flag, settings_from
from experiments.command_line.process import run_program

if TYPE_CHECKING:
    from datamodules.base import GraftDataModule


@dataclass(kw_only=True)
class ProposeConfig:
    """The order of the fields is the order of `--help`."""

    data: str = flag("digits", "data set with boxes")
    data_dir: str | None = flag(None, "folder of the data set; digits needs none", path=True)
    image_size: list[PositiveInt] | None = flag(
        None, "size of digit scenes, height and width or one number for both; default: the data set's"
    )
    seed: NonNegativeInt = flag(0, "random seed of digit scenes")
    method: Literal["selective_search", "windows"] = flag(
        "selective_search", "selective search, which takes seconds an image, or sliding windows"
    )
    workers: NonNegativeInt = flag(2, "processes that look for boxes; 0: this one")
    out: str = flag("proposals.npz", "file to write", path=True)


def main(arguments: list[str] | None = None) -> int:
    """Parse first and import torch after. Returns the exit code."""
    parser = Parser("propose.py", "Find boxes that may hold an object, for --proposals of run.py.")
    parser.add_settings(ProposeConfig)
    config = settings_from(parser.parse_args(arguments), ProposeConfig)
    problem = usage_problem(config)
    if problem:
        parser.error(problem)
    return run_program("propose.py", lambda: propose(config), "the same command goes on with the boxes that it has")


def usage_problem(config: ProposeConfig) -> str | None:
    """What can be known to be wrong before torch is imported."""
    known = names_of("datamodules")
    if config.data not in known:
        return f"--data: no data set '{config.data}'; nearest: {nearest(config.data, known)}"
    if config.data_dir is not None and not Path(config.data_dir).is_dir():
        return f"--data-dir {config.data_dir}: no such folder"
    if config.image_size is not None and len(config.image_size) > 2:
        return f"--image-size takes one number or two, height and width, not {len(config.image_size)}"
    if not config.out.endswith(".npz"):
        return f"--out {config.out}: give a file that ends in .npz"
    return None


def propose(config: ProposeConfig) -> int:
    from datamodules import DATAMODULES
    from datamodules.proposals import write

    size = (config.image_size[0], config.image_size[-1]) if config.image_size else None
    data = DATAMODULES[config.data](
        "detection", data_dir=config.data_dir, image_size=size, workers=config.workers, seed=config.seed, batch_size=1,
        proposals=config.method,
    )  # fmt: skip
    data.setup()
    if not write(Path(config.out), {split: found.boxes for split, found in data.found.items()}):
        raise ValueError(f"--out {config.out} cannot be written; give another folder")
    for split in data.splits:
        print(f"{split}: {covered(data, split)}")
    print(config.out)
    return 0


def covered(data: "GraftDataModule", split: str) -> str:
    """How well the boxes of a split cover its objects, in words."""
    import numpy as np

    from experiments.analysis.proposal_recall import overlaps_of

    best, counts = overlaps_of(getattr(data, split))
    if not len(best):
        return f"{np.mean(counts):.0f} boxes an image; no objects"
    recalls = ", ".join(f"{(best >= overlap).mean():.3f} by IoU {overlap:g}" for overlap in (0.5, 0.7))
    return f"{np.mean(counts):.0f} boxes an image; they cover {recalls} of {len(best)} objects; mean {best.mean():.3f}"


if __name__ == "__main__":
    sys.exit(main())
