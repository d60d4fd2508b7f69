"""Flags of explain.py: which network, which pictures, which explanation, and of what."""

from dataclasses import dataclass
from typing import Literal

from experiments.command_line.crf_settings import crf_settings_problem
from experiments.command_line.kinds import NonNegativeInt, PositiveInt
from experiments.command_line.parser import flag, positional
from experiments.command_line.protocol_flags import out_problem, run_problem

Method = Literal["gradcam", "occlusion", "deconvnet", "activations", "filters", "se_gates", "receptive_field", "crf"]
FOR_TARGET = ("gradcam", "occlusion", "crf")
FOR_LAYER = ("gradcam", "deconvnet", "activations", "receptive_field")
FOR_UNIT = ("deconvnet", "activations")
FOR_CHECK = ("gradcam", "occlusion", "deconvnet")
"""The methods that take the flags of each kind."""


@dataclass(kw_only=True)
class ExplainFlags:
    """The order of the fields is the order of `--help`."""

    run: str = positional("run folder, or a checkpoint of one", path=True)
    inputs: list[str] = positional(
        "files, folders, patterns, lists of files (.txt), videos; none takes the run's own data", many=True
    )
    method: Method = flag(
        "gradcam",
        "kind of explanation: gradcam, occlusion, deconvnet, activations, filters, se_gates, receptive_field, crf",
        group="what",
    )
    target: str | None = flag(
        None, "class, by name or number; default: the network's first choice for each picture", group="what"
    )
    region: list[NonNegativeInt] | None = flag(
        None, "pixels to explain in a segmentation: X Y of one, or LEFT TOP RIGHT BOTTOM of a box", group="what"
    )
    layer: str | None = flag(
        None, "map of the backbone, 1 is the finest, or a layer by name; default: the last convolution", group="what"
    )
    unit: list[NonNegativeInt] | None = flag(
        None, "channels of the layer, from 0; default: those that respond most strongly", group="what"
    )
    sanity_check: bool = flag(
        False, "repeat with random weights; an explanation that stays the same explains nothing", group="what"
    )
    patch: PositiveInt | None = flag(
        None, "side in pixels of the grey patch of occlusion; default: a quarter of the picture", group="what"
    )
    step: PositiveInt | None = flag(
        None, "pixels between neighbouring patches of occlusion; default: a quarter of the patch", group="what"
    )
    crf_settings: str | None = flag(
        None, "CRF: a preset of heads/crf.py or a YAML file; default: the run's own", path=True, group="what"
    )
    masks: str | None = flag(
        None, "folder of true masks with the names of the pictures, to score the CRF", path=True, group="data"
    )
    split: Literal["train", "val", "test"] = flag("val", "split of the run's own data", group="data")
    data_dir: str | None = flag(None, "folder of the data set; default: where the run had it", path=True, group="data")
    limit: PositiveInt | None = flag(
        None, "use N pictures, spread evenly; default: all inputs, 8 or 256 of the run's own data", group="data"
    )
    out: str = flag("explanations", "folder that results are written to", path=True, group="results")
    batch_size: PositiveInt = flag(32, "occluded pictures in a batch", group="hardware")
    device: str = flag("auto", "where the network runs: auto, cpu, cuda, cuda:1, mps", group="hardware")


def explain_problem(flags: ExplainFlags) -> str | None:
    """What can be known to be wrong before torch is imported."""
    for name, given, methods in (
        ("--target", flags.target, FOR_TARGET),
        ("--region", flags.region, FOR_TARGET[:2]),
        ("--layer", flags.layer, FOR_LAYER),
        ("--unit", flags.unit, FOR_UNIT),
        ("--sanity-check", flags.sanity_check or None, FOR_CHECK),
        ("--patch", flags.patch, ("occlusion",)),
        ("--step", flags.step, ("occlusion",)),
        ("--crf-settings", flags.crf_settings, ("crf",)),
        ("--masks", flags.masks, ("crf",)),
    ):
        if given is not None and flags.method not in methods:
            return f"{name} is for --method {' or '.join(methods)}, not for {flags.method}"
    if flags.region is not None and len(flags.region) not in (2, 4):
        return f"--region takes two numbers, X Y, or four, LEFT TOP RIGHT BOTTOM; it has {len(flags.region)}"
    if flags.masks is not None and not flags.inputs:
        return "--masks belongs to pictures that are named; the run's own data has its own masks"
    crf_problem = crf_settings_problem(flags.crf_settings) if flags.crf_settings is not None else None
    return run_problem(flags.run) or crf_problem or out_problem(flags.out)
