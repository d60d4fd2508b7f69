"""Downloads what runs need, on a machine that has a network, before they start elsewhere."""

from backbones import find_backbone
from experiments.command_line.run_config import RunConfig
from experiments.training.build import build_data


def fetch(runs: list[RunConfig]) -> None:
    """Download the published weights and the data sets that the runs ask for."""
    for run in runs:
        if run.weights == "imagenet":
            find_backbone(run.backbone)(weights="imagenet")
        if run.download:
            build_data(run).sources()
