"""The flags of rcnn.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.command_line.kinds import NonNegativeInt, PositiveInt
from experiments.command_line.known_names import dict_keys, names_of, nearest
from experiments.command_line.parser import flag
from experiments.command_line.protocol_flags import run_problem


@dataclass(kw_only=True)
class RCNNConfig:
    """The order of the fields is the order of `--help`."""

    run: str | None = flag(None, "run folder whose backbone is used, whatever its head", path=True, group="network")
    backbone: str | None = flag(None, "instead of a run: a backbone; run.py --list shows all", group="network")
    weights: str = flag("imagenet", "weights of --backbone: imagenet, none or a file", path=True, group="network")
    pooling: Literal["warp", "spp"] = flag(
        "warp", "warp: each proposal is a picture of its own (R-CNN); spp: a pyramid over one map (SPP-net)",
        group="network",
    )  # fmt: skip
    side: PositiveInt = flag(227, "side of warped proposals in pixels, with their margin", group="network")
    bins: list[PositiveInt] = flag((1, 2, 3, 6), "bins along each side of SPP-net's pyramid", group="network")
    data: str = flag("digits", "data set with boxes", group="data")
    data_dir: str | None = flag(None, "folder of the data set; digits needs none", path=True, group="data")
    image_size: list[PositiveInt] | None = flag(
        None, "size of digit scenes, height and width or one number for both; default: the data set's", group="data"
    )
    proposals: str | None = flag(
        None, "selective_search, windows, or an .npz file; default: selective_search", path=True, group="data"
    )
    images: NonNegativeInt = flag(0, "training images that are used at most; 0: all", group="data")
    split: Literal["val", "test"] = flag("val", "split that is scored", group="data")
    workers: NonNegativeInt = flag(2, "processes that look for proposals; 0: this one", group="data")
    seed: NonNegativeInt = flag(0, "random seed", group="data")
    out: str = flag("rcnn", "folder for results.json, and for the features, which a second call reads", path=True)
    device: str = flag("auto", "where the network runs: auto, cpu, cuda, cuda:1, mps", group="hardware")


def rcnn_problem(config: RCNNConfig) -> str | None:
    """What can be known to be wrong before torch is imported."""
    if (config.run is None) == (config.backbone is None):
        return "give one of --run and --backbone"
    if config.run is not None and run_problem(config.run):
        return run_problem(config.run)
    for name, given, known in (
        ("--backbone", config.backbone, names_of("backbones")),
        ("--data", config.data, names_of("datamodules")),
    ):
        if given is not None and given not in known and not given.startswith("timm/"):
            return f"{name}: no {name.strip('-')} '{given}'; nearest: {nearest(given, known)}"
    methods = dict_keys("datamodules/proposals.py", "METHODS")
    if config.proposals is not None and config.proposals not in methods and not Path(config.proposals).is_file():
        return f"--proposals {config.proposals}: no such file (or give {' or '.join(methods)})"
    if config.image_size is not None and len(config.image_size) > 2:
        return f"--image-size takes one number or two, height and width, not {len(config.image_size)}"
    if config.pooling == "warp" and config.side < 32:
        return f"--side is {config.side}; give 32 pixels or more"
    return None
